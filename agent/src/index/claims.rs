//! Whose an address is, of those that claim it.

use std::{collections::HashMap, net::IpAddr};

use smallvec::SmallVec;

use crate::policy::change::PeerKey;

/// Set in every node's seniority number, in no pod's: no pod's status takes a node's address away from it.
const NODE: u64 = 1 << 63;
/// Set in that of a pod of this node whose address the container runtime has told us: it has just been given to it,
/// whatever statuses say.
const ATTACHED: u64 = 1 << 62;
/// Bits of a pod's seniority number that hold its order of arrival; those above hold the second of its creation.
const ARRIVAL_BITS: u32 = 29;

/// A pod's: by creation, then by arrival. Unique until half a billion pods of one second have arrived.
pub(super) fn pod_seniority(created: Option<i64>, arrival: u64) -> u64 {
    let seconds = created.map_or(0, |seconds| seconds.clamp(0, (1 << 33) - 1).unsigned_abs());
    (seconds << ARRIVAL_BITS) | (arrival & ((1 << ARRIVAL_BITS) - 1))
}

pub(super) const fn attached_seniority(arrival: u64) -> u64 {
    ATTACHED | arrival
}

pub(super) const fn is_attached(seniority: u64) -> bool {
    seniority & (ATTACHED | NODE) == ATTACHED
}

pub(super) const fn node_seniority(arrival: u64) -> u64 {
    NODE | arrival
}

/// Claimants of each address. Nearly always one.
#[derive(Default)]
pub(super) struct Claims(HashMap<IpAddr, SmallVec<[(u64, PeerKey); 1]>>);

impl Claims {
    pub(super) fn claim(&mut self, address: IpAddr, peer: &PeerKey, seniority: u64) {
        self.0.entry(address).or_default().push((seniority, peer.clone()));
    }

    pub(super) fn release(&mut self, address: IpAddr, peer: &PeerKey) {
        if let Some(claimants) = self.0.get_mut(&address) {
            claimants.retain(|(_, claimant)| claimant != peer);
            if claimants.is_empty() {
                self.0.remove(&address);
            }
        }
    }

    /// The newest claimant.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&PeerKey> {
        let claimants = self.0.get(&address)?;
        claimants
            .iter()
            .max_by_key(|(seniority, _)| *seniority)
            .map(|(_, peer)| peer)
    }
}
