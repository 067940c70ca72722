//! What is known of pods, nodes, network sets, namespaces and service accounts; who claims which address.

use std::{hash::BuildHasher as _, net::IpAddr, sync::Arc};

use hashbrown::{HashTable, hash_table};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::{
    Identities,
    asked::Asked,
    region::{Cidr, number},
    slab::Slab,
    view::{Subject, View},
};
use crate::policy::{
    change::{NetworkSet, Peer, PeerKey},
    model::NamedPort,
    selector::{Entity as _, EntityKind, Field, Labels},
};

/// A peer or a network set.
#[derive(Debug)]
pub(super) struct Entity {
    pub key: PeerKey,
    labels: Labels,
    service_account: Option<Arc<str>>,
    named_ports: Arc<[NamedPort]>,
    pub addresses: SmallVec<[u128; 1]>,
    claimed: u64,
    local_node: bool,
    /// Of a network set.
    pub nets: Box<[Cidr]>,
    /// As of the last settling.
    pub view: Option<u32>,
    /// A network set whose prefixes are regions because some live selector matches it.
    pub active: bool,
}

#[derive(Debug, Default)]
struct Namespace {
    labels: Option<Labels>,
    entities: FxHashSet<u32>,
}

#[derive(Debug, Default)]
pub struct Entities {
    pub(super) entities: Slab<Entity>,
    /// By the entity's key, which stands in the entity.
    ids: HashTable<u32>,
    namespaces: FxHashMap<Arc<str>, Namespace>,
    service_accounts: FxHashMap<(Arc<str>, Arc<str>), Labels>,
    /// Equal label sets are kept once; with those that have them.
    labels: FxHashMap<Labels, FxHashSet<u32>>,
    pub(super) sets: FxHashSet<u32>,
    /// How many entities look like a view.
    users: FxHashMap<u32, usize>,
}

fn hash(key: &PeerKey) -> u64 {
    FxBuildHasher.hash_one(key)
}

impl Entities {
    fn id(&self, key: &PeerKey) -> Option<u32> {
        self.ids.find(hash(key), |&id| self.entities[id].key == *key).copied()
    }

