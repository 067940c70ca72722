//! Which pod has an address, of those that claim it.

use std::{collections::HashMap, net::IpAddr};

use smallvec::SmallVec;

use super::Scoped;

/// Claimants of each address. Nearly always one.
#[derive(Default)]
pub(super) struct Claims(HashMap<IpAddr, SmallVec<[(u64, Scoped); 1]>>);

impl Claims {
    pub(super) fn claim(&mut self, address: IpAddr, pod: &Scoped, seniority: u64) {
        self.0.entry(address).or_default().push((seniority, pod.clone()));
    }

    pub(super) fn release(&mut self, address: IpAddr, pod: &Scoped) {
        if let Some(claimants) = self.0.get_mut(&address) {
            claimants.retain(|(_, claimant)| claimant != pod);
            if claimants.is_empty() {
                self.0.remove(&address);
            }
        }
    }

    /// The newest claimant.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Scoped> {
        let claimants = self.0.get(&address)?;
        claimants
            .iter()
            .max_by_key(|(seniority, _)| *seniority)
            .map(|(_, pod)| pod)
    }
}
