//! What must be true of the machine before anything is loaded, each with an error of its own.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{
    error::{Error, Result},
    pins,
};

/// Oldest kernel that is claimed: major and minor version.
const OLDEST: (u32, u32) = (6, 1);

/// Name of the lock in the run directory; it holds the pid of its owner.
const LOCK: &str = "agent.lock";

/// Fails on kernels before 6.1.
pub(super) fn check_kernel() -> Result<()> {
    let path = Path::new("/proc/sys/kernel/osrelease");
    let release = fs::read_to_string(path).map_err(Error::path(path, "read the kernel's version"))?;
    check_release(release.trim())
}

fn check_release(release: &str) -> Result<()> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => Ok(()),
        _ => Err(Error::KernelTooOld {
            release: release.to_owned(),
        }),
    }
}

/// Fails where the process lacks a capability (capabilities(7)) that loading or attaching takes.
pub(super) fn check_privileges() -> Result<()> {
    let path = Path::new("/proc/self/status");
    let status = fs::read_to_string(path).map_err(Error::path(path, "read the process's capabilities"))?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::NotPrivileged {
            missing: missing.join(", "),
        })
    }
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default();
    let has = |capability: u32| effective >> capability & 1 == 1;
    // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, which were split from it in Linux 5.8.
    [
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        ("CAP_PERFMON", has(PERFMON) || has(SYS_ADMIN)),
    ]
    .into_iter()
    .filter_map(|(name, granted)| (!granted).then_some(name))
    .collect()
}

/// Fails where `dir`, or the nearest directory above it that exists, is not on a BPF file system.
pub(super) fn check_bpffs(dir: &Path) -> Result<()> {
    for path in dir.ancestors() {
        match statfs(path) {
            Ok(info) if info.filesystem_type() == BPF_FS_MAGIC => return Ok(()),
            Err(nix::Error::ENOENT) => {}
            Ok(_) => break,
            Err(error) => return Err(Error::path(path, "ask for the file system")(error.into())),
        }
    }
    let usual = Path::new("/sys/fs/bpf");
    Err(Error::NotBpffs {
        path: dir.to_owned(),
        mount_point: if dir.starts_with(usual) { usual } else { dir }.to_owned(),
    })
}

/// Both directories of an agent, locked for as long as this lives (flock(2): the kernel lets go also after SIGKILL).
#[derive(Debug)]
pub(super) struct Locks {
    run_dir: File,
    bpffs: File,
}

impl Drop for Locks {
    /// Lets go by word: closing alone would leave the locks to a child that is between fork and exec just now, and the
    /// next owner in this process would find them taken.
    fn drop(&mut self) {
        // What fails here is done by closing.
        let _ = self.run_dir.unlock();
        let _ = self.bpffs.unlock();
    }
}

impl Locks {
    /// Makes both directories where they are missing, and locks them.
    pub(super) fn take(run_dir: &Path, bpffs: &Path) -> Result<Self> {
        pins::make_dir(run_dir)?;
        pins::make_dir(bpffs)?;
        let path = run_dir.join(LOCK);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::path(&path, "open the lock"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::RunDirInUse {
                    pid: read_pid(&mut file),
                    path: run_dir.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::path(&path, "lock the file")(error)),
        }
        let mut note_pid = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note_pid().map_err(Error::path(&path, "write the lock"))?;
        let dir = File::open(bpffs).map_err(Error::path(bpffs, "open the directory"))?;
        match dir.try_lock() {
            Ok(()) => Ok(Self {
                run_dir: file,
                bpffs: dir,
            }),
            Err(TryLockError::WouldBlock) => Err(Error::BpffsInUse { path: bpffs.to_owned() }),
            Err(TryLockError::Error(error)) => Err(Error::path(bpffs, "lock the directory")(error)),
        }
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The agent that holds the lock of a run directory. None: no agent runs; Some(None): one runs, of unknown pid.
pub fn running_agent(run_dir: &Path) -> Option<Option<u32>> {
    let mut file = File::open(run_dir.join(LOCK)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(read_pid(&mut file)),
        _ => None,
    }
}

/// Keeps agents from starting with a run directory; several may do so at once.
#[derive(Debug)]
pub(super) struct Closed(File);

impl Drop for Closed {
    /// By word, as [`Locks`] do. What fails here is done by closing.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Closed {
    /// None: no agent has ever run with this directory.
    ///
    /// # Errors
    /// [`Error::AgentRuns`]; the file system's.
    pub(super) fn take(run_dir: &Path) -> Result<Option<Self>> {
        let path = run_dir.join(LOCK);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Error::path(&path, "open the lock"))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Err(Error::AgentRuns {
                pid: read_pid(&mut file),
            }),
            Err(TryLockError::Error(error)) => Err(Error::path(&path, "lock the file")(error)),
        }
    }
}

/// Where the lock of a run directory lies.
pub(super) fn lock_path(run_dir: &Path) -> PathBuf {
    run_dir.join(LOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_1_are_refused() {
        for old in ["5.15.0-91-generic", "6.0.19", "4.18", "nonsense"] {
            let error = check_release(old).expect_err(old).to_string();
            assert!(error.contains(old) && error.contains("6.1"), "{error}");
        }
        for fit in ["6.1.0-13-amd64", "6.18.44-fc", "7.0"] {
            check_release(fit).expect(fit);
        }
    }

    #[test]
    fn the_missing_capability_is_named() {
        assert_eq!(
            missing_capabilities("CapEff:\t0000000000000000\n"),
            ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]
        );
        assert_eq!(missing_capabilities("CapEff:\t000000c000000000\n"), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities("CapEff:\t000001ffffffffff\n"), [""; 0]);
        // CAP_SYS_ADMIN and CAP_NET_ADMIN.
        assert_eq!(missing_capabilities("CapEff:\t0000000000201000\n"), [""; 0]);
    }

    #[test]
    fn a_directory_elsewhere_is_no_bpffs_and_the_remedy_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = check_bpffs(&dir.path().join("a/b"))
            .expect_err("not a bpffs")
            .to_string();
        assert!(error.contains("mount -t bpf bpf"), "{error}");
    }

    #[test]
    fn a_second_agent_is_told_the_pid_of_the_first() {
        let run_dir = tempfile::tempdir().expect("a temporary directory");
        let one = tempfile::tempdir().expect("a temporary directory");
        let two = tempfile::tempdir().expect("a temporary directory");
        let other_run_dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(running_agent(run_dir.path()), None);
        let locks = Locks::take(run_dir.path(), one.path()).expect("the first has it");
        let error = Locks::take(run_dir.path(), two.path()).expect_err("held").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        let error = Locks::take(other_run_dir.path(), one.path())
            .expect_err("held")
            .to_string();
        assert!(error.contains("--bpffs"), "{error}");
        assert_eq!(running_agent(run_dir.path()), Some(Some(std::process::id())));
        assert!(matches!(Closed::take(run_dir.path()), Err(Error::AgentRuns { .. })));
        drop(locks);
        assert_eq!(running_agent(run_dir.path()), None);
        let closed = Closed::take(run_dir.path()).expect("no agent runs");
        assert!(closed.is_some());
        assert_eq!(running_agent(run_dir.path()), None, "it is no agent");
        Locks::take(run_dir.path(), one.path()).expect_err("no agent starts");
        drop(closed);
        Locks::take(run_dir.path(), one.path()).expect("free again");
    }
}