    /// An entity in full.
    #[must_use]
    pub fn subject(&self, key: &PeerKey) -> Option<Subject<'_>> {
        self.id(key).map(|id| self.subject_of(&self.entities[id]))
    }

    /// Addresses of a peer, in the order given.
    #[must_use]
    pub fn addresses(&self, key: &PeerKey) -> &[u128] {
        self.id(key).map_or(&[], |id| &self.entities[id].addresses)
    }

    /// Network sets that hold an address, in full.
    pub fn sets_of(&self, number: u128) -> impl Iterator<Item = Subject<'_>> {
        let sets = self.sets.iter().map(|&id| &self.entities[id]);
        sets.filter(move |set| {
            let holds = |net: &Cidr| net.numbers().contains(&number) && net.root() == Cidr::host(number).root();
            set.nets.iter().any(holds)
        })
        .map(|set| self.subject_of(set))
    }

    /// Peers known; network sets known.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.entities.count() - self.sets.len(), self.sets.len())
    }

    pub(super) fn view(&self, id: u32, asked: &Asked) -> View {
        self.subject_of(&self.entities[id]).view(asked)
    }

    /// The view of an entity and its value of a field.
    pub(super) fn value(&self, id: u32, field: &Field) -> Option<(Option<u32>, &str)> {
        let entity = &self.entities[id];
        let value = self.subject_of(entity).full_field(field)?;
        Some((entity.view, value))
    }

    pub(super) fn users_of(&self, view: u32) -> usize {
        self.users.get(&view).copied().unwrap_or_default()
    }

    /// An entity looks otherwise than before.
    pub(super) fn count_users(&mut self, old: Option<u32>, new: Option<u32>) {
        if let Some(new) = new {
            *self.users.entry(new).or_default() += 1;
        }
        if let Some(old) = old
            && let Some(count) = self.users.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&old);
            }
        }
    }

    fn subject_of<'a>(&'a self, entity: &'a Entity) -> Subject<'a> {
        let namespace = entity.key.namespace.as_ref();
        let account = namespace.zip(entity.service_account.as_ref());
        Subject {
            kind: entity.key.kind,
            namespace: namespace.map(AsRef::as_ref),
            labels: &entity.labels,
            namespace_labels: namespace.and_then(|name| self.namespaces.get(name)?.labels.as_ref()),
            service_account: entity.service_account.as_deref(),
            service_account_labels: account
                .and_then(|(namespace, name)| self.service_accounts.get(&(namespace.clone(), name.clone()))),
            named_ports: &entity.named_ports,
            local_node: entity.local_node,
        }
    }

    /// Entities that have a field.
    pub(super) fn with_field(&self, field: &Field) -> Vec<u32> {
        match field {
            Field::Label(key) => {
                let having = self.labels.iter().filter(|(labels, _)| labels.contains_key(key));
                having.flat_map(|(_, users)| users).copied().collect()
            }
            Field::NamespaceLabel(key) => {
                let has = |namespace: &&Namespace| {
                    let labels = namespace.labels.as_ref();
                    labels.is_some_and(|labels| labels.contains_key(key))
                };
                let having = self.namespaces.values().filter(has);
                having.flat_map(|namespace| &namespace.entities).copied().collect()
            }
            Field::ServiceAccountLabel(key) => {
                let having = self
                    .service_accounts
                    .iter()
                    .filter(|(_, labels)| labels.contains_key(key));
                having.flat_map(|(account, _)| self.of_account(account)).collect()
            }
            Field::Namespace | Field::ServiceAccount | Field::Kind => {
                let has = |(_, entity): &(u32, &Entity)| self.subject_of(entity).field(field).is_some();
                self.entities.iter().filter(has).map(|(id, _)| id).collect()
            }
        }
    }

    /// Entities that declare a port of that name.
    pub(super) fn with_port(&self, name: &str) -> Vec<u32> {
        let has = |(_, entity): &(u32, &Entity)| entity.named_ports.iter().any(|port| &*port.name == name);
        self.entities.iter().filter(has).map(|(id, _)| id).collect()
    }

    fn of_account(&self, account: &(Arc<str>, Arc<str>)) -> Vec<u32> {
        let Some(namespace) = self.namespaces.get(&account.0) else {
            return Vec::new();
        };
        let uses = |id: &u32| self.entities[*id].service_account.as_ref() == Some(&account.1);
        namespace.entities.iter().copied().filter(uses).collect()
    }

    /// In a namespace.
    fn of_namespace(&self, name: &str) -> Vec<u32> {
        let namespace = self.namespaces.get(name);
        namespace.map_or_else(Vec::new, |namespace| namespace.entities.iter().copied().collect())
    }

    fn insert(&mut self, mut entity: Entity) -> u32 {
        let known = self.labels.get_key_value(&entity.labels);
        if let Some(labels) = known.map(|(labels, _)| labels.clone()) {
            entity.labels = labels;
        }
        let (key, labels) = (entity.key.clone(), entity.labels.clone());
        let is_set = key.kind == EntityKind::NetworkSet;
        let id = self.entities.insert(entity);
        self.labels.entry(labels).or_default().insert(id);
        if let Some(namespace) = &key.namespace {
            let namespace = self.namespaces.entry(namespace.clone()).or_default();
            namespace.entities.insert(id);
        }
        if is_set {
            self.sets.insert(id);
        }
        let entities = &self.entities;
        self.ids.insert_unique(hash(&key), id, |&id| hash(&entities[id].key));
        id
    }

    fn remove(&mut self, key: &PeerKey) -> Option<(u32, Entity)> {
        let entities = &self.entities;
        let known = self.ids.find_entry(hash(key), |&id| entities[id].key == *key);
        let (id, _) = known.ok().map(hash_table::OccupiedEntry::remove)?;
        let entity = self.entities.remove(id)?;
        self.forget_labels(&entity.labels, id);
        if let Some(name) = &key.namespace
            && let Some(namespace) = self.namespaces.get_mut(name)
        {
            namespace.entities.remove(&id);
            if namespace.entities.is_empty() && namespace.labels.is_none() {
                self.namespaces.remove(name);
            }
        }
        self.sets.remove(&id);
        Some((id, entity))
    }

    fn forget_labels(&mut self, labels: &Labels, id: u32) {
        if let Some(users) = self.labels.get_mut(labels) {
            users.remove(&id);
            if users.is_empty() {
                self.labels.remove(labels);
            }
        }
    }
}

impl Identities {
    /// True if something changed; so do all of these.
    pub fn set_namespace(&mut self, name: Arc<str>, labels: Option<Labels>) -> bool {
        let namespace = self.entities.namespaces.entry(name.clone()).or_default();
        if namespace.labels == labels {
            if labels.is_none() && namespace.entities.is_empty() {
                self.entities.namespaces.remove(&name);
            }
            return false;
        }
        namespace.labels = labels;
        self.dirty.entities.extend(self.entities.of_namespace(&name));
        let namespace = &self.entities.namespaces[&name];
        if namespace.labels.is_none() && namespace.entities.is_empty() {
            self.entities.namespaces.remove(&name);
        }
        true
    }

    pub fn set_service_account(&mut self, namespace: Arc<str>, name: Arc<str>, labels: Option<Labels>) -> bool {
        let account = (namespace, name);
        if self.entities.service_accounts.get(&account) == labels.as_ref() {
            return false;
        }
        match labels {
            Some(labels) => drop(self.entities.service_accounts.insert(account.clone(), labels)),
            None => drop(self.entities.service_accounts.remove(&account)),
        }
        self.dirty.entities.extend(self.entities.of_account(&account));
        true
    }

    pub fn set_peer(&mut self, key: PeerKey, peer: Option<Peer>) -> bool {
        let Some(peer) = peer else {
            return self.remove_entity(&key);
        };
        let addresses: SmallVec<[u128; 1]> = peer.addresses.iter().copied().map(number).collect();
        self.put_entity(Entity {
            key,
            labels: peer.labels,
            service_account: peer.service_account,
            named_ports: peer.named_ports,
            addresses,
            claimed: peer.claimed,
            local_node: peer.local_node,
            nets: Box::default(),
            view: None,
            active: false,
        })
    }

