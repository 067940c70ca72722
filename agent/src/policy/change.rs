//! What the compiler is told: the cluster's objects, as far as policies can see them, one change at a time.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    model::{NamedPort, Policy, PolicyKey, Tier},
    selector::{EntityKind, Labels},
};

/// Identifies an entity that has addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey {
    pub kind: EntityKind,
    /// None for cluster-wide kinds.
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

impl std::fmt::Display for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A pod, node or host endpoint. (Pods on the host network are none: their addresses are the node's.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub labels: Labels,
    pub service_account: Option<Arc<str>>,
    /// Sorted.
    pub named_ports: Arc<[NamedPort]>,
    pub addresses: Vec<IpAddr>,
    /// Of two peers that claim one address the one with the greater seniority number (the newer) has it. Unique.
    pub claimed: u64,
    /// An address of the node this agent runs on.
    pub local_node: bool,
}

/// Named CIDRs with labels (Calico).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSet {
    pub labels: Labels,
    pub nets: Vec<IpNet>,
}

/// One change of the world. None: the object is gone.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A tier's object. Without one [`Tier::implied`] holds.
    Tier(Arc<str>, Option<Tier>),
    Policy(PolicyKey, Option<Arc<Policy>>),
    Namespace(Arc<str>, Option<Labels>),
    ServiceAccount {
        namespace: Arc<str>,
        name: Arc<str>,
        labels: Option<Labels>,
    },
    Peer(PeerKey, Option<Peer>),
    NetworkSet(PeerKey, Option<NetworkSet>),
    /// A local pod that has an interface: its decisions are wanted under this id. None: no longer.
    Endpoint(u32, Option<PeerKey>),
}
