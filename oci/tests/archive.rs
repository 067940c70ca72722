//! An archive read back, as an importer reads it.

use std::{
    collections::BTreeMap,
    error::Error,
    io::{Cursor, Read},
};

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use weir_oci::{Image, Layer, Platform};

type Files = BTreeMap<String, Vec<u8>>;

fn image() -> Result<Image, weir_oci::Error> {
    let mut layer = Layer::default();
    layer.file("/usr/bin/weir", 0o755, vec![7; 100_000])?;
    layer.file("/LICENSE", 0o644, b"words".to_vec())?;
    layer.link("/weir", "usr/bin/weir")?;
    Ok(Image {
        references: vec!["localhost/weir:1".parse()?, "registry.example/weir:latest".parse()?],
        entrypoint: vec!["/usr/bin/weir".into()],
        command: vec!["agent".into()],
        environment: [("PATH".into(), "/usr/bin".into())].into(),
        labels: [("org.opencontainers.image.title".into(), "weir".into())].into(),
        ..Image::new("localhost/weir:1".parse()?, Platform::LinuxArm64, layer)
    })
}

fn files(tar: &[u8]) -> Result<Files, Box<dyn Error>> {
    let mut files = Files::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(entry.path()?.display().to_string(), content);
    }
    Ok(files)
}

/// The blob that a descriptor names, after holding it against the descriptor.
fn blob<'a>(files: &'a Files, descriptor: &Value) -> Result<&'a [u8], Box<dyn Error>> {
    let digest = descriptor["digest"].as_str().ok_or("no digest")?;
    let hex = digest.strip_prefix("sha256:").ok_or("no SHA-256")?;
    let content = files.get(&format!("blobs/sha256/{hex}")).ok_or("the blob is missing")?;
    assert_eq!(hex_of(content), hex);
    assert_eq!(descriptor["size"], content.len());
    Ok(content)
}

fn hex_of(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn an_archive_holds_what_its_documents_say() -> Result<(), Box<dyn Error>> {
    let mut archive = Vec::new();
    let digest = image()?.write(&mut archive)?;
    let files = files(&archive)?;
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);

    let index: Value = serde_json::from_slice(&files["index.json"])?;
    let names = ["localhost/weir:1", "registry.example/weir:latest"];
    let entries = index["manifests"].as_array().ok_or("no manifests")?;
    assert_eq!(entries.len(), names.len());
    for (entry, name) in entries.iter().zip(names) {
        assert_eq!(entry["annotations"]["io.containerd.image.name"], name);
        assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], name);
        assert_eq!(entry["digest"], digest.to_string());
        assert_eq!(entry["platform"], json!({"architecture": "arm64", "os": "linux"}));
    }

    let manifest: Value = serde_json::from_slice(blob(&files, &entries[0])?)?;
    let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])?)?;
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(
        config["config"],
        json!({
            "Entrypoint": ["/usr/bin/weir"],
            "Cmd": ["agent"],
            "Env": ["PATH=/usr/bin"],
            "Labels": {"org.opencontainers.image.title": "weir"},
        })
    );

    let layer = blob(&files, &manifest["layers"][0])?;
    let mut tar = Vec::new();
    GzDecoder::new(layer).read_to_end(&mut tar)?;
    assert_eq!(
        config["rootfs"]["diff_ids"],
        json!([format!("sha256:{}", hex_of(&tar))])
    );

    let docker: Value = serde_json::from_slice(&files["manifest.json"])?;
    assert_eq!(docker[0]["RepoTags"], json!(names));
    assert_eq!(files[docker[0]["Layers"][0].as_str().ok_or("no layer")?], layer);
    Ok(())
}

#[test]
fn a_layer_belongs_to_root_and_knows_no_time() -> Result<(), Box<dyn Error>> {
    let mut archive = Vec::new();
    image()?.write(&mut archive)?;
    let files = files(&archive)?;
    let docker: Value = serde_json::from_slice(&files["manifest.json"])?;
    let layer = &files[docker[0]["Layers"][0].as_str().ok_or("no layer")?];
    let mut seen = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(Cursor::new(layer))).entries()? {
        let entry = entry?;
        let header = entry.header();
        assert_eq!((header.uid()?, header.gid()?, header.mtime()?), (0, 0, 0));
        seen.push((entry.path()?.display().to_string(), header.mode()?));
    }
    let expected = [
        ("LICENSE", 0o644),
        ("usr/", 0o755),
        ("usr/bin/", 0o755),
        ("usr/bin/weir", 0o755),
        ("weir", 0o777),
    ];
    assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode)));
    Ok(())
}

#[test]
fn the_same_image_is_the_same_bytes() -> Result<(), Box<dyn Error>> {
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let digests = [image()?.write(&mut one)?, image()?.write(&mut other)?];
    assert_eq!(digests[0], digests[1]);
    assert!(one == other, "two archives of one image differ");
    Ok(())
}