    pub fn set_network_set(&mut self, key: PeerKey, set: Option<NetworkSet>) -> bool {
        let Some(set) = set else {
            return self.remove_entity(&key);
        };
        let mut nets: Vec<Cidr> = set.nets.iter().filter_map(|&net| Cidr::new(net)).collect();
        nets.sort_unstable();
        nets.dedup();
        self.put_entity(Entity {
            key,
            labels: set.labels,
            service_account: None,
            named_ports: Arc::new([]),
            addresses: SmallVec::new(),
            claimed: 0,
            local_node: false,
            nets: nets.into(),
            view: None,
            active: false,
        })
    }

    fn put_entity(&mut self, new: Entity) -> bool {
        let Some(id) = self.entities.id(&new.key) else {
            let (addresses, claimed) = (new.addresses.clone(), new.claimed);
            let id = self.entities.insert(new);
            self.claim(id, &addresses, claimed);
            self.dirty.entities.insert(id);
            return true;
        };
        let old = &mut self.entities.entities[id];
        if old.labels == new.labels
            && old.service_account == new.service_account
            && old.named_ports == new.named_ports
            && old.addresses == new.addresses
            && old.claimed == new.claimed
            && old.local_node == new.local_node
            && old.nets == new.nets
        {
            return false;
        }
        let claims = (old.addresses != new.addresses || old.claimed != new.claimed)
            .then(|| (std::mem::take(&mut old.addresses), old.claimed));
        let labels = (old.labels != new.labels).then(|| std::mem::replace(&mut old.labels, new.labels.clone()));
        let nets = (old.nets != new.nets).then(|| std::mem::replace(&mut old.nets, new.nets));
        old.service_account = new.service_account;
        old.named_ports = new.named_ports;
        old.addresses = new.addresses.clone();
        old.claimed = new.claimed;
        old.local_node = new.local_node;
        let active = old.active;
        self.dirty.entities.insert(id);
        if let Some(labels) = labels {
            self.entities.forget_labels(&labels, id);
            let known = self.entities.labels.get_key_value(&new.labels);
            let labels = known.map_or(new.labels, |(labels, _)| labels.clone());
            self.entities.labels.entry(labels.clone()).or_default().insert(id);
            self.entities.entities[id].labels = labels;
        }
        if let Some((addresses, claimed)) = claims {
            self.disclaim(id, &addresses, claimed);
            self.claim(id, &new.addresses, new.claimed);
        }
        if let Some(old_nets) = nets
            && active
        {
            // The new ones first, so that those that stay never go.
            for cidr in self.entities.entities[id].nets.clone() {
                self.hold_set_net(cidr, id);
            }
            for cidr in old_nets {
                self.release_set_net(cidr, id);
            }
        }
        true
    }

    fn remove_entity(&mut self, key: &PeerKey) -> bool {
        let Some((id, entity)) = self.entities.remove(key) else {
            return false;
        };
        self.disclaim(id, &entity.addresses, entity.claimed);
        if entity.active {
            for cidr in entity.nets {
                self.release_set_net(cidr, id);
            }
        }
        if let Some(view) = entity.view {
            self.entities.count_users(Some(view), None);
            self.index.release_view(view);
        }
        self.dirty.entities.remove(&id);
        self.dirty.sets.remove(&id);
        true
    }

    fn claim(&mut self, id: u32, addresses: &[u128], claimed: u64) {
        for &number in addresses {
            self.touch(number);
            let claims = &mut self.addresses.entry(number).or_default().claims;
            let claim = (claimed, id);
            if let Err(at) = claims.binary_search(&claim) {
                claims.insert(at, claim);
            }
        }
    }

    fn disclaim(&mut self, id: u32, addresses: &[u128], claimed: u64) {
        for &number in addresses {
            self.touch(number);
            if let Some(address) = self.addresses.get_mut(&number) {
                address.claims.retain(|claim| *claim != (claimed, id));
            }
        }
    }

    pub(super) fn hold_set_net(&mut self, cidr: Cidr, set: u32) {
        self.add_region(cidr);
        if let Some(region) = self.regions.get_mut(cidr) {
            region.sets.push(set);
        }
        self.touch_identities_in(cidr);
    }

    pub(super) fn release_set_net(&mut self, cidr: Cidr, set: u32) {
        if let Some(region) = self.regions.get_mut(cidr)
            && let Some(at) = region.sets.iter().position(|&other| other == set)
        {
            region.sets.swap_remove(at);
        }
        self.touch_identities_in(cidr);
        self.release_region(cidr);
    }

    /// The entity that has an address: of several that claim it the newest.
    pub(super) fn owner(&self, number: u128) -> Option<u32> {
        self.addresses.get(&number)?.claims.last().map(|&(_, id)| id)
    }

    /// All addresses of a peer as addresses.
    #[must_use]
    pub fn addresses_of(&self, key: &PeerKey) -> Vec<IpAddr> {
        let addresses = self.entities.addresses(key);
        addresses.iter().copied().map(super::region::address).collect()
    }
}
