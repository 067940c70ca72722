//! A server and its clients, on every node: what most cases send their traffic between.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    pods::{PodPlan, Pods, eventually, namespace, remove_namespace},
    stage::Stage,
};
use crate::{
    lab::{
        Family, Hosts as _,
        manifests::labels,
        probe::{Patience, Probe, Prober, Protocol, Servers, Verdict},
    },
    traffic::Traffic,
};

/// The namespace of all of it.
pub const OWN: &str = "weir-e2e-traffic";

/// A change takes effect within milliseconds; this ends what has gone wrong.
pub const ENFORCED: Duration = Duration::from_secs(60);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A server with a policy, a client that it allows, and one that it does not; the clients on every node.
pub struct World<'a> {
    pub stage: &'a Stage,
    pub pods: Pods,
    pub servers: Servers,
    prober: Prober,
    pub families: Vec<Family>,
    pub clients: Vec<(String, String)>,
    pub server: String,
}

impl<'a> World<'a> {
    /// Makes the pods, and a policy that lets the friends reach the server, and nobody else.
    ///
    /// # Errors
    /// If they do not start, or it is not enforced.
    pub fn new(stage: &'a Stage) -> Result<Self> {
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
    ///
    /// # Errors
    /// If it does not become so.
    pub fn allow(&mut self, roles: &[&str]) -> Result<()> {
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

    /// Waits until friends and strangers reach the server, or do not.
    ///
    /// # Errors
    /// If it does not become so, with who did.
    pub fn await_verdicts(&mut self, friend: bool, stranger: bool) -> Result<()> {
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

    /// Begins traffic between every client and the server, in every family.
    ///
    /// # Errors
    /// If friends do not reach the server now.
    pub fn start(&self) -> Result<Vec<Traffic>> {
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
    ///
    /// # Errors
    /// The work's own, and what the traffic met.
    pub fn undisturbed(&self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
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
    ///
    /// # Errors
    /// If they do not.
    pub fn follows(&mut self) -> Result<()> {
        self.allow(&["friend", "stranger"])?;
        self.allow(&["friend"])
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// If it does not go.
    pub fn end(self) -> Result<()> {
        drop(self.servers);
        remove_namespace(self.stage.api(), OWN)
    }
}
