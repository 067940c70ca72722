//! Pods that the CNI plugin attaches: enforced before any of their processes starts.
//!
//! The runtime's word for which interface and addresses a pod has counts more than what discovery and the pod's status
//! say, until the runtime takes it back (DEL, GC), the interface is gone, or the pod is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::{agent::Agent, endpoints::Interface, query::Reply};
use crate::{
    api::PodUid,
    cni::{
        attachment::{Attachment, AttachmentId, CniAnswer, CniRequest, NetnsId, PodName},
        store::Store,
    },
    policy::{change::PeerKey, selector::EntityKind},
};

/// A pod that is not known is asked for at the source again after so long, while its ADD waits.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A pod that could not be attached is tried again after so long, while its ADD waits.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What the CNI plugin has told, and what it waits for.
#[derive(Debug)]
pub struct Attachments {
    live: BTreeMap<AttachmentId, Attachment>,
    waiting: Vec<Waiting>,
    store: Option<Store>,
    /// Pods to be read from the source now.
    wanted: Vec<PodName>,
    /// Attachments of an earlier agent whose pods the source has not told of, although it has told of everything: what
    /// it was told may be older than they are.
    unconfirmed: BTreeSet<AttachmentId>,
}

/// An ADD that cannot be answered yet.
#[derive(Debug)]
struct Waiting {
    attachment: Attachment,
    /// What came of asking for the pod.
    trouble: Option<String>,
    deadline: Instant,
    /// When the pod is asked for at the source.
    ask: Instant,
    /// Not before that it is tried again.
    again: Instant,
    reply: Reply<CniAnswer>,
}

/// What became of an ADD.
enum Outcome {
    Answer(CniAnswer),
    /// Not yet, for this reason.
    Wait(String),
    /// It was tried in vain: not at once again, whatever happens.
    Failed(String),
    /// The source has to tell of the pod first.
    Unknown(String),
}

impl Attachments {
    /// `store`: where attachments outlive the agent. None: nowhere, then there can be none.
    #[must_use]
    pub fn new(store: Option<Store>) -> Self {
        let kept = store.as_ref().map(Store::load).unwrap_or_default();
        Self {
            live: kept
                .into_iter()
                .map(|attachment| (attachment.id.clone(), attachment))
                .collect(),
            waiting: Vec::new(),
            store,
            wanted: Vec::new(),
            unconfirmed: BTreeSet::new(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.live.values()
    }

    /// The attachment of a pod.
    #[must_use]
    pub fn of(&self, pod: &PeerKey) -> Option<&Attachment> {
        self.live.values().find(|attachment| names(&attachment.pod, pod))
    }

    /// When [`Agent::retry_adds`] has something to do even if nothing happens.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.waiting
            .iter()
            .map(|waiting| waiting.deadline.min(waiting.ask).max(waiting.again))
            .min()
    }

    /// There is nothing left to ask for about attachments of an earlier agent.
    #[must_use]
    pub fn confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Keeps it for the next agent, too.
    fn put(&mut self, attachment: Attachment) -> std::io::Result<()> {
        match &self.store {
            Some(store) => store.put(&attachment)?,
            None => return Err(std::io::ErrorKind::NotFound.into()),
        }
        self.live.insert(attachment.id.clone(), attachment);
        Ok(())
    }

    fn remove(&mut self, id: &AttachmentId) -> Option<Attachment> {
        self.unconfirmed.remove(id);
        let attachment = self.live.remove(id)?;
        if let Some(Err(error)) = self.store.as_ref().map(|store| store.remove(id)) {
            warn!(pod = %attachment.pod, %error, "cannot forget an attachment; the next agent may take it for one");
        }
        Some(attachment)
    }
}

fn names(pod: &PodName, key: &PeerKey) -> bool {
    key.namespace.as_deref() == Some(pod.namespace.as_str()) && *key.name == *pod.name
}

pub(super) fn key(pod: &PodName) -> PeerKey {
    PeerKey {
        kind: EntityKind::Pod,
        namespace: Some(pod.namespace.as_str().into()),
        name: pod.name.as_str().into(),
    }
}

fn uid(pod: &PodName) -> Option<PodUid> {
    pod.uid.as_deref().and_then(PodUid::parse)
}

impl Agent {
    /// What an earlier agent was told: before the source says anything.
    pub(super) fn recall_attachments(&mut self) {
        let kept: Vec<Attachment> = self.attachments.iter().cloned().collect();
        for Attachment { pod, addresses, .. } in kept {
            // No pod is known yet, so nothing follows from it.
            let output = self.index.attach_pod(&pod.namespace, &pod.name, uid(&pod), addresses);
            self.changed(output);
        }
    }

