//! The agent's DaemonSet is removed: everything is taken away, in the order in which others depend on it.
//!
//! First what makes the container runtime call the plugin, so that no pod fails for want of it; then the plugin; then
//! what is on the interfaces, and the pins; last the agent's own files.

use std::io;

use tracing::{error, info, warn};

use super::agent::Agent;
use crate::{cli::detach::remove_run_dir, datapath, source::Source};

pub(super) async fn run(mut agent: Agent, source: &Source) -> anyhow::Result<()> {
    info!("the agent's DaemonSet is removed: taking everything away");
    let (bpffs, run_dir) = (agent.options.bpffs.clone(), agent.options.run_dir.clone());
    // The CNI plugin's conflist and binary go here, before anything else: `crate::cni`.
    agent.want_events(false);
    let Agent { flows, datapath, .. } = agent;
    flows.stop().await;
    // Gives back the locks.
    drop(datapath);
    let detached = tokio::task::block_in_place(|| datapath::detach_all(&bpffs, &run_dir));
    match &detached {
        Ok(report) => info!(
            interfaces = report.interfaces.len(),
            left = report.left.len(),
            "detached from every interface"
        ),
        Err(error) => error!(%error, "cannot take everything away: run `weir detach` on the node"),
    }
    if let Some(condition) = source.condition()
        && let Err(error) = condition.remove().await
    {
        warn!("{error}");
    }
    match remove_run_dir(&run_dir) {
        // A directory that is mounted into the pod stays, empty.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err(error) => warn!(directory = %run_dir.display(), %error, "cannot be removed"),
        Ok(()) => {}
    }
    detached?;
    Ok(())
}
