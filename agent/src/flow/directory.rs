//! Names for what the kernel knows by number: addresses, endpoints, traces.
//!
//! The control loop writes, the flow task reads. Everything big is shared: a pod of which ten thousand exist costs two
//! words here and one [`PodInfo`] that its source made anyway.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use rustc_hash::FxHashMap;

use crate::{
    index::IndexOutput,
    policy::{
        change::{Change, Peer},
        model::Judgement,
        plan::{Op, Plan},
        selector::EntityKind,
        staged::StagedWorld,
    },
};

/// A pod as flow records name it: the source's own object.
pub use crate::api::Pod as PodInfo;

/// Whom an address belongs to. An address without a name is the world's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Pod(Arc<PodInfo>),
    Node {
        name: Arc<str>,
        /// The node this agent runs on.
        local: bool,
    },
}

/// How many gone endpoints and traces keep their names: flows end after the pods and policies that they belong to.
const REMEMBERED: usize = 1024;

/// Numbers that keep their name for a while after they are gone.
#[derive(Debug)]
struct Numbered<T> {
    live: FxHashMap<u32, T>,
    gone: FxHashMap<u32, T>,
    /// The keys of `gone`, oldest first.
    order: VecDeque<u32>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            live: FxHashMap::default(),
            gone: FxHashMap::default(),
            order: VecDeque::new(),
        }
    }
}

impl<T: Clone> Numbered<T> {
    fn find(&self, number: u32) -> Option<&T> {
        self.live.get(&number).or_else(|| self.gone.get(&number))
    }

    fn set(&mut self, number: u32, value: Option<T>) {
        if let Some(value) = value {
            self.live.insert(number, value);
            return;
        }
        let Some(value) = self.live.remove(&number) else {
            return;
        };
        if self.gone.insert(number, value).is_none() {
            self.order.push_back(number);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }
}

/// The names of one moment.
#[derive(Debug, Default)]
pub struct Names {
    /// By address, IPv4 mapped into IPv6.
    pods: FxHashMap<[u8; 16], Arc<PodInfo>>,
    nodes: FxHashMap<IpAddr, Name>,
    /// The keys of `nodes`, by node: a node's next version may have fewer.
    node_addresses: FxHashMap<Arc<str>, Vec<IpAddr>>,
    endpoints: Numbered<Arc<PodInfo>>,
    traces: Numbered<Arc<Judgement>>,
    /// Where there are staged policies: what they would do.
    pub staged: Option<Box<StagedWorld>>,
}

const fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

impl Names {
    /// Whose address it is; None: the world's.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> Option<Name> {
        match self.pods.get(&mapped(address)) {
            Some(pod) => Some(Name::Pod(pod.clone())),
            None => self.nodes.get(&address).cloned(),
        }
    }

    /// The pod of an endpoint id; also of the last ones that went away.
    #[must_use]
    pub fn endpoint(&self, id: u32) -> Option<&Arc<PodInfo>> {
        self.endpoints.find(id)
    }

    /// What a trace stands for; also the last ones that went away.
    #[must_use]
    pub fn trace(&self, trace: u32) -> Option<&Arc<Judgement>> {
        self.traces.find(trace)
    }

    /// Takes over who has which address now.
    pub fn apply_index(&mut self, output: &IndexOutput) {
        for change in &output.names {
            match &change.pod {
                Some(pod) => self.pods.insert(mapped(change.address), pod.clone()),
                None => self.pods.remove(&mapped(change.address)),
            };
        }
        for change in &output.changes {
            if let Change::Peer(key, peer) = change
                && key.kind == EntityKind::Node
            {
                self.set_node(&key.name, peer.as_ref());
            }
        }
    }

    fn set_node(&mut self, name: &Arc<str>, peer: Option<&Peer>) {
        for address in self.node_addresses.remove(name).unwrap_or_default() {
            self.nodes.remove(&address);
        }
        let Some(peer) = peer else {
            return;
        };
        for address in &peer.addresses {
            let name = Name::Node {
                name: name.clone(),
                local: peer.local_node,
            };
            self.nodes.insert(*address, name);
        }
        self.node_addresses.insert(name.clone(), peer.addresses.clone());
    }

