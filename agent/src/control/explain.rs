//! What `weir explain` asks and answers.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use weir_common::{
    Direction,
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

use super::query::{PolicyName, QueryError};
use crate::{
    api::Pod,
    index::Index,
    policy::{
        change::PeerKey,
        evaluate::{Flow, World},
        model::{Action, Hit, Judgement, TierDefault},
        selector::EntityKind,
    },
};

/// One end of the flow in question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    Pod { namespace: String, name: String },
    Address(IpAddr),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What the first packet of the flow in question is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// IP protocol number; ICMP stands for ICMPv6 too ([`Traffic::in_family`]).
    pub protocol: u8,
    /// Destination port, or ICMP type << 8 | code, or 0.
    pub port: u16,
    /// None: an ephemeral port that no rule is likely to name.
    pub source_port: Option<u16>,
}

impl Traffic {
    /// ICMP is ICMPv6 on IPv6, and its echo has other numbers there (RFC 4443, section 4).
    #[must_use]
    pub const fn in_family(self, family: FamilyName) -> Self {
        if self.protocol != IPPROTO_ICMP || matches!(family, FamilyName::IPv4) {
            return self;
        }
        let [kind, code] = self.port.to_be_bytes();
        let kind = match kind {
            8 => 128,
            0 => 129,
            other => other,
        };
        Self {
            protocol: IPPROTO_ICMPV6,
            port: u16::from_be_bytes([kind, code]),
            ..self
        }
    }
}

/// The source port that is assumed where none is given.
pub const ASSUMED_SOURCE_PORT: u16 = 49_152;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    pub from: Party,
    pub to: Party,
    pub traffic: Traffic,
    /// Only this family; None: every family that both ends have.
    pub family: Option<FamilyName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FamilyName {
    IPv4,
    IPv6,
}

impl From<IpAddr> for FamilyName {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }
}

/// As in flow records; `Mixed` where the families of one flow differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ExplainVerdict {
    Forwarded,
    Dropped,
    Mixed,
}

impl ExplainVerdict {
    #[must_use]
    pub const fn of(allow: bool) -> Self {
        if allow { Self::Forwarded } else { Self::Dropped }
    }
}

/// Who an end of the flow is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartyReport {
    pub address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// `pod`, `node` or `world`.
    pub kind: String,
}

/// One step of the policy walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HitReport {
    /// None: the profile of the pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Index of the rule in its direction's list; None: the end of the tier, or the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<String>,
    /// `Allow`, `Deny`, `Pass` or `Log`.
    pub action: String,
}

impl From<&Hit> for HitReport {
    fn from(hit: &Hit) -> Self {
        match hit {
            Hit::Rule {
                tier,
                policy,
                index,
                name,
                action,
                ..
            } => Self {
                tier: Some(tier.to_string()),
                policy: Some(policy.into()),
                rule: Some(*index),
                rule_name: name.as_deref().map(str::to_owned),
                action: match action {
                    Action::Allow => "Allow",
                    Action::Deny => "Deny",
                    Action::Pass => "Pass",
                    Action::Log => "Log",
                }
                .to_owned(),
            },
            Hit::EndOfTier {
                tier, policy, action, ..
            } => Self {
                tier: Some(tier.to_string()),
                policy: Some(policy.into()),
                rule: None,
                rule_name: None,
                action: match action {
                    TierDefault::Deny => "Deny",
                    TierDefault::Pass => "Pass",
                }
                .to_owned(),
            },
            Hit::Profile => Self {
                tier: None,
                policy: None,
                rule: None,
                rule_name: None,
                action: "Allow".to_owned(),
            },
        }
    }
}

/// The verdict of one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionExplanation {
    pub verdict: ExplainVerdict,
    /// Why policy was not asked: the end is no pod, the flow is exempt, the pod is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exempt: Option<String>,
    /// The whole walk; the last one decided.
    pub hits: Vec<HitReport>,
    /// Of the deciding step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// A Log rule was passed.
    pub log: bool,
    /// What would happen if staged policies were enforced, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<Box<DirectionExplanation>>,
}

impl DirectionExplanation {
    /// Policy has nothing to say.
    pub fn exempt(reason: impl Into<String>) -> Self {
        Self {
            verdict: ExplainVerdict::Forwarded,
            exempt: Some(reason.into()),
            hits: Vec::new(),
            tier: None,
            policy: None,
            rule: None,
            log: false,
            staged: None,
        }
    }
}

