//! Plays the steps of cases and compares three things with the table: the wire, `weir explain`, the flow records.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use weir::{
    control::explain::{ExplainVerdict, Party, PathExplanation},
    flow::json::{TrafficDirection, Verdict as RecordVerdict},
};

use super::{
    case::{Case, Cluster, Expected, Step},
    expectation::{Question, expected, host_matches, matches},
    state::State,
    verify::{Decision, RecordKey, Records, explain},
};
use crate::lab::{
    Agent, Families, Family, Lab, Layout,
    agent::{AgentOptions, Attach},
    probe::{Outcome, Patience, Probe, Prober, Protocol, Verdict},
};
use crate::world::wait_report;

/// How long a change may take until it is enforced. Generous: it only ends what has gone wrong.
const ENFORCED: Duration = Duration::from_secs(60);

/// One way to run all cases.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub attach: Attach,
    pub nodes: usize,
    pub family: Family,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = if self.nodes == 1 {
            "one node".to_owned()
        } else {
            format!("{} nodes", self.nodes)
        };
        write!(f, "{}, {nodes}, {:?}", self.attach.name(), self.family)
    }
}

/// What was run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub cases: usize,
    pub steps: usize,
    pub probes: usize,
    pub explanations: usize,
    pub records: usize,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.steps += other.steps;
        self.probes += other.probes;
        self.explanations += other.explanations;
        self.records += other.records;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cases,
            steps,
            probes,
            explanations,
            records,
        } = self;
        write!(
            f,
            "{cases} cases, {steps} steps, {probes} probes, {explanations} explanations, {records} flow records"
        )
    }
}

/// A step whose result was not what its table says.
#[derive(Clone, Debug)]
pub struct Failure {
    pub case: String,
    /// From 1.
    pub step: usize,
    /// One line each.
    pub complaints: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        writeln!(
            f,
            "{} step {}: {} complaints",
            self.case,
            self.step,
            self.complaints.len()
        )?;
        self.complaints
            .iter()
            .take(SHOWN)
            .try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// A cluster with its agents, for all cases that start from it.
pub struct Runner {
    // Agents first: they end before what they hold on to goes.
    agents: BTreeMap<String, Agent>,
    records: BTreeMap<String, Records>,
    state: State,
    initial: Cluster,
    prober: Prober,
    family: Family,
    tally: Tally,
    failures: Vec<Failure>,
    /// ICMP flows without an identifier that passed in an earlier step, by key: until they are forgotten, the same
    /// packet again is the same flow, and no record tells it a second time.
    passed: HashSet<RecordKey>,
}

impl Runner {
    /// Makes a cluster and starts its agents.
    ///
    /// # Errors
    /// The lab's; if an agent does not come up.
    pub fn new(cluster: &Cluster, setting: Setting) -> Result<Self> {
        let families = match setting.family {
            Family::V4 => Families::V4,
            Family::V6 => Families::V6,
        };
        let mut lab = Lab::new(families)?;
        let nodes: Vec<String> = (1..=setting.nodes).map(|number| format!("node-{number}")).collect();
        for node in &nodes {
            lab.add_node(node, Layout::Routed)?;
        }
        let mut state = State::new(lab, nodes.clone())?;
        state.realise(cluster)?;
        let mut agents = BTreeMap::new();
        let mut records = BTreeMap::new();
        for node in nodes {
            let options = AgentOptions {
                attach: setting.attach,
                ..AgentOptions::default()
            };
            let agent = Agent::start(&state.lab, &node, state.manifests.directory(), options)?;
            records.insert(node.clone(), Records::default());
            agents.insert(node, agent);
        }
        for agent in agents.values_mut() {
            agent.wait(ENFORCED)?;
        }
        Ok(Self {
            agents,
            records,
            state,
            initial: cluster.clone(),
            prober: Prober::default(),
            family: setting.family,
            tally: Tally::default(),
            failures: Vec::new(),
            passed: HashSet::new(),
        })
    }

