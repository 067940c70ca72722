//! Nodes: peers too. Pods on the host network are met under their node's address.

use std::{net::IpAddr, sync::Arc};

use super::{
    Index, IndexOutput,
    claims::{Claimant, node_seniority},
};
use crate::{
    api::Node,
    policy::{
        change::{Change, Peer, PeerKey},
        selector::EntityKind,
    },
};

pub(super) fn node_key(name: &Arc<str>) -> PeerKey {
    PeerKey {
        kind: EntityKind::Node,
        namespace: None,
        name: name.clone(),
    }
}

impl Index {
    /// Addresses found on this node's interfaces; they count as the node's besides those of its Node object.
    pub fn set_node_addresses(&mut self, mut addresses: Vec<IpAddr>) -> IndexOutput {
        addresses.sort_unstable();
        addresses.dedup();
        let mut out = IndexOutput::default();
        let name = self.node_name.clone();
        self.change_node(&name, &mut out, |index| index.node_addresses = addresses);
        out
    }

    pub(super) fn put_node(&mut self, node: Arc<Node>, out: &mut IndexOutput) {
        let name = node.name.clone();
        let arrival = match self.nodes.get(&name) {
            Some((_, arrival)) => *arrival,
            None => self.arrival(),
        };
        self.change_node(&name.clone(), out, |index| {
            index.nodes.insert(name, (node, arrival));
        });
    }

    pub(super) fn remove_node(&mut self, name: &Arc<str>, out: &mut IndexOutput) {
        self.change_node(name, out, |index| {
            index.nodes.remove(name);
        });
    }

    fn change_node(&mut self, name: &Arc<str>, out: &mut IndexOutput, change: impl FnOnce(&mut Self)) {
        let key = node_key(name);
        let before = self.node_peer(name);
        let had: Vec<IpAddr> = before.iter().flat_map(|peer| peer.addresses.clone()).collect();
        change(self);
        let after = self.node_peer(name);
        if before == after {
            return;
        }
        let has: Vec<IpAddr> = after.iter().flat_map(|peer| peer.addresses.clone()).collect();
        // Claims are still as they were, so this is who had them.
        let owners = self.owners(had.iter().chain(&has));
        for address in &had {
            self.claims.release(*address, &Claimant::Node(name.clone()));
        }
        if let Some(peer) = &after {
            for address in &has {
                self.claims.claim(*address, Claimant::Node(name.clone()), peer.claimed);
            }
        }
        out.changes.push(Change::Peer(key, after));
        self.tell_owners(owners, out);
    }

    pub(super) fn node_peer(&self, name: &Arc<str>) -> Option<Peer> {
        let local_node = *name == self.node_name;
        let known = self.nodes.get(name);
        let mut addresses = known.map(|(node, _)| node.addresses.clone()).unwrap_or_default();
        if local_node {
            addresses.extend_from_slice(&self.node_addresses);
        }
        addresses.sort_unstable();
        addresses.dedup();
        if known.is_none() && addresses.is_empty() {
            return None;
        }
        Some(Peer {
            labels: known.map(|(node, _)| node.labels.clone()).unwrap_or_default(),
            service_account: None,
            named_ports: Arc::default(),
            addresses,
            claimed: node_seniority(known.map_or(0, |(_, arrival)| *arrival)),
            local_node,
        })
    }
}
