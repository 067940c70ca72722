//! Starting, stopping and asking `weir agent` in a node's namespace.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use weir_common::layout::LAYOUT;

use super::{
    Lab, NetNs,
    cleanup::{ChildGuard, Scratch},
};
use crate::binary;

/// An agent has this long to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// How the agent hooks into interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attach {
    Tcx,
    Tc,
}

impl Attach {
    /// As `--attach` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Tc => "tc",
        }
    }
}

/// What an agent is started with beyond what its node says.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub attach: Attach,
    /// Write a flow log.
    pub flows: bool,
    /// Where objects come from instead of the manifests: the API server that this leads to from the node's namespace.
    pub kubeconfig: Option<PathBuf>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// Another binary than [`binary::weir`].
    pub binary: Option<PathBuf>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            attach: Attach::Tcx,
            flows: true,
            kubeconfig: None,
            arguments: Vec::new(),
            binary: None,
        }
    }
}

#[derive(Debug)]
struct Running {
    child: Child,
    _guard: ChildGuard,
}

/// The agent of one node: its process while it runs, and its directories before and after.
#[derive(Debug)]
pub struct Agent {
    node: String,
    netns: Arc<NetNs>,
    manifests: PathBuf,
    run_dir: PathBuf,
    bpffs: PathBuf,
    log: PathBuf,
    flow_log: PathBuf,
    options: AgentOptions,
    running: Option<Running>,
    // Last: the directories go after the process.
    _scratch: Arc<Scratch>,
}

impl Agent {
    /// Starts the agent of a node. It may not be ready yet: see [`Self::wait`].
    ///
    /// # Errors
    /// If there is no such node or no binary.
    pub fn start(lab: &Lab, node: &str, manifests: &Path, options: AgentOptions) -> Result<Self> {
        let scratch = Arc::clone(lab.scratch());
        let directory = scratch.directory().join(node);
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let mut agent = Self {
            node: node.to_owned(),
            netns: Arc::clone(&lab.node(node)?.netns),
            manifests: manifests.to_owned(),
            run_dir: directory.join("run"),
            bpffs: scratch.bpffs().join(node),
            log: directory.join("agent.log"),
            flow_log: directory.join("flows.json"),
            options,
            running: None,
            _scratch: scratch,
        };
        agent.spawn()?;
        Ok(agent)
    }

    /// From its next start on it believes that its node has this name.
    pub fn rename(&mut self, node: &str) {
        node.clone_into(&mut self.node);
    }

