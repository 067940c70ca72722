//! Which files to read now, and which are still being written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    SETTLE,
    walk::{is_hidden, is_manifest},
    watch::{FsEvent, What},
};

/// A file that is written to all the time is read nevertheless after this time.
const LONGEST_WRITE: Duration = Duration::from_secs(2);

struct Hold {
    since: Instant,
    until: Instant,
}

#[derive(Default)]
pub(super) struct Pending {
    /// To be read now.
    pub(super) files: BTreeSet<PathBuf>,
    /// Directories whose entries to compare with what is known.
    pub(super) directories: BTreeSet<PathBuf>,
    /// Files whose state is not believed before that time.
    holds: BTreeMap<PathBuf, Hold>,
    /// Of `files`, those whose time is over: emptiness is believed.
    pub(super) settled: BTreeSet<PathBuf>,
    /// Watched directories that are no longer where they were.
    pub(super) moved: BTreeSet<PathBuf>,
    /// Something vanished: what comes in its place may be about to be told.
    pub(super) vanished: bool,
}

impl Pending {
    pub(super) fn is_idle(&self) -> bool {
        self.files.is_empty() && self.directories.is_empty() && self.moved.is_empty()
    }

    pub(super) fn take_in(&mut self, events: &[FsEvent], now: Instant) {
        let moved_to: HashMap<u32, &Path> = events
            .iter()
            .filter_map(|event| match event.what {
                What::MovedTo(cookie) => Some((cookie, event.path.as_path())),
                _ => None,
            })
            .collect();
        for event in events {
            self.one(event, &moved_to, now);
        }
    }

    fn one(&mut self, event: &FsEvent, moved_to: &HashMap<u32, &Path>, now: Instant) {
        let path = &event.path;
        if event.what == What::SelfGone {
            self.moved.insert(path.clone());
            return;
        }
        let Some(name) = path.file_name() else { return };
        if is_hidden(name) {
            // A ConfigMap volume's `..data` now leads elsewhere: all files beside it may have changed.
            if name.as_bytes().starts_with(b"..")
                && !event.is_dir
                && let Some(directory) = path.parent()
            {
                self.directories.insert(directory.to_owned());
            }
            return;
        }
        if event.is_dir {
            match event.what {
                What::Created | What::MovedTo(_) => {
                    self.directories.insert(path.clone());
                }
                What::Deleted | What::MovedFrom(_) => {
                    self.moved.insert(path.clone());
                    self.directories.insert(path.clone());
                    self.vanished = true;
                }
                _ => {}
            }
            return;
        }
        if !is_manifest(name) {
            // A link to a directory.
            if matches!(
                event.what,
                What::Created | What::MovedTo(_) | What::Deleted | What::MovedFrom(_)
            ) {
                self.directories.insert(path.clone());
            }
            return;
        }
        match event.what {
            What::Created if is_complete(path) => self.ready(path),
            What::Created | What::Modified => self.hold(path, now),
            What::Written | What::MovedTo(_) | What::Attributes => self.ready_if_not_new(event, path),
            What::MovedFrom(cookie) => {
                self.vanished = true;
                match moved_to.get(&cookie) {
                    // Some editors rename the file to a backup and write it anew.
                    Some(target) if !target.file_name().is_some_and(is_manifest) => self.hold(path, now),
                    _ => self.ready(path),
                }
            }
            What::Deleted => {
                self.vanished = true;
                self.ready(path);
            }
            What::SelfGone => {}
        }
    }

    fn ready_if_not_new(&mut self, event: &FsEvent, path: &Path) {
        // A change of attributes ends no write.
        if event.what != What::Attributes || !self.holds.contains_key(path) {
            self.ready(path);
        }
    }

    pub(super) fn ready(&mut self, path: &Path) {
        self.holds.remove(path);
        self.settled.remove(path);
        self.files.insert(path.to_owned());
    }

    /// The file is not read before it has been left alone for [`SETTLE`].
    pub(super) fn hold(&mut self, path: &Path, now: Instant) {
        self.files.remove(path);
        let hold = self
            .holds
            .entry(path.to_owned())
            .or_insert(Hold { since: now, until: now });
        hold.until = (now + SETTLE).min(hold.since + LONGEST_WRITE);
    }

    pub(super) fn is_held(&self, path: &Path) -> bool {
        self.holds.contains_key(path)
    }

    /// Files that have been left alone long enough are to be read.
    pub(super) fn settle(&mut self, now: Instant) {
        let over: Vec<PathBuf> = self
            .holds
            .iter()
            .filter(|(_, hold)| hold.until <= now)
            .map(|(path, _)| path.clone())
            .collect();
        for path in over {
            self.holds.remove(&path);
            self.files.insert(path.clone());
            self.settled.insert(path);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.holds.values().map(|hold| hold.until).min()
    }

    pub(super) fn last_deadline(&self) -> Option<Instant> {
        self.holds.values().map(|hold| hold.until).max()
    }
}

/// Whether a file that has just appeared is all there: a link to one that was written before.
fn is_complete(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}
