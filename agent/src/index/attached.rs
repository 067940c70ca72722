//! Pods of this node whose interface and addresses the container runtime has told us (the CNI plugin's ADD).
//!
//! What the runtime says of a local pod counts more than its status, which the kubelet writes only after the pod has
//! started, and which names the addresses of the sandbox before when there is a new one.

use std::{net::IpAddr, sync::Arc};

use super::{Index, IndexOutput, Scoped, claims::attached_seniority, pods::names};
use crate::api::{Pod, PodUid};

/// How a pod is attached.
pub(super) struct Attached {
    uid: Option<PodUid>,
    /// Sorted.
    addresses: Vec<IpAddr>,
    /// Place among the claimants of its addresses.
    pub(super) seniority: u64,
}

impl Attached {
    /// The attachment is that of this pod, and not of another one of the same name.
    pub(super) fn is_of(&self, pod: &Pod) -> bool {
        !pod.host_network && same(self.uid, pod.uid)
    }

    /// `new` is an older pod of that name than the one that is attached: news from the past, told late.
    pub(super) fn outdates(&self, known: &Pod, new: &Pod) -> bool {
        self.is_of(known) && !self.is_of(new) && new.created < known.created
    }

    /// The pod with what the runtime has said of it.
    pub(super) fn apply(&self, pod: &Arc<Pod>, node: &Arc<str>) -> Arc<Pod> {
        if *pod.addresses == *self.addresses && pod.node_name.as_ref() == Some(node) {
            return pod.clone();
        }
        Arc::new(Pod {
            addresses: self.addresses.as_slice().into(),
            node_name: Some(node.clone()),
            ..Pod::clone(pod)
        })
    }
}

/// Where one of them is not known, the names have to do.
fn same(a: Option<PodUid>, b: Option<PodUid>) -> bool {
    a.is_none() || b.is_none() || a == b
}

impl Index {
    /// The pod of this name and uid, as far as the source has told of it.
    #[must_use]
    pub fn pod_of_uid(&self, namespace: &str, name: &str, uid: Option<PodUid>) -> Option<&Arc<Pod>> {
        let known = self.pods.get((namespace, name))?;
        same(uid, known.told().uid).then_some(&known.pod)
    }

    /// From now on, and until [`Self::detach_pod`], the pod is on this node and has these addresses and no others. It need
    /// not be known yet.
    pub fn attach_pod(
        &mut self,
        namespace: &str,
        name: &str,
        uid: Option<PodUid>,
        mut addresses: Vec<IpAddr>,
    ) -> IndexOutput {
        addresses.sort_unstable();
        addresses.dedup();
        let key: Scoped = (namespace.into(), name.into());
        let attached = Attached {
            uid,
            addresses,
            seniority: attached_seniority(self.arrival()),
        };
        self.attached.insert(key.clone(), attached);
        self.know_again(key)
    }

    /// What the pod's status says counts again.
    pub fn detach_pod(&mut self, namespace: &str, name: &str) -> IndexOutput {
        let key: Scoped = (namespace.into(), name.into());
        match self.attached.remove(&key) {
            Some(_) => self.know_again(key),
            None => IndexOutput::default(),
        }
    }

    fn know_again(&mut self, key: Scoped) -> IndexOutput {
        let mut out = IndexOutput::default();
        if let Some(told) = self.pods.get(names(&key)).map(|known| known.told().clone()) {
            self.know_pod(key, told, &mut out);
        }
        out
    }
}