    /// Starts the process again, after [`Self::terminate`] or [`Self::kill`].
    ///
    /// # Errors
    /// If it runs, or cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "the agent of {} runs already", self.node);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let mut command = self.agent_command()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        let pid = i32::try_from(child.id()).context("process id")?;
        self.running = Some(Running {
            child,
            _guard: ChildGuard::new(pid),
        });
        Ok(())
    }

    /// The command that starts this agent, for tests that start a second one.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn agent_command(&self) -> Result<Command> {
        let mut command = self.weir()?;
        command.arg("agent").args(["--node", &self.node]);
        match &self.options.kubeconfig {
            Some(path) => command.arg("--kubeconfig").arg(path),
            None => command.arg("--manifests").arg(&self.manifests),
        };
        command.arg("--run-dir").arg(&self.run_dir);
        command.arg("--bpffs").arg(&self.bpffs);
        command.args(["--attach", self.options.attach.name()]);
        if self.options.flows {
            command.arg("--flow-log").arg(&self.flow_log);
            // Read by position, so never rotated. It goes with the lab.
            command.args(["--flow-log-max-size", "8G"]);
        }
        command.args(&self.options.arguments);
        self.netns.command(&mut command)?;
        // SAFETY: prctl is a bare system call, safe between fork and exec. The agent must not outlive the tests.
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        Ok(command)
    }

    fn weir(&self) -> Result<Command> {
        Ok(Command::new(match &self.options.binary {
            Some(path) => path.clone(),
            None => binary::weir()?,
        }))
    }

    /// Sets what the next start uses.
    pub fn options(&mut self) -> &mut AgentOptions {
        &mut self.options
    }

    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Where the maps of a generation in use are pinned.
    ///
    /// # Errors
    /// If there are none.
    pub fn generation(&self) -> Result<PathBuf> {
        let bpffs = &self.bpffs;
        let prefix = format!("gen-{LAYOUT}-");
        fs::read_dir(bpffs)
            .with_context(|| format!("read {}", bpffs.display()))?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .with_context(|| format!("no generation in {}", bpffs.display()))
    }

    #[must_use]
    pub fn flow_log(&self) -> &Path {
        &self.flow_log
    }

    /// The process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Waits until all that the manifests say is enforced (`weir status --wait`).
    ///
    /// # Errors
    /// The reason that the verb gives, or the agent's own log if it has died.
    pub fn wait(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        // The socket is there once the agent listens.
        while !self.run_dir.join("weir.sock").exists() && Instant::now() < deadline {
            self.check_alive()?;
            thread::sleep(Duration::from_millis(5));
        }
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let output = self.verb(["status", "--wait", &format!("{}ms", left.as_millis())])?;
        if output.status.success() {
            return Ok(());
        }
        self.check_alive()?;
        bail!(
            "the agent of {} does not enforce everything ({}):\n{}{}\nits log:\n{}",
            self.node,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_tail(40)
        )
    }

    fn check_alive(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else {
            bail!("the agent of {} was not started", self.node)
        };
        if let Some(status) = running.child.try_wait()? {
            self.running = None;
            bail!(
                "the agent of {} has ended ({status}):\n{}",
                self.node,
                self.log_tail(40)
            );
        }
        Ok(())
    }

    /// Runs a verb against this agent.
    ///
    /// # Errors
    /// If it cannot be started. What it answers is the caller's to judge.
    pub fn verb<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut command = self.weir()?;
        command.args(arguments);
        command.arg("--run-dir").arg(&self.run_dir);
        self.netns.command(&mut command)?;
        command.output().with_context(|| format!("run {command:?}"))
    }

    /// `weir detach`: removes every trace, with or without a running agent.
    ///
    /// # Errors
    /// What the verb says.
    pub fn detach(&self) -> Result<()> {
        let mut command = self.weir()?;
        command
            .arg("detach")
            .arg("--run-dir")
            .arg(&self.run_dir)
            .arg("--bpffs")
            .arg(&self.bpffs);
        self.netns.command(&mut command)?;
        let output = command.output().with_context(|| format!("run {command:?}"))?;
        ensure!(
            output.status.success(),
            "weir detach: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Ends the agent with SIGTERM.
    ///
    /// # Errors
    /// If it does not end in time (it is killed then).
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let Some(running) = &self.running else {
            bail!("the agent of {} does not run", self.node)
        };
        kill(Pid::from_raw(i32::try_from(running.child.id())?), Signal::SIGTERM)?;
        self.await_end()
    }

    /// Waits for an agent that was told to end by itself.
    ///
    /// # Errors
    /// If it does not end in time (it is killed when this value is dropped).
    pub fn await_end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + GRACE;
        let Some(running) = &mut self.running else {
            bail!("the agent of {} does not run", self.node)
        };
        while Instant::now() < deadline {
            if let Some(status) = running.child.try_wait()? {
                self.running = None;
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("the agent of {} did not end within {GRACE:?}", self.node)
    }

    /// Ends the agent with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else {
            bail!("the agent of {} does not run", self.node)
        };
        running.child.kill()?;
        running.child.wait()?;
        Ok(())
    }

    /// The last lines of the agent's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The flow log from a position on, and the position after its last whole line.
    ///
    /// # Errors
    /// The file system's. A log that is not there yet is empty.
    pub fn flows_from(&self, position: u64) -> Result<(String, u64)> {
        let Ok(mut file) = File::open(&self.flow_log) else {
            return Ok((String::new(), position));
        };
        file.seek(SeekFrom::Start(position))?;
        let mut text = String::new();
        file.read_to_string(&mut text)
            .with_context(|| format!("read {}", self.flow_log.display()))?;
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        let end = position + text.len() as u64;
        Ok((text, end))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the agent of {} ---\n{}\n---", self.node, self.log_tail(80));
        }
        if self.running.is_some() {
            let _ = self.kill();
        }
        // Pins of links outlive the process; without them nothing holds the interfaces' programs.
        if let Err(error) = self.detach()
            && self.bpffs.exists()
        {
            eprintln!("lab: the agent of {}: {error:#}", self.node);
        }
    }
}
