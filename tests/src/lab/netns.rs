//! Network namespaces without names.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::process::CommandExt,
    path::Path,
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns, unshare},
};

/// A network namespace, held by a file descriptor: it goes when the last holder (this value, sockets, processes) does.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// Makes a namespace with its loopback up.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`.
    pub fn new() -> Result<Self> {
        let file = thread::scope(|scope| {
            scope
                .spawn(|| -> Result<File> {
                    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (root is needed)")?;
                    // Duplicate address detection would keep IPv6 addresses from being used for seconds.
                    for (name, value) in [
                        ("ipv6/conf/all/accept_dad", "0"),
                        ("ipv6/conf/default/accept_dad", "0"),
                        ("ipv6/conf/default/dad_transmits", "0"),
                        ("ipv6/conf/default/router_solicitations", "0"),
                        // Any port may be bound, any group may ping.
                        ("ipv4/ip_unprivileged_port_start", "0"),
                    ] {
                        write_sysctl(name, value)?;
                    }
                    File::open("/proc/thread-self/ns/net").context("open the new network namespace")
                })
                .join()
        })
        .map_err(|_| anyhow!("the thread that makes a network namespace panicked"))??;
        Ok(Self { file })
    }

    /// The namespace that a path leads to, such as `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { file })
    }

    /// Runs a closure in the namespace, on a thread of its own. Sockets made there stay in the namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered, and what the closure returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    work()
                })
                .join()
        })
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread into the namespace, for good: for threads that serve several namespaces by turns.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`.
    pub fn enter(&self) -> io::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// Writes settings below `/proc/sys/net` of the namespace.
    ///
    /// # Errors
    /// If the kernel has no such setting or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| settings.iter().try_for_each(|(name, value)| write_sysctl(name, value)))
    }

    /// Waits until interfaces carry packets. The kernel starts their queues a moment after both ends are up, and what
    /// is sent before is lost: an ARP request, say, that is repeated only a second later.
    ///
    /// # Errors
    /// If they do not within five seconds.
    pub fn await_links(&self, names: &[&str]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        self.run(|| {
            loop {
                let running: HashSet<String> = getifaddrs()
                    .context("list interfaces")?
                    .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_RUNNING))
                    .map(|interface| interface.interface_name)
                    .collect();
                let Some(missing) = names.iter().find(|name| !running.contains(**name)) else {
                    return Ok(());
                };
                ensure!(Instant::now() < deadline, "interface {missing} does not come up");
                thread::sleep(Duration::from_micros(500));
            }
        })
    }

    /// Makes a command run in the namespace. Mounts stay those of the caller, so bpffs stays visible (`ip netns exec`
    /// would hide it).
    pub fn command(&self, command: &mut Command) -> Result<()> {
        let file = self.file.try_clone().context("duplicate a namespace's descriptor")?;
        // SAFETY: setns is a bare system call, safe between fork and exec; the descriptor lives in the closure.
        unsafe {
            command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        Ok(())
    }

    /// A path by which other processes can open the namespace while this process holds it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
}
