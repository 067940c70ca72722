//! Container images, written as OCI archives without a container engine.
//!
//! The same input gives the same bytes, on every machine: entries are sorted, belong to root, and carry no time; the
//! compressor is linked in. So two builds of one commit have one digest.
//!
//! ```
//! # fn main() -> Result<(), weir_oci::Error> {
//! use weir_oci::{Image, Layer, Platform};
//!
//! let mut layer = Layer::default();
//! layer.file("/usr/bin/hello", 0o755, b"\x7fELF".to_vec())?;
//! let image = Image {
//!     entrypoint: vec!["/usr/bin/hello".into()],
//!     ..Image::new("localhost/hello:1".parse()?, Platform::LinuxAmd64, layer)
//! };
//! let digest = image.write(std::io::sink())?;
//! assert!(digest.to_string().starts_with("sha256:"));
//! # Ok(())
//! # }
//! ```

mod archive;
mod blob;
mod document;
mod layer;
mod platform;
mod reference;

use std::{collections::BTreeMap, io};

pub use crate::{
    blob::Digest,
    layer::Layer,
    platform::Platform,
    reference::{NoReference, Reference},
};

/// An image of one platform, with one layer.
///
/// Meaning of the fields: <https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md>.
#[derive(Clone, Debug)]
pub struct Image {
    /// What the image is called in the store that it is imported into. At least one; an image may have several names.
    pub references: Vec<Reference>,
    pub platform: Platform,
    /// The program, and arguments that are always there.
    pub entrypoint: Vec<String>,
    /// Arguments if a container names none.
    pub command: Vec<String>,
    /// Environment variables, as in `PATH` = `/usr/bin`.
    pub environment: BTreeMap<String, String>,
    /// Labels of the image; `org.opencontainers.image.*` have a common meaning.
    pub labels: BTreeMap<String, String>,
    pub layer: Layer,
}

impl Image {
    /// An image that runs nothing by itself.
    #[must_use]
    pub fn new(reference: Reference, platform: Platform, layer: Layer) -> Self {
        Self {
            references: vec![reference],
            platform,
            entrypoint: Vec::new(),
            command: Vec::new(),
            environment: BTreeMap::new(),
            labels: BTreeMap::new(),
            layer,
        }
    }
}

/// Why an archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path:?} cannot be put into a layer: {reason}")]
    Path { path: String, reason: &'static str },
    #[error(transparent)]
    Reference(#[from] NoReference),
    #[error("writing the image: {0}")]
    Write(#[from] io::Error),
    #[error("writing the image's description: {0}")]
    Document(#[from] serde_json::Error),
}
