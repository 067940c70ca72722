//! Pods: peers, local pods, and whose addresses are whose.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
};

use hashbrown::{HashTable, hash_table};

use super::{
    Index, IndexOutput, LocalPod, LocalPodChange, Scoped,
    claims::{Claimant, is_attached, pod_seniority},
};
use crate::{
    api::Pod,
    policy::{
        change::{Change, Peer, PeerKey},
        selector::EntityKind,
    },
};

pub(super) struct KnownPod {
    /// As the source tells it.
    told: Arc<Pod>,
    /// As it counts: with the addresses that it was attached with, if it was.
    pub(super) pod: Arc<Pod>,
    claimed: u64,
}

/// All pods by namespace and name, which stand in the pods.
#[derive(Default)]
pub(super) struct Pods {
    table: HashTable<KnownPod>,
    hasher: RandomState,
}

impl Pods {
    pub(super) fn get(&self, names: (&str, &str)) -> Option<&KnownPod> {
        let hash = self.hasher.hash_one(names);
        self.table.find(hash, |known| known.names() == names)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownPod> {
        self.table.iter()
    }

    fn put(&mut self, pod: KnownPod) {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(pod.names());
        let entry = self.table.entry(
            hash,
            |known| known.names() == pod.names(),
            |known| hasher.hash_one(known.names()),
        );
        match entry {
            hash_table::Entry::Occupied(mut known) => *known.get_mut() = pod,
            hash_table::Entry::Vacant(vacant) => drop(vacant.insert(pod)),
        }
    }

    fn remove(&mut self, names: (&str, &str)) {
        let hash = self.hasher.hash_one(names);
        if let Ok(known) = self.table.find_entry(hash, |known| known.names() == names) {
            known.remove();
        }
    }
}

pub(super) fn names((namespace, name): &Scoped) -> (&str, &str) {
    (namespace, name)
}

fn pod_key((namespace, name): &Scoped) -> PeerKey {
    PeerKey {
        kind: EntityKind::Pod,
        namespace: Some(namespace.clone()),
        name: name.clone(),
    }
}

impl Index {
    pub(super) fn put_pod(&mut self, told: Arc<Pod>, out: &mut IndexOutput) {
        let key = (told.namespace.clone(), told.name.clone());
        let old = self.pods.get(names(&key));
        if old.is_some_and(|known| known.told == told) {
            return;
        }
        let attached = self.attached.get(&key);
        if let (Some(attached), Some(old)) = (attached, old)
            && attached.outdates(&old.told, &told)
        {
            return;
        }
        self.know_pod(key, told, out);
    }

    /// Takes in what the source tells of a pod, together with how it is attached.
    pub(super) fn know_pod(&mut self, key: Scoped, told: Arc<Pod>, out: &mut IndexOutput) {
        let attached = self.attached.get(&key).filter(|attached| attached.is_of(&told));
        let pod = attached.map_or_else(|| told.clone(), |attached| attached.apply(&told, &self.node_name));
        // A pod that gains an address claims it now; any other change leaves its place among the claimants.
        let kept = self.pods.get(names(&key)).filter(|known| {
            let had = known.pod.own_addresses();
            known.pod.created == pod.created && pod.own_addresses().iter().all(|address| had.contains(address))
        });
        let claimed = match (attached, kept) {
            (Some(attached), _) => attached.seniority,
            (None, Some(known)) if !is_attached(known.claimed) => known.claimed,
            (None, _) => pod_seniority(pod.created, self.arrival()),
        };
        if self.pods.get(names(&key)).is_none() {
            let before = self.namespace_labels(&key.0);
            self.namespaces.entry(key.0.clone()).or_default().pods += 1;
            self.tell_namespace(&key.0, before, out);
        }
        self.change_pod(&key, Some(KnownPod { told, pod, claimed }), out);
    }

    pub(super) fn remove_pod(&mut self, key: &Scoped, out: &mut IndexOutput) {
        if self.pods.get(names(key)).is_none() {
            return;
        }
        self.change_pod(key, None, out);
        let before = self.namespace_labels(&key.0);
        if let Some(known) = self.namespaces.get_mut(&key.0) {
            known.pods = known.pods.saturating_sub(1);
        }
        self.tell_namespace(&key.0, before, out);
    }

    fn change_pod(&mut self, key: &Scoped, new: Option<KnownPod>, out: &mut IndexOutput) {
        let peer_key = pod_key(key);
        let peer_of = |index: &Self| index.pods.get(names(key)).and_then(KnownPod::peer);
        let local_of = |index: &Self| {
            index
                .pods
                .get(names(key))
                .and_then(|known| known.local(&index.node_name))
        };
        let (peer_before, local_before) = (peer_of(self), local_of(self));

        let addresses = |known: Option<&KnownPod>| {
            known
                .map(|known| known.pod.own_addresses().to_vec())
                .unwrap_or_default()
        };
        let (had, has): (Vec<IpAddr>, Vec<IpAddr>) = (addresses(self.pods.get(names(key))), addresses(new.as_ref()));
        let owners = self.owners(had.iter().chain(&has));
        if let Some(old) = self.pods.get(names(key)) {
            let claimant = Claimant::Pod(old.pod.clone());
            for address in &had {
                self.claims.release(*address, &claimant);
            }
        }
        match new {
            Some(known) => {
                for address in &has {
                    self.claims
                        .claim(*address, Claimant::Pod(known.pod.clone()), known.claimed);
                }
                self.pods.put(known);
            }
            None => {
                self.pods.remove(names(key));
            }
        }

        let (peer_after, local_after) = (peer_of(self), local_of(self));
        if peer_before != peer_after {
            out.changes.push(Change::Peer(peer_key.clone(), peer_after));
        }
        if local_before != local_after {
            out.local_pods.push(LocalPodChange {
                key: peer_key,
                pod: local_after,
            });
        }
        self.tell_owners(owners, out);
    }
}

impl Pod {
    /// The addresses that are this pod's own: none on the host network, none once it has ended.
    fn own_addresses(&self) -> &[IpAddr] {
        if self.is_peer() { &self.addresses } else { &[] }
    }

    fn is_peer(&self) -> bool {
        !self.host_network && !self.phase.is_over()
    }
}

impl KnownPod {
    fn names(&self) -> (&str, &str) {
        (&self.pod.namespace, &self.pod.name)
    }

    pub(super) fn key(&self) -> PeerKey {
        PeerKey {
            kind: EntityKind::Pod,
            namespace: Some(self.pod.namespace.clone()),
            name: self.pod.name.clone(),
        }
    }

    pub(super) fn told(&self) -> &Arc<Pod> {
        &self.told
    }

    pub(super) fn peer(&self) -> Option<Peer> {
        let pod = &self.pod;
        pod.is_peer().then(|| Peer {
            labels: pod.labels.clone(),
            service_account: Some(pod.service_account.clone()),
            named_ports: pod.named_ports.clone(),
            addresses: pod.addresses.to_vec(),
            claimed: self.claimed,
            local_node: false,
        })
    }

    fn local(&self, node_name: &Arc<str>) -> Option<LocalPod> {
        let addresses = self.pod.own_addresses();
        (self.pod.node_name.as_ref() == Some(node_name) && !addresses.is_empty()).then(|| LocalPod {
            addresses: addresses.to_vec(),
            allowed_sources: self.pod.allowed_sources.to_vec(),
        })
    }
}
