//! One file's text, if it changed.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

/// Larger files are refused: they are no manifests.
const LARGEST: u64 = 256 << 20;
/// Two writes that follow one another this fast can leave the same time stamp.
const RACY: Duration = Duration::from_millis(50);

/// Tells versions of a file apart without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: (u64, u64),
    /// Read so soon after its last change that another change may have the same time.
    racy: bool,
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
            inode: (metadata.dev(), metadata.ino()),
            racy: modified.elapsed().map_or(true, |age| age < RACY),
        }
    }

    /// Whether the file is surely as it was.
    pub(super) fn is_current(&self, path: &Path) -> bool {
        !self.racy
            && fs::metadata(path).is_ok_and(|metadata| {
                let now = Self::of(&metadata);
                (now.modified, now.size, now.inode) == (self.modified, self.size, self.inode)
            })
    }
}

pub(super) enum Read {
    /// There is no such file.
    Gone,
    /// There is one, but it cannot be read.
    Unreadable(String),
    Text {
        text: String,
        stamp: Stamp,
        hash: u64,
    },
}

pub(super) fn read(path: &Path) -> Read {
    match try_read(path) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory => {
            // A link that leads nowhere is not a file that was deleted.
            match fs::symlink_metadata(path) {
                Ok(_) => Read::Unreadable("the link leads nowhere".to_owned()),
                Err(_) => Read::Gone,
            }
        }
        Err(error) => Read::Unreadable(error.to_string()),
    }
}

fn try_read(path: &Path) -> io::Result<Read> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(Read::Gone);
    }
    if metadata.size() > LARGEST {
        return Ok(Read::Unreadable(format!("larger than {} MiB", LARGEST >> 20)));
    }
    // Taken before the text: a change in between shows as another stamp.
    let stamp = Stamp::of(&metadata);
    let bytes = fs::read(path)?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let hash = hasher.finish();
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Read::Text { text, stamp, hash },
        Err(_) => Read::Unreadable("is no UTF-8 text".to_owned()),
    })
}
