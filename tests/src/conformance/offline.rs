//! Plays cases without packets: what the naive evaluator says of every probe, and what the compiled decisions say.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weir::{
    api::{Object, Outcome, Parser, Severity},
    index::Index,
    policy::{
        change::{Change, PeerKey},
        compile::Compiler,
        evaluate::{Flow, World},
        plan::Capacity,
        selector::EntityKind,
        simulate::Simulation,
    },
    source::SourceEvent,
};
use weir_common::Direction;

use super::{
    case::{Case, Cluster, Expected, Step},
    expectation::{Question, expected, matches},
    objects::objects,
    policies::addressed,
    runner::questions,
};
use crate::lab::{Family, address::Addresses, probe::Protocol};

const NODE: &str = "node";
const PLENTY: Capacity = Capacity {
    addresses: 1 << 16,
    cidrs: 1 << 16,
    identities: 1 << 16,
    rows: 1 << 16,
    decisions: 1 << 20,
    source_ports: 1 << 16,
    traces: 1 << 16,
};

/// A cluster whose node is nowhere but here.
struct Play {
    parser: Parser,
    index: Index,
    world: World,
    compiler: Compiler,
    maps: Simulation,
    endpoints: BTreeMap<String, u32>,
    addresses: BTreeMap<String, Ipv4Addr>,
}

/// Plays a case. Returns the number of probes, and those that are not answered as the tables say.
///
/// # Errors
/// If the case cannot be played, or an object of it is not understood.
pub fn play(cluster: &Cluster, case: &Case) -> Result<(usize, Vec<String>)> {
    let mut cluster = cluster.clone();
    let mut play = Play::new();
    let mut probes = 0;
    let mut wrong = Vec::new();
    for (number, step) in case.steps.iter().enumerate() {
        cluster.change(&step.cluster_changes);
        for change in &step.label_changes {
            cluster.relabel(change)?;
        }
        play.enforce(&cluster, &step.policies)
            .with_context(|| format!("{} step {number}", case.name))?;
        for question in questions(&cluster, step)? {
            probes += 1;
            let wanted = wanted(step, &question)?;
            for (what, answer) in play.ask(&question)? {
                if answer != wanted {
                    wrong.push(format!(
                        "{} step {number}: {question}: {what} {answer:?}, not {wanted:?}",
                        case.name
                    ));
                }
            }
        }
    }
    Ok((probes, wrong))
}

/// Puts sets of policies in force one after the other. Evaluator and compiled decisions must agree about every
/// question each time, with the whole walk. Returns the number of answers.
///
/// # Errors
/// Where they do not.
pub fn agree(cluster: &Cluster, policies: &[String], questions: &[Question]) -> Result<usize> {
    let mut play = Play::new();
    let mut answers = 0;
    for text in policies {
        play.enforce(cluster, text)?;
        for question in questions {
            let [(_, evaluated), (_, compiled)] = play.ask(question)?;
            ensure!(
                evaluated == compiled,
                "{question}: evaluated {evaluated:?}, compiled {compiled:?}"
            );
            answers += 1;
        }
    }
    Ok(answers)
}

/// The table's answer, which the suite's own assertions must not contradict.
fn wanted(step: &Step, question: &Question) -> Result<Expected> {
    let wanted = expected(step, question);
    for assertion in &step.suite_asserts {
        ensure!(
            !matches(&assertion.line, question) || assertion.verdict == wanted,
            "table and assertion disagree about {question}"
        );
    }
    Ok(wanted)
}

