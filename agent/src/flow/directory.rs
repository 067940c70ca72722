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

use crate::policy::model::Judgement;

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
    addresses: FxHashMap<IpAddr, Name>,
    endpoints: Numbered<Arc<PodInfo>>,
    traces: Numbered<Arc<Judgement>>,
}

impl Names {
    /// Whose address it is; None: the world's.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> Option<&Name> {
        self.addresses.get(&address)
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

    pub fn set_address(&mut self, address: IpAddr, name: Option<Name>) {
        match name {
            Some(name) => self.addresses.insert(address, name),
            None => self.addresses.remove(&address),
        };
    }

    pub fn set_endpoint(&mut self, id: u32, pod: Option<Arc<PodInfo>>) {
        self.endpoints.set(id, pod);
    }

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
    fn an_address_is_the_worlds_once_its_owner_is_gone() {
        let directory = Directory::default();
        let address: IpAddr = "10.0.0.1".parse().expect("a literal address");
        directory.write().set_address(address, Some(Name::Pod(pod("a"))));
        assert!(matches!(directory.read().address(address), Some(Name::Pod(pod)) if &*pod.name == "a"));
        directory.write().set_address(address, None);
        assert_eq!(directory.read().address(address), None);
    }
}
