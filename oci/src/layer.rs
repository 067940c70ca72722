//! The files of an image.

use std::{collections::BTreeMap, io::Write as _};

use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use crate::{Error, blob::Blob, blob::Digest};

/// A tree of files. All belong to root; none has a time.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// By path, without the leading slash: the order in the layer.
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Directory,
    File(Vec<u8>),
    Link(String),
}

/// A layer as it is stored.
pub struct Packed {
    /// The compressed tar file.
    pub blob: Blob,
    /// The digest of the tar file itself, by which runtimes know the layer once it is unpacked.
    pub diff_id: Digest,
}

impl Layer {
    /// Puts a file in, replacing what is there. `path` is absolute; directories above it are made.
    ///
    /// # Errors
    /// If the path is not absolute or not plain.
    pub fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) -> Result<(), Error> {
        self.insert(path, mode, Content::File(content))
    }

    /// Puts a directory in; without need, except for an empty one or one with a mode other than 755.
    ///
    /// # Errors
    /// As for [`Layer::file`].
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        self.insert(path, mode, Content::Directory)
    }

    /// Puts a symbolic link in.
    ///
    /// # Errors
    /// As for [`Layer::file`].
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), Error> {
        self.insert(path, 0o777, Content::Link(target.to_owned()))
    }

    fn insert(&mut self, path: &str, mode: u32, content: Content) -> Result<(), Error> {
        let bad = |reason| Error::Path {
            path: path.to_owned(),
            reason,
        };
        let relative = path.strip_prefix('/').ok_or_else(|| bad("it does not begin with /"))?;
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !relative.split('/').all(plain) {
            return Err(bad("it has an empty part, or one that is . or .."));
        }
        // Runtimes take such files as the removal of what lower layers have.
        if relative.split('/').any(|part| part.starts_with(".wh.")) {
            return Err(bad(".wh. begins the name of a whiteout"));
        }
        let above = relative.match_indices('/').map(|(end, _)| &relative[..end]);
        for directory in above {
            let entry = self.entries.entry(directory.to_owned()).or_insert(Entry {
                mode: 0o755,
                content: Content::Directory,
            });
            if !matches!(entry.content, Content::Directory) {
                return Err(bad("something above it is no directory"));
            }
        }
        let old = self.entries.get(relative).map(|entry| &entry.content);
        if matches!(old, Some(Content::Directory)) && !matches!(content, Content::Directory) {
            return Err(bad("there is a directory of this name"));
        }
        self.entries.insert(relative.to_owned(), Entry { mode, content });
        Ok(())
    }

    /// The layer as a compressed tar file.
    pub(crate) fn pack(&self) -> Result<Packed, Error> {
        let tar = self.tar()?;
        let diff_id = Digest::of(&tar);
        // No name, no time; "unknown" as the operating system.
        let mut gzip = GzBuilder::new()
            .operating_system(255)
            .write(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        Ok(Packed {
            blob: Blob::new(gzip.finish()?),
            diff_id,
        })
    }

    fn tar(&self) -> Result<Vec<u8>, Error> {
        let mut tar = Builder::new(Vec::new());
        for (path, Entry { mode, content }) in &self.entries {
            let mut header = Header::new_ustar();
            header.set_mode(*mode);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match content {
                Content::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    tar.append_data(&mut header, format!("{path}/"), &[][..])?;
                }
                Content::File(content) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, path, &content[..])?;
                }
                Content::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use super::Layer;

    #[test]
    fn paths_that_are_not_plain_are_refused() {
        let mut layer = Layer::default();
        for path in ["bin/x", "/", "/a//b", "/a/../b", "/a/./b", "/a/", "/.wh.a"] {
            assert!(layer.file(path, 0o644, Vec::new()).is_err(), "{path} was taken");
        }
    }

    #[test]
    fn a_file_is_no_directory() {
        let mut layer = Layer::default();
        layer.file("/a", 0o644, Vec::new()).unwrap();
        assert!(layer.file("/a/b", 0o644, Vec::new()).is_err());
        layer.file("/c/d", 0o644, Vec::new()).unwrap();
        assert!(layer.file("/c", 0o644, Vec::new()).is_err());
    }

    #[test]
    fn the_order_of_insertion_does_not_matter() {
        let mut one = Layer::default();
        one.file("/usr/bin/a", 0o755, vec![1; 5000]).unwrap();
        one.link("/bin", "usr/bin").unwrap();
        one.directory("/tmp", 0o1777).unwrap();
        let mut other = Layer::default();
        other.directory("/tmp", 0o1777).unwrap();
        other.link("/bin", "usr/bin").unwrap();
        other.file("/usr/bin/a", 0o755, vec![1; 5000]).unwrap();
        let (one, other) = (one.pack().unwrap(), other.pack().unwrap());
        assert_eq!(one.diff_id, other.diff_id);
        assert_eq!(one.blob.digest, other.blob.digest);
    }
}