    /// Answers the plugin, now or by the deadline.
    pub fn cni(&mut self, request: CniRequest, deadline: Instant, reply: Reply<CniAnswer>) {
        let now = Instant::now();
        let answer = match request {
            CniRequest::Add { attachment, netns, .. } => match self.may_attach(&attachment, netns) {
                Err(answer) => answer,
                Ok(()) => {
                    self.attachments.waiting.push(Waiting {
                        attachment,
                        trouble: None,
                        deadline,
                        ask: now,
                        again: now,
                        reply,
                    });
                    return self.retry_adds(now);
                }
            },
            CniRequest::Del { id } => {
                self.detach_where(|attachment| attachment.id == id);
                // Whoever still waits for it does so in vain.
                self.attachments.waiting.retain(|waiting| waiting.attachment.id != id);
                CniAnswer::Done
            }
            CniRequest::Gc { network, valid } => {
                self.detach_where(|attachment| attachment.network == network && !valid.contains(&attachment.id));
                CniAnswer::Done
            }
            CniRequest::Check { id, pod } => self.check_attachment(&id, &pod),
            CniRequest::Status => match self.unready_for_pods() {
                None => CniAnswer::Done,
                Some(reason) => CniAnswer::Later { reason },
            },
        };
        // Nobody there to hear it is no failure.
        let _ = reply.send(answer);
    }

    /// Looks at ADDs that wait. Call it whenever something has changed, and when it is due.
    pub(super) fn retry_adds(&mut self, now: Instant) {
        for mut waiting in std::mem::take(&mut self.attachments.waiting) {
            // The plugin has given up. Its runtime will say DEL.
            if waiting.reply.is_closed() {
                continue;
            }
            if now < waiting.again {
                self.attachments.waiting.push(waiting);
                continue;
            }
            let answer = match self.try_add(&waiting.attachment) {
                Outcome::Answer(answer) => answer,
                Outcome::Wait(reason) | Outcome::Failed(reason) if now >= waiting.deadline => {
                    CniAnswer::Later { reason }
                }
                Outcome::Unknown(reason) if now >= waiting.deadline => CniAnswer::Later {
                    reason: waiting.trouble.unwrap_or(reason),
                },
                Outcome::Failed(_) => {
                    waiting.again = waiting.deadline.min(now + TRY_AGAIN);
                    waiting.ask = waiting.again;
                    self.attachments.waiting.push(waiting);
                    continue;
                }
                Outcome::Wait(_) => {
                    waiting.ask = waiting.deadline;
                    self.attachments.waiting.push(waiting);
                    continue;
                }
                Outcome::Unknown(_) => {
                    if waiting.ask <= now {
                        self.attachments.wanted.push(waiting.attachment.pod.clone());
                        waiting.ask = now + ASK_AGAIN;
                    }
                    self.attachments.waiting.push(waiting);
                    continue;
                }
            };
            let _ = waiting.reply.send(answer);
        }
    }

    /// Whether an ADD makes sense at all.
    fn may_attach(&self, attachment: &Attachment, netns: NetnsId) -> Result<(), CniAnswer> {
        let refused = |reason: String, remedy: &str| CniAnswer::Refused {
            reason,
            remedy: remedy.to_owned(),
        };
        match NetnsId::current() {
            Ok(own) if own == netns => {}
            Ok(_) => {
                return Err(refused(
                    "the agent is in another network namespace than the pod's interface".to_owned(),
                    "run the agent in the node's network namespace (hostNetwork: true)",
                ));
            }
            Err(error) => {
                return Err(CniAnswer::Later {
                    reason: format!("cannot look at the agent's network namespace: {error}"),
                });
            }
        }
        let second = self.attachments.iter().find(|known| {
            known.id.container == attachment.id.container && known.id.interface != attachment.id.interface
        });
        if let Some(first) = second {
            return Err(refused(
                format!("pod {} has interface {} already", attachment.pod, first.id.interface),
                "policy is enforced on one interface of a pod: chain weir-cni into its main network alone",
            ));
        }
        Ok(())
    }

