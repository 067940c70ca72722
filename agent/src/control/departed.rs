//! Pods that are gone from the API while their interfaces are still there.
//!
//! A pod that is deleted by force is gone from the API at once, and its processes run on until the kubelet has ended them. What
//! policy says of it can no longer be known, so until its interface is gone nothing passes there. The same holds for a pod
//! that has ended, and for what an earlier agent enforced whose pod is gone meanwhile. A pod's manifest that is removed says
//! less: that Weir is not to look after this pod any more.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::{error, info};
use weir_common::Addr;

use super::{
    agent::{Agent, RETRY},
    attach,
    endpoints::{Interface, LocalEndpoint},
};
use crate::{
    datapath::{self, InterfaceBinding, OldEndpoint},
    endpoint::Event,
    index::LocalPod,
    policy::{
        change::PeerKey,
        plan::{EndpointPolicy, Op},
        selector::EntityKind,
    },
    source::SourceOptions,
};

#[derive(Debug)]
pub struct Gone {
    pub pod: PeerKey,
    pub endpoint: LocalEndpoint,
    pub id: u32,
}

/// Closed endpoints of pods that are gone.
#[derive(Debug, Default)]
pub struct Departed {
    /// By the names under which discovery says when their interfaces go: a new pod may have the old one's.
    by_stand_in: BTreeMap<PeerKey, Gone>,
}

impl Departed {
    pub fn iter(&self) -> impl Iterator<Item = &Gone> {
        self.by_stand_in.values()
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut Gone> {
        self.by_stand_in.values_mut().find(|gone| gone.id == id)
    }

    /// Whose interface is gone, as this event says; that one is no longer here. No other event ends it: nobody looks for a
    /// stand-in by addresses, so that nothing leads to it (`Missing`) is told before it is pinned, or of another time.
    fn ended_by(&mut self, event: &Event) -> Option<(PeerKey, Gone)> {
        let Event::Lost { pod, ifindex } = event else {
            return None;
        };
        let interface = self.by_stand_in.get(pod)?.endpoint.interface.as_ref()?;
        if interface.ifindex != *ifindex {
            return None;
        }
        self.by_stand_in.remove_entry(pod)
    }

    #[must_use]
    pub fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Found { pod, .. } | Event::Lost { pod, .. } | Event::Missing { pod, .. } => {
                self.by_stand_in.contains_key(pod)
            }
            Event::NodeAddresses(_) | Event::Unhooked { .. } => false,
        }
    }
}

/// What closes an endpoint in both directions, whatever its policy was.
fn close(id: u32) -> Op {
    Op::SetPolicy(EndpointPolicy {
        endpoint: id,
        egress_isolated: true,
        ingress_isolated: true,
        egress_closed: true,
        ingress_closed: true,
        ..EndpointPolicy::default()
    })
}

impl Agent {
    /// The pod is gone; what was its has to go, or to be closed first.
    pub(super) fn depart(&mut self, pod: PeerKey, endpoint: LocalEndpoint) {
        let Some(id) = endpoint.id else { return };
        let interface = match &endpoint.interface {
            Some(interface) if (endpoint.is_attached() || endpoint.unhooked) && self.closes_departed() => {
                interface.clone()
            }
            _ => return self.release(id),
        };
        if let Err(error) = self.datapath.execute(&[close(id)]) {
            self.fail("close the endpoint of a pod that is gone", &error);
        }
        self.keep_closed(pod, id, &interface, endpoint);
    }

    fn closes_departed(&self) -> bool {
        matches!(self.options.source, SourceOptions::Kubernetes(_))
    }

    /// Until its interface is gone.
    fn keep_closed(&mut self, pod: PeerKey, id: u32, interface: &Interface, endpoint: LocalEndpoint) {
        info!(%pod, interface = interface.name, "gone; its interface is closed as long as it is there");
        let stand_in = PeerKey {
            name: format!("{} (gone, interface {})", pod.name, interface.ifindex).into(),
            ..pod.clone()
        };
        self.discovery.watch(stand_in.clone(), Vec::new());
        self.discovery
            .pin(stand_in.clone(), interface.ifindex, interface.name.clone());
        self.departed.by_stand_in.insert(stand_in, Gone { pod, endpoint, id });
    }

    /// What an earlier agent enforces and no pod of the source has claimed. Everything has been read, and looked for.
    pub(super) fn close_left_behind(&mut self) {
        let left = self.endpoints.take_inherited();
        if !self.closes_departed() {
            return;
        }
        for old in left {
            let Some(name) = datapath::interface_name(old.ifindex) else {
                continue;
            };
            let interface = Interface {
                ifindex: old.ifindex,
                name,
                layer3: old.layer3,
            };
            let addresses = [old.addr4, old.addr6];
            let addresses = addresses.into_iter().filter(|address| *address != Addr::UNSPECIFIED);
            let mut endpoint = LocalEndpoint::new(LocalPod {
                addresses: addresses.map(IpAddr::from).collect(),
                allowed_sources: Vec::new(),
            });
            endpoint.id = Some(old.id);
            endpoint.interface = Some(interface.clone());
            match self.close_old(&old, &interface, &endpoint.pod.addresses) {
                Ok(()) => {
                    endpoint.attached();
                    let pod = self.name_of_old(&interface, &endpoint.pod.addresses);
                    self.keep_closed(pod, old.id, &interface, endpoint);
                }
                Err(error) if error.is_vanished_interface() => self.release(old.id),
                Err(error) => self.fail("close what a pod that is gone has left", &error),
            }
        }
    }

