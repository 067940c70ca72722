//! The cluster's current objects, and what of them the compiler must be told.
//!
//! | file | what |
//! |---|---|
//! | `claims` | which pod has an address, of those that claim it |
//! | `output` | what follows from one event |

mod claims;
mod output;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use self::claims::Claims;
pub use self::output::{IndexOutput, LocalPod, LocalPodChange, NameChange, PodInfo};
use crate::{
    api::{Namespace, Node, Object, ObjectKey, ObjectKind, Pod, ServiceAccount},
    policy::{
        change::{Change, Peer, PeerKey},
        model::{Policy, PolicyKey},
        selector::{EntityKind, Labels},
    },
    source::SourceEvent,
};

/// The label that every namespace has.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespaced object's (namespace, name).
type Scoped = (Arc<str>, Arc<str>);

struct KnownPod {
    pod: Arc<Pod>,
    claimed: u64,
}

#[derive(Default)]
struct KnownNamespace {
    object: Option<Arc<Namespace>>,
    /// Pods in it: a namespace without an object is one as soon as a pod is in it.
    pods: usize,
}

/// All objects, by kind. Fed with the source's events; says what each of them changes.
pub struct Index {
    node_name: Arc<str>,
    /// Addresses of this node that no Node object need name.
    node_addresses: Vec<IpAddr>,
    nodes: HashMap<Arc<str>, (Arc<Node>, u64)>,
    namespaces: HashMap<Arc<str>, KnownNamespace>,
    accounts: HashMap<Scoped, Arc<ServiceAccount>>,
    pods: HashMap<Scoped, KnownPod>,
    policies: HashMap<PolicyKey, Arc<Policy>>,
    claims: Claims,
    arrivals: u64,
}

