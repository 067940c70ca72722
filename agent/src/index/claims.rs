//! Whose an address is, of those that claim it.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
};

use hashbrown::HashTable;

use crate::api::Pod;

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

/// Who claims an address.
#[derive(Clone)]
pub(super) enum Claimant {
    /// As it counted when it claimed.
    Pod(Arc<Pod>),
    /// A node's name.
    Node(Arc<str>),
}

impl Claimant {
    pub(super) const fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Node(_) => None,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pod(one), Self::Pod(other)) => one.name == other.name && one.namespace == other.namespace,
            (Self::Node(one), Self::Node(other)) => one == other,
            (Self::Pod(_), Self::Node(_)) | (Self::Node(_), Self::Pod(_)) => false,
        }
    }
}

struct Claim {
    /// IPv4 mapped into IPv6.
    address: [u8; 16],
    claimant: Claimant,
    seniority: u64,
}

/// Claimants of each address. Nearly always one; there is an entry for each.
#[derive(Default)]
pub(super) struct Claims {
    table: HashTable<Claim>,
    hasher: RandomState,
}

const fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

impl Claims {
    pub(super) fn claim(&mut self, address: IpAddr, claimant: Claimant, seniority: u64) {
        let address = mapped(address);
        let hasher = &self.hasher;
        let claim = Claim {
            address,
            claimant,
            seniority,
        };
        self.table
            .insert_unique(hasher.hash_one(address), claim, |claim| hasher.hash_one(claim.address));
    }

    pub(super) fn release(&mut self, address: IpAddr, claimant: &Claimant) {
        let address = mapped(address);
        let is_meant = |claim: &Claim| claim.address == address && claim.claimant.is(claimant);
        if let Ok(claim) = self.table.find_entry(self.hasher.hash_one(address), is_meant) {
            claim.remove();
        }
    }

    /// The newest claimant.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Claimant> {
        let address = mapped(address);
        self.table
            .iter_hash(self.hasher.hash_one(address))
            .filter(|claim| claim.address == address)
            .max_by_key(|claim| claim.seniority)
            .map(|claim| &claim.claimant)
    }
}
