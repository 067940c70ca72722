//! What must be so: the naive evaluator over what the API server holds now, read afresh and told of no change before.

use std::net::IpAddr;

use anyhow::{Result, bail};
use weir::{
    api::{Object, Outcome, Parser},
    index::Index,
    policy::{
        change::PeerKey,
        evaluate::{Flow, World},
        selector::EntityKind,
    },
    source::SourceEvent,
};
use weir_common::Direction;

use crate::{cluster::api::Api, lab::probe::Protocol};

/// What policies can ask for.
const LISTS: [(&str, &str, &str); 4] = [
    ("/api/v1/namespaces", "v1", "Namespace"),
    ("/api/v1/nodes", "v1", "Node"),
    ("/api/v1/pods", "v1", "Pod"),
    (
        "/apis/networking.k8s.io/v1/networkpolicies",
        "networking.k8s.io/v1",
        "NetworkPolicy",
    ),
];

/// The cluster as the API server tells of it.
pub struct Expected(World);

impl Expected {
    /// Reads everything.
    ///
    /// # Errors
    /// The API server's; an object that cannot be understood.
    pub fn read(api: &Api) -> Result<Self> {
        let mut parser = Parser::new();
        let mut objects: Vec<Object> = Vec::new();
        for (path, version, kind) in LISTS {
            for mut item in api.list(path)? {
                // Items of a list do not say what they are.
                item["apiVersion"] = version.into();
                item["kind"] = kind.into();
                match parser.parse(&item, None).outcome {
                    Outcome::Valid(object) => objects.push(object),
                    other => bail!("{item}: {other:?}"),
                }
            }
        }
        let mut index = Index::new("nowhere");
        let mut world = World::new();
        for change in index.apply(SourceEvent::Reset(objects)).changes {
            world.apply(change);
        }
        Ok(Self(world))
    }

    /// Whether a flow between two pods passes both ends.
    #[must_use]
    pub fn passes(&self, from: (&str, IpAddr), to: (&str, IpAddr), protocol: Protocol, port: u16) -> bool {
        from.1 == to.1
            || (self.judge(Direction::Egress, from, to.1, protocol, port)
                && self.judge(Direction::Ingress, to, from.1, protocol, port))
    }

    /// Whether a pod may receive this from an address.
    #[must_use]
    pub fn receives(&self, pod: (&str, IpAddr), from: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.judge(Direction::Ingress, pod, from, protocol, port)
    }

    fn judge(&self, direction: Direction, pod: (&str, IpAddr), peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        let (namespace, name) = pod.0.split_once('/').unwrap_or_default();
        let flow = Flow {
            endpoint: PeerKey {
                kind: EntityKind::Pod,
                namespace: Some(namespace.into()),
                name: name.into(),
            },
            direction,
            local_addr: pod.1,
            peer_addr: peer,
            protocol: protocol.number(peer),
            source_port: 40_000,
            destination_port: port,
            icmp: None,
        };
        self.0.judge(&flow).allow
    }
}
