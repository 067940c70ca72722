//! What the compiler tells about itself: counts for status and metrics, dumps for `weir dump`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::policy::model::PolicyKey;

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Endpoints with an id.
    pub endpoints: usize,
    /// Policies known, staged ones included.
    pub policies: usize,
    /// Policies that select an endpoint of this node.
    pub live_policies: usize,
    /// Pods, nodes and host endpoints known.
    pub peers: usize,
    pub network_sets: usize,
    /// Entries the plans so far leave in the maps, those not removed yet included.
    pub maps: MapUse,
    pub classes: usize,
    pub tables: usize,
    /// Endpoint directions that are closed for want of room.
    pub closed: usize,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Pods, nodes and host endpoints known.
    pub peers: usize,
    pub identities: usize,
    pub classes: usize,
    pub tables: usize,
}

/// Entries by map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MapUse {
    pub addresses: usize,
    pub cidrs: usize,
    /// Slots of the identity array in use (its highest index + 1 may be more).
    pub identities: usize,
    pub rows: usize,
    pub decisions: usize,
    pub source_ports: usize,
    pub traces: usize,
}

/// One local pod: for `weir dump endpoints` and `weir status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointDump {
    pub id: u32,
    pub namespace: Option<String>,
    pub name: String,
    pub egress: DirectionDump,
    pub ingress: DirectionDump,
}

/// One direction of a local pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DirectionDump {
    /// 0: the same decisions for every peer.
    pub table: u32,
    /// Some policy selects the pod in this direction.
    pub isolated: bool,
    /// Its decisions do not fit into the maps (or the pod is not known yet): nothing passes.
    pub closed: bool,
    /// The policies that are enforced, in the order they are walked.
    pub policies: Vec<PolicyRef>,
}

/// A policy by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRef {
    pub tier: String,
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
}

impl PolicyRef {
    #[must_use]
    pub fn new(tier: &str, key: &PolicyKey) -> Self {
        Self {
            tier: tier.to_owned(),
            kind: key.kind.name(),
            namespace: key.namespace.as_deref().map(str::to_owned),
            name: key.name.to_string(),
        }
    }
}

/// One identity: for `weir dump identities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityDump {
    pub identity: u32,
    pub class: u32,
    pub local_node: bool,
    /// The most specific policy CIDR that its addresses lie in.
    pub cidr: IpNet,
    /// What policies can see of the peers; None: addresses of nobody.
    pub labels: Option<Vec<String>>,
    /// Pod and node addresses that have it.
    pub addresses: Vec<IpAddr>,
}

/// One table: for `weir dump tables`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableDump {
    pub table: u32,
    pub direction: &'static str,
    /// In the order they are walked.
    pub policies: Vec<PolicyRef>,
    /// Directions of endpoints that obey it.
    pub endpoints: usize,
    pub default_row: RowDump,
    /// By class.
    pub rows: Vec<(u32, RowDump)>,
}

/// What a table says of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowDump {
    /// 0: no decisions by port.
    pub row: u32,
    /// By slot: tcp, udp, sctp, icmp, other.
    pub base: Vec<DecisionDump>,
    pub decisions: Vec<PortDecisionDump>,
    pub source_ports: usize,
}

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DecisionDump {
    pub allow: bool,
    pub log: bool,
    pub trace: u32,
}

/// A decision for a prefix of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PortDecisionDump {
    pub protocol: u8,
    /// First port (or ICMP type << 8 | code).
    pub port: u16,
    /// Bits of `port` that count; 0: all ports.
    pub prefix: u8,
    pub source_class: u16,
    #[serde(flatten)]
    pub decision: DecisionDump,
}
