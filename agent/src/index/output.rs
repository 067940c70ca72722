//! What follows from one event of the source.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    api::Pod,
    policy::change::{Change, PeerKey},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct IndexOutput {
    /// For the compiler. What is new comes before what goes.
    pub changes: Vec<Change>,
    /// For the endpoints: local pods that came, went, or whose addresses changed.
    pub local_pods: Vec<LocalPodChange>,
    /// For flow records: whose an address is now.
    pub names: Vec<NameChange>,
}

impl IndexOutput {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.local_pods.is_empty() && self.names.is_empty()
    }

    /// Takes in what follows from a later event, so that several make one plan.
    pub fn extend(&mut self, later: Self) {
        self.changes.extend(later.changes);
        self.local_pods.extend(later.local_pods);
        self.names.extend(later.names);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPodChange {
    pub key: PeerKey,
    /// None: the pod is gone, has ended, or is no longer on this node.
    pub pod: Option<LocalPod>,
}

/// A pod on this node that has addresses of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Sorted; never empty.
    pub addresses: Vec<IpAddr>,
    /// What it may send from besides its addresses.
    pub allowed_sources: Vec<IpNet>,
}

/// Another pod has an address now, or the one that has it looks different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameChange {
    pub address: IpAddr,
    /// Of several that claim it, the newest. None: no pod has it (a node that claims it comes before all pods).
    pub pod: Option<Arc<Pod>>,
}