    /// Plays a case. What its table does not bear out is remembered, not returned.
    ///
    /// # Errors
    /// What keeps the case from being played.
    pub fn play(&mut self, case: &Case) -> Result<()> {
        let mut cluster = self.initial.clone();
        for (number, step) in case.steps.iter().enumerate() {
            let complaints = self
                .step(&mut cluster, step)
                .with_context(|| format!("{} step {}", case.name, number + 1))?;
            if !complaints.is_empty() {
                self.failures.push(Failure {
                    case: case.name.clone(),
                    step: number + 1,
                    complaints,
                });
            }
        }
        self.tally.cases += 1;
        // The next case finds the cluster as it was made.
        self.state.policies("")?;
        self.state.realise(&self.initial.clone())
    }

    /// Ends the run: what was done, and what was wrong.
    #[must_use]
    pub fn finish(self) -> (Tally, Vec<Failure>) {
        (self.tally, self.failures)
    }

    /// The logs of all agents, for when something was wrong.
    #[must_use]
    pub fn logs(&self) -> String {
        self.agents
            .iter()
            .map(|(node, agent)| format!("--- log of the agent of {node} ---\n{}\n", agent.log_tail(40)))
            .collect()
    }

    fn step(&mut self, cluster: &mut Cluster, step: &Step) -> Result<Vec<String>> {
        cluster.change(&step.cluster_changes);
        step.label_changes
            .iter()
            .try_for_each(|change| cluster.relabel(change))?;
        self.state.realise(cluster)?;
        self.state.policies(&step.policies)?;
        self.enforced()?;

        let mut questions = questions(cluster, step)?;
        // Tables are written for IPv4: "protocol: ICMP" says nothing of ICMPv6, which is what would be sent here.
        if self.family == Family::V6 && step.policies.contains("protocol: ICMP") {
            questions.retain(|question| question.protocol != Protocol::Icmp);
        }
        let family = self.family;
        let probes: Vec<Probe> = questions
            .iter()
            .map(|question| probe(&self.state.lab, question, family))
            .collect::<Result<_>>()?;
        let mut outcomes = self.ask(&probes, Patience::TABLE)?;
        self.ask_again(step, &questions, &probes, &mut outcomes)?;

        let mut complaints = Vec::new();
        for (question, outcome) in questions.iter().zip(&outcomes) {
            let expected = expected(step, question);
            if outcome.verdict != wire(expected) {
                complaints.push(format!(
                    "{question}: the wire says {}, the table {expected:?}",
                    outcome.verdict
                ));
            }
            for assertion in step
                .suite_asserts
                .iter()
                .filter(|assertion| matches(&assertion.line, question))
            {
                if assertion.verdict != expected {
                    complaints.push(format!(
                        "{question}: the suite asserts {:?}, the table {expected:?}",
                        assertion.verdict
                    ));
                }
            }
        }
        self.compare_explanations(&questions, &probes, &outcomes, &mut complaints)?;
        self.tally.steps += 1;
        self.tally.probes += probes.len();
        Ok(complaints)
    }

    fn ask(&mut self, probes: &[Probe], patience: Patience) -> Result<Vec<Outcome>> {
        self.prober.ask(&self.state.lab, &self.state.servers, probes, patience)
    }

    /// What contradicts the table is asked again with more patience: the machine may have been busy.
    fn ask_again(
        &mut self,
        step: &Step,
        questions: &[Question],
        probes: &[Probe],
        outcomes: &mut [Outcome],
    ) -> Result<()> {
        let doubtful: Vec<usize> = (0..probes.len())
            .filter(|&number| outcomes[number].verdict != wire(expected(step, &questions[number])))
            .collect();
        let again: Vec<Probe> = doubtful.iter().map(|&number| probes[number].clone()).collect();
        for (number, outcome) in doubtful.into_iter().zip(self.ask(&again, Patience::STUBBORN)?) {
            outcomes[number] = outcome;
        }
        Ok(())
    }

