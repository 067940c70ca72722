//! Running agents are ended in every way there is, and the control plane too, while traffic never pauses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{
    Extent,
    pods::eventually,
    stage::{AgentPod, HEALTH_PORT, NAMESPACE, ROLLED_OUT, Stage},
    world::World,
};
use crate::{cluster::Component, scrape::Scrape};

/// Nothing happens: what disturbs the traffic now is no doing of Weir's, and other cases would blame it on Weir.
///
/// # Errors
/// What the traffic met.
pub fn nothing(stage: &Stage) -> Result<()> {
    let world = World::new(stage)?;
    world.undisturbed("nothing", || {
        thread::sleep(Duration::from_secs(30));
        Ok(())
    })?;
    world.end()
}

/// A rolling update replaces every agent.
///
/// # Errors
/// What the traffic met.
pub fn rolling_update(stage: &Stage) -> Result<()> {
    let mut world = World::new(stage)?;
    let before = stage.agents()?;
    world.undisturbed("a rolling update", || {
        stage.kubectl(&["rollout", "restart", "daemonset/weir", "-n", NAMESPACE])?;
        stage.await_agents()
    })?;
    let after = stage.agents()?;
    for (node, agent) in &after {
        let old = before
            .get(node)
            .with_context(|| format!("there was no agent on {node}"))?;
        ensure!(old.uid != agent.uid, "the agent of {node} was not replaced");
    }
    world.follows()?;
    let agent = after.values().next().context("there is no agent")?;
    world.undisturbed("an eviction", || evict(stage, agent))?;
    world.follows()?;
    world.end()
}

/// Evicts an agent's pod, as a drain does: what it enforced stays while no agent runs, and the next one takes over.
fn evict(stage: &Stage, agent: &AgentPod) -> Result<()> {
    // Seen through the agent's own mount, which this keeps: so it does not matter what the node is.
    let bpffs = agent.root().join("sys/fs/bpf/weir");
    let bpffs = File::open(&bpffs).with_context(|| format!("open {}", bpffs.display()))?;
    let pins = |directory: &File| pins(&PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())));
    let before = pins(&bpffs)?;
    ensure!(
        before.iter().any(|pin| pin.starts_with("links")),
        "the agent of {} has pinned no link, so that links stay would prove nothing: {before:?}",
        agent.node
    );
    stage.api().post(
        &format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/eviction", agent.name),
        &json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": NAMESPACE, "name": agent.name},
        }),
    )?;
    let process = PathBuf::from(format!("/proc/{}", agent.pid));
    eventually("the evicted agent ends", ROLLED_OUT, || Ok(!process.exists()))?;
    let meanwhile = pins(&bpffs)?;
    let lost: Vec<&PathBuf> = before.difference(&meanwhile).collect();
    ensure!(lost.is_empty(), "an evicted agent takes away {lost:?}");
    eventually("another agent comes", ROLLED_OUT, || {
        Ok(stage.agents()?.get(&agent.node).is_some_and(|new| new.uid != agent.uid))
    })?;
    stage.await_agents()
}

/// What is pinned below a directory.
fn pins(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("list {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.strip_prefix(directory).unwrap_or(&path).to_owned());
            }
        }
    }
    Ok(found)
}

/// Agents are killed without a chance to say good-bye.
///
/// # Errors
/// What the traffic met.
pub fn kill_agents(stage: &Stage) -> Result<()> {
    let mut world = World::new(stage)?;
    let before = stage.agents()?;
    world.undisturbed("kill -9 of every agent", || {
        for agent in before.values() {
            kill(Pid::from_raw(agent.pid), Signal::SIGKILL)
                .with_context(|| format!("kill the agent of {}", agent.node))?;
        }
        eventually("kubelet starts new agents", ROLLED_OUT, || {
            let now = stage.agents()?;
            Ok(before
                .iter()
                .all(|(node, old)| now.get(node).is_some_and(|new| new.pid != old.pid)))
        })?;
        stage.await_agents()
    })?;
    world.follows()?;
    world.end()
}

/// API server and etcd die and come back; then the API server alone, and etcd forgets what it was to tell.
///
/// # Errors
/// What the traffic met; if an agent does not say that it hears nothing, or goes on saying so.
pub fn control_plane_away(stage: &Stage, extent: Extent) -> Result<()> {
    let cluster = stage
        .cluster()
        .context("nobody here can kill this cluster's API server")?;
    // Long enough for every watch to break and be tried again; or as an upgrade of a control plane may take.
    let away = Duration::from_secs(if extent == Extent::All { 180 } else { 10 });
    let agents: Vec<AgentPod> = stage.agents()?.into_values().collect();
    let mut last: Vec<BTreeMap<String, f64>> = Vec::new();
    let mut world = World::new(stage)?;
    world.undisturbed("API server and etcd away", || {
        cluster.kill(Component::ApiServer)?;
        let began = Instant::now();
        cluster.kill(Component::Etcd)?;
        let mut first = Vec::new();
        eventually("every watch is known to be stale", ROLLED_OUT, || {
            first = stale(&agents)?;
            Ok(first.iter().all(Option::is_some))
        })?;
        thread::sleep(away.saturating_sub(began.elapsed()));
        eventually("the watches grow staler", ROLLED_OUT, || {
            let now = stale(&agents)?;
            Ok(first.iter().zip(now).all(|(first, now)| now > *first))
        })?;
        last = agents.iter().map(staleness).collect::<Result<_>>()?;
        // Nobody can have heard of a server that is not there.
        let heard = last
            .iter()
            .flatten()
            .find(|(_, seconds)| **seconds < away.as_secs_f64());
        ensure!(
            heard.is_none(),
            "of a server that is away for {away:?}, the metric says that it was heard of {heard:?} s ago"
        );
        cluster.start(Component::Etcd)?;
        cluster.start(Component::ApiServer)
    })?;
    stage.await_agents()?;
    eventually("every watch is heard of again", ROLLED_OUT, || {
        // Each by itself: they are tried again at different times, and silent for a minute where nothing happens.
        for (agent, unheard) in agents.iter().zip(&mut last) {
            let now = staleness(agent)?;
            unheard.retain(|kind, before| now.get(kind).is_none_or(|now| now >= before));
        }
        Ok(last.iter().all(BTreeMap::is_empty) && stale(&agents)?.iter().all(Option::is_none))
    })?;
    world.follows()?;
    world.undisturbed("the API server away, and etcd compacted", || {
        cluster.kill(Component::ApiServer)?;
        cluster.compact()?;
        cluster.start(Component::ApiServer)
    })?;
    stage.await_agents()?;
    world.follows()?;
    world.end()
}

/// For how many seconds `weir status` calls what is known stale: of each agent and kind. None: it is current.
fn stale(agents: &[AgentPod]) -> Result<Vec<Option<u64>>> {
    let mut found = Vec::new();
    for agent in agents {
        let watches = agent.status()?.watches;
        ensure!(!watches.is_empty(), "the agent of {} watches nothing", agent.node);
        found.extend(
            watches
                .iter()
                .map(|watch| watch.stale.as_ref().map(|stale| stale.seconds)),
        );
    }
    Ok(found)
}

/// The same as the metric has it, by kind, for which nothing is ever quite current.
fn staleness(agent: &AgentPod) -> Result<BTreeMap<String, f64>> {
    let scrape = Scrape::of(&agent.network()?, SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT)))?;
    let found = scrape.by_label("weir_watch_staleness_seconds", "kind");
    ensure!(!found.is_empty(), "the agent of {} watches nothing", agent.node);
    Ok(found)
}
