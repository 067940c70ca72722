//! Tiers and network sets: told to the compiler as they are.

use std::sync::Arc;

use super::{Index, IndexOutput};
use crate::{
    api::NetworkSet,
    policy::{
        change::{self, Change, PeerKey},
        model::Tier,
        selector::EntityKind,
    },
};

pub(super) fn set_key(namespace: Option<&Arc<str>>, name: &Arc<str>) -> PeerKey {
    PeerKey {
        kind: EntityKind::NetworkSet,
        namespace: namespace.cloned(),
        name: name.clone(),
    }
}

fn told(set: &NetworkSet) -> change::NetworkSet {
    change::NetworkSet {
        labels: set.labels.clone(),
        nets: set.nets.clone(),
    }
}

impl Index {
    pub(super) fn put_tier(&mut self, tier: Arc<Tier>, out: &mut IndexOutput) {
        if self.tiers.get(&tier.name) != Some(&tier) {
            out.changes
                .push(Change::Tier(tier.name.clone(), Some(Tier::clone(&tier))));
            self.tiers.insert(tier.name.clone(), tier);
        }
    }

    pub(super) fn remove_tier(&mut self, name: &Arc<str>, out: &mut IndexOutput) {
        if self.tiers.remove(name).is_some() {
            out.changes.push(Change::Tier(name.clone(), None));
        }
    }

    pub(super) fn put_set(&mut self, set: Arc<NetworkSet>, out: &mut IndexOutput) {
        let key = set_key(set.namespace.as_ref(), &set.name);
        if self.sets.get(&key) != Some(&set) {
            out.changes.push(Change::NetworkSet(key.clone(), Some(told(&set))));
            self.sets.insert(key, set);
        }
    }

    pub(super) fn remove_set(&mut self, key: &PeerKey, out: &mut IndexOutput) {
        if self.sets.remove(key).is_some() {
            out.changes.push(Change::NetworkSet(key.clone(), None));
        }
    }

    pub(super) fn tier_changes(&self) -> impl Iterator<Item = Change> {
        self.tiers
            .values()
            .map(|tier| Change::Tier(tier.name.clone(), Some(Tier::clone(tier))))
    }

    pub(super) fn set_changes(&self) -> impl Iterator<Item = Change> {
        self.sets
            .iter()
            .map(|(key, set)| Change::NetworkSet(key.clone(), Some(told(set))))
    }
}
