//! Running agents are ended in every way there is, and the control plane too, while traffic never pauses.

use std::{collections::BTreeMap, fs, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    pods::{PodPlan, Pods, eventually, namespace, remove_namespace},
    stage::{DAEMON_SET, NAMESPACE, ROLLED_OUT, Stage},
};
use crate::{
    cluster::Component,
    lab::{
        Family, Hosts as _,
        manifests::labels,
        probe::{Patience, Probe, Prober, Protocol, Servers, Verdict},
    },
    traffic::Traffic,
};

const OWN: &str = "weir-e2e-traffic";

/// A change takes effect within milliseconds; this ends what has gone wrong.
const ENFORCED: Duration = Duration::from_secs(60);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A server with a policy, a client that it allows, and one that it does not; the clients on every node.
struct World<'a> {
    stage: &'a Stage,
    pods: Pods,
    servers: Servers,
    prober: Prober,
    families: Vec<Family>,
    clients: Vec<(String, String)>,
    server: String,
}

impl<'a> World<'a> {
    fn new(stage: &'a Stage) -> Result<Self> {
        let nodes = stage.nodes()?;
        namespace(stage.api(), OWN, &labels(&[]))?;
        let server = format!("{OWN}/server");
        let mut plans = vec![PodPlan::idle(&server, &nodes[0], &labels(&[("role", "server")]))];
        let mut clients = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            let friend = format!("{OWN}/friend-{number}");
            let stranger = format!("{OWN}/stranger-{number}");
            plans.push(PodPlan::idle(&friend, node, &labels(&[("role", "friend")])));
            plans.push(PodPlan::idle(&stranger, node, &labels(&[("role", "stranger")])));
            clients.push((friend, stranger));
        }
        let mut pods = Pods::default();
        pods.add(stage.api(), &plans)?;
        let servers = Servers::start()?;
        let (netns, addresses) = pods.host(&server)?;
        servers.serve(&server, netns, &[(Protocol::Tcp, 80), (Protocol::Udp, 80)])?;
        let families = FAMILIES
            .into_iter()
            .filter(|family| addresses.of(*family).is_some())
            .collect();
        let mut world = Self {
            stage,
            pods,
            servers,
            prober: Prober::default(),
            families,
            clients,
            server,
        };
        world.allow(&["friend"])?;
        Ok(world)
    }

    /// Lets clients of these roles reach the server, and no others; returns when it is so.
    fn allow(&mut self, roles: &[&str]) -> Result<()> {
        self.stage.api().apply(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": OWN, "name": "server"},
            "spec": {
                "podSelector": {"matchLabels": {"role": "server"}},
                "ingress": [{"from": [{"podSelector": {"matchExpressions": [
                    {"key": "role", "operator": "In", "values": roles}]}}]}],
            },
        }))?;
        self.await_verdicts(true, roles.contains(&"stranger"))
    }

    fn await_verdicts(&mut self, friend: bool, stranger: bool) -> Result<()> {
        let mut probes = Vec::new();
        let mut wanted = Vec::new();
        for family in &self.families {
            let to = self.pods.address(&self.server, *family)?;
            for (one, other) in &self.clients {
                for (from, allowed) in [(one, friend), (other, stranger)] {
                    probes.push(Probe {
                        from: from.clone(),
                        to,
                        protocol: Protocol::Tcp,
                        port: 80,
                    });
                    wanted.push(if allowed { Verdict::Allow } else { Verdict::Deny });
                }
            }
        }
        let (prober, pods, servers) = (&mut self.prober, &self.pods, &self.servers);
        let mut last = Vec::new();
        eventually("the server's policy is enforced", ENFORCED, || {
            let outcomes = prober.ask(pods, servers, &probes, Patience::STUBBORN)?;
            last = outcomes.iter().map(|outcome| outcome.verdict).collect();
            Ok(last == wanted)
        })
        .with_context(|| format!("wanted {wanted:?}, found {last:?} for {probes:?}"))
    }

    fn start(&self) -> Result<Vec<Traffic>> {
        let mut traffic = Vec::new();
        for family in &self.families {
            for (friend, stranger) in &self.clients {
                traffic.push(Traffic::between(
                    &self.pods,
                    *family,
                    (friend, &self.server),
                    Some((stranger, &self.server)),
                )?);
            }
        }
        Ok(traffic)
    }

    /// Runs something under traffic, which must not feel it.
    fn undisturbed(&self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let traffic = self.start()?;
        let mut wrong: Vec<anyhow::Error> = work().err().into_iter().collect();
        // Also what comes right afterwards.
        thread::sleep(Duration::from_millis(500));
        for running in traffic {
            let met = running.finish(&self.servers).and_then(|report| report.unharmed());
            wrong.extend(met.err());
        }
        // The work's own first: traffic may be disturbed for the same reason.
        let wrong: Vec<String> = wrong.iter().map(|error| format!("{error:#}")).collect();
        ensure!(wrong.is_empty(), "{what}: {}", wrong.join("; "));
        Ok(())
    }

    /// The agents follow changes, too.
    fn follows(&mut self) -> Result<()> {
        self.allow(&["friend", "stranger"])?;
        self.allow(&["friend"])
    }

    fn end(self) -> Result<()> {
        drop(self.servers);
        remove_namespace(self.stage.api(), OWN)
    }
}

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
    world.end()
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

