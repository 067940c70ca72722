//! inotify: what happens in the directories.
//!
//! Used directly: a watcher that also asks for `open` events would be flooded by this program's own reading, and one
//! that hides `close after write` could not tell a finished file from a half-written one.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Created,
    Modified,
    /// Its writer has closed it.
    Written,
    Attributes,
    Deleted,
    /// With the number that both halves of a rename share.
    MovedFrom(u32),
    MovedTo(u32),
    /// A watched directory itself was deleted or moved.
    SelfGone,
}

#[derive(Clone, Debug)]
pub(super) struct FsEvent {
    pub(super) path: PathBuf,
    pub(super) is_dir: bool,
    pub(super) what: What,
}

#[derive(Default)]
pub(super) struct Drained {
    pub(super) events: Vec<FsEvent>,
    /// The kernel's queue was full: some events are missing.
    pub(super) overflow: bool,
}

pub(super) struct Watcher {
    inotify: Option<Inotify>,
    /// One directory may be reached by several paths (symlinks); it has one descriptor.
    paths: HashMap<WatchDescriptor, Vec<PathBuf>>,
    /// Why some directory is not watched.
    failure: Option<String>,
}

impl Watcher {
    pub(super) fn new() -> Self {
        let (inotify, failure) = match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
            Ok(inotify) => (Some(inotify), None),
            Err(error) => (None, Some(format!("inotify_init1: {error}"))),
        };
        Self {
            inotify,
            paths: HashMap::new(),
            failure,
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd())
    }

    /// Why changes may go unseen, if they may.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Forgets failures of the past, before everything is watched anew.
    pub(super) fn retry(&mut self) {
        if self.inotify.is_none() {
            *self = Self::new();
        } else {
            self.failure = None;
        }
    }

    pub(super) fn add(&mut self, directory: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        match inotify.add_watch(directory, mask) {
            Ok(descriptor) => {
                let paths = self.paths.entry(descriptor).or_default();
                if !paths.iter().any(|path| path == directory) {
                    paths.push(directory.to_owned());
                }
            }
            // It went in the meantime: its parent's watch tells.
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => {
                let what = if error == Errno::ENOSPC {
                    "the limit of inotify watches is reached"
                } else {
                    error.desc()
                };
                self.failure = Some(format!("{}: {what}", directory.display()));
            }
        }
    }

    /// A directory is no longer at this path.
    pub(super) fn remove_below(&mut self, path: &Path) {
        let Some(inotify) = &self.inotify else { return };
        self.paths.retain(|descriptor, paths| {
            paths.retain(|watched| !watched.starts_with(path));
            if paths.is_empty() {
                // Fails if the directory is gone, and its watch with it.
                let _ = inotify.rm_watch(*descriptor);
            }
            !paths.is_empty()
        });
    }

    /// Takes all events there are, without waiting.
    pub(super) fn drain(&mut self, into: &mut Drained) {
        let Some(inotify) = &self.inotify else { return };
        loop {
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return,
                Err(error) => {
                    self.failure = Some(format!("reading events: {error}"));
                    return;
                }
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    into.overflow = true;
                    continue;
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.paths.remove(&event.wd);
                    continue;
                }
                let Some(what) = what(event.mask, event.cookie) else {
                    continue;
                };
                for directory in self.paths.get(&event.wd).into_iter().flatten() {
                    into.events.push(FsEvent {
                        path: event
                            .name
                            .as_ref()
                            .map_or_else(|| directory.clone(), |name| directory.join(name)),
                        is_dir: event.mask.contains(AddWatchFlags::IN_ISDIR),
                        what,
                    });
                }
            }
        }
    }
}

fn what(mask: AddWatchFlags, cookie: u32) -> Option<What> {
    [
        (AddWatchFlags::IN_CREATE, What::Created),
        (AddWatchFlags::IN_MODIFY, What::Modified),
        (AddWatchFlags::IN_CLOSE_WRITE, What::Written),
        (AddWatchFlags::IN_ATTRIB, What::Attributes),
        (AddWatchFlags::IN_DELETE, What::Deleted),
        (AddWatchFlags::IN_MOVED_FROM, What::MovedFrom(cookie)),
        (AddWatchFlags::IN_MOVED_TO, What::MovedTo(cookie)),
        (AddWatchFlags::IN_DELETE_SELF, What::SelfGone),
        (AddWatchFlags::IN_MOVE_SELF, What::SelfGone),
    ]
    .into_iter()
    .find_map(|(flag, what)| mask.contains(flag).then_some(what))
}