    /// Waits until all agents enforce what the manifests say.
    fn enforced(&self) -> Result<()> {
        for (node, agent) in &self.agents {
            let report = wait_report(agent, ENFORCED)?;
            ensure!(report.enforced, "{node} does not enforce everything: {report:?}");
        }
        Ok(())
    }

    fn compare_explanations(
        &mut self,
        questions: &[Question],
        probes: &[Probe],
        outcomes: &[Outcome],
        complaints: &mut Vec<String>,
    ) -> Result<()> {
        let mut wanted: BTreeMap<String, Vec<(usize, RecordKey, Decision)>> = BTreeMap::new();
        for (number, question) in questions.iter().enumerate() {
            let (probe, outcome) = (&probes[number], outcomes[number]);
            let path = self.explain(question, probe.to)?;
            self.tally.explanations += 1;
            let says = if path.verdict == ExplainVerdict::Forwarded {
                Verdict::Allow
            } else {
                Verdict::Deny
            };
            if says != outcome.verdict {
                complaints.push(format!("{question}: explain says {says}, the wire {}", outcome.verdict));
            }
            for (node, key, decision) in self.expected_records(question, probe, outcome, &path)? {
                wanted.entry(node).or_default().push((number, key, decision));
            }
        }
        for (node, wanted) in wanted {
            let (Some(agent), Some(records)) = (self.agents.get(&node), self.records.get_mut(&node)) else {
                bail!("no agent on {node}")
            };
            let told: Vec<RecordKey> = wanted
                .iter()
                .map(|(_, key, _)| *key)
                .filter(|key| !self.passed.contains(key))
                .collect();
            records.await_all(agent, &told)?;
            let mut passed = Vec::new();
            for (number, key, decision) in wanted {
                let question = &questions[number];
                self.tally.records += 1;
                if decision.verdict == RecordVerdict::Forwarded && has_no_identifier(question, self.family) {
                    passed.push(key);
                }
                match records.get(&key) {
                    Some(found) if *found == decision => {}
                    Some(found) => complaints.push(format!(
                        "{question}: the {:?} flow record says {found}, explain {decision}",
                        key.direction
                    )),
                    None if self.passed.contains(&key) && decision.verdict == RecordVerdict::Forwarded => {}
                    None => complaints.push(format!("{question}: no {:?} flow record ({decision})", key.direction)),
                }
            }
            records.clear();
            self.passed.extend(passed);
        }
        Ok(())
    }

    fn explain(&self, question: &Question, to: IpAddr) -> Result<PathExplanation> {
        let local = [&question.from, &question.to]
            .into_iter()
            .find_map(|name| self.state.lab.pod(name).ok())
            .with_context(|| format!("{question} has no pod at either end"))?;
        let agent = self
            .agents
            .get(&local.node)
            .with_context(|| format!("no agent on {}", local.node))?;
        let from = self.party(&question.from)?;
        let dest = self.party(&question.to)?;
        explain(agent, from, dest, question.protocol, to, question.port).with_context(|| format!("explain {question}"))
    }

    fn party(&self, name: &str) -> Result<Party> {
        Ok(match name.split_once('/') {
            Some((namespace, name)) if namespace != "ext" => Party::Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            _ => Party::Address(self.state.lab.address(name, self.family)?),
        })
    }

