//! The loop: what it holds, and what it does with each thing that happens.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{
    attach::Attachments,
    departed::Departed,
    endpoints::{Interface, LocalEndpoints},
    explain::{self, ExplainRequest, Explanation},
    forwarding::Forwarding,
    hits::Hits,
    hooks::Hooks,
    options::AgentOptions,
    query::QueryError,
    removals::Removals,
    wait::Waits,
};
use crate::{
    api::{Problem, Severity},
    cni::{
        attachment::Attachment,
        install::{Installer, PluginReport},
    },
    datapath::{self, Datapath},
    endpoint::{self, Discovery},
    flow::{directory::Directory, hub::Hub, task::FlowTask},
    index::{Index, IndexOutput, LocalPodChange},
    memory,
    metrics::{Instruments, Trigger},
    policy::{
        change::Change,
        compile::Compiler,
        evaluate::World,
        plan::{Capacity, Shortage},
    },
    source::{Gap, SourceEvent},
};

/// For how long the first sync waits for discovery to say something about every pod.
const FIRST_DISCOVERY: Duration = Duration::from_secs(3);
/// How soon a failed write to the kernel is tried again, by a new generation.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// After so many changed objects at once, and after the start, there is memory to give back,
const MANY_OBJECTS: usize = 1_000;
/// so much later, when what follows is done too.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// All that the loop holds.
pub struct Agent {
    pub(super) options: AgentOptions,
    pub(super) index: Index,
    pub(super) compiler: Compiler,
    pub(super) capacity: Capacity,
    pub(super) datapath: Datapath,
    pub(super) discovery: Discovery,
    pub(super) endpoints: LocalEndpoints,
    pub(super) directory: Arc<Directory>,
    pub(super) hub: Arc<Hub>,
    pub(super) flows: FlowTask,
    pub(super) problems: BTreeMap<Arc<str>, Vec<Problem>>,
    pub(super) shortages: Vec<Shortage>,
    pub(super) waits: Waits,
    pub(super) hits: Hits,
    pub(super) removals: Removals,
    pub(super) departed: Departed,
    pub(super) attachments: Attachments,
    /// How the installation of the CNI plugin stands. None: not tried yet, or not wanted.
    pub(super) plugin: Option<PluginReport>,
    pub(super) installer: Option<Installer>,
    pub(super) instruments: Arc<Instruments>,
    /// Plans, and whole states, that were written to the kernel.
    pub(super) written: u64,
    /// The source has been read once, whole.
    pub(super) synced: bool,
    /// What of the source cannot be read, and so is enforced as it was last known, or not at all.
    pub(super) incomplete: Option<Gap>,
    /// When the first sync stops waiting for discovery, but for pods that an earlier agent enforces.
    first_sync_by: Option<Instant>,
    /// Everything of the first sync is enforced, and what was stale is removed.
    pub(super) settled: bool,
    /// The kernel did not take a write: what, and when it is tried again.
    pub(super) broken: Option<(String, Instant)>,
    /// When endpoints that could not be attached are tried again.
    pub(super) retry: Option<Instant>,
    pub(super) forwarding: Forwarding,
    pub(super) hooks: Hooks,
    /// When a pod was attached while its runtime waited.
    pub(super) last_hurry: Option<Instant>,
    /// When memory is given back.
    trim: Option<Instant>,
    /// The naive evaluator of the current objects, for explain. None: something changed since.
    world: Option<World>,
}

/// The parts that the loop is made of.
pub struct Parts {
    pub options: AgentOptions,
    pub capacity: Capacity,
    pub datapath: Datapath,
    pub inherited: datapath::Inherited,
    pub discovery: Discovery,
    pub directory: Arc<Directory>,
    pub hub: Arc<Hub>,
    pub flows: FlowTask,
    pub attachments: Attachments,
    pub installer: Option<Installer>,
    pub instruments: Arc<Instruments>,
}

