//! From a [`FlowRecord`] to its JSON.

use std::{borrow::Cow, net::IpAddr};

use weir_common::{
    Direction,
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
    reason::Reason,
};

use super::{
    directory::Name,
    json,
    record::{End, FlowRecord},
};
use crate::{
    control::explain::HitReport,
    policy::model::{Hit, Judgement, PolicyKey, PolicyKind},
};

/// Cilium's reserved identities (`pkg/identity/numericidentity.go`), for whoever filters by them.
const IDENTITY_HOST: u32 = 1;
const IDENTITY_WORLD: u32 = 2;
const IDENTITY_REMOTE_NODE: u32 = 6;

/// The number of a drop reason: Hubble's (`flow.DropReason`, 130 to 203) where Hubble has the reason, else Weir's own
/// register, which stays below.
#[must_use]
pub const fn drop_reason_number(reason: Reason) -> u32 {
    match reason {
        Reason::SpoofedSource => 132,
        Reason::PolicyDenied => 133,
        Reason::UnknownProtocol => 139,
        Reason::TableFull => 155,
        Reason::FragmentOrphan => 175,
        other => other as u32,
    }
}

/// The kind of a policy's object, as users write it.
#[must_use]
pub const fn object_kind(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::KubernetesNetworkPolicy => "NetworkPolicy",
        other => other.name(),
    }
}

impl FlowRecord {
    /// The record's JSON, borrowing what it can.
    #[must_use]
    pub fn json(&self) -> json::Flow<'_> {
        let dropped = self.verdict == json::Verdict::Dropped;
        let drop_reason = self.reason.filter(|_| dropped);
        let mut flow = json::Flow {
            time: self.time,
            verdict: self.verdict,
            drop_reason: drop_reason.map(drop_reason_number),
            ip: json::Ip {
                source: self.source.address,
                destination: self.destination.address,
                version: match self.source.address {
                    IpAddr::V4(_) => json::IpVersion::IPv4,
                    IpAddr::V6(_) => json::IpVersion::IPv6,
                },
            },
            l4: self.layer4(),
            source: endpoint(&self.source),
            destination: endpoint(&self.destination),
            kind: Cow::Borrowed("L3_L4"),
            node_name: Cow::Borrowed(&self.node),
            event_type: json::EventType {
                kind: if dropped {
                    json::EventType::DROP
                } else {
                    json::EventType::TRACE
                },
                sub_type: match (drop_reason, self.direction) {
                    (Some(reason), _) => drop_reason_number(reason),
                    (None, Direction::Ingress) => json::EventType::TRACE_TO_ENDPOINT,
                    (None, Direction::Egress) => json::EventType::TRACE_FROM_ENDPOINT,
                },
            },
            traffic_direction: match self.direction {
                Direction::Ingress => json::TrafficDirection::Ingress,
                Direction::Egress => json::TrafficDirection::Egress,
            },
            trace_observation_point: (!dropped).then_some(Cow::Borrowed(match self.direction {
                Direction::Ingress => "TO_ENDPOINT",
                Direction::Egress => "FROM_ENDPOINT",
            })),
            drop_reason_desc: drop_reason.map(|reason| Cow::Borrowed(reason.name())),
            is_reply: false,
            interface: (self.ifindex != 0).then_some(json::Interface { index: self.ifindex }),
            egress_allowed_by: Vec::new(),
            ingress_allowed_by: Vec::new(),
            egress_denied_by: Vec::new(),
            ingress_denied_by: Vec::new(),
            summary: self.summary(),
            weir: self.weir(),
        };
        if let Some(policy) = self.deciding_policy() {
            let by = vec![attribution(policy)];
            match (self.direction, self.judgement.as_ref().is_some_and(|j| j.allow)) {
                (Direction::Ingress, true) => flow.ingress_allowed_by = by,
                (Direction::Ingress, false) => flow.ingress_denied_by = by,
                (Direction::Egress, true) => flow.egress_allowed_by = by,
                (Direction::Egress, false) => flow.egress_denied_by = by,
            }
        }
        flow
    }

    /// The policy that the walk ended in, if it ended in one.
    fn deciding_policy(&self) -> Option<&PolicyKey> {
        match self.judgement.as_ref()?.hits.last()? {
            Hit::Rule { policy, .. } | Hit::EndOfTier { policy, .. } => Some(policy),
            Hit::Profile => None,
        }
    }

    fn layer4(&self) -> Option<json::Layer4> {
        let (source_port, destination_port) = (self.source.port, self.destination.port);
        let [kind, code] = self.icmp.to_be_bytes();
        Some(match self.protocol {
            IPPROTO_TCP => json::Layer4::Tcp {
                source_port,
                destination_port,
                flags: json::TcpFlags::from_bits(self.tcp_flags),
            },
            IPPROTO_UDP => json::Layer4::Udp {
                source_port,
                destination_port,
            },
            IPPROTO_SCTP => json::Layer4::Sctp {
                source_port,
                destination_port,
            },
            IPPROTO_ICMP => json::Layer4::IcmpV4 { kind, code },
            IPPROTO_ICMPV6 => json::Layer4::IcmpV6 { kind, code },
            _ => return None,
        })
    }

    /// As Hubble words it.
    pub(super) fn summary(&self) -> Cow<'static, str> {
        match self.protocol {
            IPPROTO_TCP => {
                let names: Vec<&str> = json::TcpFlags::from_bits(self.tcp_flags).names().collect();
                Cow::Owned(format!("TCP Flags: {}", names.join(", ")))
            }
            IPPROTO_UDP => Cow::Borrowed("UDP"),
            IPPROTO_SCTP => Cow::Borrowed("SCTP"),
            IPPROTO_ICMP | IPPROTO_ICMPV6 => {
                let [kind, code] = self.icmp.to_be_bytes();
                let version = if self.protocol == IPPROTO_ICMP { "v4" } else { "v6" };
                Cow::Owned(match icmp_name(self.protocol, kind) {
                    Some(name) => format!("ICMP{version} {name}"),
                    None => format!("ICMP{version} type {kind} code {code}"),
                })
            }
            other => Cow::Owned(format!("IP protocol {other}")),
        }
    }

    fn weir(&self) -> json::Weir<'_> {
        let hits = self.judgement.as_ref().map_or(&[][..], |judgement| &judgement.hits[..]);
        let (tier, policy, rule, rule_name) = match hits.last() {
            Some(Hit::Rule {
                tier,
                policy,
                index,
                name,
                ..
            }) => (Some(tier), Some(policy), Some(*index), name.as_ref()),
            Some(Hit::EndOfTier { tier, policy, .. }) => (Some(tier), Some(policy), None, None),
            Some(Hit::Profile) | None => (None, None, None, None),
        };
        json::Weir {
            event: self.event,
            reason: self.reason.map(|reason| Cow::Borrowed(reason.name())),
            tier: tier.map(|tier| Cow::Borrowed(&**tier)),
            policy: policy.map(Into::into),
            rule,
            rule_name: rule_name.map(|name| Cow::Borrowed(&**name)),
            hits: hits.iter().map(HitReport::from).collect(),
            log: self.log,
            staged: self.staged.as_deref().map(staged),
            packets: json::BothWays {
                forward: self.packets[0],
                reply: self.packets[1],
            },
            bytes: json::BothWays {
                forward: self.bytes[0],
                reply: self.bytes[1],
            },
            start: self.start,
            end: self.end,
            count: self.count,
            protocol: self.layer4().is_none().then_some(self.protocol),
            adopted: self.adopted,
            endpoint: self.endpoint,
        }
    }
}

