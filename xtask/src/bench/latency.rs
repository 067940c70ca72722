//! `latency`: from a changed manifest to the changed verdict on the wire.
//!
//! A client pod sends UDP packets to a server pod every 100 µs. A manifest is put in its place by rename; the time that
//! counts goes from just before the rename to the sending of the first packet that meets the new verdict. Delivery
//! between two pods of one node is part of sending, so whether a packet arrived is known before the next is sent.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    interrupt, load,
    node::{Node, Pod},
    priority::Precedence,
    probe::{Between, Probe},
    report::{self, Table},
    world::{self, World},
};

/// The cluster that the agent is told of.
#[derive(Clone, Copy)]
struct Load {
    pods: usize,
    policies: usize,
    /// Calico's, each for all pods of the node; else Kubernetes', each for one.
    global: bool,
    /// ms; None: nothing is asked.
    p50_limit: Option<f64>,
    p99_limit: f64,
}

const LOADS: [Load; 3] = [
    Load {
        pods: 10,
        policies: 0,
        global: false,
        p50_limit: Some(2.0),
        p99_limit: 5.0,
    },
    Load {
        pods: 10_000,
        policies: 1_000,
        global: false,
        p50_limit: Some(2.0),
        p99_limit: 5.0,
    },
    Load {
        pods: 20_000,
        policies: 10_000,
        global: true,
        p50_limit: None,
        p99_limit: 10.0,
    },
];

impl Load {
    /// The manifests, with the policy under which the client may reach the server.
    fn write(self, world: &World) -> Result<()> {
        if self.global {
            world.remote_pods(&load::services(self.pods))?;
            world.policies(&load::global_policies(self.policies))?;
        } else {
            world.remote_pods(&world::remote_pods(self.pods))?;
            world.policies(&load::policies(self.policies))?;
        }
        world.write(PROBE_POLICY, &[self.probe_policy("client")])
    }

    /// Lets pods with that label `app` reach the server. (A global one: each of the node's pods.)
    fn probe_policy(self, app: &str) -> Value {
        if self.global {
            let mut policy = load::global_policy("probe", app, 0);
            policy["spec"]["ingress"] =
                json!([{ "action": "Allow", "source": { "selector": format!("app == '{app}'") } }]);
            return policy;
        }
        let from = json!([{ "podSelector": { "matchLabels": { "app": app } } }]);
        world::policy("probe", "server", &[json!({ "from": from })])
    }
}

/// The file of the policy that changes.
const PROBE_POLICY: &str = "probe-policy";

const BETWEEN: Between = Between::Look(Duration::from_micros(100));

/// Between two changes: longer than whatever the agent does after a change, and not in step with any timer of its own.
const PAUSE: Duration = Duration::from_millis(17);

/// What is changed in turns, and whether the client may then reach the server.
#[derive(Clone, Copy)]
enum Kind {
    /// The rule of the server's policy.
    Policy,
    /// The label of the client's pod that the policy asks for.
    Label,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Policy, Self::Label];

    const fn name(self) -> &'static str {
        match self {
            Self::Policy => "a policy's rule",
            Self::Label => "a pod's label",
        }
    }

    /// The manifest in the version that allows, or the one that forbids.
    fn prepare(self, world: &World, load: Load, client: &Pod, allow: bool) -> Result<(PathBuf, PathBuf)> {
        match self {
            Self::Policy => {
                let policy = load.probe_policy(if allow { "client" } else { "nobody" });
                world.prepare(PROBE_POLICY, &[policy])
            }
            Self::Label => {
                let app = if allow { "client" } else { "stranger" };
                world.prepare_local_pod(client, app)
            }
        }
    }
}

pub fn run(weir: &Path, quick: bool) -> Result<()> {
    report::heading(
        "latency",
        "from the rename of a changed manifest to the first packet that meets the new verdict",
    );
    let changes = if quick { 40 } else { 200 };
    let mut table = Table::new([
        "other pods",
        "policies",
        "what changes",
        "changes",
        "p50 ms",
        "p99 ms",
        "max ms",
        "",
        "",
    ]);
    let mut figures = Vec::new();
    for load in LOADS {
        let Load { pods, policies, .. } = load;
        let node = Node::new(&load::LOCAL_PODS)?;
        let world = World::new(&node)?;
        let (client, server) = node.client_and_server()?;
        load.write(&world)?;
        let agent = node.start_agent(weir, &world, &[])?;
        let mut probe = Probe::new(client, server, BETWEEN)?;
        probe.expect(true).context("before the first change")?;
        let _precedence = Precedence::take();
        for kind in Kind::ALL {
            let samples = (0..changes)
                .map(|number| change(&mut probe, kind, &world, load, client, number % 2 == 1))
                .collect::<Result<Vec<f64>>>()
                .with_context(|| format!("{} with {pods} other pods", kind.name()))?;
            let quantile = |q| report::quantile(&samples, q).unwrap_or(f64::NAN);
            let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
            table.row([
                pods.to_string(),
                policies.to_string(),
                kind.name().into(),
                changes.to_string(),
                format!("{p50:.2}"),
                format!("{p99:.2}"),
                format!("{max:.2}"),
                load.p50_limit.map_or_else(String::new, |limit| {
                    format!("p50 ≤ {limit}: {}", report::at_most(p50, limit))
                }),
                format!("p99 ≤ {}: {}", load.p99_limit, report::at_most(p99, load.p99_limit)),
            ]);
            figures.push(json!({
                "pods": pods, "policies": policies, "change": kind.name(), "changes": changes,
                "p50_ms": p50, "p99_ms": p99, "max_ms": max,
            }));
        }
        drop(agent);
    }
    table.print();
    report::json_line("latency", json!(figures));
    Ok(())
}

/// Changes one manifest; returns the milliseconds until the verdict changed.
fn change(probe: &mut Probe, kind: Kind, world: &World, load: Load, client: &Pod, allow: bool) -> Result<f64> {
    interrupt::check()?;
    let (from, to) = kind.prepare(world, load, client, allow)?;
    probe.pause(!allow, PAUSE)?;
    let start = Instant::now();
    fs::rename(&from, &to)?;
    let first = probe.expect(allow)?;
    Ok(first.saturating_duration_since(start).as_secs_f64() * 1e3)
}
