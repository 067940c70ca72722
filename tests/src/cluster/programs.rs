//! The programs of a cluster that runs: started, killed, waited for.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Cluster, Component, cgroup, control, etcd, node::Node};

/// A busy machine may need long for each step of a start.
const PATIENCE: Duration = Duration::from_secs(180);

impl Cluster {
    /// Starts a program of the control plane and waits until it serves.
    ///
    /// # Errors
    /// If it does not, with where its log is.
    pub fn start(&self, component: Component) -> Result<()> {
        let mut command = control::command(component, &self.binaries, &self.place.directory());
        if matches!(component, Component::ApiServer) {
            command.args(&self.state().api_server);
        }
        self.control_network()?.command(&mut command)?;
        let pid = self.processes.start(component.name(), command, &self.place.group())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = match component {
                Component::Etcd => etcd::answers(&self.control_network()?),
                Component::ApiServer => self.api.text("/readyz").is_ok_and(|text| text == "ok"),
                // They say what they do in the API.
                Component::ControllerManager | Component::Scheduler => true,
            };
            if ready {
                return Ok(());
            }
            self.processes.reap();
            let name = component.name();
            let log = self.processes.log(name);
            ensure!(
                Path::new("/proc").join(pid.to_string()).exists(),
                "{name} has ended:\n{}",
                tail(&log)
            );
            ensure!(
                Instant::now() < deadline,
                "{name} is not ready after {PATIENCE:?}: see {}",
                log.display()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills a program of the control plane, without a chance to say good-bye.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self, component: Component) -> Result<()> {
        let program = self.binaries.path(component.tool());
        let pid = cgroup::processes(&self.place.group())
            .into_iter()
            .find(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == program))
            .with_context(|| format!("{} does not run", component.name()))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {}", component.name()))?;
        let deadline = Instant::now() + PATIENCE;
        while Path::new("/proc").join(pid.to_string()).exists() {
            self.processes.reap();
            ensure!(Instant::now() < deadline, "{} does not end", component.name());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Makes etcd forget old revisions: see [`etcd::compact`].
    ///
    /// # Errors
    /// If etcd is not there or refuses.
    pub fn compact(&self) -> Result<u64> {
        etcd::compact(&self.control_network()?)
    }

    fn start_on(&self, number: usize, name: &str, mut command: Command) -> Result<()> {
        self.node(number)?.command(&mut command)?;
        let name = format!("{name}-node{number}");
        self.processes.start(&name, command, &self.place.node_group(number))?;
        Ok(())
    }

    pub(super) fn start_runtime(&self, number: usize, images: &[PathBuf]) -> Result<()> {
        let node = self.member(number);
        self.start_on(number, "containerd", Node::containerd_command())?;
        let socket = node.containerd_socket();
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            ensure!(
                Instant::now() < deadline,
                "containerd of {} does not come up: see {}",
                node.name(),
                self.processes.log(&format!("containerd-{}", node.name())).display()
            );
            thread::sleep(Duration::from_millis(20));
        }
        images.iter().try_for_each(|archive| self.import(number, archive))
    }

    pub(super) fn start_kubelet(&self, number: usize) -> Result<()> {
        let node = self.member(number);
        self.start_on(number, "kubelet", node.kubelet_command())?;
        let proxy = self.state().proxy;
        match node.proxy_command(proxy) {
            Some(command) => self.start_on(number, "kube-proxy", command),
            None => Ok(()),
        }
    }

    pub(super) fn await_nodes(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nodes = self.api.list("/api/v1/nodes")?;
            let ready = nodes.iter().filter(|node| is_ready(node)).count();
            if ready == self.numbers().count() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{ready} of {} nodes are ready after {PATIENCE:?}: see the logs of kubelet and containerd in {}",
                self.numbers().count(),
                self.place.directory().join("log").display()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Whether a Node or Pod says of itself that it is ready.
#[must_use]
pub fn is_ready(object: &Value) -> bool {
    object["status"]["conditions"].as_array().is_some_and(|conditions| {
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