/// A verdict that is not enforced.
pub(super) fn staged(judgement: &Judgement) -> json::Staged {
    let hits: Vec<HitReport> = judgement.hits.iter().map(HitReport::from).collect();
    json::Staged {
        verdict: if judgement.allow {
            json::Verdict::Forwarded
        } else {
            json::Verdict::Dropped
        },
        hits,
    }
}

fn attribution(policy: &PolicyKey) -> json::Policy<'_> {
    json::Policy {
        name: Cow::Borrowed(&policy.name),
        namespace: policy.namespace.as_deref().map(Cow::Borrowed),
        labels: Vec::new(),
        kind: Cow::Borrowed(object_kind(policy.kind)),
    }
}

/// An end as `flow.Endpoint`.
pub(super) fn endpoint(end: &End) -> json::Endpoint<'_> {
    let reserved = |identity, label| json::Endpoint {
        id: end.endpoint,
        identity: Some(identity),
        labels: vec![Cow::Borrowed(label)],
        ..json::Endpoint::default()
    };
    match &end.name {
        Some(Name::Pod(pod)) => json::Endpoint {
            id: end.endpoint,
            namespace: Some(Cow::Borrowed(&pod.namespace)),
            labels: pod
                .labels
                .iter()
                .map(|(key, value)| Cow::Owned(format!("k8s:{key}={value}")))
                .collect(),
            pod_name: Some(Cow::Borrowed(&pod.name)),
            workloads: pod
                .workload
                .iter()
                .map(|workload| json::Workload {
                    name: Cow::Borrowed(&workload.name),
                    kind: Cow::Borrowed(&workload.kind),
                })
                .collect(),
            ..json::Endpoint::default()
        },
        Some(Name::Node { name, local }) => json::Endpoint {
            node_name: Some(Cow::Borrowed(name)),
            ..if *local {
                reserved(IDENTITY_HOST, "reserved:host")
            } else {
                reserved(IDENTITY_REMOTE_NODE, "reserved:remote-node")
            }
        },
        None => reserved(IDENTITY_WORLD, "reserved:world"),
    }
}

/// Names of the messages that pods exchange (RFC 792, RFC 4443).
const fn icmp_name(protocol: u8, kind: u8) -> Option<&'static str> {
    match (protocol, kind) {
        (IPPROTO_ICMP, 0) | (IPPROTO_ICMPV6, 129) => Some("EchoReply"),
        (IPPROTO_ICMP, 8) | (IPPROTO_ICMPV6, 128) => Some("EchoRequest"),
        (IPPROTO_ICMP, 3) | (IPPROTO_ICMPV6, 1) => Some("DestinationUnreachable"),
        (IPPROTO_ICMPV6, 2) => Some("PacketTooBig"),
        (IPPROTO_ICMP, 11) | (IPPROTO_ICMPV6, 3) => Some("TimeExceeded"),
        _ => None,
    }
}
