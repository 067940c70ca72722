//! The agent as a process, in a node's namespace.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{netns::Namespace, node, world::World};

const BPFFS: &str = "/sys/fs/bpf";

/// How long the agent may take until everything is enforced.
const READY: Duration = Duration::from_secs(60);

/// A running agent. Dropping it ends it and removes everything that it has put into the kernel.
pub struct Agent<'node> {
    binary: PathBuf,
    node: &'node Namespace,
    /// Run directory and log.
    dir: TempDir,
    bpffs: PathBuf,
    child: Child,
}

impl<'node> Agent<'node> {
    /// Starts `binary` and returns once it enforces all of `world`.
    pub fn start(binary: &Path, node: &'node Namespace, world: &World, options: &[&str]) -> Result<Self> {
        sweep()?;
        let dir = TempDir::with_prefix("weir-bench-run-")?;
        let bpffs = Path::new(BPFFS).join(format!("weir-bench-{}", std::process::id()));
        let log = File::create(dir.path().join("log"))?;
        let child = {
            let _inside = node.enter()?;
            // Nothing can outlive this program: not even if it is killed.
            Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--"])
                .arg(binary)
                .args(["agent", "--node", node::NAME, "--manifests"])
                .arg(world.path())
                .arg("--run-dir")
                .arg(dir.path().join("run"))
                .arg("--bpffs")
                .arg(&bpffs)
                .args(options)
                // Ctrl-C is for the benchmark, which ends the agent.
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("starting the agent through setpriv")?
        };
        let mut agent = Self {
            binary: binary.to_owned(),
            node,
            dir,
            bpffs,
            child,
        };
        agent.wait_until_ready()?;
        Ok(agent)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a verb against this agent and returns what it prints.
    pub fn ask(&self, verb: &[&str]) -> Result<String> {
        let output = self
            .command(verb)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running weir {}", verb.join(" ")))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("`weir {}` failed: {}\n{}", verb.join(" "), complaint.trim(), self.log());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(verb).arg("--run-dir").arg(self.dir.path().join("run"));
        command
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let socket = self.dir.path().join("run/weir.sock");
        let start = Instant::now();
        while !socket.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended ({status}):\n{}", self.log());
            }
            if start.elapsed() > READY {
                bail!("the agent made no socket within {READY:?}:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.ask(&["status", "--wait", &format!("{}s", READY.as_secs())])?;
        Ok(())
    }

    /// The end of what the agent has logged.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn stop(&mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        // Fails if it has ended by itself, which is no problem here.
        let _ = kill(pid, Signal::SIGTERM);
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(10) {
                self.child.kill()?;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _inside = self.node.enter()?;
        let detached = self.command(&["detach", "--bpffs"]).arg(&self.bpffs).output()?;
        if !detached.status.success() {
            bail!(
                "`weir detach` failed: {}",
                String::from_utf8_lossy(&detached.stderr).trim()
            );
        }
        Ok(())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("bench: ending the agent: {error:#}");
        }
        remove(&self.bpffs);
    }
}

/// Removes what runs that were killed have left pinned.
fn sweep() -> Result<()> {
    for entry in fs::read_dir(BPFFS).with_context(|| format!("reading {BPFFS}"))? {
        let path = entry?.path();
        let owner = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix("weir-bench-"));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&path);
        }
    }
    Ok(())
}

fn remove(dir: &Path) {
    if dir.exists()
        && let Err(error) = fs::remove_dir_all(dir)
    {
        eprintln!("bench: removing {}: {error}", dir.display());
    }
}
