//! Values of the chart other than the defaults, and the defaults again, in agents that run in pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir::flow::json::{Flow, Line, Verdict};

use super::{
    pods::{PodPlan, eventually},
    stage::{AgentPod, HEALTH_PORT, Stage},
    uninstall::conflists,
    world::{ENFORCED, OWN, World},
};
use crate::{lab::manifests::labels, scrape::Scrape};

/// Where the chart has flow records written, unless told otherwise.
const FLOW_LOG: &str = "var/log/weir/flows.json";
const CONDITION: &str = "WeirReady";

/// As `docs/operations.md` has it.
const FORGET_CONDITION: &str = r#"{"status":{"conditions":[{"$patch":"delete","type":"WeirReady"}]}}"#;

/// Every node at once: what is enforced does not need the agents.
const AT_ONCE: &str = "updateStrategy.rollingUpdate.maxUnavailable=100%";

/// Values take effect on the nodes, and are taken back. Whatever becomes of it, the defaults are installed in the end.
///
/// # Errors
/// Which value has no effect, or one that it must not have.
pub fn run(stage: &Stage) -> Result<()> {
    let Err(error) = play(stage) else {
        return Ok(());
    };
    // Cases that come after this one are about the defaults.
    Err(match stage.install(&[]) {
        Ok(()) => error,
        Err(other) => error.context(format!("the defaults cannot be installed again: {other:#}")),
    })
}

fn play(stage: &Stage) -> Result<()> {
    let mut world = World::new(stage)?;
    let nodes = addresses(stage)?;
    ensure!(
        served(stage, &nodes)?.is_empty(),
        "metrics are served to others by default"
    );
    ensure!(conditions(stage)?.is_empty(), "nodes have the condition by default");

    // Filters instead of links: packets may be lost while interfaces get the hook for them, but none gets through.
    let traffic = world.start()?;
    stage.install(&[
        "flowLog.enabled=true",
        "metrics.enabled=true",
        "nodeCondition=true",
        "attach=tc",
        AT_ONCE,
    ])?;
    for running in traffic {
        let met = running.finish(&world.servers)?;
        ensure!(met.leaked == 0 && !met.broken && met.forbidden > 0, "{met:?}");
    }
    let agents = stage.agents()?;
    for (node, agent) in &agents {
        let attach = agent.status()?.attach;
        ensure!(attach == "tc", "the agent of {node} attaches by {attach}");
    }
    let marks = marks(&agents)?;
    world.follows()?;
    eventually("flow records are written on every node", ENFORCED, || {
        recorded(&agents, &marks)
    })?;
    let served = served(stage, &nodes)?;
    ensure!(
        served.len() == nodes.len(),
        "of {nodes:?}, metrics are served by {served:?}"
    );
    eventually("every node has the condition", ENFORCED, || {
        let found = conditions(stage)?;
        Ok(found.len() == nodes.len() && found.values().all(|status| status == "True"))
    })?;

    // Without the plugin: pods are found through netlink.
    world.undisturbed("without the plugin", || stage.install(&["cni.install=false", AT_ONCE]))?;
    eventually("the plugin is taken away from every node", ENFORCED, || {
        Ok(plugins(stage)?.values().all(Vec::is_empty))
    })?;
    ensure!(
        self::served(stage, &nodes)?.is_empty(),
        "metrics are served to others, which nobody asks for any more"
    );
    let (friend, late) = (world.clients[0].0.clone(), format!("{OWN}/late"));
    let node = world.pods.get(&friend).and_then(|pod| pod.plan.node.clone());
    let plan = PodPlan::idle(&late, &node.unwrap_or_default(), &labels(&[("role", "stranger")]));
    world.pods.add(stage.api(), &[plan])?;
    world.clients.push((friend, late));
    world.follows()?;

    world.undisturbed("the defaults again", || stage.install(&[]))?;
    eventually("every node has the plugin", ENFORCED, || {
        Ok(plugins(stage)?.values().all(|found| found.len() == 2))
    })?;
    world.follows()?;
    // An agent that is not to keep it has no right to remove it. What is written of that helps.
    let found = conditions(stage)?;
    ensure!(found.len() == nodes.len(), "somebody has removed conditions: {found:?}");
    for node in nodes.keys() {
        stage.kubectl(&["patch", "node", node, "--subresource=status", "-p", FORGET_CONDITION])?;
    }
    let found = conditions(stage)?;
    ensure!(found.is_empty(), "conditions were removed, and are there: {found:?}");
    world.end()
}

