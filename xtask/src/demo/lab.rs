//! The cluster of the demo, and what can be done with it.

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use weir_tests::{
    lab::{
        Agent, Families, Family, Lab, Layout, PodPlan,
        agent::AgentOptions,
        manifests::{self, ContainerPort, Manifests},
        probe::{Patience, Probe, Prober, Servers},
    },
    world::wait_report,
};

use crate::{
    live::{Flows, Verb},
    matrix::{Matrix, Reach},
    story::{CAST, NODE, Policy, SERVICES, Step},
};

/// Only ends what has gone wrong: changes take milliseconds.
const ENFORCED: Duration = Duration::from_secs(60);

pub struct Stage {
    // The readers of the agent go before the agent, and that before what it holds on to.
    flows: Flows,
    agent: Agent,
    verb: Verb,
    manifests: Manifests,
    servers: Servers,
    prober: Prober,
    pub lab: Lab,
    pub set_in: Duration,
}

impl Stage {
    /// Makes the cluster and starts the agent.
    pub fn set(weir: &Path) -> Result<Self> {
        let began = Instant::now();
        let mut lab = Lab::new(Families::Dual)?;
        lab.add_node(NODE, Layout::Routed)?;
        let pods = CAST.iter().filter(|actor| !actor.name.starts_with("ext/"));
        let plans: Vec<PodPlan> = pods.clone().map(|actor| PodPlan::new(actor.name, NODE)).collect();
        lab.add_pods(&plans)?;
        lab.add_external("internet", Ipv4Addr::new(203, 0, 113, 10))?;
        let servers = Servers::start()?;
        for actor in &CAST {
            servers.serve(actor.name, lab.host(actor.name)?.0, actor.serves)?;
        }

        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        let node = lab.node(NODE)?;
        manifests.object(NODE, &manifests::node(NODE, &manifests::labels(&[]), node.addresses))?;
        for namespace in ["shop", "kube-system"] {
            let labels = manifests::labels(&[("kubernetes.io/metadata.name", namespace)]);
            manifests.object(
                &format!("namespace-{namespace}"),
                &manifests::namespace(namespace, &labels),
            )?;
        }
        for actor in pods {
            let (namespace, name) = actor.name.split_once('/').context("a pod's name")?;
            let ports: Vec<ContainerPort> = actor
                .serves
                .iter()
                .map(|(protocol, port)| {
                    let name = format!("{}-{port}", protocol.name().to_lowercase());
                    (name, *port, protocol.name().to_owned())
                })
                .collect();
            let pod = manifests::Pod {
                namespace,
                name,
                labels: &manifests::labels(&[("app", actor.app)]),
                service_account: "default",
                node: NODE,
                ports: &ports,
                addresses: lab.pod(actor.name)?.addresses,
                host_network: false,
            };
            manifests.object(&format!("pod-{namespace}-{name}"), &pod.object())?;
        }

        let options = AgentOptions {
            flows: false,
            binary: Some(weir.to_owned()),
            ..AgentOptions::default()
        };
        let mut agent = Agent::start(&lab, NODE, manifests.directory(), options)?;
        agent.wait(ENFORCED)?;
        let verb = Verb::new(weir, agent.run_dir());
        let flows = Flows::follow(&verb)?;
        Ok(Self {
            flows,
            agent,
            verb,
            manifests,
            servers,
            prober: Prober::default(),
            lab,
            set_in: began.elapsed(),
        })
    }

    /// Applies a policy; returns how long it took until it was enforced.
    pub fn apply(&self, policy: &Policy) -> Result<Duration> {
        let began = Instant::now();
        self.manifests.text(policy.file, policy.yaml)?;
        let report = wait_report(&self.agent, ENFORCED)?;
        let took = began.elapsed();
        ensure!(report.enforced, "{} is not enforced: {report:?}", policy.file);
        Ok(took)
    }

    /// Asks the wire who reaches what.
    pub fn matrix(&mut self, step: &Step) -> Result<Matrix> {
        let mut probes = Vec::new();
        for actor in &CAST {
            for service in SERVICES.iter().filter(|service| service.host != actor.name) {
                for family in [Family::V4, Family::V6] {
                    probes.push(Probe {
                        from: actor.name.to_owned(),
                        to: self.lab.address(service.host, family)?,
                        protocol: service.protocol,
                        port: service.port,
                    });
                }
            }
        }
        let outcomes = self.prober.ask(&self.lab, &self.servers, &probes, Patience::STUBBORN)?;
        let mut pairs = outcomes.chunks_exact(2);
        let mut rows = Vec::new();
        for actor in &CAST {
            let mut row = Vec::new();
            for service in &SERVICES {
                row.push(if service.host == actor.name {
                    Reach::Itself
                } else {
                    match pairs.next() {
                        Some([v4, v6]) => Reach::of(v4.verdict, v6.verdict),
                        _ => bail!("an outcome is missing"),
                    }
                });
            }
            rows.push(row);
        }
        Ok(Matrix::new(rows, step))
    }

    /// Tries what the step wants to show, and returns what `weir flows -f` said of it.
    pub fn flows(&mut self, step: &Step) -> Result<Vec<String>> {
        self.flows.skip();
        for (number, &(from, service)) in step.tries.iter().enumerate() {
            let service = &SERVICES[service];
            // By turns, to show both families.
            let family = if number % 2 == 0 { Family::V4 } else { Family::V6 };
            let probe = Probe {
                from: from.to_owned(),
                to: self.lab.address(service.host, family)?,
                protocol: service.protocol,
                port: service.port,
            };
            self.prober.ask(&self.lab, &self.servers, &[probe], Patience::ONCE)?;
        }
        Ok(self.flows.lines(step.tries.len() * 2))
    }

    /// What `weir explain` says to the step's question.
    pub fn explain(&self, step: &Step) -> Result<String> {
        let (from, service) = step.question;
        let service = &SERVICES[service];
        let traffic = format!("{}/{}", service.port, service.protocol);
        self.verb.run(&["explain", from, service.host, &traffic])
    }
}
