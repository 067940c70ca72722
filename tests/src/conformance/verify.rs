//! Whether `weir explain` says what the wire says, and the flow records name the rules that it names.

use std::{
    collections::HashMap,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use weir::{
    cli::{
        client::Client,
        protocol::{Response, Verb},
    },
    control::{
        explain::{DirectionExplanation, ExplainRequest, ExplainVerdict, FamilyName, Party, PathExplanation, Traffic},
        query::PolicyName,
    },
    flow::json::{Flow, FlowEvent, Layer4, Line, TrafficDirection, Verdict},
};

use crate::lab::{Agent, probe::Protocol};

/// How long a record may take from the kernel to the log.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a running agent about one flow.
///
/// # Errors
/// What the agent says.
pub fn explain(
    agent: &Agent,
    from: Party,
    to: Party,
    protocol: Protocol,
    to_address: IpAddr,
    port: u16,
) -> Result<PathExplanation> {
    let request = ExplainRequest {
        from,
        to,
        traffic: Traffic {
            protocol: protocol.number(to_address),
            port,
            source_port: None,
        },
        family: Some(FamilyName::from(to_address)),
    };
    let mut client = Client::connect(agent.run_dir())?;
    match client.ask(Verb::Explain { request })? {
        Response::Explain(explanation) => explanation
            .paths
            .into_iter()
            .next()
            .context("an explanation without paths"),
        other => bail!("explain was answered by {other:?}"),
    }
}

/// Which record: the flow, and whose policies decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordKey {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// None: the protocol has no ports.
    pub source_port: Option<u16>,
    /// ICMP: type × 256 + code.
    pub port: u16,
    pub protocol: Protocol,
    pub direction: TrafficDirection,
}

/// What decided, as both explain and the records name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    pub tier: Option<String>,
    pub policy: Option<PolicyName>,
    pub rule: Option<u32>,
}

impl From<&DirectionExplanation> for Decision {
    fn from(end: &DirectionExplanation) -> Self {
        Self {
            verdict: match end.verdict {
                ExplainVerdict::Forwarded => Verdict::Forwarded,
                ExplainVerdict::Dropped | ExplainVerdict::Mixed => Verdict::Dropped,
            },
            tier: end.tier.clone(),
            policy: end.policy.clone(),
            rule: end.rule,
        }
    }
}

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.verdict.name())?;
        match &self.policy {
            Some(PolicyName { namespace, name, .. }) => {
                write!(
                    f,
                    " by {}{name}",
                    namespace.as_ref().map(|it| format!("{it}/")).unwrap_or_default()
                )?;
            }
            None => f.write_str(" by no policy")?,
        }
        match self.rule {
            Some(rule) => write!(f, " rule {rule}"),
            None => Ok(()),
        }
    }
}

/// The opening records (started or denied) of an agent's flow log, read as it grows.
#[derive(Default)]
pub struct Records {
    position: u64,
    found: HashMap<RecordKey, Decision>,
}

impl Records {
    /// Forgets what was read.
    pub fn clear(&mut self) {
        self.found.clear();
    }

    #[must_use]
    pub fn get(&self, key: &RecordKey) -> Option<&Decision> {
        self.found.get(key)
    }

    /// Reads on until all these are there, or patience ends (the caller finds out which are missing).
    ///
    /// # Errors
    /// If the log cannot be read or understood, or says that records were lost.
    pub fn await_all(&mut self, agent: &Agent, keys: &[RecordKey]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.read(agent)?;
            if keys.iter().all(|key| self.found.contains_key(key)) || Instant::now() > deadline {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn read(&mut self, agent: &Agent) -> Result<()> {
        let (text, position) = agent.flows_from(self.position)?;
        self.position = position;
        for line in text.lines() {
            match serde_json::from_str(line).with_context(|| format!("flow record {line}"))? {
                Line::Lost(lost) => {
                    ensure!(lost.lost_events.num_events_lost == 0, "the agent lost records: {line}");
                }
                Line::Flow(flow) => {
                    if let Some((key, decision)) = opening(&flow) {
                        self.found.insert(key, decision);
                    }
                }
            }
        }
        Ok(())
    }
}

fn opening(flow: &Flow<'_>) -> Option<(RecordKey, Decision)> {
    if !matches!(flow.weir.event, FlowEvent::Started | FlowEvent::Denied) {
        return None;
    }
    let l4 = flow.l4?;
    let (protocol, port) = match l4 {
        Layer4::Tcp { destination_port, .. } => (Protocol::Tcp, destination_port),
        Layer4::Udp { destination_port, .. } => (Protocol::Udp, destination_port),
        Layer4::Sctp { destination_port, .. } => (Protocol::Sctp, destination_port),
        Layer4::IcmpV4 { kind, code } | Layer4::IcmpV6 { kind, code } => {
            (Protocol::Icmp, u16::from_be_bytes([kind, code]))
        }
    };
    let key = RecordKey {
        source: flow.ip.source,
        destination: flow.ip.destination,
        source_port: l4.ports().map(|(source, _)| source),
        port,
        protocol,
        direction: flow.traffic_direction,
    };
    let decision = Decision {
        verdict: flow.verdict,
        tier: flow.weir.tier.as_deref().map(str::to_owned),
        policy: flow.weir.policy.clone(),
        rule: flow.weir.rule,
    };
    Some((key, decision))
}
