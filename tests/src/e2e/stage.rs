//! The cluster that the cases run on, with Weir installed as an admin installs it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weir::{
    cli::{
        client::Client,
        protocol::{Response, Verb},
    },
    control::query::StatusReport,
};

use super::pods::{eventually, processes};
use crate::{
    cluster::{
        Cluster,
        api::Api,
        binaries::{Binaries, Tool},
        is_ready,
    },
    lab::NetNs,
};

/// Where Weir is installed, and under which name.
pub const NAMESPACE: &str = "kube-system";
pub const RELEASE: &str = "weir";

/// The DaemonSet in the API.
pub const DAEMON_SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/weir";

/// Where agents answer probes and serve metrics, on their node's network.
pub const HEALTH_PORT: u16 = 9479;

/// An install or a roll-out takes seconds, on a busy machine tens of them.
pub const ROLLED_OUT: Duration = Duration::from_secs(240);

/// A cluster, and the tools to work on it.
pub struct Stage {
    api: Api,
    kubeconfig: PathBuf,
    binaries: Binaries,
    /// The repository's root: the chart is in it.
    root: PathBuf,
    /// Values that this cluster needs.
    values: Vec<String>,
    /// Where Helm keeps what it keeps.
    scratch: tempfile::TempDir,
    cluster: Option<Cluster>,
}

/// One agent that runs.
#[derive(Clone, Debug)]
pub struct AgentPod {
    pub node: String,
    pub name: String,
    pub uid: String,
    pub pid: i32,
}

impl AgentPod {
    /// The root of the agent's file system, as this machine sees it: so directories of any node can be looked into that
    /// the agent has mounted.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// The agent's run directory, as this machine sees it.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.root().join("run/weir")
    }

    /// The network namespace of the agent's node.
    ///
    /// # Errors
    /// If the agent has ended.
    pub fn network(&self) -> Result<NetNs> {
        NetNs::open(Path::new(&format!("/proc/{}/ns/net", self.pid)))
    }

    /// What the agent says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<StatusReport> {
        match Client::connect(&self.run_dir())?.ask(Verb::Status)? {
            Response::Status(report) => Ok(*report),
            other => bail!("status was answered by {other:?}"),
        }
    }

    /// Waits until the agent enforces everything that the API server holds at this moment. False: not in time, or not
    /// everything can be enforced.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn caught_up(&self, patience: Duration) -> Result<bool> {
        let mut client = Client::connect(&self.run_dir())?;
        client.patience(Some(patience + Duration::from_secs(10)))?;
        let timeout_ms = u64::try_from(patience.as_millis())?;
        match client.ask(Verb::Wait { timeout_ms })? {
            Response::Wait(report) => Ok(report.enforced),
            other => bail!("wait was answered by {other:?}"),
        }
    }
}

impl Stage {
    /// A cluster of namespaces, which goes with this value.
    ///
    /// # Errors
    /// If its tools cannot be built.
    pub fn of_namespaces(cluster: Cluster, root: &Path) -> Result<Self> {
        let kubeconfig = cluster.kubeconfig();
        Self::new(kubeconfig, root, Some(cluster))
    }

    /// The cluster of a kubeconfig; its nodes must run on this machine and have all images.
    ///
    /// # Errors
    /// If its tools cannot be built, or the kubeconfig cannot be read.
    pub fn of_kubeconfig(kubeconfig: PathBuf, root: &Path) -> Result<Self> {
        Self::new(kubeconfig, root, None)
    }

