//! Network namespaces without names: they go when the last descriptor and process in them go, whatever ends this program.

use std::{
    fs::File,
    io::Write as _,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

pub struct Namespace(File);

impl Namespace {
    /// Makes an empty namespace, its loopback up.
    pub fn new() -> Result<Self> {
        let back = Inside::stay()?;
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (root is needed)")?;
        let namespace = Self(current()?);
        ip("link set lo up")?;
        drop(back);
        Ok(namespace)
    }

    /// Moves the calling thread into the namespace, until the guard is dropped. Sockets, threads and processes made
    /// meanwhile belong to the namespace for good.
    pub fn enter(&self) -> Result<Inside> {
        let inside = Inside::stay()?;
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
        Ok(inside)
    }

    /// A path under which `ip` can open the namespace while this value lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// The calling thread is in another namespace; dropping this takes it back.
pub struct Inside {
    outside: File,
    /// Belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl Inside {
    fn stay() -> Result<Self> {
        Ok(Self {
            outside: current()?,
            _thread: PhantomData,
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = setns(self.outside.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Going on in the wrong namespace would change the machine's own network.
            eprintln!("bench: cannot leave a network namespace: {error}");
            std::process::abort();
        }
    }
}

fn current() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("opening this thread's network namespace")
}

/// Runs `ip` commands, one a line, in the calling thread's namespace.
pub fn ip(commands: &str) -> Result<()> {
    feed("ip", &["-batch", "-"], commands)
}

/// Sets a kernel parameter of the calling thread's namespace, given by its path below /proc/sys.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    std::fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))
}

/// Runs a program in the calling thread's namespace and gives it `input`; an error, with what it complained about, if
/// it fails.
pub fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on its standard error, below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {}", arguments.join(" "), complaint.trim());
    }
    Ok(())
}