    /// The records that a flow must leave: where its packets passed a hook, by node.
    fn expected_records(
        &self,
        question: &Question,
        probe: &Probe,
        outcome: Outcome,
        path: &PathExplanation,
    ) -> Result<Vec<(String, RecordKey, Decision)>> {
        let mut records = Vec::new();
        // A packet to the pod's own address never leaves it.
        if question.from == question.to {
            return Ok(records);
        }
        // ICMP other than echo has nothing that tells one probe's flow from that of an earlier step, which lasts on and
        // is judged again without being opened again.
        let echo = matches!(question.port.to_be_bytes()[0], 8 | 128);
        if question.protocol == Protocol::Icmp && !echo {
            return Ok(records);
        }
        let key = |direction| -> Result<RecordKey> {
            Ok(RecordKey {
                source: self.state.lab.address(&question.from, self.family)?,
                destination: probe.to,
                source_port: (question.protocol != Protocol::Icmp).then_some(outcome.source_port),
                port: question.port,
                protocol: question.protocol,
                direction,
            })
        };
        if let Ok(pod) = self.state.lab.pod(&question.from) {
            records.push((
                pod.node.clone(),
                key(TrafficDirection::Egress)?,
                Decision::from(&path.egress),
            ));
        }
        if let Ok(pod) = self.state.lab.pod(&question.to)
            && path.egress.verdict == ExplainVerdict::Forwarded
        {
            records.push((
                pod.node.clone(),
                key(TrafficDirection::Ingress)?,
                Decision::from(&path.ingress),
            ));
        }
        Ok(records)
    }
}

/// ICMP other than echo.
fn has_no_identifier(question: &Question, family: Family) -> bool {
    let [kind, _] = question.port.to_be_bytes();
    let echo = match family {
        Family::V4 => 8,
        Family::V6 => 128,
    };
    question.protocol == Protocol::Icmp && kind != echo
}

/// What the wire must say for it.
#[must_use]
pub const fn wire(expected: Expected) -> Verdict {
    match expected {
        Expected::Allow => Verdict::Allow,
        Expected::Deny => Verdict::Deny,
    }
}

fn probe(lab: &Lab, question: &Question, family: Family) -> Result<Probe> {
    Ok(Probe {
        from: question.from.clone(),
        to: lab.address(&question.to, family)?,
        protocol: question.protocol,
        port: question.port,
    })
}

/// Every probe that the tables of a step ask for.
///
/// # Errors
/// If a table names what is not known.
pub fn questions(cluster: &Cluster, step: &Step) -> Result<Vec<Question>> {
    let pods = cluster.pods.iter().map(|pod| (pod.key(), &pod.ports));
    let externals = cluster
        .externals
        .iter()
        .map(|external| (format!("ext/{}", external.name), &external.ports));
    let hosts: Vec<_> = pods.chain(externals).collect();
    let mut questions = Vec::new();
    for table in &step.probes {
        let chosen = |patterns: &Option<Vec<String>>, name: &str| {
            patterns
                .as_ref()
                .is_none_or(|list| list.iter().any(|pattern| host_matches(pattern, name)))
        };
        let icmp: Vec<u16> = table.icmp.iter().map(|text| icmp_port(text)).collect::<Result<_>>()?;
        for name in &table.protocols {
            let protocol = Protocol::from_name(name).with_context(|| format!("protocol {name}"))?;
            let ports = if protocol == Protocol::Icmp {
                &icmp
            } else {
                &table.ports
            };
            for &port in ports {
                for (from, _) in hosts.iter().filter(|(from, _)| chosen(&table.from, from)) {
                    for (to, serves) in hosts.iter().filter(|(to, _)| chosen(&table.to, to)) {
                        let served = protocol == Protocol::Icmp
                            || serves
                                .iter()
                                .any(|served| served.port == port && served.protocol == *name);
                        if served && !(from.starts_with("ext/") && to.starts_with("ext/")) {
                            questions.push(Question {
                                from: from.clone(),
                                to: to.clone(),
                                protocol,
                                port,
                            });
                        }
                    }
                }
            }
        }
    }
    Ok(questions)
}

/// `type/code`
fn icmp_port(text: &str) -> Result<u16> {
    let (kind, code) = text
        .split_once('/')
        .with_context(|| format!("ICMP type and code {text}"))?;
    Ok(u16::from_be_bytes([kind.parse()?, code.parse()?]))
}