    /// Takes over which traces a plan makes (call it before the plan is executed, so that no event comes too early) and
    /// which it removes.
    pub fn apply_plan(&mut self, plan: &Plan, judgement: impl Fn(u32) -> Option<Arc<Judgement>>) {
        for op in plan.add.iter().chain(&plan.flip).chain(&plan.remove) {
            match op {
                Op::PutTrace(trace) => self.traces.set(*trace, judgement(*trace)),
                Op::DeleteTrace(trace) => self.traces.set(*trace, None),
                _ => {}
            }
        }
        for &trace in &plan.renamed {
            self.traces.set(trace, judgement(trace));
        }
    }

    /// Says which pod an endpoint id stands for. None: it is gone.
    pub fn set_endpoint(&mut self, id: u32, pod: Option<Arc<PodInfo>>) {
        self.endpoints.set(id, pod);
    }

    /// Says what a trace stands for. None: it is gone.
    pub fn set_trace(&mut self, trace: u32, judgement: Option<Arc<Judgement>>) {
        self.traces.set(trace, judgement);
    }
}

/// The shared [`Names`]. Locks are held for one batch of work, never across an await.
#[derive(Debug, Default)]
pub struct Directory {
    names: RwLock<Names>,
}

impl Directory {
    /// For reading. (A panic of a writer leaves single names old, which is no reason to lose all of them.)
    pub fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a batch of changes.
    pub fn write(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{index::NameChange, policy::change::PeerKey};

    fn pod(name: &str) -> Arc<PodInfo> {
        crate::flow::testing::pod("prod", name, &[])
    }

    #[test]
    fn gone_endpoints_keep_their_name_for_a_bounded_while() {
        let directory = Directory::default();
        let mut names = directory.write();
        for id in 0..=REMEMBERED as u32 {
            names.set_endpoint(id, Some(pod(&format!("p{id}"))));
            names.set_endpoint(id, None);
        }
        assert!(names.endpoint(0).is_none(), "the oldest is forgotten");
        assert_eq!(&*names.endpoint(1).expect("remembered").name, "p1");
        assert_eq!(names.endpoints.gone.len(), REMEMBERED);

        names.set_endpoint(5, Some(pod("again")));
        assert_eq!(&*names.endpoint(5).expect("live").name, "again");
    }

    #[test]
    fn an_address_is_its_pods_then_its_nodes_then_the_worlds() {
        let directory = Directory::default();
        let address: IpAddr = "10.0.0.1".parse().expect("a literal address");
        let named = |pod| IndexOutput {
            names: vec![NameChange { address, pod }],
            ..IndexOutput::default()
        };
        let node = |addresses: &[IpAddr]| IndexOutput {
            changes: vec![Change::Peer(
                PeerKey {
                    kind: EntityKind::Node,
                    namespace: None,
                    name: "n1".into(),
                },
                Some(Peer {
                    labels: Arc::default(),
                    service_account: None,
                    named_ports: Vec::new().into(),
                    addresses: addresses.to_vec(),
                    claimed: 1,
                    local_node: true,
                }),
            )],
            ..IndexOutput::default()
        };
        let mut names = directory.write();
        names.apply_index(&node(&[address]));
        names.apply_index(&named(Some(pod("a"))));
        assert!(matches!(names.address(address), Some(Name::Pod(pod)) if &*pod.name == "a"));
        names.apply_index(&named(None));
        assert!(matches!(names.address(address), Some(Name::Node { local: true, .. })));
        names.apply_index(&node(&[]));
        assert_eq!(names.address(address), None);
    }

    #[test]
    fn a_plan_names_the_traces_that_it_makes() {
        let judgement = Arc::new(Judgement {
            allow: true,
            log: false,
            hits: Vec::new(),
        });
        let mut names = Names::default();
        let made = Plan {
            add: vec![Op::PutTrace(7)],
            ..Plan::default()
        };
        names.apply_plan(&made, |_| Some(judgement.clone()));
        let removed = Plan {
            remove: vec![Op::DeleteTrace(7)],
            ..Plan::default()
        };
        names.apply_plan(&removed, |_| None);
        assert_eq!(names.trace(7), Some(&judgement), "late events still find it");
    }
}
