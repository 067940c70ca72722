//! What `weir explain` asks and answers.

mod report;

use std::{net::IpAddr, sync::Arc};

use weir_common::{
    Direction,
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

pub use self::report::{
    ASSUMED_SOURCE_PORT, DirectionExplanation, ExplainRequest, ExplainVerdict, Explanation, FamilyName, HitReport,
    Party, PartyReport, PathExplanation, Traffic, protocol_name,
};
use super::query::QueryError;
use crate::{
    api::Pod,
    index::Index,
    policy::{
        change::PeerKey,
        evaluate::{Flow, World},
        selector::EntityKind,
    },
};

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
                    addresses: pod.addresses.to_vec(),
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