impl Agent {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let mut agent = Self {
            index: Index::new(&parts.options.node),
            compiler: Compiler::new(parts.capacity, parts.inherited.next_trace),
            endpoints: LocalEndpoints::new(parts.inherited.endpoints),
            options: parts.options,
            capacity: parts.capacity,
            datapath: parts.datapath,
            discovery: parts.discovery,
            directory: parts.directory,
            hub: parts.hub,
            flows: parts.flows,
            problems: BTreeMap::new(),
            shortages: Vec::new(),
            waits: Waits::default(),
            hits: Hits::default(),
            removals: Removals::default(),
            departed: Departed::default(),
            attachments: parts.attachments,
            plugin: None,
            installer: parts.installer,
            instruments: parts.instruments,
            written: 0,
            synced: false,
            incomplete: None,
            first_sync_by: None,
            settled: false,
            broken: None,
            retry: None,
            forwarding: Forwarding::default(),
            hooks: Hooks::new(Instant::now()),
            last_hurry: None,
            trim: None,
            world: None,
        };
        agent.recall_attachments();
        agent
    }

    // === What happens ===

    /// Events of the source, as many as there were. One plan for all of them.
    pub fn source_events(&mut self, events: Vec<SourceEvent>) {
        let arrived = self.instruments.arrivals.take().unwrap_or_else(Instant::now);
        let written = self.written;
        let mut trigger = Trigger::Objects;
        let changed = events.iter().map(|event| match event {
            SourceEvent::Reset(objects) | SourceEvent::ResetKinds { objects, .. } => objects.len(),
            _ => 1,
        });
        if changed.sum::<usize>() >= MANY_OBJECTS {
            self.trim = Some(Instant::now() + TRIM_AFTER);
        }
        let mut output = IndexOutput::default();
        let mut refreshed = Vec::new();
        let mut first = false;
        for event in events {
            match event {
                SourceEvent::Problems { origin, problems } => self.set_problems(origin, problems),
                SourceEvent::Refreshed(token) => refreshed.push(token),
                SourceEvent::Incomplete(reason) => self.incomplete = reason,
                event => {
                    if matches!(event, SourceEvent::Reset(_) | SourceEvent::ResetKinds { .. }) {
                        trigger = Trigger::Sync;
                    }
                    if matches!(event, SourceEvent::Reset(_)) && !self.synced {
                        self.synced = true;
                        first = true;
                        self.first_sync_by = Some(Instant::now() + FIRST_DISCOVERY);
                    }
                    output.extend(self.index.apply(event));
                }
            }
        }
        self.changed(output);
        if first {
            self.confirm_attachments();
        }
        if self.written != written {
            self.instruments.programmed(trigger, arrived.elapsed());
        }
        for token in refreshed {
            self.waits.refreshed(token);
        }
        self.progress();
    }

    /// What discovery found out.
    pub fn discovery_event(&mut self, event: endpoint::Event) {
        match event {
            event if self.departed.concerns(&event) => self.departed_event(&event),
            endpoint::Event::Found {
                pod,
                ifindex,
                name,
                layer3,
                unlocated,
            } => {
                let interface = Interface { ifindex, name, layer3 };
                // Found before the runtime said which one it is, and told after.
                let other = |attachment: &Attachment| attachment.host.ifindex != ifindex;
                if !self.attachments.of(&pod).is_some_and(other) {
                    self.found(&pod, interface, &unlocated);
                }
            }
            endpoint::Event::Lost { pod, ifindex } => {
                self.lost_attachment(&pod, ifindex);
                // News of the interface before, while the runtime has given it another one.
                if self.attachments.of(&pod).is_none() {
                    self.lost(&pod, format!("its interface {ifindex} is gone"));
                }
            }
            endpoint::Event::Missing { pod, reason } => {
                if self.attachments.of(&pod).is_none() {
                    self.lost(&pod, reason);
                }
            }
            endpoint::Event::NodeAddresses(addresses) => {
                let output = self.index.set_node_addresses(addresses);
                self.changed(output);
            }
            endpoint::Event::Unhooked { ifindex } => self.hooks_touched(ifindex),
        }
        self.progress();
    }

    /// Something that was put off is due.
    pub fn tick(&mut self, now: Instant) {
        // What is left is due at once, after the changes that came meanwhile.
        if self.broken.is_none()
            && let Some(due) = self.removals.pop(now)
        {
            self.hits.retire(&due.ops, &self.datapath);
            if let Err(error) = self.datapath.execute(&due.ops) {
                self.fail("remove what is no longer used", &error);
            }
            if due.serial.is_some_and(|serial| self.compiler.executed(serial)) && self.removals.next().is_none() {
                let plan = self.compiler.apply(Vec::new());
                self.execute(plan);
            }
        }
        if self.broken.as_ref().is_some_and(|(_, retry)| *retry <= now) {
            self.rebuild(self.capacity);
        }
        if self.retry.is_some_and(|retry| retry <= now) {
            self.retry = None;
            let detached = self
                .endpoints
                .iter()
                .filter(|(_, endpoint)| endpoint.interface.is_some() && !endpoint.is_attached());
            for pod in detached.map(|(pod, _)| pod.clone()).collect::<Vec<_>>() {
                self.bind(&pod);
            }
            self.close_departed_again();
        }
        self.review_hooks(now);
        self.review_forwarding(now);
        self.settle(now);
        if self.trim.is_some_and(|at| at <= now) {
            self.trim = None;
            memory::trim();
        }
        self.progress();
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        let retry = self.broken.as_ref().map(|(_, retry)| *retry);
        let first_sync = self
            .first_sync_by
            .filter(|by| !self.settled && (*by > Instant::now() || !self.endpoints.unanswered_inherited()));
        [
            self.removals.next().filter(|_| self.broken.is_none()),
            retry,
            self.retry,
            self.forwarding.next(),
            Some(self.hooks.next()),
            self.settle_at(),
            self.trim,
            first_sync,
            self.waits.next(),
            self.attachments.next(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Somebody reads flow records, or nobody does any more.
    pub fn want_events(&mut self, wanted: bool) {
        if let Err(error) = self.datapath.set_events(wanted) {
            error!("cannot switch events: {error}; flow records may be missing");
        }
    }

    /// All problems of the source.
    pub fn all_problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// What policy makes of a flow.
    ///
    /// # Errors
    /// An end that is not known.
    pub fn explain(&mut self, request: &ExplainRequest) -> Result<Explanation, QueryError> {
        let index = &self.index;
        let world = self.world.get_or_insert_with(|| {
            let mut world = World::new();
            for change in index.snapshot() {
                world.apply(change);
            }
            world
        });
        explain::explain(index, world, request)
    }

    /// How the installation of the CNI plugin stands.
    pub fn plugin_report(&mut self, report: PluginReport) {
        self.plugin = Some(report);
        self.progress();
    }

    // === Objects ===

    fn set_problems(&mut self, origin: Arc<str>, problems: Vec<Problem>) {
        let known = self.problems.get(&origin);
        for problem in problems
            .iter()
            .filter(|problem| known.is_none_or(|known| !known.contains(problem)))
        {
            match problem.severity {
                Severity::Error => error!("{problem}"),
                Severity::Warning => warn!("{problem}"),
            }
        }
        if problems.is_empty() {
            self.problems.remove(&origin);
        } else {
            self.problems.insert(origin, problems);
        }
    }

    pub(super) fn changed(&mut self, output: IndexOutput) {
        if output.is_empty() {
            return;
        }
        self.world = None;
        self.directory.write().apply_index(&output);
        let mut changes = output.changes;
        let mut moved = Vec::new();
        for LocalPodChange { key, pod } in output.local_pods {
            match pod {
                Some(pod) => {
                    self.discovery.watch(key.clone(), pod.addresses.clone());
                    // Where the pod is was certain to the earlier agent: its enforcement must not end because a
                    // bridge has forgotten a quiet pod meanwhile.
                    if let Some(attachment) = self.attachments.of(&key) {
                        let host = &attachment.host;
                        self.discovery.pin(key.clone(), host.ifindex, host.name.clone());
                    } else if let Some(ifindex) = self.endpoints.inherited_interface(&pod.addresses) {
                        self.discovery.assume(key.clone(), ifindex);
                    }
                    let endpoint = self.endpoints.put(key.clone(), pod);
                    if endpoint.interface.is_some() {
                        moved.push(key);
                    }
                }
                None => {
                    self.discovery.forget(key.clone());
                    if let Some(endpoint) = self.endpoints.remove(&key) {
                        changes.extend(endpoint.id.map(|id| Change::Endpoint(id, None)));
                        self.depart(key.clone(), endpoint);
                    }
                    self.forget_attachment(&key);
                }
            }
        }
        self.stage(&changes);
        let plan = self.compiler.apply(changes);
        self.execute(plan);
        // The addresses of a pod changed, its interface may have stayed: bind again, so that it may send from them.
        for pod in moved {
            self.bind(&pod);
        }
    }

    // === Progress ===

    /// Ends the first sync when it is over, and answers who waits for what is now true.
    pub(super) fn progress(&mut self) {
        if self.synced && !self.settled && self.broken.is_none() && !self.is_strange() {
            let late =
                self.first_sync_by.is_some_and(|by| by <= Instant::now()) && !self.endpoints.unanswered_inherited();
            if late || (self.endpoints.unanswered() == 0 && self.attachments.confirmed()) {
                self.close_left_behind();
                match self.datapath.finish_first_sync() {
                    Ok(()) => {
                        self.forget_stale_attachments();
                        self.settled = true;
                        self.trim.get_or_insert_with(|| Instant::now() + TRIM_AFTER);
                        info!(
                            endpoints = self
                                .endpoints
                                .iter()
                                .filter(|(_, endpoint)| endpoint.is_attached())
                                .count(),
                            "everything in the source is enforced"
                        );
                    }
                    Err(error) => self.fail("remove what an earlier agent left", &error),
                }
            }
        }
        let now = Instant::now();
        self.retry_adds(now);
        self.answer_waits(now);
    }

    /// The source has been read once, whole.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }
}