    fn close_old(&mut self, old: &OldEndpoint, interface: &Interface, addresses: &[IpAddr]) -> datapath::Result<()> {
        self.datapath.set_interface(InterfaceBinding {
            id: old.id,
            ifindex: interface.ifindex,
            name: interface.name.clone(),
            addresses: addresses.to_vec(),
            more_sources: Vec::new(),
            any_source: false,
            audit: self.options.audit,
            layer3: interface.layer3,
            adopt_for: Duration::ZERO,
        })?;
        self.datapath.execute(&[close(old.id)])?;
        self.datapath.attach(old.id)
    }

    /// What the runtime called it, where that is known; otherwise its address stands for it.
    fn name_of_old(&self, interface: &Interface, addresses: &[IpAddr]) -> PeerKey {
        let mut attachments = self.attachments.iter();
        match attachments.find(|attachment| attachment.host.ifindex == interface.ifindex) {
            Some(attachment) => attach::key(&attachment.pod),
            None => PeerKey {
                kind: EntityKind::Pod,
                namespace: Some("unknown".into()),
                name: addresses.first().map_or_else(String::new, ToString::to_string).into(),
            },
        }
    }

    /// What discovery says of such an interface.
    pub(super) fn departed_event(&mut self, event: &Event) {
        if let Some((stand_in, gone)) = self.departed.ended_by(event) {
            self.discovery.forget(stand_in);
            self.release(gone.id);
        }
    }

    /// The id of such an interface, which is another pod's now: it stays closed until that one's policy is there.
    pub(super) fn reclaim(&mut self, ifindex: u32) -> Option<u32> {
        let has = |gone: &Gone| gone.endpoint.interface.as_ref().map(|interface| interface.ifindex) == Some(ifindex);
        let (stand_in, _) = self.departed.by_stand_in.iter().find(|(_, gone)| has(gone))?;
        let stand_in = stand_in.clone();
        self.discovery.forget(stand_in.clone());
        self.departed.by_stand_in.remove(&stand_in).map(|gone| gone.id)
    }

    /// The programs of a closed endpoint were not on its interface: puts them there.
    pub(super) fn close_again(&mut self, id: u32) {
        let attached = self.datapath.attach(id);
        let Some(gone) = self.departed.get_mut(id) else { return };
        match attached {
            Ok(()) => gone.endpoint.attached(),
            // Discovery will say so, too.
            Err(error) if error.is_vanished_interface() => {}
            Err(error) => {
                error!(pod = %gone.pod, %error, "gone, and not closed; it is tried again");
                gone.endpoint.waits(error.to_string());
                self.instruments.kernel_failures.inc();
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Those that could not be.
    pub(super) fn close_departed_again(&mut self) {
        let open = self.departed.iter().filter(|gone| !gone.endpoint.is_attached());
        for id in open.map(|gone| gone.id).collect::<Vec<_>>() {
            self.close_again(id);
        }
    }

    /// Closes them in a new generation of maps, too.
    pub(super) fn close_departed(&mut self) {
        let ids: Vec<u32> = self.departed.iter().map(|gone| gone.id).collect();
        for id in ids {
            let closed = self.datapath.execute(&[close(id)]);
            if let Err(error) = closed.and_then(|()| self.datapath.attach(id)) {
                // Its interface can have gone: then there is nothing to close.
                if !error.is_vanished_interface() {
                    self.fail("close the endpoint of a pod that is gone", &error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_stays_closed_until_it_is_said_to_be_gone() {
        let pod = PeerKey {
            kind: EntityKind::Pod,
            namespace: Some("x".into()),
            name: "b".into(),
        };
        let mut endpoint = LocalEndpoint::new(LocalPod {
            addresses: Vec::new(),
            allowed_sources: Vec::new(),
        });
        endpoint.interface = Some(Interface {
            ifindex: 7,
            name: "veth7".to_owned(),
            layer3: false,
        });
        let gone = Gone {
            pod: pod.clone(),
            endpoint,
            id: 3,
        };
        let mut departed = Departed {
            by_stand_in: BTreeMap::from([(pod.clone(), gone)]),
        };
        let missing = Event::Missing {
            pod: pod.clone(),
            reason: "no route leads to it".to_owned(),
        };
        let lost = |ifindex| Event::Lost {
            pod: pod.clone(),
            ifindex,
        };
        for event in [missing, lost(8)] {
            assert!(departed.ended_by(&event).is_none(), "{event:?}");
            assert_eq!(departed.iter().count(), 1, "{event:?}");
        }
        let (stand_in, gone) = departed.ended_by(&lost(7)).expect("its interface is gone");
        assert_eq!((stand_in, gone.id), (pod.clone(), 3));
        assert_eq!(departed.iter().count(), 0);
    }
}