/// API server and etcd die, agents die while they are away, and all come back.
///
/// # Errors
/// What the traffic met.
pub fn control_plane_away(stage: &Stage) -> Result<()> {
    let cluster = stage
        .cluster()
        .context("nobody here can kill this cluster's API server")?;
    let mut world = World::new(stage)?;
    world.undisturbed("API server and etcd away", || {
        cluster.kill(Component::ApiServer)?;
        cluster.kill(Component::Etcd)?;
        // Long enough for every watch to break and be tried again.
        thread::sleep(Duration::from_secs(10));
        cluster.start(Component::Etcd)?;
        cluster.start(Component::ApiServer)
    })?;
    stage.await_agents()?;
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

/// Weir is taken away, with all that it had put on the nodes, and put back. The nodes are looked at only in a cluster of
/// namespaces.
///
/// # Errors
/// What the traffic met; what is left.
pub fn uninstall(stage: &Stage) -> Result<()> {
    let mut world = World::new(stage)?;
    let traced = traces(stage)?;
    ensure!(
        traced.values().all(|traces| !traces.is_empty()),
        "an installed Weir leaves no traces on nodes, so their absence would prove nothing"
    );
    let mut friends = Vec::new();
    for family in &world.families {
        for (friend, _) in &world.clients {
            friends.push(Traffic::between(&world.pods, *family, (friend, &world.server), None)?);
        }
    }
    stage.uninstall()?;
    let left = traces(stage)?;
    ensure!(stage.api().get(DAEMON_SET)?.is_none(), "the DaemonSet is left");
    for (node, traces) in left {
        ensure!(traces.is_empty(), "left on {node}: {}", traces.join(", "));
    }
    for running in friends {
        running.finish(&world.servers)?.unharmed().context("uninstall")?;
    }
    // Nobody enforces any more.
    world.await_verdicts(true, true)?;
    stage.install(&[])?;
    world.await_verdicts(true, false)?;
    world.end()
}

/// What of Weir is on each node of a cluster of namespaces.
fn traces(stage: &Stage) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    let Some(cluster) = stage.cluster() else {
        return Ok(found);
    };
    for number in cluster.numbers() {
        let root = cluster.node_root(number)?;
        let mut traces = Vec::new();
        for path in ["sys/fs/bpf/weir", "opt/cni/bin/weir-cni", "run/weir"] {
            let path = root.join(path);
            let empty = path.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            if path.exists() && !empty {
                traces.push(format!("/{}", path.strip_prefix(&root).unwrap_or(&path).display()));
            }
        }
        traces.extend(conflists(&root.join("etc/cni/net.d"))?);
        let links = cluster.run_on(number, "bpftool", &["--json", "net", "show"])?;
        let links: Value = serde_json::from_str(&links).context("understand bpftool")?;
        if links.to_string().contains("weir") {
            traces.push(format!("programs on interfaces: {links}"));
        }
        found.insert(format!("node{number}"), traces);
    }
    Ok(found)
}

fn conflists(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        if fs::read_to_string(&path).is_ok_and(|text| text.contains("weir-cni")) {
            found.push(format!("weir-cni in {}", path.display()));
        }
    }
    Ok(found)
}
