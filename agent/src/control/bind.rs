//! From a pod whose interface was found to an interface that obeys its policy, and back.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::{debug, error, warn};

use super::{
    agent::{Agent, RETRY},
    endpoints::Interface,
};
use crate::{
    datapath::{self, InterfaceBinding},
    metrics::Trigger,
    policy::change::{Change, PeerKey},
};

/// For how long connections that are older than the attachment are taken over mid-flow, on interfaces that were there
/// before the agent.
const ADOPT_EXISTING: Duration = Duration::from_secs(60);
/// The same for interfaces that appear while the agent runs: only what happened since they appeared can be older.
const ADOPT_NEW: Duration = Duration::from_secs(5);

impl Agent {
    pub(super) fn found(&mut self, pod: &PeerKey, interface: Interface, unlocated: &[(IpAddr, String)]) {
        let Some(endpoint) = self.endpoints.get_mut(pod) else {
            return;
        };
        endpoint.answered = true;
        endpoint.trouble = None;
        endpoint.remark = unlocated.first().map(|(address, why)| {
            warn!(%pod, "address {address} does not lead to the pod's interface: {why}");
            format!("address {address} does not lead to its interface: {why}")
        });
        if endpoint.interface.as_ref() == Some(&interface) && endpoint.is_attached() {
            return;
        }
        endpoint.interface = Some(interface);
        self.bind(pod);
    }

    pub(super) fn lost(&mut self, pod: &PeerKey, reason: String) {
        let Some(endpoint) = self.endpoints.get_mut(pod) else {
            return;
        };
        endpoint.answered = true;
        if endpoint.trouble.as_ref() != Some(&reason) {
            warn!(%pod, "not enforced: {reason}");
        }
        endpoint.waits(reason);
        if endpoint.interface.take().is_some()
            && let Some(id) = endpoint.id
            && let Err(error) = self.datapath.clear_interface(id)
        {
            self.fail("let go of an interface", &error);
        }
    }

    /// Enforces a pod on the interface that was found: id, decisions, binding, programs.
    pub(super) fn bind(&mut self, pod: &PeerKey) {
        let Some(endpoint) = self.endpoints.get(pod) else {
            return;
        };
        let Some(interface) = endpoint.interface.clone() else {
            return;
        };
        let local = endpoint.pod.clone();
        let unhooked = endpoint.unhooked;
        let (id, adopt_for) = match endpoint.id {
            Some(id) => (id, Duration::ZERO),
            None => match self
                .reclaim(interface.ifindex)
                .or_else(|| self.endpoints.claim_inherited(interface.ifindex, &local.addresses))
            {
                Some(id) => (
                    id,
                    if self.datapath.carried_over() {
                        ADOPT_EXISTING
                    } else {
                        Duration::ZERO
                    },
                ),
                None => match self.datapath.allocate_id() {
                    // Nothing can be older than an attachment that the runtime waits for.
                    Ok(id) if self.attachments.of(pod).is_some() => (id, Duration::ZERO),
                    Ok(id) => (id, if self.settled { ADOPT_NEW } else { ADOPT_EXISTING }),
                    Err(error) => return self.trouble(pod, &error),
                },
            },
        };
        if let Some(endpoint) = self.endpoints.get_mut(pod) {
            endpoint.id = Some(id);
        }
        let binding = InterfaceBinding {
            id,
            ifindex: interface.ifindex,
            name: interface.name,
            addresses: local.addresses,
            more_sources: local.allowed_sources,
            any_source: false,
            audit: self.options.audit,
            layer3: interface.layer3,
            adopt_for,
        };
        if let Err(error) = self.datapath.set_interface(binding) {
            return self.trouble(pod, &error);
        }
        if self.compiler.endpoint(id).is_none() {
            self.name_endpoint(id, pod);
            let change = vec![Change::Endpoint(id, Some(pod.clone()))];
            self.stage(&change);
            let plan = self.compiler.apply(change);
            self.execute(plan);
        }
        // A pod that its runtime waits with: nobody sends to it yet. One that had programs already runs.
        let attached = if self.settled && !unhooked && self.attachments.of(pod).is_some() {
            self.hurried();
            self.datapath.attach_at_once(id)
        } else {
            self.datapath.attach(id)
        };
        match attached {
            Ok(()) => {
                debug!(%pod, id, "enforced");
                self.review_forwarding_soon();
                if let Some(endpoint) = self.endpoints.get_mut(pod) {
                    endpoint.attached();
                    if let Some(known) = endpoint.known_since.take() {
                        self.instruments.programmed(Trigger::Endpoint, known.elapsed());
                    }
                }
            }
            Err(error) => self.trouble(pod, &error),
        }
    }

    pub(super) fn trouble(&mut self, pod: &PeerKey, error: &datapath::Error) {
        // Pods end at any time. Discovery will say so, too.
        if error.is_vanished_interface() {
            return self.lost(pod, format!("its interface has gone meanwhile ({error})"));
        }
        error!(%pod, %error, "not enforced; it is tried again");
        self.instruments.kernel_failures.inc();
        self.retry = Some(Instant::now() + RETRY);
        if let Some(endpoint) = self.endpoints.get_mut(pod) {
            endpoint.waits(error.to_string());
        }
    }

    pub(super) fn release(&mut self, id: u32) {
        if let Err(error) = self.datapath.remove_endpoint(id) {
            self.fail("let go of an endpoint", &error);
        }
        self.directory.write().set_endpoint(id, None);
    }

    pub(super) fn name_endpoint(&self, id: u32, pod: &PeerKey) {
        let namespace = pod.namespace.as_deref().unwrap_or_default();
        let info = self.index.pod(namespace, &pod.name).cloned();
        self.directory.write().set_endpoint(id, info);
    }
}
