//! Local pods on their way to an enforced interface.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use crate::{datapath::OldEndpoint, index::LocalPod, policy::change::PeerKey};

/// The host's side of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub ifindex: u32,
    pub name: String,
    /// Packets on it have no Ethernet header.
    pub layer3: bool,
}

/// One pod of this node.
#[derive(Debug)]
pub struct LocalEndpoint {
    pub pod: LocalPod,
    pub id: Option<u32>,
    pub interface: Option<Interface>,
    /// Since when it is not enforced. None: programs run on its interface with the pod's policy behind them.
    pub waiting_since: Option<Instant>,
    /// Somebody has taken its programs away, and they are not back yet.
    pub unhooked: bool,
    /// Why it is not enforced.
    pub trouble: Option<String>,
    /// What is not as it should be although it is enforced.
    pub remark: Option<String>,
    /// Discovery has said something about it: found, or why not.
    pub answered: bool,
    /// When it became known. None: it has been enforced since.
    pub known_since: Option<Instant>,
}

impl LocalEndpoint {
    #[must_use]
    pub fn new(pod: LocalPod) -> Self {
        Self {
            pod,
            id: None,
            interface: None,
            waiting_since: Some(Instant::now()),
            unhooked: false,
            trouble: None,
            remark: None,
            answered: false,
            known_since: Some(Instant::now()),
        }
    }

    /// Programs run on its interface with the pod's policy behind them.
    #[must_use]
    pub const fn is_attached(&self) -> bool {
        self.waiting_since.is_none()
    }

    pub fn attached(&mut self) {
        self.waiting_since = None;
        self.unhooked = false;
        self.trouble = None;
    }

    /// It is not enforced, for this reason.
    pub fn waits(&mut self, reason: String) {
        self.waiting_since.get_or_insert_with(Instant::now);
        self.trouble = Some(reason);
    }
}

/// All pods of this node that have addresses of their own.
#[derive(Debug, Default)]
pub struct LocalEndpoints {
    by_pod: BTreeMap<PeerKey, LocalEndpoint>,
    /// What an earlier agent enforces and no pod has claimed yet.
    inherited: Vec<OldEndpoint>,
}

impl LocalEndpoints {
    #[must_use]
    pub fn new(inherited: Vec<OldEndpoint>) -> Self {
        Self {
            by_pod: BTreeMap::new(),
            inherited,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&PeerKey, &LocalEndpoint)> {
        self.by_pod.iter()
    }

    #[must_use]
    pub fn get(&self, key: &PeerKey) -> Option<&LocalEndpoint> {
        self.by_pod.get(key)
    }

    pub fn get_mut(&mut self, key: &PeerKey) -> Option<&mut LocalEndpoint> {
        self.by_pod.get_mut(key)
    }

    #[must_use]
    pub fn with_id(&self, id: u32) -> Option<&PeerKey> {
        let mut pods = self.by_pod.iter();
        pods.find(|(_, endpoint)| endpoint.id == Some(id)).map(|(pod, _)| pod)
    }

    /// A new pod, or new addresses of a known one.
    pub fn put(&mut self, key: PeerKey, pod: LocalPod) -> &mut LocalEndpoint {
        let endpoint = self
            .by_pod
            .entry(key)
            .or_insert_with(|| LocalEndpoint::new(pod.clone()));
        endpoint.pod = pod;
        endpoint
    }

    pub fn remove(&mut self, key: &PeerKey) -> Option<LocalEndpoint> {
        self.by_pod.remove(key)
    }

    /// The interface on which an earlier agent enforces a pod with one of these addresses.
    #[must_use]
    pub fn inherited_interface(&self, addresses: &[IpAddr]) -> Option<u32> {
        let has = |old: &&OldEndpoint| {
            let old_addresses = [old.addr4, old.addr6];
            addresses
                .iter()
                .any(|address| old_addresses.contains(&(*address).into()))
        };
        self.inherited.iter().find(has).map(|old| old.ifindex)
    }

    /// The id under which an earlier agent enforces this pod on this interface: connections are remembered under it.
    pub fn claim_inherited(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Option<u32> {
        let at = self.inherited.iter().position(|old| {
            let old_addresses = [old.addr4, old.addr6];
            old.ifindex == ifindex
                && addresses
                    .iter()
                    .any(|address| old_addresses.contains(&(*address).into()))
        })?;
        Some(self.inherited.swap_remove(at).id)
    }

    /// What an earlier agent enforces and no pod has claimed. Nothing can be claimed any more.
    #[must_use]
    pub fn take_inherited(&mut self) -> Vec<OldEndpoint> {
        std::mem::take(&mut self.inherited)
    }

    /// Pods whose interface nobody has looked for to the end yet.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.by_pod.values().filter(|endpoint| !endpoint.answered).count()
    }

    /// Of these, whether an earlier agent enforces one: what is its must not be taken for stale.
    #[must_use]
    pub fn unanswered_inherited(&self) -> bool {
        self.by_pod
            .values()
            .any(|endpoint| !endpoint.answered && self.inherited_interface(&endpoint.pod.addresses).is_some())
    }
}

#[cfg(test)]
mod tests {
    use weir_common::Addr;

    use super::*;
    use crate::policy::selector::EntityKind;

    #[test]
    fn an_old_endpoint_is_claimed_once_and_only_with_its_address_and_interface() {
        let ours: IpAddr = "10.0.0.1".parse().expect("a literal address");
        let other: IpAddr = "10.0.0.2".parse().expect("a literal address");
        let old = OldEndpoint {
            id: 7,
            epoch: 1,
            ifindex: 3,
            addr4: ours.into(),
            addr6: Addr::UNSPECIFIED,
            layer3: false,
        };
        let mut endpoints = LocalEndpoints::new(vec![old]);
        assert_eq!(endpoints.claim_inherited(4, &[ours]), None, "another interface");
        assert_eq!(
            endpoints.claim_inherited(3, &[other]),
            None,
            "another pod on the same ifindex"
        );
        assert_eq!(endpoints.claim_inherited(3, &[ours]), Some(7));
        assert_eq!(endpoints.claim_inherited(3, &[ours]), None, "taken");
    }

    #[test]
    fn what_an_earlier_agent_enforces_is_waited_for_until_its_pod_was_looked_for() {
        let address = |text: &str| -> IpAddr { text.parse().expect("a literal address") };
        let old = OldEndpoint {
            id: 7,
            epoch: 1,
            ifindex: 3,
            addr4: address("10.0.0.1").into(),
            addr6: Addr::UNSPECIFIED,
            layer3: false,
        };
        let key = |name: &str| PeerKey {
            kind: EntityKind::Pod,
            namespace: Some("x".into()),
            name: name.into(),
        };
        let pod = |text: &str| LocalPod {
            addresses: vec![address(text)],
            allowed_sources: Vec::new(),
        };
        let mut endpoints = LocalEndpoints::new(vec![old]);
        endpoints.put(key("new"), pod("10.0.0.2"));
        assert!(!endpoints.unanswered_inherited(), "nobody enforces the only pod");
        endpoints.put(key("old"), pod("10.0.0.1"));
        assert!(endpoints.unanswered_inherited());
        endpoints.get_mut(&key("old")).expect("it was put").answered = true;
        assert!(!endpoints.unanswered_inherited(), "it was looked for");
    }
}
