//! The agent's DaemonSet is removed: everything is taken away, in the order in which others depend on it.
//!
//! First what makes the container runtime call the plugin, so that no pod fails for want of it; then what is on the
//! interfaces, and the pins; then the plugin, which runtimes may still be about to call; last the agent's own files.
//!
//! Nobody comes after this agent. So what fails is tried again until it is done or the kubelet kills the agent: its pod
//! stays where whoever uninstalls can see it.

use std::{path::PathBuf, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tracing::{error, info, warn};

use super::{agent::Agent, query::DetachReport};
use crate::{
    cli::detach::remove_run_dir,
    cni::install::{self, Directories},
    datapath,
    source::Source,
};

/// For the API server, at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// After the first failure, and twice as long after each further one, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What an agent that has stopped leaves on its node.
struct Traces {
    bpffs: PathBuf,
    run_dir: PathBuf,
    directories: Option<Directories>,
}

impl Traces {
    /// Stops the agent.
    async fn of(mut agent: Agent) -> Self {
        let traces = Self {
            bpffs: agent.options.bpffs.clone(),
            run_dir: agent.options.run_dir.clone(),
            directories: agent.options.cni.take().map(|cni| cni.directories),
        };
        agent.want_events(false);
        let Agent {
            flows,
            datapath,
            installer,
            ..
        } = agent;
        // It would put the plugin back.
        drop(installer);
        flows.stop().await;
        // Gives back the locks.
        drop(datapath);
        traces
    }

    /// The next agent has begun with what this one would take away.
    fn check_next(&self) -> anyhow::Result<()> {
        match datapath::running_agent(&self.run_dir) {
            Some(pid) => Err(datapath::Error::AgentRuns { pid }.into()),
            None => Ok(()),
        }
    }

    /// Takes the CNI plugin, programs and pins away. What fails does not keep the rest, and can be tried again.
    fn remove(&self) -> anyhow::Result<DetachReport> {
        self.check_next()?;
        let detach = || datapath::detach_all(&self.bpffs, &self.run_dir);
        let (detached, removed) = match &self.directories {
            Some(directories) => install::remove(directories, detach),
            None => (detach(), Ok(install::Removed::default())),
        };
        let mut failures = Vec::new();
        let mut report = match detached {
            Ok(detached) => DetachReport::from(detached),
            Err(error) => {
                failures.push(error.to_string());
                DetachReport::default()
            }
        };
        match removed {
            Ok(removed) => {
                report.configurations = removed.configurations;
                report.plugin = removed.plugin;
                failures.extend(removed.problems.iter().map(install::stays));
            }
            Err(error) => failures.push(format!("cannot remove the CNI plugin: {error}")),
        }
        anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(report)
    }

    /// The same, and the agent's own files.
    fn remove_all(&self) -> anyhow::Result<DetachReport> {
        let report = self.remove();
        // They are the next agent's, if there is one.
        self.check_next()?;
        let failures = remove_run_dir(&self.run_dir);
        let report = report?;
        anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(report)
    }
}

/// Takes the CNI plugin, programs and pins away, as somebody has asked who hears of what fails.
pub(super) async fn take_away(agent: Agent) -> anyhow::Result<DetachReport> {
    let traces = Traces::of(agent).await;
    tokio::task::block_in_place(|| traces.remove())
}

pub(super) async fn run(agent: Agent, source: &Source) -> anyhow::Result<()> {
    info!("the agent's DaemonSet is removed: taking everything away");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let traces = Traces::of(agent).await;
    let mut removed = tokio::task::block_in_place(|| traces.remove_all());
    remove_condition(source).await;
    let mut pause = FIRST_PAUSE;
    loop {
        let failure = match removed {
            Ok(report) => {
                info!(
                    interfaces = report.interfaces.len(),
                    configurations = report.configurations,
                    plugin = report.plugin,
                    left = report.left.len(),
                    "took everything away"
                );
                return Ok(());
            }
            Err(failure) => failure,
        };
        if traces.check_next().is_err() {
            return Err(failure);
        }
        error!(
            "cannot take everything away: {failure:#}; it is tried again in {}; if that does not help, run `weir detach` on the node",
            humantime::format_duration(pause)
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = interrupt.recv() => return Err(failure),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        removed = tokio::task::block_in_place(|| traces.remove_all());
    }
}

/// The Node says nothing more of what is enforced there.
pub(super) async fn remove_condition(source: &Source) {
    let Some(condition) = source.condition() else { return };
    match timeout(PATIENCE, condition.remove()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("{error}"),
        Err(_) => warn!("the node's condition stays: no answer within {} s", PATIENCE.as_secs()),
    }
}
