//! What happens on stage, whatever it is made of: policies are written, and the wire, the flows and `explain` are asked.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use weir_tests::lab::{
    Family, Hosts,
    probe::{Patience, Probe, Prober, Servers},
};

use crate::{
    live::{Flows, Verb},
    matrix::{Matrix, Reach},
    story::{CAST, Policy, SERVICES, Step},
};

/// The cluster that the demo plays in.
pub trait World {
    type Hosts: Hosts;

    /// The cast.
    fn hosts(&self) -> &Self::Hosts;

    /// Where an actor is: its node, if it has one.
    fn node(&self, actor: &str) -> Option<&str>;

    /// Writes a policy, and returns when every agent enforces it.
    fn apply(&self, policy: &Policy) -> Result<()>;

    /// `weir` on each node.
    fn agents(&self) -> &[Verb];

    /// In a few words, what everything is made of.
    fn made_of(&self) -> String;

    /// How Weir was started.
    fn started_by(&self) -> &'static str;

    /// What was done to a policy.
    fn written(&self) -> &'static str;
}

pub struct Stage<W> {
    // The readers of the agents go before the agents, and those before what they hold on to.
    flows: Flows,
    prober: Prober,
    servers: Servers,
    pub world: W,
    pub set_in: Duration,
}

impl<W: World> Stage<W> {
    /// Makes the cluster, starts the agents, and has everybody serve.
    pub fn set(make: impl FnOnce() -> Result<W>) -> Result<Self> {
        let began = Instant::now();
        let world = make()?;
        let servers = Servers::start()?;
        for actor in &CAST {
            servers.serve(actor.name, world.hosts().host(actor.name)?.0, actor.serves)?;
        }
        Ok(Self {
            flows: Flows::follow(world.agents())?,
            prober: Prober::default(),
            servers,
            world,
            set_in: began.elapsed(),
        })
    }

    /// Applies a policy; returns how long it took until it was enforced.
    pub fn apply(&self, policy: &Policy) -> Result<Duration> {
        let began = Instant::now();
        self.world.apply(policy)?;
        Ok(began.elapsed())
    }

    /// Asks the wire who reaches what.
    pub fn matrix(&mut self, step: &Step) -> Result<Matrix> {
        let mut probes = Vec::new();
        for actor in &CAST {
            for service in SERVICES.iter().filter(|service| service.host != actor.name) {
                for family in [Family::V4, Family::V6] {
                    probes.push(Probe {
                        from: actor.name.to_owned(),
                        to: self.world.hosts().address(service.host, family)?,
                        protocol: service.protocol,
                        port: service.port,
                    });
                }
            }
        }
        let hosts = self.world.hosts();
        let outcomes = self.prober.ask(hosts, &self.servers, &probes, Patience::STUBBORN)?;
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
            let hosts = self.world.hosts();
            let probe = Probe {
                from: from.to_owned(),
                to: hosts.address(service.host, family)?,
                protocol: service.protocol,
                port: service.port,
            };
            self.prober.ask(hosts, &self.servers, &[probe], Patience::ONCE)?;
        }
        Ok(self.flows.lines(step.tries.len() * 2))
    }

    /// What `weir explain` says to the step's question. Every agent knows the policies of both ends.
    pub fn explain(&self, step: &Step) -> Result<String> {
        let (from, service) = step.question;
        let service = &SERVICES[service];
        let traffic = format!("{}/{}", service.port, service.protocol);
        match self.world.agents() {
            [agent, ..] => agent.run(&["explain", from, service.host, &traffic]),
            [] => bail!("there is no agent to ask"),
        }
    }
}