impl From<&Judgement> for DirectionExplanation {
    fn from(judgement: &Judgement) -> Self {
        let hits: Vec<HitReport> = judgement.hits.iter().map(HitReport::from).collect();
        let last = hits.last();
        Self {
            verdict: ExplainVerdict::of(judgement.allow),
            exempt: None,
            tier: last.and_then(|hit| hit.tier.clone()),
            policy: last.and_then(|hit| hit.policy.clone()),
            rule: last.and_then(|hit| hit.rule),
            log: judgement.log,
            staged: None,
            hits,
        }
    }
}

/// The verdict for one pair of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathExplanation {
    pub family: FamilyName,
    pub verdict: ExplainVerdict,
    pub source: PartyReport,
    pub destination: PartyReport,
    /// What the source's policies say.
    pub egress: DirectionExplanation,
    /// What the destination's policies say.
    pub ingress: DirectionExplanation,
}

/// Answer of `weir explain`. The first path's fields stand at the top too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub verdict: ExplainVerdict,
    pub protocol: String,
    /// TCP, UDP and SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    pub source: PartyReport,
    pub destination: PartyReport,
    pub egress: DirectionExplanation,
    pub ingress: DirectionExplanation,
    /// One per address family that both ends have.
    pub paths: Vec<PathExplanation>,
}

/// The name of a protocol, as flow records and rules have it; its number where it has none.
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        IPPROTO_TCP => "TCP",
        IPPROTO_UDP => "UDP",
        IPPROTO_SCTP => "SCTP",
        IPPROTO_ICMP => "ICMPv4",
        IPPROTO_ICMPV6 => "ICMPv6",
        other => return other.to_string(),
    }
    .to_owned()
}

/// Judges a flow as the node of either end would, by policy alone: what is known of connections does not matter.
///
/// A pod of any node is judged, by the policies of this source. One function for the running agent and for manifests.
///
/// # Errors
/// An end is not known, or the ends share no address family.
pub fn explain(index: &Index, world: &World, request: &ExplainRequest) -> Result<Explanation, QueryError> {
    let from = Resolved::new(index, &request.from)?;
    let to = Resolved::new(index, &request.to)?;
    let mut paths = Vec::new();
    for family in [FamilyName::IPv4, FamilyName::IPv6] {
        let other_family = request.family.is_some_and(|only| only != family);
        if other_family || (request.traffic.protocol == IPPROTO_ICMPV6 && family == FamilyName::IPv4) {
            continue;
        }
        if let (Some(source), Some(destination)) = (from.address(family), to.address(family)) {
            paths.push(path(
                world,
                family,
                (&from, source),
                (&to, destination),
                request.traffic,
            ));
        }
    }
    let Some(first) = paths.first() else {
        let family = request.family.map_or("address family", |family| match family {
            FamilyName::IPv4 => "IPv4",
            FamilyName::IPv6 => "IPv6",
        });
        return Err(QueryError::new(format!(
            "{} and {} have no {family} in common",
            request.from, request.to
        ))
        .remedy("name two pods or addresses that can reach each other"));
    };
    let verdict = if paths.iter().all(|path| path.verdict == first.verdict) {
        first.verdict
    } else {
        ExplainVerdict::Mixed
    };
    let Traffic { protocol, port, .. } = request.traffic.in_family(first.family);
    let icmp = matches!(protocol, IPPROTO_ICMP | IPPROTO_ICMPV6).then(|| port.to_be_bytes());
    Ok(Explanation {
        verdict,
        protocol: protocol_name(protocol),
        port: has_ports(protocol).then_some(port),
        icmp_type: icmp.map(|[kind, _]| kind),
        icmp_code: icmp.map(|[_, code]| code),
        source: first.source.clone(),
        destination: first.destination.clone(),
        egress: first.egress.clone(),
        ingress: first.ingress.clone(),
        paths,
    })
}

/// An end of the flow and its addresses.
struct Resolved<'a> {
    /// The pod that was named, or that has the address.
    pod: Option<&'a Arc<Pod>>,
    addresses: Vec<IpAddr>,
}

