//! Nothing stays behind: what a lab puts under a name on the machine, and its ends.
//!
//! Three ways lead out: drop (also by a panic), a signal (interrupt, terminate, hang-up: this process is the lab's own,
//! so it cleans up and exits), and none at all (kill -9), after which the next lab of any process removes what belongs
//! to no live process.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        signal::{Signal, kill},
        statfs::{BPF_FS_MAGIC, statfs},
        wait::waitpid,
    },
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

/// Where the BPF file system is mounted, for all labs of the machine.
pub const BPFFS: &str = "/sys/fs/bpf";

const PREFIX: &str = "weir-lab-";

/// What a signal must end and remove.
#[derive(Default)]
struct Registry {
    directories: BTreeSet<PathBuf>,
    children: BTreeSet<i32>,
    undo: BTreeMap<u32, Box<dyn FnOnce() + Send>>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    directories: BTreeSet::new(),
    children: BTreeSet::new(),
    undo: BTreeMap::new(),
});

/// Starts the thread that waits for signals, once.
fn heed_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        thread::spawn(await_signal);
    });
}

/// Work that a signal does before it ends the process, as long as this value lives.
#[derive(Debug)]
pub struct Undo(u32);

impl Undo {
    /// The work must be done within seconds: the process lasts on meanwhile.
    #[must_use]
    pub fn new(work: impl FnOnce() + Send + 'static) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        heed_signals();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        registry().undo.insert(number, Box::new(work));
        Self(number)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        registry().undo.remove(&self.0);
    }
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directories of one lab: one below the temporary directory, one in bpffs. Removed on drop.
#[derive(Debug)]
pub struct Scratch {
    directory: PathBuf,
    bpffs: PathBuf,
}

impl Scratch {
    /// Makes the directories, after removing those of dead processes. Mounts bpffs if it is not mounted.
    ///
    /// # Errors
    /// Without root, or where the directories cannot be made.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            remove_orphans(Path::new(BPFFS));
            remove_orphans(&env::temp_dir());
        });
        heed_signals();
        mount_bpffs()?;
        let tag = format!("{PREFIX}{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let scratch = Self {
            directory: env::temp_dir().join(&tag),
            bpffs: Path::new(BPFFS).join(&tag),
        };
        for path in [&scratch.directory, &scratch.bpffs] {
            registry().directories.insert(path.clone());
            fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(scratch)
    }

    /// For manifests, run directories and logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// For pins.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for path in [&self.bpffs, &self.directory] {
            if let Err(error) = fs::remove_dir_all(path) {
                eprintln!("lab: remove {}: {error}", path.display());
            }
            registry().directories.remove(path);
        }
    }
}

/// A child process that a signal kills before the lab's directories go. The owner still waits for it.
#[derive(Debug)]
pub struct ChildGuard(i32);

impl ChildGuard {
    #[must_use]
    pub fn new(pid: i32) -> Self {
        registry().children.insert(pid);
        Self(pid)
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        registry().children.remove(&self.0);
    }
}

fn mount_bpffs() -> Result<()> {
    let mounted = statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount bpffs on {BPFFS} (root is needed)"))
}

/// Removes directories of labs whose process is gone.
fn remove_orphans(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if let Some(pid) = owner
            && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
        {
            // Another lab may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Waits for a signal that would end the process, cleans up and ends it.
fn await_signal() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else {
        return;
    };
    let code = runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
            signal(SignalKind::hangup()),
        ) else {
            return None;
        };
        Some(
            128 + tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
                _ = hangup.recv() => SignalKind::hangup().as_raw_value(),
            },
        )
    });
    let Some(code) = code else { return };
    // Held until the end: nothing new starts meanwhile.
    let mut registry = registry();
    for &pid in &registry.children {
        let pid = Pid::from_raw(pid);
        if kill(pid, Signal::SIGKILL).is_ok() {
            let _ = waitpid(pid, None);
        }
    }
    for (_, work) in std::mem::take(&mut registry.undo) {
        work();
    }
    for path in &registry.directories {
        let _ = fs::remove_dir_all(path);
    }
    process::exit(code);
}