impl Index {
    /// `node_name`: the node whose pods are local.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            node_addresses: Vec::new(),
            nodes: HashMap::new(),
            namespaces: HashMap::new(),
            accounts: HashMap::new(),
            pods: HashMap::new(),
            policies: HashMap::new(),
            claims: Claims::default(),
            arrivals: 0,
        }
    }

    /// Takes in one event. Problems and answers to refreshes change nothing here.
    pub fn apply(&mut self, event: SourceEvent) -> IndexOutput {
        let mut out = IndexOutput::default();
        match event {
            SourceEvent::Apply(object) => self.put(object, &mut out),
            SourceEvent::Delete(key) => self.remove(&key, &mut out),
            SourceEvent::Reset(objects) => self.reset(objects, &mut out),
            SourceEvent::Problems { .. } | SourceEvent::Refreshed(_) => {}
        }
        out
    }

    /// Addresses found on this node's interfaces; they count as the node's besides those of its Node object.
    pub fn set_node_addresses(&mut self, mut addresses: Vec<IpAddr>) -> IndexOutput {
        addresses.sort_unstable();
        addresses.dedup();
        let mut out = IndexOutput::default();
        let name = self.node_name.clone();
        let before = self.node_peer(&name);
        self.node_addresses = addresses;
        self.tell_node(&name, before, &mut out);
        out
    }

    /// Changes that tell an empty world everything.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Change> {
        let namespaces = self
            .namespaces
            .iter()
            .map(|(name, known)| Change::Namespace(name.clone(), known.labels(name)));
        let accounts = self.accounts.values().map(|account| Change::ServiceAccount {
            namespace: account.namespace.clone(),
            name: account.name.clone(),
            labels: Some(account.labels.clone()),
        });
        let mut node_names: HashSet<&Arc<str>> = self.nodes.keys().collect();
        node_names.insert(&self.node_name);
        let nodes = node_names.into_iter().filter_map(|name| {
            self.node_peer(name)
                .map(|peer| Change::Peer(node_key(name), Some(peer)))
        });
        let pods = self
            .pods
            .values()
            .filter_map(|known| known.peer().map(|peer| Change::Peer(pod_key(&known.pod), Some(peer))));
        let policies = self
            .policies
            .iter()
            .map(|(key, policy)| Change::Policy(key.clone(), Some(policy.clone())));
        namespaces
            .chain(accounts)
            .chain(nodes)
            .chain(pods)
            .chain(policies)
            .collect()
    }

    /// The pod that has the address, if any does.
    #[must_use]
    pub fn pod_by_address(&self, address: IpAddr) -> Option<&Arc<PodInfo>> {
        let scoped = self.claims.owner(address)?;
        self.pods.get(scoped).map(|known| &known.pod)
    }

    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.get(&(namespace.into(), name.into())).map(|known| &known.pod)
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    fn put(&mut self, object: Object, out: &mut IndexOutput) {
        match object {
            Object::Node(node) => self.put_node(node, out),
            Object::Namespace(namespace) => self.put_namespace(namespace, out),
            Object::Pod(pod) => self.put_pod(pod, out),
            Object::ServiceAccount(account) => self.put_account(account, out),
            Object::Policy(policy) => self.put_policy(policy, out),
        }
    }

    fn remove(&mut self, key: &ObjectKey, out: &mut IndexOutput) {
        let scoped = || (key.namespace.clone().unwrap_or_else(|| "".into()), key.name.clone());
        match key.kind {
            ObjectKind::Node => {
                let before = self.node_peer(&key.name);
                self.nodes.remove(&key.name);
                self.tell_node(&key.name, before, out);
            }
            ObjectKind::Namespace => {
                let before = self.namespace_labels(&key.name);
                if let Some(known) = self.namespaces.get_mut(&key.name) {
                    known.object = None;
                }
                self.tell_namespace(&key.name, before, out);
            }
            ObjectKind::Pod => self.remove_pod(&scoped(), out),
            ObjectKind::ServiceAccount => {
                if let Some(account) = self.accounts.remove(&scoped()) {
                    out.changes.push(Change::ServiceAccount {
                        namespace: account.namespace.clone(),
                        name: account.name.clone(),
                        labels: None,
                    });
                }
            }
            ObjectKind::Policy(kind) => {
                let key = PolicyKey {
                    kind,
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                };
                if self.policies.remove(&key).is_some() {
                    out.changes.push(Change::Policy(key, None));
                }
            }
        }
    }

    /// What is new comes before what goes: no policy's absence is ever told before its successor's presence.
    fn reset(&mut self, objects: Vec<Object>, out: &mut IndexOutput) {
        let present: HashSet<ObjectKey> = objects.iter().map(Object::key).collect();
        for object in objects {
            self.put(object, out);
        }
        for key in self.keys() {
            if !present.contains(&key) {
                self.remove(&key, out);
            }
        }
    }

    fn keys(&self) -> Vec<ObjectKey> {
        let scoped = |kind, (namespace, name): &Scoped| ObjectKey {
            kind,
            namespace: Some(namespace.clone()),
            name: name.clone(),
        };
        let global = |kind, name: &Arc<str>| ObjectKey {
            kind,
            namespace: None,
            name: name.clone(),
        };
        let pods = self.pods.keys().map(|key| scoped(ObjectKind::Pod, key));
        let accounts = self.accounts.keys().map(|key| scoped(ObjectKind::ServiceAccount, key));
        let nodes = self.nodes.keys().map(|name| global(ObjectKind::Node, name));
        let namespaces = self
            .namespaces
            .iter()
            .filter(|(_, known)| known.object.is_some())
            .map(|(name, _)| global(ObjectKind::Namespace, name));
        let policies = self.policies.keys().map(|key| ObjectKey {
            kind: ObjectKind::Policy(key.kind),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        });
        pods.chain(policies)
            .chain(accounts)
            .chain(nodes)
            .chain(namespaces)
            .collect()
    }

    fn put_policy(&mut self, policy: Arc<Policy>, out: &mut IndexOutput) {
        let key = policy.key.clone();
        if self.policies.get(&key).is_none_or(|old| *old != policy) {
            self.policies.insert(key.clone(), policy.clone());
            out.changes.push(Change::Policy(key, Some(policy)));
        }
    }

    fn put_account(&mut self, account: Arc<ServiceAccount>, out: &mut IndexOutput) {
        let key = (account.namespace.clone(), account.name.clone());
        if self.accounts.get(&key).is_none_or(|old| *old != account) {
            out.changes.push(Change::ServiceAccount {
                namespace: account.namespace.clone(),
                name: account.name.clone(),
                labels: Some(account.labels.clone()),
            });
            self.accounts.insert(key, account);
        }
    }

    fn put_node(&mut self, node: Arc<Node>, out: &mut IndexOutput) {
        let name = node.name.clone();
        let before = self.node_peer(&name);
        let arrival = self.arrival();
        match self.nodes.entry(name.clone()) {
            Entry::Occupied(mut known) => known.get_mut().0 = node,
            Entry::Vacant(vacant) => {
                vacant.insert((node, arrival));
            }
        }
        self.tell_node(&name, before, out);
    }

    fn tell_node(&self, name: &Arc<str>, before: Option<Peer>, out: &mut IndexOutput) {
        let after = self.node_peer(name);
        if before != after {
            out.changes.push(Change::Peer(node_key(name), after));
        }
    }

    fn node_peer(&self, name: &Arc<str>) -> Option<Peer> {
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
            // Above every pod's: no pod's status takes a node's address away from it.
            claimed: NODE_CLAIM | known.map_or(0, |(_, arrival)| *arrival),
            local_node,
        })
    }

    fn put_namespace(&mut self, namespace: Arc<Namespace>, out: &mut IndexOutput) {
        let name = namespace.name.clone();
        let before = self.namespace_labels(&name);
        self.namespaces.entry(name.clone()).or_default().object = Some(namespace);
        self.tell_namespace(&name, before, out);
    }

    fn namespace_labels(&self, name: &Arc<str>) -> Option<Labels> {
        self.namespaces.get(name).and_then(|known| known.labels(name))
    }

    fn tell_namespace(&mut self, name: &Arc<str>, before: Option<Labels>, out: &mut IndexOutput) {
        let after = self.namespace_labels(name);
        if after.is_none() {
            self.namespaces.remove(name);
        }
        if before != after {
            out.changes.push(Change::Namespace(name.clone(), after));
        }
    }

    fn put_pod(&mut self, pod: Arc<Pod>, out: &mut IndexOutput) {
        let key = (pod.namespace.clone(), pod.name.clone());
        let old = self.pods.get(&key);
        if old.is_some_and(|known| known.pod == pod) {
            return;
        }
        // A pod that gains an address claims it now; any other change leaves its place among the claimants.
        let claimed = match old {
            Some(known)
                if known.pod.created == pod.created && pod.claims().iter().all(|a| known.pod.claims().contains(a)) =>
            {
                known.claimed
            }
            _ => seniority(pod.created, self.arrival()),
        };
        if !self.pods.contains_key(&key) {
            let namespace = key.0.clone();
            let before = self.namespace_labels(&namespace);
            self.namespaces.entry(namespace.clone()).or_default().pods += 1;
            self.tell_namespace(&namespace, before, out);
        }
        self.change_pod(&key, Some(KnownPod { pod, claimed }), out);
    }

    fn remove_pod(&mut self, key: &Scoped, out: &mut IndexOutput) {
        if !self.pods.contains_key(key) {
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
        let peer_before = self.pods.get(key).and_then(KnownPod::peer);
        let local_before = self.pods.get(key).and_then(|known| known.local(&self.node_name));
        let mut touched: Vec<IpAddr> = [self.pods.get(key), new.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|known| known.pod.claims().iter().copied())
            .collect();
        touched.sort_unstable();
        touched.dedup();
        let owners_before: Vec<Option<Arc<Pod>>> = touched
            .iter()
            .map(|address| self.pod_by_address(*address).cloned())
            .collect();

        if let Some(known) = self.pods.get(key) {
            for address in known.pod.claims() {
                self.claims.release(*address, key);
            }
        }
        match new {
            Some(known) => {
                for address in known.pod.claims() {
                    self.claims.claim(*address, key, known.claimed);
                }
                self.pods.insert(key.clone(), known);
            }
            None => {
                self.pods.remove(key);
            }
        }

        let peer_after = self.pods.get(key).and_then(KnownPod::peer);
        let peer_key = PeerKey {
            kind: EntityKind::Pod,
            namespace: Some(key.0.clone()),
            name: key.1.clone(),
        };
        if peer_before != peer_after {
            out.changes.push(Change::Peer(peer_key.clone(), peer_after));
        }
        let local_after = self.pods.get(key).and_then(|known| known.local(&self.node_name));
        if local_before != local_after {
            out.local_pods.push(LocalPodChange {
                key: peer_key,
                pod: local_after,
            });
        }
        for (address, before) in touched.into_iter().zip(owners_before) {
            let after = self.pod_by_address(address).cloned();
            if before != after {
                out.names.push(NameChange { address, pod: after });
            }
        }
    }

    fn arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }
}

