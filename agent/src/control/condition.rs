//! The condition on the agent's Node: written when it changes, and now and then.

use std::time::{Duration, Instant};

use tracing::warn;

use super::query::Query;
use crate::{cli::server::ControlHandle, source::kubernetes::NodeCondition};

/// How often to look.
const LOOK: Duration = Duration::from_secs(5);
/// How often to say again what has not changed.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How often to try again, and to say so, where it cannot be written.
const RETRY: Duration = Duration::from_secs(60);
/// While an agent starts, what its predecessor enforced goes on, and what it said of it stays: a restart is no transition.
const STARTING: Duration = Duration::from_secs(60);
/// For the control loop to answer. One that does not is not enforcing what is new.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps the condition until it is dropped.
pub(super) async fn keep(condition: NodeCondition, handle: ControlHandle) {
    // The reason why not everything is enforced, as written last, and when to write it again.
    let mut written: Option<(Option<String>, Instant)> = None;
    let mut refused: Option<Instant> = None;
    let started = Instant::now();
    loop {
        let reason = match handle.ask(PATIENCE, Query::Readiness).await {
            Ok(readiness) => (!readiness.ready).then(|| readiness.reason.unwrap_or_default()),
            Err(error) => Some(error.to_string()),
        };
        if written.is_none() && reason.is_some() && started.elapsed() < STARTING {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let last = written.as_ref().map(|(last, _)| last.is_none());
        let due = written
            .as_ref()
            .is_none_or(|(last, at)| *last != reason || at.elapsed() >= HEARTBEAT);
        if due && refused.is_none_or(|at| at.elapsed() >= RETRY) {
            match condition.set(reason.as_deref(), last).await {
                Ok(()) => {
                    refused = None;
                    written = Some((reason, Instant::now()));
                }
                Err(error) => {
                    refused = Some(Instant::now());
                    warn!("{error}");
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
