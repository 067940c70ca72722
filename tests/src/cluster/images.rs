//! The images that a cluster cannot do without, from programs of the same Go modules.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::PathBuf,
};

use anyhow::{Context, Result};
use weir_oci::{Image, Layer, Platform};

use super::{
    DNS_IMAGE, PAUSE_IMAGE,
    binaries::{Binaries, Tool},
};

/// What Kubernetes' own suite calls its image, as `e2e.test --list-images` prints it.
pub const UPSTREAM_AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";

/// Archives of agnhost, which holds pods' namespaces and is what test pods run, and of CoreDNS. Made once per build of the
/// programs.
///
/// # Errors
/// The file system's.
pub fn archives(binaries: &Binaries) -> Result<Vec<PathBuf>> {
    Ok(vec![
        archive(binaries, Tool::Agnhost, &[PAUSE_IMAGE, UPSTREAM_AGNHOST], &["pause"])?,
        archive(binaries, Tool::CoreDns, &[DNS_IMAGE], &[])?,
    ])
}

fn archive(binaries: &Binaries, tool: Tool, names: &[&str], command: &[&str]) -> Result<PathBuf> {
    let path = binaries.directory().join(format!("{}.tar", tool.name()));
    if path.is_file() {
        return Ok(path);
    }
    let program = binaries.path(tool);
    let content = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let entry = format!("/{}", tool.name());
    let mut layer = Layer::default();
    layer.file(&entry, 0o755, content)?;
    layer.directory("/tmp", 0o1777)?;
    let platform = Platform::host().context("images are made for amd64 and arm64 alone")?;
    let (first, others) = names.split_first().context("an image without a name")?;
    let mut image = Image {
        entrypoint: vec![entry],
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..Image::new(first.parse()?, platform, layer)
    };
    for name in others {
        image.references.push(name.parse()?);
    }
    // Named when it is whole; several processes may be at it.
    let half = path.with_extension(format!("tar.{}", std::process::id()));
    let file = File::create(&half).with_context(|| format!("make {}", half.display()))?;
    image
        .write(BufWriter::new(file))
        .with_context(|| format!("write {}", half.display()))?;
    fs::rename(&half, &path).with_context(|| format!("move {}", half.display()))?;
    Ok(path)
}