impl<'a> Resolved<'a> {
    fn new(index: &'a Index, party: &Party) -> Result<Self, QueryError> {
        match party {
            Party::Address(address) => Ok(Self {
                pod: index.pod_by_address(*address),
                addresses: vec![*address],
            }),
            Party::Pod { namespace, name } => {
                let pod = index.pod(namespace, name).ok_or_else(|| {
                    QueryError::new(format!("there is no pod {namespace}/{name}"))
                        .remedy("name pods as NAMESPACE/NAME; anything else by its IP address")
                })?;
                if pod.addresses.is_empty() || pod.phase.is_over() {
                    let why = if pod.phase.is_over() {
                        "has ended"
                    } else {
                        "has no address yet"
                    };
                    return Err(QueryError::new(format!("pod {namespace}/{name} {why}"))
                        .remedy("policy is judged for running pods"));
                }
                Ok(Self {
                    pod: Some(pod),
                    addresses: pod.addresses.clone(),
                })
            }
        }
    }

    fn address(&self, family: FamilyName) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| FamilyName::from(*address) == family)
    }

    /// The pod as something that policies apply to.
    fn subject(&self) -> Option<PeerKey> {
        let pod = self.pod.filter(|pod| !pod.host_network)?;
        Some(PeerKey {
            kind: EntityKind::Pod,
            namespace: Some(pod.namespace.clone()),
            name: pod.name.clone(),
        })
    }

    /// Name of the node that the address belongs to.
    fn node<'w>(&self, world: &'w World, address: IpAddr) -> Option<&'w Arc<str>> {
        let (key, _) = world.owner(address)?;
        (key.kind == EntityKind::Node).then_some(&key.name)
    }

    fn report(&self, world: &World, address: IpAddr) -> PartyReport {
        let node = self.node(world, address);
        PartyReport {
            address: Some(address),
            namespace: self.pod.map(|pod| pod.namespace.to_string()),
            pod: self.pod.map(|pod| pod.name.to_string()),
            node: self
                .pod
                .and_then(|pod| pod.node_name.as_deref())
                .or(node.map(|name| &**name))
                .map(str::to_owned),
            kind: match (self.subject(), node) {
                (Some(_), _) => "pod",
                (None, Some(_)) => "node",
                (None, None) if self.pod.is_some() => "node",
                (None, None) => "world",
            }
            .to_owned(),
        }
    }
}

fn path(
    world: &World,
    family: FamilyName,
    (from, source): (&Resolved<'_>, IpAddr),
    (to, destination): (&Resolved<'_>, IpAddr),
    traffic: Traffic,
) -> PathExplanation {
    let judge = |direction: Direction, endpoint: Option<PeerKey>| -> DirectionExplanation {
        let Some(endpoint) = endpoint else {
            return DirectionExplanation::exempt("no pod's policies apply to this end");
        };
        if from.subject().is_some() && from.subject() == to.subject() {
            return DirectionExplanation::exempt("a pod may always speak with itself");
        }
        if direction == Direction::Ingress
            && let Some(node) = from.node(world, source)
            && to.pod.and_then(|pod| pod.node_name.as_ref()) == Some(node)
        {
            return DirectionExplanation::exempt("the node itself may always speak with its pods");
        }
        let Traffic {
            protocol,
            port,
            source_port,
        } = traffic.in_family(family);
        let ports = has_ports(protocol);
        let [kind, code] = port.to_be_bytes();
        let (local_addr, peer_addr) = match direction {
            Direction::Egress => (source, destination),
            Direction::Ingress => (destination, source),
        };
        let flow = Flow {
            endpoint,
            direction,
            local_addr,
            peer_addr,
            protocol,
            source_port: if ports {
                source_port.unwrap_or(ASSUMED_SOURCE_PORT)
            } else {
                0
            },
            destination_port: if ports { port } else { 0 },
            icmp: matches!(protocol, IPPROTO_ICMP | IPPROTO_ICMPV6).then_some((kind, code)),
        };
        let staged = world.has_staged().then(|| world.judge_staged(&flow));
        DirectionExplanation {
            staged: staged.map(|judgement| Box::new(DirectionExplanation::from(&judgement))),
            ..DirectionExplanation::from(&world.judge(&flow))
        }
    };
    let egress = judge(Direction::Egress, from.subject());
    let ingress = judge(Direction::Ingress, to.subject());
    let both = [&egress, &ingress]
        .iter()
        .all(|end| end.verdict == ExplainVerdict::Forwarded);
    PathExplanation {
        family,
        verdict: ExplainVerdict::of(both),
        source: from.report(world, source),
        destination: to.report(world, destination),
        egress,
        ingress,
    }
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP)
}