    fn new(kubeconfig: PathBuf, root: &Path, cluster: Option<Cluster>) -> Result<Self> {
        Ok(Self {
            api: Api::new(&kubeconfig)?,
            kubeconfig,
            binaries: Binaries::ensure(&[Tool::Kubectl, Tool::Helm])?,
            root: root.to_owned(),
            values: vec!["image.pullPolicy=Never".to_owned()],
            scratch: tempfile::tempdir().context("make a temporary directory")?,
            cluster,
        })
    }

    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The cluster of namespaces, if it is one.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The names of the nodes that pods can run on.
    ///
    /// # Errors
    /// The API server's; if there is none.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .api
            .list("/api/v1/nodes")?
            .iter()
            .filter(|node| is_ready(node) && !has_no_schedule(node))
            .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        names.sort_unstable();
        ensure!(!names.is_empty(), "the cluster has no node that pods can run on");
        Ok(names)
    }

    /// Runs `helm` and returns what it says.
    ///
    /// # Errors
    /// If it fails.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.binaries.path(Tool::Helm));
        for (variable, name) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            command.env(variable, self.scratch.path().join(name));
        }
        self.tool(command, arguments)
    }

    /// Runs `kubectl` and returns what it says.
    ///
    /// # Errors
    /// If it fails.
    pub fn kubectl<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        self.tool(Command::new(self.binaries.path(Tool::Kubectl)), arguments)
    }

    fn tool<S: AsRef<OsStr>>(&self, mut command: Command, arguments: &[S]) -> Result<String> {
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .args(arguments)
            .current_dir(&self.root)
            .stdin(Stdio::null());
        let Output { status, stdout, stderr } = command.output().with_context(|| format!("start {command:?}"))?;
        let shown = || {
            let words: Vec<String> = arguments
                .iter()
                .map(|word| word.as_ref().to_string_lossy().into_owned())
                .collect();
            words.join(" ")
        };
        ensure!(
            status.success(),
            "{} fails: {}",
            shown(),
            String::from_utf8_lossy(&stderr).trim()
        );
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// Installs the chart, or upgrades what is installed, with further values; waits until all agents are ready.
    ///
    /// # Errors
    /// What Helm says.
    pub fn install(&self, values: &[&str]) -> Result<()> {
        let timeout = format!("{}s", ROLLED_OUT.as_secs());
        let mut arguments = vec![
            "upgrade",
            "--install",
            RELEASE,
            "deploy/helm/weir",
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            &timeout,
        ];
        for value in self.values.iter().map(String::as_str).chain(values.iter().copied()) {
            arguments.extend(["--set", value]);
        }
        self.helm(&arguments).with_context(|| self.agent_logs())?;
        self.await_agents()
    }

    /// Takes Weir away as an admin does; returns when Helm says that it is gone.
    ///
    /// # Errors
    /// What Helm says.
    pub fn uninstall(&self) -> Result<()> {
        let timeout = format!("{}s", ROLLED_OUT.as_secs());
        self.helm(&[
            "uninstall",
            RELEASE,
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            &timeout,
        ])?;
        Ok(())
    }

    /// Waits until every node has an agent that is ready, of the newest revision, and no other.
    ///
    /// # Errors
    /// If that does not come, with the state of the agents' pods.
    pub fn await_agents(&self) -> Result<()> {
        let nodes = self.api.list("/api/v1/nodes")?.len();
        let done = self.api.wait(DAEMON_SET, ROLLED_OUT, |found| {
            found.is_some_and(|set| {
                let status = &set["status"];
                let number = |name: &str| status[name].as_u64().unwrap_or_default();
                status["observedGeneration"] == set["metadata"]["generation"]
                    && ["desiredNumberScheduled", "updatedNumberScheduled", "numberReady"]
                        .iter()
                        .all(|name| number(name) == nodes as u64)
            })
        });
        let settled =
            done.and_then(|()| eventually("old agents end", ROLLED_OUT, || Ok(self.agent_pods()?.len() == nodes)));
        settled.with_context(|| self.agent_logs())
    }

    fn agent_pods(&self) -> Result<Vec<Value>> {
        self.api.list(&format!(
            "/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name%3Dweir"
        ))
    }

    /// The agents that run, by node.
    ///
    /// # Errors
    /// If one of them has no process on this machine.
    pub fn agents(&self) -> Result<BTreeMap<String, AgentPod>> {
        let pods = self.agent_pods()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut agents = BTreeMap::new();
        for pod in &pods {
            let uid = text(&pod["metadata"]["uid"]);
            let node = text(&pod["spec"]["nodeName"]);
            let agent = AgentPod {
                pid: agent_process(&uid)?.with_context(|| format!("the agent of {node} has no process here"))?,
                name: text(&pod["metadata"]["name"]),
                node: node.clone(),
                uid,
            };
            agents.insert(node, agent);
        }
        Ok(agents)
    }

    /// What the agents' pods say of themselves, for when something went wrong.
    #[must_use]
    pub fn agent_logs(&self) -> String {
        let selector = "app.kubernetes.io/name=weir";
        let said = |result: Result<String>| result.unwrap_or_else(|error| format!("{error:#}"));
        let pods = said(self.kubectl(&["get", "pods", "-A", "-o", "wide"]));
        let logs = said(self.kubectl(&[
            "logs",
            "-n",
            NAMESPACE,
            "-l",
            selector,
            "--tail=60",
            "--prefix",
            "--all-containers",
        ]));
        let events = said(self.kubectl(&["get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"]));
        format!("--- pods ---\n{pods}\n--- logs of the agents ---\n{logs}\n--- events ---\n{events}")
    }
}

/// The agent's own process of a pod: not the one that holds the pod's namespaces.
fn agent_process(uid: &str) -> Result<Option<i32>> {
    if processes(&[uid])?.is_empty() {
        return Ok(None);
    }
    let written = uid.replace('-', "_");
    for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let groups = read("cgroup");
        if (groups.contains(uid) || groups.contains(&written)) && read("comm").trim() == "weir" {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn has_no_schedule(node: &Value) -> bool {
    node["spec"]["taints"]
        .as_array()
        .is_some_and(|taints| taints.iter().any(|taint| taint["effect"] == "NoSchedule"))
}
