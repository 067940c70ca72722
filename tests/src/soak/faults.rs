//! What fails, and how it comes back.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{KILLED, SPARED, changes};
use crate::{
    churn::Random,
    cluster::{Cluster, Component},
    world::World,
};

/// Something that fails.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The agent is killed and starts again.
    Killed,
    /// The API server starts again, with other watches.
    ApiServer,
    /// The agent is told to end, and starts again.
    Restarted,
    /// Both agents stand still while what they miss is forgotten: 410 Gone.
    Compacted,
    /// All of the control plane starts again.
    ControlPlane,
}

impl Fault {
    pub const ALL: [Self; 5] = [
        Self::Killed,
        Self::ApiServer,
        Self::Compacted,
        Self::Restarted,
        Self::ControlPlane,
    ];

    /// Returns once everything runs again.
    pub fn happen(self, world: &mut World, cluster: &Cluster, random: &mut Random) -> Result<()> {
        let api = cluster.api();
        let pause = Duration::from_millis(100 + random.below(1_500) as u64);
        match self {
            Self::Killed => {
                world.agent(KILLED)?.kill()?;
                thread::sleep(pause);
                changes::one(world, api, random)?;
                world.agent(KILLED)?.spawn()?;
            }
            Self::Restarted => {
                world.agent(KILLED)?.terminate()?;
                changes::one(world, api, random)?;
                world.agent(KILLED)?.spawn()?;
            }
            Self::ApiServer => {
                cluster.kill(Component::ApiServer)?;
                thread::sleep(pause);
                cluster.start(Component::ApiServer)?;
            }
            Self::Compacted => {
                let pids = [KILLED, SPARED]
                    .into_iter()
                    .map(|node| world.agent(node)?.pid().context("the agent runs"))
                    .collect::<Result<Vec<u32>>>()?;
                for pid in &pids {
                    signal(*pid, Signal::SIGSTOP)?;
                }
                let missed = (|| -> Result<()> {
                    // Nothing of what follows waits for them in a buffer.
                    cluster.kill(Component::ApiServer)?;
                    cluster.start(Component::ApiServer)?;
                    for _ in 0..10 {
                        changes::one(world, api, random)?;
                    }
                    cluster.kill(Component::ApiServer)?;
                    cluster.compact()?;
                    cluster.start(Component::ApiServer)
                })();
                for pid in &pids {
                    signal(*pid, Signal::SIGCONT)?;
                }
                missed?;
            }
            Self::ControlPlane => {
                cluster.kill(Component::ApiServer)?;
                cluster.kill(Component::Etcd)?;
                thread::sleep(pause);
                cluster.start(Component::Etcd)?;
                cluster.start(Component::ApiServer)?;
            }
        }
        Ok(())
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("send {signal}"))
}