impl Play {
    fn new() -> Self {
        Self {
            parser: Parser::new(),
            index: Index::new(NODE),
            world: World::new(),
            compiler: Compiler::new(PLENTY, 1),
            maps: Simulation::new(),
            endpoints: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    fn enforce(&mut self, cluster: &Cluster, policies: &str) -> Result<()> {
        self.address(cluster);
        let manifests = objects(cluster, |pod| {
            let addresses = Addresses {
                v4: self.addresses.get(&pod.key()).copied(),
                v6: None,
            };
            Ok((NODE.to_owned(), addresses))
        })?;
        let mut all = Vec::new();
        for manifest in manifests.values() {
            all.push(self.object(manifest)?);
        }
        let text = addressed(policies, Family::V4, |host| self.host(host).map(IpAddr::V4))?;
        let (documents, errors) = weir::api::objects(Path::new("policies.yaml"), &text, &mut self.parser);
        ensure!(errors.is_empty(), "{errors:?}");
        for document in documents {
            let errors = document.parsed.problems.iter();
            let errors: Vec<String> = errors
                .filter(|problem| problem.severity == Severity::Error)
                .map(ToString::to_string)
                .collect();
            ensure!(errors.is_empty(), "{errors:?}");
            match document.parsed.outcome {
                Outcome::Valid(object) => all.push(object),
                other => bail!("{other:?}"),
            }
        }
        self.sync(all)
    }

    fn sync(&mut self, objects: Vec<Object>) -> Result<()> {
        let out = self.index.apply(SourceEvent::Reset(objects));
        let mut changes = out.changes;
        for change in out.local_pods {
            let name = change.key.to_string();
            match change.pod {
                Some(_) => {
                    let next = u32::try_from(self.endpoints.len())? + 1;
                    let id = *self.endpoints.entry(name).or_insert(next);
                    changes.push(Change::Endpoint(id, Some(change.key)));
                }
                None => {
                    if let Some(&id) = self.endpoints.get(&name) {
                        changes.push(Change::Endpoint(id, None));
                        self.maps.remove_endpoint(id);
                    }
                }
            }
        }
        changes.iter().cloned().for_each(|change| self.world.apply(change));
        let plan = self.compiler.apply(changes);
        self.maps.run(&plan);
        self.compiler.executed(plan.serial);
        ensure!(self.maps.faults().is_empty(), "{:?}", self.maps.faults());
        Ok(())
    }

    fn object(&mut self, value: &Value) -> Result<Object> {
        match self.parser.parse(value, None).outcome {
            Outcome::Valid(object) => Ok(object),
            other => bail!("{value}: {other:?}"),
        }
    }

    /// Gives an address to everybody who has none yet.
    fn address(&mut self, cluster: &Cluster) {
        for external in &cluster.externals {
            self.addresses.insert(format!("ext/{}", external.name), external.ip);
        }
        for pod in &cluster.pods {
            let free = (1..=u8::MAX)
                .map(|n| Ipv4Addr::new(10, 200, 0, n))
                .find(|address| !self.addresses.values().any(|known| known == address));
            if let Some(address) = pod.ip.or(free) {
                self.addresses.entry(pod.key()).or_insert(address);
            }
        }
    }

    fn host(&self, name: &str) -> Result<Ipv4Addr> {
        let known = self.addresses.get(name);
        known.copied().with_context(|| format!("no host {name}"))
    }

    /// What each of the two says.
    fn ask(&self, question: &Question) -> Result<[(&'static str, Expected); 2]> {
        let (from, to) = (
            IpAddr::from(self.host(&question.from)?),
            IpAddr::from(self.host(&question.to)?),
        );
        let mut allowed = [true, true];
        // A pod's own address is always reachable.
        if from != to {
            let ends = [
                (Direction::Egress, &question.from, from, to),
                (Direction::Ingress, &question.to, to, from),
            ];
            for (direction, pod, local_addr, peer_addr) in ends {
                let Some((namespace, name)) = pod.split_once('/').filter(|(namespace, _)| *namespace != "ext") else {
                    continue;
                };
                let icmp = question.protocol == Protocol::Icmp;
                let [kind, code] = question.port.to_be_bytes();
                let flow = Flow {
                    endpoint: PeerKey {
                        kind: EntityKind::Pod,
                        namespace: Some(namespace.into()),
                        name: name.into(),
                    },
                    direction,
                    local_addr,
                    peer_addr,
                    protocol: question.protocol.number(to),
                    source_port: if icmp { 0 } else { 40_000 },
                    destination_port: if icmp { 0 } else { question.port },
                    icmp: icmp.then_some((kind, code)),
                };
                let judgement = self.world.judge(&flow);
                let endpoint = self.endpoints.get(pod).with_context(|| format!("no endpoint {pod}"))?;
                let decision = self.maps.decide(*endpoint, &flow).context("the direction is closed")?;
                let trace = self.compiler.trace(decision.trace());
                ensure!(
                    trace.as_deref() == Some(&judgement),
                    "{question} {direction:?}: evaluated {judgement:?}, compiled {trace:?}"
                );
                allowed[0] &= judgement.allow;
                allowed[1] &= decision.allows();
            }
        }
        let [evaluated, compiled] = allowed.map(|allowed| if allowed { Expected::Allow } else { Expected::Deny });
        Ok([("evaluated", evaluated), ("compiled", compiled)])
    }
}
