//! The shapes of the question and of the answer. They cross the socket: names here are interface.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use weir_common::policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

use crate::{
    control::query::PolicyName,
    policy::model::{Action, Hit, Judgement, TierDefault},
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
