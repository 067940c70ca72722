//! The cluster's current objects, and what of them the compiler must be told.
//!
//! | file | what |
//! |---|---|
//! | `pods` | pods: peers, local pods |
//! | `attached` | local pods that the container runtime has told of |
//! | `nodes` | nodes: peers too |
//! | `claims` | whose an address is, of those that claim it |
//! | `sets` | tiers and network sets |
//! | `services` | Services, their endpoints, and the policies with rules about them |
//! | `output` | what follows from one event |

mod attached;
mod claims;
mod nodes;
mod output;
mod pods;
mod services;
mod sets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

pub use self::output::{IndexOutput, LocalPod, LocalPodChange, NameChange};
use self::{attached::Attached, claims::Claims, nodes::node_key, pods::Pods, services::Services, sets::set_key};
use crate::{
    api::{Namespace, NetworkSet, Node, Object, ObjectKey, ObjectKind, Pod, ServiceAccount},
    policy::{
        change::{Change, PeerKey},
        model::{Policy, PolicyKey, Tier},
        selector::Labels,
    },
    source::SourceEvent,
};

/// The label that every namespace has.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespaced object's (namespace, name).
type Scoped = (Arc<str>, Arc<str>);

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
    pods: Pods,
    policies: HashMap<PolicyKey, Arc<Policy>>,
    /// How many of them are staged.
    staged: usize,
    tiers: HashMap<Arc<str>, Arc<Tier>>,
    sets: HashMap<PeerKey, Arc<NetworkSet>>,
    services: Services,
    claims: Claims,
    /// Local pods that the container runtime has told us of. Some may not be known yet.
    attached: HashMap<Scoped, Attached>,
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
            pods: Pods::default(),
            policies: HashMap::new(),
            staged: 0,
            tiers: HashMap::new(),
            sets: HashMap::new(),
            services: Services::default(),
            claims: Claims::default(),
            attached: HashMap::new(),
            arrivals: 0,
        }
    }

    /// Takes in one event. Problems and answers to refreshes change nothing here.
    pub fn apply(&mut self, event: SourceEvent) -> IndexOutput {
        let mut out = IndexOutput::default();
        match event {
            SourceEvent::Apply(object) => self.put(object, &mut out),
            SourceEvent::Delete(key) => self.remove(&key, &mut out),
            SourceEvent::Reset(objects) => self.reset(objects, |_| true, &mut out),
            SourceEvent::ResetKinds { kinds, objects } => self.reset(objects, |kind| kinds.contains(&kind), &mut out),
            SourceEvent::Problems { .. } | SourceEvent::Refreshed(_) | SourceEvent::Incomplete(_) => {}
        }
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
            .iter()
            .filter_map(|known| known.peer().map(|peer| Change::Peer(known.key(), Some(peer))));
        let policies = self
            .policies
            .iter()
            .map(|(key, policy)| Change::Policy(key.clone(), Some(policy.clone())));
        namespaces
            .chain(self.tier_changes())
            .chain(self.set_changes())
            .chain(accounts)
            .chain(nodes)
            .chain(pods)
            .chain(policies)
            .collect()
    }

    /// The pod that has the address, if any does: the newest of those that claim it.
    #[must_use]
    pub fn pod_by_address(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.owner(address)?.pod()
    }

    fn owners<'a>(&self, addresses: impl Iterator<Item = &'a IpAddr>) -> Vec<(IpAddr, Option<Arc<Pod>>)> {
        let mut addresses: Vec<IpAddr> = addresses.copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let owned = addresses.into_iter();
        owned
            .map(|address| (address, self.pod_by_address(address).cloned()))
            .collect()
    }

    fn tell_owners(&self, before: Vec<(IpAddr, Option<Arc<Pod>>)>, out: &mut IndexOutput) {
        for (address, before) in before {
            let pod = self.pod_by_address(address).cloned();
            if before != pod {
                out.names.push(NameChange { address, pod });
            }
        }
    }

    /// Whether there is a Node object of this node.
    #[must_use]
    pub fn knows_own_node(&self) -> bool {
        self.nodes.contains_key(&self.node_name)
    }

    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.get((namespace, name)).map(|known| &known.pod)
    }

    /// Whether any policy is staged.
    #[must_use]
    pub const fn has_staged(&self) -> bool {
        self.staged > 0
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
            Object::Policy(policy) => {
                self.services.forget(&policy.key);
                self.put_policy(policy, out);
            }
            Object::ServicePolicy(policy) => self.put_service_policy(policy, out),
            Object::Tier(tier) => self.put_tier(tier, out),
            Object::NetworkSet(set) => self.put_set(set, out),
            Object::Service(service) => self.put_service(service, out),
            Object::EndpointSlice(slice) => self.put_slice(slice, out),
        }
    }

    fn remove(&mut self, key: &ObjectKey, out: &mut IndexOutput) {
        let scoped = || (key.namespace.clone().unwrap_or_else(|| "".into()), key.name.clone());
        match key.kind {
            ObjectKind::Node => self.remove_node(&key.name, out),
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
                self.services.forget(&key);
                if let Some(old) = self.policies.remove(&key) {
                    self.staged -= usize::from(old.staged);
                    out.changes.push(Change::Policy(key, None));
                }
            }
            ObjectKind::Tier => self.remove_tier(&key.name, out),
            ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet => {
                self.remove_set(&set_key(key.namespace.as_ref(), &key.name), out);
            }
            ObjectKind::Service => self.remove_service(&scoped(), out),
            ObjectKind::EndpointSlice => self.remove_slice(&scoped(), out),
        }
    }

    /// What is new comes before what goes: no policy's absence is ever told before its successor's presence.
    fn reset(&mut self, objects: Vec<Object>, concerns: impl Fn(ObjectKind) -> bool, out: &mut IndexOutput) {
        let present: HashSet<ObjectKey> = objects.iter().map(Object::key).collect();
        for object in objects {
            self.put(object, out);
        }
        for key in self.keys() {
            if concerns(key.kind) && !present.contains(&key) {
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
        let pods = self.pods.iter().map(|known| ObjectKey {
            kind: ObjectKind::Pod,
            namespace: Some(known.pod.namespace.clone()),
            name: known.pod.name.clone(),
        });
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
        let tiers = self.tiers.keys().map(|name| global(ObjectKind::Tier, name));
        let sets = self.sets.keys().map(|key| ObjectKey {
            kind: match key.namespace {
                Some(_) => ObjectKind::NetworkSet,
                None => ObjectKind::GlobalNetworkSet,
            },
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        });
        let services = self.services.services().map(|key| scoped(ObjectKind::Service, key));
        let slices = self.services.slices().map(|key| scoped(ObjectKind::EndpointSlice, key));
        pods.chain(policies)
            .chain(tiers)
            .chain(sets)
            .chain(services)
            .chain(slices)
            .chain(accounts)
            .chain(nodes)
            .chain(namespaces)
            .collect()
    }

    fn put_policy(&mut self, policy: Arc<Policy>, out: &mut IndexOutput) {
        let key = policy.key.clone();
        if self.policies.get(&key).is_none_or(|old| *old != policy) {
            self.staged += usize::from(policy.staged);
            let old = self.policies.insert(key.clone(), policy.clone());
            self.staged -= usize::from(old.is_some_and(|old| old.staged));
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

    fn arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
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
