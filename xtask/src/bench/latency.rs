//! `latency`: from a changed manifest to the changed verdict on the wire.
//!
//! A client pod sends UDP packets to a server pod every 100 µs. A manifest is put in its place by rename; the time that
//! counts goes from just before the rename to the sending of the first packet that meets the new verdict. Delivery
//! between two pods of one node is part of sending, so whether a packet arrived is known before the next is sent.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{
    interrupt, load,
    node::{Node, Pod},
    priority::Precedence,
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

/// Between two probes.
const PROBE: Duration = Duration::from_micros(100);

/// So many probes in a row with one verdict: what one lost packet cannot pretend.
const CERTAIN: usize = 5;

/// How long a change may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let mut probe = Probe::new(client, server)?;
        probe.expect(true).context("before the first change")?;
        let _precedence = Precedence::take();
        for kind in Kind::ALL {
            let samples = (0..changes)
                .map(|number| probe.change(kind, &world, load, client, number % 2 == 1))
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

/// A flow of UDP packets, and what becomes of each.
struct Probe {
    sender: UdpSocket,
    receiver: UdpSocket,
    sent: u64,
}

impl Probe {
    fn new(client: &Pod, server: &Pod) -> Result<Self> {
        let receiver = server.netns.run(|| Ok(UdpSocket::bind((server.address, 5_300))?))?;
        let sender = client.netns.run(|| Ok(UdpSocket::bind((client.address, 5_301))?))?;
        receiver.set_nonblocking(true)?;
        let address: SocketAddr = receiver.local_addr()?;
        sender.connect(address)?;
        Ok(Self {
            sender,
            receiver,
            sent: 0,
        })
    }

    /// Sends one packet; returns when, and whether it had arrived by the time the next one is due.
    fn one(&mut self) -> Result<(Instant, bool)> {
        self.sent += 1;
        let mut seen = [0; 8];
        let at = Instant::now();
        self.sender.send(&self.sent.to_ne_bytes()).context("sending a probe")?;
        loop {
            if let Ok(8) = self.receiver.recv(&mut seen)
                && u64::from_ne_bytes(seen) == self.sent
            {
                while at.elapsed() < PROBE {}
                return Ok((at, true));
            }
            if at.elapsed() > PROBE {
                return Ok((at, false));
            }
        }
    }

    /// Sends until the verdict is certain; returns when the first packet that met it was sent.
    fn expect(&mut self, allow: bool) -> Result<Instant> {
        let start = Instant::now();
        let mut first = None;
        let mut in_a_row = 0;
        while start.elapsed() < PATIENCE {
            let (at, arrived) = self.one()?;
            if arrived == allow {
                in_a_row += 1;
                let first = *first.get_or_insert(at);
                if in_a_row == CERTAIN {
                    return Ok(first);
                }
            } else {
                (first, in_a_row) = (None, 0);
            }
        }
        let wanted = if allow { "allowed" } else { "forbidden" };
        bail!("packets were not {wanted} within {PATIENCE:?}")
    }

    /// Changes one manifest; returns the milliseconds until the verdict changed.
    fn change(&mut self, kind: Kind, world: &World, load: Load, client: &Pod, allow: bool) -> Result<f64> {
        interrupt::check()?;
        let (from, to) = kind.prepare(world, load, client, allow)?;
        let pause = Instant::now();
        while pause.elapsed() < PAUSE {
            let (_, arrived) = self.one()?;
            if arrived == allow {
                bail!("a verdict changed before its manifest did, or a packet was lost");
            }
        }
        let start = Instant::now();
        fs::rename(&from, &to)?;
        let first = self.expect(allow)?;
        Ok(first.saturating_duration_since(start).as_secs_f64() * 1e3)
    }
}