    fn try_add(&mut self, attachment: &Attachment) -> Outcome {
        if let Some(reason) = self.unready_for_pods() {
            return Outcome::Wait(reason);
        }
        let pod = &attachment.pod;
        let Some(known) = self.index.pod_of_uid(&pod.namespace, &pod.name, uid(pod)) else {
            return Outcome::Unknown(format!("the source has not told of pod {pod} yet"));
        };
        if known.host_network {
            return Outcome::Answer(CniAnswer::Done);
        }
        if known.phase.is_over() {
            return Outcome::Wait(format!("pod {pod} has ended"));
        }
        match self.attach(attachment) {
            CniAnswer::Later { reason } => Outcome::Failed(reason),
            answer => Outcome::Answer(answer),
        }
    }

    /// Why no pod can be attached now.
    fn unready_for_pods(&self) -> Option<String> {
        if !self.is_synced() {
            return Some("the source has not been read yet".to_owned());
        }
        if let Some(gap) = self.incomplete.as_ref().filter(|gap| gap.policies) {
            return Some(gap.reason.clone());
        }
        self.broken.as_ref().map(|(what, _)| what.clone())
    }

    /// Enforces the pod's policy on its interface.
    fn attach(&mut self, attachment: &Attachment) -> CniAnswer {
        let began = Instant::now();
        let pod = &attachment.pod;
        let key = key(pod);
        // Sandboxes that the pod had before: what they had is this one's now, or gone.
        let older: Vec<AttachmentId> = self
            .attachments
            .iter()
            .filter(|known| names(&known.pod, &key) && known.id != attachment.id)
            .map(|known| known.id.clone())
            .collect();
        for id in older {
            self.attachments.remove(&id);
        }
        // Before anything is enforced: an agent that starts after this one has died must know of it.
        if let Err(error) = self.attachments.put(attachment.clone()) {
            return CniAnswer::Later {
                reason: format!("cannot keep the attachment of pod {pod} in the run directory: {error}"),
            };
        }
        let addresses = attachment.addresses.clone();
        let output = self.index.attach_pod(&pod.namespace, &pod.name, uid(pod), addresses);
        self.changed(output);
        let interface = Interface {
            ifindex: attachment.host.ifindex,
            name: attachment.host.name.clone(),
            layer3: attachment.host.layer3,
        };
        let Some(endpoint) = self.endpoints.get_mut(&key) else {
            return CniAnswer::Later {
                reason: format!("pod {pod} has no addresses of its own"),
            };
        };
        let moved = endpoint
            .interface
            .as_ref()
            .is_some_and(|old| old.ifindex != interface.ifindex);
        if moved {
            self.lost(&key, "it has another interface now".to_owned());
        }
        self.discovery
            .pin(key.clone(), interface.ifindex, interface.name.clone());
        self.found(&key, interface, &[]);
        let endpoint = self.endpoints.get(&key);
        if endpoint.is_some_and(|endpoint| endpoint.is_attached()) && self.broken.is_none() {
            info!(
                pod = %key, interface = attachment.host.name, microseconds = began.elapsed().as_micros(),
                "attached before it starts"
            );
            return CniAnswer::Done;
        }
        let trouble = endpoint.and_then(|endpoint| endpoint.trouble.clone());
        CniAnswer::Later {
            reason: trouble
                .or_else(|| self.unready_for_pods())
                .unwrap_or_else(|| format!("the policy of pod {pod} is not enforced yet")),
        }
    }

    /// The source has told that this pod is gone: its attachment goes with it, unless it is that of another pod of its
    /// name.
    pub(super) fn forget_attachment(&mut self, key: &PeerKey) {
        let Some(Attachment { id, pod, .. }) = self.attachments.of(key).cloned() else {
            return;
        };
        if self.index.pod_of_uid(&pod.namespace, &pod.name, uid(&pod)).is_none() {
            self.attachments.remove(&id);
            // Nothing follows: the pod is not known any more.
            let output = self.index.detach_pod(&pod.namespace, &pod.name);
            debug_assert!(output.is_empty(), "{output:?}");
        }
    }

    /// Everything has been read once: asks for the pods of an earlier agent's attachments that were not in it.
    pub(super) fn confirm_attachments(&mut self) {
        for attachment in self.attachments.live.values() {
            let pod = &attachment.pod;
            if self.index.pod_of_uid(&pod.namespace, &pod.name, uid(pod)).is_none() {
                self.attachments.unconfirmed.insert(attachment.id.clone());
                self.attachments.wanted.push(pod.clone());
            }
        }
    }

