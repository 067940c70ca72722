//! The agent's DaemonSet is removed: everything is taken away, in the order in which others depend on it.
//!
//! First what makes the container runtime call the plugin, so that no pod fails for want of it; then what is on the
//! interfaces, and the pins; then the plugin, which runtimes may still be about to call; last the agent's own files.

use std::{io, time::Duration};

use anyhow::Context as _;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{agent::Agent, query::DetachReport};
use crate::{cli::detach::remove_run_dir, cni::install, datapath, source::Source};

/// For the API server, at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes the CNI plugin, programs and pins away. What fails does not keep the rest.
pub(super) async fn take_away(mut agent: Agent) -> anyhow::Result<DetachReport> {
    let (bpffs, run_dir) = (agent.options.bpffs.clone(), agent.options.run_dir.clone());
    let directories = agent.options.cni.take().map(|cni| cni.directories);
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
    let detach = || datapath::detach_all(&bpffs, &run_dir);
    let (detached, removed) = tokio::task::block_in_place(|| match &directories {
        Some(directories) => install::remove(directories, detach),
        None => (detach(), Ok(install::Removed::default())),
    });
    let mut report = DetachReport::from(detached?);
    let removed = removed.context("cannot remove the CNI plugin")?;
    report.configurations = removed.configurations;
    report.plugin = removed.plugin;
    if let Some(problem) = removed.problems.first() {
        anyhow::bail!("the CNI plugin stays, as a network configuration may name it still: {problem}");
    }
    Ok(report)
}

pub(super) async fn run(agent: Agent, source: &Source) -> anyhow::Result<()> {
    info!("the agent's DaemonSet is removed: taking everything away");
    let run_dir = agent.options.run_dir.clone();
    let detached = take_away(agent).await;
    match &detached {
        Ok(report) => info!(
            interfaces = report.interfaces.len(),
            configurations = report.configurations,
            plugin = report.plugin,
            left = report.left.len(),
            "took everything away"
        ),
        Err(error) => error!("cannot take everything away: {error:#}; run `weir detach` on the node"),
    }
    remove_condition(source).await;
    match remove_run_dir(&run_dir) {
        // A directory that is mounted into the pod stays, empty.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err(error) => warn!(directory = %run_dir.display(), %error, "cannot be removed"),
        Ok(()) => {}
    }
    detached?;
    Ok(())
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