/// The address of every node, by name.
fn addresses(stage: &Stage) -> Result<BTreeMap<String, IpAddr>> {
    let mut found = BTreeMap::new();
    for node in stage.api().list("/api/v1/nodes")? {
        let name = node["metadata"]["name"].as_str().context("a node without a name")?;
        let listed = node["status"]["addresses"].as_array().map(Vec::as_slice);
        let address = listed
            .unwrap_or_default()
            .iter()
            .find(|entry| entry["type"] == "InternalIP")
            .and_then(|entry| entry["address"].as_str())
            .with_context(|| format!("{name} has no address"))?;
        found.insert(name.to_owned(), address.parse()?);
    }
    Ok(found)
}

/// The nodes whose agent serves metrics to others: each is asked at its address, from the network of the next one.
fn served(stage: &Stage, nodes: &BTreeMap<String, IpAddr>) -> Result<BTreeSet<String>> {
    let agents = stage.agents()?;
    let mut found = BTreeSet::new();
    for (asker, (node, address)) in agents.values().cycle().skip(1).zip(nodes) {
        let scraped = Scrape::of(&asker.network()?, SocketAddr::new(*address, HEALTH_PORT));
        if scraped.is_ok_and(|scrape| scrape.value("weir_watch_synced", &[]).is_ok_and(|kinds| kinds > 0.0)) {
            found.insert(node.clone());
        }
    }
    Ok(found)
}

/// What the condition says, of every node that has it.
fn conditions(stage: &Stage) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for node in stage.api().list("/api/v1/nodes")? {
        let conditions = node["status"]["conditions"].as_array();
        let ours = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == CONDITION);
        if let Some(condition) = ours {
            let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            found.insert(name, condition["status"].clone());
        }
    }
    Ok(found)
}

/// What is on each node of the CNI plugin: its entry, its binary.
fn plugins(stage: &Stage) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for (node, agent) in stage.agents()? {
        // The node's directories, where the chart mounts them.
        let mut parts = conflists(&agent.root().join("host/cni/conf"))?;
        let binary = agent.root().join("host/cni/bin/weir-cni");
        if binary.exists() {
            parts.push(binary.display().to_string());
        }
        found.insert(node, parts);
    }
    Ok(found)
}

/// How long the flow logs are.
fn marks(agents: &BTreeMap<String, AgentPod>) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for (node, agent) in agents {
        let path = agent.root().join(FLOW_LOG);
        let length = fs::metadata(&path).with_context(|| format!("the flow log of {node}, {}", path.display()))?;
        found.insert(node.clone(), length.len());
    }
    Ok(found)
}

/// Whether every node's flow log has a record of these pods since, and some have denials.
fn recorded(agents: &BTreeMap<String, AgentPod>, marks: &BTreeMap<String, u64>) -> Result<bool> {
    let mut verdicts = Vec::new();
    for (node, agent) in agents {
        let mut file = File::open(agent.root().join(FLOW_LOG)).context("open a flow log")?;
        file.seek(SeekFrom::Start(marks.get(node).copied().unwrap_or_default()))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may still be being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut ours = false;
        for line in whole.lines() {
            let line: Line<'_> = serde_json::from_str(line).with_context(|| format!("flow record {line}"))?;
            if let Line::Flow(flow) = line
                && is_ours(&flow)
            {
                ours = true;
                verdicts.push(flow.verdict);
            }
        }
        if !ours {
            return Ok(false);
        }
    }
    Ok(verdicts.contains(&Verdict::Dropped) && verdicts.contains(&Verdict::Forwarded))
}

fn is_ours(flow: &Flow<'_>) -> bool {
    [&flow.source, &flow.destination]
        .into_iter()
        .any(|end| end.namespace.as_deref() == Some(OWN))
}