/// Set in every node's seniority number, in no pod's.
const NODE_CLAIM: u64 = 1 << 63;
/// Bits of a pod's seniority number that hold its order of arrival; those above hold the second of its creation.
const ARRIVAL_BITS: u32 = 29;

/// By creation, then by arrival: unique among pods (until half a billion pods of one second have arrived).
fn seniority(created: Option<i64>, arrival: u64) -> u64 {
    let seconds = created.map_or(0, |seconds| seconds.clamp(0, (1 << 34) - 1).unsigned_abs());
    (seconds << ARRIVAL_BITS) | (arrival & ((1 << ARRIVAL_BITS) - 1))
}

fn node_key(name: &Arc<str>) -> PeerKey {
    PeerKey {
        kind: EntityKind::Node,
        namespace: None,
        name: name.clone(),
    }
}

fn pod_key(pod: &Pod) -> PeerKey {
    PeerKey {
        kind: EntityKind::Pod,
        namespace: Some(pod.namespace.clone()),
        name: pod.name.clone(),
    }
}

impl Pod {
    /// The addresses that are this pod's own: none on the host network, none once it has ended.
    fn claims(&self) -> &[IpAddr] {
        if self.host_network || self.phase.is_over() {
            &[]
        } else {
            &self.addresses
        }
    }
}

impl KnownPod {
    fn peer(&self) -> Option<Peer> {
        let pod = &self.pod;
        (!pod.host_network && !pod.phase.is_over()).then(|| Peer {
            labels: pod.labels.clone(),
            service_account: Some(pod.service_account.clone()),
            named_ports: pod.named_ports.clone(),
            addresses: pod.addresses.clone(),
            claimed: self.claimed,
            local_node: false,
        })
    }

    fn local(&self, node_name: &Arc<str>) -> Option<LocalPod> {
        let addresses = self.pod.claims();
        (self.pod.node_name.as_ref() == Some(node_name) && !addresses.is_empty()).then(|| LocalPod {
            addresses: addresses.to_vec(),
            allowed_sources: self.pod.allowed_sources.clone(),
        })
    }
}

impl KnownNamespace {
    fn labels(&self, name: &Arc<str>) -> Option<Labels> {
        match &self.object {
            Some(namespace) => Some(namespace.labels.clone()),
            None if self.pods > 0 => Some(Arc::new(BTreeMap::from([(
                NAMESPACE_NAME_LABEL.to_owned(),
                name.to_string(),
            )]))),
            None => None,
        }
    }
}
