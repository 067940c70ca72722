//! A pod's first packet is judged by its policies: the CNI plugin as a process, against real agents.

mod commands;
mod first_packet;
mod hooks;
mod lifetime;

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir::control::query::{EndpointReport, EndpointState};
use weir_tests::{
    lab::{
        Layout, PodPlan,
        cni::{self, Answer, Call},
        manifests,
        probe::Verdict,
    },
    world::{PORTS, Plan, World, pod_file},
};

const NODE: &str = "node-1";
/// The pod that starts.
const POD: &str = "x/new";

/// x/new takes connections from x/a alone, and opens none.
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: new, namespace: x}
spec:
  podSelector: {matchLabels: {pod: new}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {pod: a}}
";

const JUDGED: [(&str, &str, u16, Verdict); 4] = [
    ("x/a", POD, 80, Verdict::Allow),
    ("x/b", POD, 80, Verdict::Deny),
    (POD, "x/a", 80, Verdict::Deny),
    ("x/a", "x/b", 80, Verdict::Allow),
];

/// An agent that enforces the policy, and no x/new yet.
fn world(layout: Layout) -> Result<World> {
    let mut world = World::new(&Plan {
        layout,
        ..Plan::one_node(&["x/a", "x/b"])
    })?;
    world.policy("policy", POLICY)?;
    Ok(world)
}

/// What the plugins before ours make for x/new: its interface, but no word to any agent.
fn link(world: &mut World) -> Result<()> {
    world.lab.add_pods(&[PodPlan::new(POD, NODE)])?;
    world.servers.serve(POD, world.lab.host(POD)?.0, &PORTS)
}

/// What the API server knows of x/new before the kubelet has told of its status: no addresses.
fn pending(world: &World) -> Result<Value> {
    let labels = manifests::labels(&[("pod", "new")]);
    let mut object = manifests::Pod {
        namespace: "x",
        name: "new",
        labels: &labels,
        service_account: "default",
        node: NODE,
        ports: &[],
        addresses: world.lab.pod(POD)?.addresses,
        host_network: false,
    }
    .object();
    object["status"] = json!({"phase": "Pending"});
    Ok(object)
}

fn write(world: &World, object: &Value) -> Result<()> {
    world.manifests.object(&pod_file(POD), object)
}

fn run_dir(world: &mut World) -> Result<std::path::PathBuf> {
    Ok(world.agent(NODE)?.run_dir().to_owned())
}

/// A call about x/new.
fn call(world: &mut World, command: &str, version: &str) -> Result<Call> {
    let run_dir = run_dir(world)?;
    let pod = world.lab.pod(POD)?;
    let configuration = cni::configuration(version, &run_dir, Some(&cni::result(version, pod)));
    Ok(Call::new(command, &configuration)
        .pod(POD, "sandbox-1", &pod.netns.path())
        .on(&world.lab.node(NODE)?.netns))
}

fn edit(call: &mut Call, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut configuration: Value = serde_json::from_slice(&call.input)?;
    change(&mut configuration);
    call.input = configuration.to_string().into_bytes();
    Ok(())
}

fn add(world: &mut World) -> Result<Answer> {
    call(world, "ADD", "1.0.0")?.run()
}

fn endpoint(world: &World) -> Result<Option<EndpointReport>> {
    let report = world.status(NODE)?;
    Ok(report
        .endpoints
        .into_iter()
        .find(|endpoint| endpoint.pod == "new" && endpoint.namespace == "x"))
}

fn enforced(world: &World) -> Result<EndpointReport> {
    let endpoint = endpoint(world)?.context("the agent does not know the pod")?;
    ensure!(endpoint.state == EndpointState::Enforced, "{endpoint:?}");
    Ok(endpoint)
}

/// Waits for the endpoint to go.
fn gone(world: &World) -> Result<()> {
    for _ in 0..600 {
        if endpoint(world)?.is_none() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("it stays: {:?}", endpoint(world)?)
}