    /// Pods that have to be read from the source, once each.
    pub fn take_wanted(&mut self) -> Vec<PodName> {
        let mut wanted = std::mem::take(&mut self.attachments.wanted);
        let order = |pod: &PodName| (pod.namespace.clone(), pod.name.clone());
        wanted.sort_by_key(order);
        wanted.dedup_by_key(|pod| order(pod));
        wanted
    }

    /// A pod was read from the source, which has told of it before this. False: there is none.
    pub fn pod_read<E: std::fmt::Display>(&mut self, pod: &PodName, read: Result<bool, E>) {
        let trouble = match read {
            Ok(true) => format!("the pod {pod} that the source knows is another one of that name"),
            Ok(false) => format!("the source knows no pod {pod}"),
            Err(error) => format!("cannot read pod {pod}: {error}"),
        };
        let key = key(pod);
        for waiting in &mut self.attachments.waiting {
            if names(&waiting.attachment.pod, &key) {
                waiting.trouble = Some(trouble.clone());
            }
        }
        // Whatever was found out, there is nothing more to be found out.
        let live = &self.attachments.live;
        let other = |id: &AttachmentId| live.get(id).is_some_and(|attachment| !names(&attachment.pod, &key));
        self.attachments.unconfirmed.retain(other);
        self.progress();
    }

    /// Attachments of an earlier agent whose pod the source does not know.
    pub(super) fn forget_stale_attachments(&mut self) {
        let pods: Vec<PeerKey> = self.attachments.iter().map(|attachment| key(&attachment.pod)).collect();
        for pod in pods {
            self.forget_attachment(&pod);
        }
    }

    /// The runtime takes back what it has said.
    fn detach_where(&mut self, gone: impl Fn(&Attachment) -> bool) {
        let ids: Vec<AttachmentId> = self
            .attachments
            .iter()
            .filter(|attachment| gone(attachment))
            .map(|attachment| attachment.id.clone())
            .collect();
        for id in ids {
            self.detach_pod(&id);
        }
    }

    fn detach_pod(&mut self, id: &AttachmentId) {
        let Some(Attachment { pod, .. }) = self.attachments.remove(id) else {
            return;
        };
        debug!(%pod, "detached");
        let key = key(&pod);
        let output = self.index.detach_pod(&pod.namespace, &pod.name);
        self.changed(output);
        // What is left of it counts as long as the interface does, as that of a pod without the plugin.
        if let Some(endpoint) = self.endpoints.get(&key) {
            let addresses = endpoint.pod.addresses.clone();
            let ifindex = endpoint.interface.as_ref().map(|interface| interface.ifindex);
            self.discovery.forget(key.clone());
            self.discovery.watch(key.clone(), addresses);
            if let Some(ifindex) = ifindex {
                self.discovery.assume(key, ifindex);
            }
        }
    }

    /// The interface that a pod was attached on is gone. False: that was another one.
    pub(super) fn lost_attachment(&mut self, pod: &PeerKey, ifindex: u32) {
        let id = self
            .attachments
            .of(pod)
            .filter(|attachment| attachment.host.ifindex == ifindex)
            .map(|attachment| attachment.id.clone());
        if let Some(id) = id {
            self.detach_pod(&id);
        }
    }

    fn check_attachment(&mut self, id: &AttachmentId, pod: &PodName) -> CniAnswer {
        let key = key(pod);
        // What was attached may have been taken away since: the runtime asks about now.
        if let Some(endpoint) = self.endpoints.get(&key).and_then(|endpoint| endpoint.id)
            && let Err(error) = self.look_at_hooks(&[endpoint])
        {
            return CniAnswer::Later {
                reason: format!("cannot look whether the policy of pod {pod} is enforced: {error}"),
            };
        }
        let endpoint = self.endpoints.get(&key);
        let attached = self.attachments.of(&key);
        let other = attached.is_some_and(|attachment| attachment.id != *id);
        match endpoint {
            Some(endpoint) if endpoint.is_attached() && !other => CniAnswer::Done,
            Some(endpoint) if !other => CniAnswer::Later {
                reason: endpoint
                    .trouble
                    .clone()
                    .unwrap_or_else(|| format!("the policy of pod {pod} is not enforced yet")),
            },
            _ => CniAnswer::Later {
                reason: format!("{id}, of pod {pod}, is not attached"),
            },
        }
    }
}
