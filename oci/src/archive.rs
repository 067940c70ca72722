//! The archive: an OCI image layout in a tar file.

use std::io::Write;

use tar::{Builder, EntryType, Header};

use crate::{Digest, Error, Image, document};

impl Image {
    /// Writes the archive and returns the digest of the image's manifest.
    ///
    /// Layout: <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>. It carries Docker's
    /// `manifest.json` too, as the archives of `docker save` do, for the tools that look for that.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, out: impl Write) -> Result<Digest, Error> {
        let layer = self.layer.pack()?;
        let config = document::config(self, &layer)?;
        let manifest = document::manifest(&config, &layer)?;

        let mut tar = Builder::new(out);
        append(&mut tar, "oci-layout", document::LAYOUT.as_bytes())?;
        append(&mut tar, "index.json", &document::index(self, &manifest)?)?;
        append(
            &mut tar,
            "manifest.json",
            &document::docker_manifest(self, &config, &layer)?,
        )?;
        for blob in [&manifest, &config, &layer.blob] {
            append(&mut tar, &blob.path(), &blob.content)?;
        }
        tar.into_inner()?.flush()?;
        Ok(manifest.digest)
    }
}

fn append(tar: &mut Builder<impl Write>, path: &str, content: &[u8]) -> Result<(), Error> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    Ok(tar.append_data(&mut header, path, content)?)
}
