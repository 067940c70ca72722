//! The JSON documents of an image.
//!
//! Fields in the order in which they are written; maps are sorted. So the bytes depend on the content alone.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    Image, Reference,
    blob::{Blob, Digest},
    layer::Packed,
};

pub const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What containerd calls an image that it imports.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What other tools (skopeo, podman) call it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<PlatformDocument>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

impl Descriptor {
    fn of(blob: &Blob, media_type: &'static str) -> Self {
        Self {
            media_type,
            digest: blob.digest,
            size: blob.content.len(),
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

#[derive(Serialize)]
struct PlatformDocument {
    architecture: &'static str,
    os: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: [Descriptor; 1],
}

#[derive(Serialize)]
struct Config<'a> {
    architecture: &'static str,
    os: &'static str,
    config: Execution<'a>,
    rootfs: RootFs,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Execution<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    entrypoint: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    cmd: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: [Digest; 1],
}

/// An entry of `manifest.json`, by which Docker and minikube find an image in an archive.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest<'a> {
    config: String,
    repo_tags: &'a [Reference],
    layers: [String; 1],
}

impl Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

pub fn config(image: &Image, layer: &Packed) -> Result<Blob, serde_json::Error> {
    let variables = image.environment.iter();
    blob(&Config {
        architecture: image.platform.architecture(),
        os: "linux",
        config: Execution {
            env: variables.map(|(name, value)| format!("{name}={value}")).collect(),
            entrypoint: &image.entrypoint,
            cmd: &image.command,
            labels: &image.labels,
        },
        rootfs: RootFs {
            kind: "layers",
            diff_ids: [layer.diff_id],
        },
    })
}

pub fn manifest(config: &Blob, layer: &Packed) -> Result<Blob, serde_json::Error> {
    blob(&Manifest {
        schema_version: 2,
        media_type: MANIFEST,
        config: Descriptor::of(config, CONFIG),
        layers: [Descriptor::of(&layer.blob, LAYER)],
    })
}

/// One entry for each name of the image.
pub fn index(image: &Image, manifest: &Blob) -> Result<Vec<u8>, serde_json::Error> {
    let manifests = image.references.iter().map(|reference| Descriptor {
        platform: Some(PlatformDocument {
            architecture: image.platform.architecture(),
            os: "linux",
        }),
        annotations: [CONTAINERD_NAME, REF_NAME]
            .map(|annotation| (annotation, reference.to_string()))
            .into(),
        ..Descriptor::of(manifest, MANIFEST)
    });
    serde_json::to_vec(&Index {
        schema_version: 2,
        media_type: INDEX,
        manifests: manifests.collect(),
    })
}

pub fn docker_manifest(image: &Image, config: &Blob, layer: &Packed) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&[DockerManifest {
        config: config.path(),
        repo_tags: &image.references,
        layers: [layer.blob.path()],
    }])
}

fn blob(document: &impl Serialize) -> Result<Blob, serde_json::Error> {
    serde_json::to_vec(document).map(Blob::new)
}
