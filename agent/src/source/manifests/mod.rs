//! A directory of manifests as a source: read once, then watched.
//!
//! | file | what |
//! |---|---|
//! | `run` | the thread: waits for changes, reads what changed, tells what follows |
//! | `pending` | which files to read now, and which are still being written |
//! | `watch` | inotify |
//! | `walk` | the manifest files below a directory |
//! | `read` | one file's text, if it changed |
//! | `catalogue` | which objects which file offers, and which version is in force |
//! | `notices` | problems told once for many files |
//!
//! Never less is enforced than was because of how a file is written: a file counts when its writer closes it; a file
//! that is empty or renamed to a backup counts as gone only after [`SETTLE`]; what cannot be parsed keeps its last
//! objects; of all that changed together, what is new is told before what is gone.

mod catalogue;
mod notices;
mod pending;
mod read;
mod run;
#[cfg(test)]
mod tests;
mod walk;
mod watch;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc as commands,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;
pub use walk::files_below;

use super::{SourceEvent, store};
use crate::metrics::Arrivals;

/// How long a file may stay empty, open for writing without a write, or renamed away, until that is believed.
pub const SETTLE: Duration = Duration::from_millis(200);

/// Where manifests are, and where versions in force are kept for the next start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Created if missing.
    pub directory: PathBuf,
    /// Created if missing. Holds `last-valid.log`.
    pub run_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create directory {}: {source} (create it, or name another one)", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot use {} as manifest directory: it is no directory (name the directory that holds the files)", .0.display())]
    NoDirectory(PathBuf),
    #[error("cannot keep last valid versions in {}: {source} (name a writable --run-dir)", path.display())]
    Store { path: PathBuf, source: io::Error },
    #[error("cannot start the manifest source: {0}")]
    System(#[from] io::Error),
}

enum Command {
    Refresh(u64),
    Stop,
}

/// A running source. Stops when dropped; what it had told stays kept.
#[derive(Debug)]
pub struct ManifestSource {
    commands: commands::Sender<Command>,
    wake: Arc<EventFd>,
    tokens: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl ManifestSource {
    /// Starts to read. The first event is the Reset with all objects. `arrivals`: is told when what led to an event was seen.
    ///
    /// # Errors
    /// If a directory cannot be made or used.
    pub fn start(config: &Config, arrivals: Arrivals) -> Result<(Self, mpsc::UnboundedReceiver<SourceEvent>), Error> {
        let directory = &config.directory;
        make_directory(directory)?;
        if !directory.is_dir() {
            return Err(Error::NoDirectory(directory.clone()));
        }
        make_directory(&config.run_dir)?;
        let (store, stored) = store::Store::open(&config.run_dir).map_err(|source| Error::Store {
            path: config.run_dir.clone(),
            source,
        })?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(io::Error::from)?;
        let wake = Arc::new(wake);
        let (commands, inbox) = commands::channel();
        let (events, outbox) = mpsc::unbounded_channel();
        let runner = run::Runner::new(
            directory.clone(),
            wake.clone(),
            inbox,
            run::Outbox { events, arrivals },
            store,
            stored,
        );
        let thread = thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || runner.run())?;
        let source = Self {
            commands,
            wake,
            tokens: AtomicU64::new(1),
            thread: Some(thread),
        };
        Ok((source, outbox))
    }

    /// Has the directory read again from disk. Answered by [`SourceEvent::Refreshed`] with the token returned, after
    /// every event that this caused. A file that is empty or renamed away is waited for ([`SETTLE`]).
    pub fn refresh(&self) -> u64 {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        self.command(Command::Refresh(token));
        token
    }

    fn command(&self, command: Command) {
        // Both fail only if the thread has ended, and then the closed event channel says so.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

impl Drop for ManifestSource {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    match fs::create_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::NoDirectory(path.to_owned())),
        Err(source) => Err(Error::Directory {
            path: path.to_owned(),
            source,
        }),
    }
}
