//! The loop: what it holds, and what it does with each thing that happens.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use super::{
    endpoints::{Interface, LocalEndpoints},
    explain::{self, ExplainRequest, Explanation},
    hits::Hits,
    options::AgentOptions,
    query::QueryError,
    removals::Removals,
    wait::Waits,
};
use crate::{
    api::{Problem, Severity},
    datapath::{self, Datapath, InterfaceBinding},
    endpoint::{self, Discovery},
    flow::{directory::Directory, hub::Hub, task::FlowTask},
    index::{Index, IndexOutput, LocalPodChange},
    memory,
    policy::{
        change::{Change, PeerKey},
        compile::Compiler,
        evaluate::World,
        plan::{Capacity, Plan, Shortage},
    },
    source::SourceEvent,
};

/// For how long connections that are older than the attachment are taken over mid-flow, on interfaces that were there
/// before the agent.
const ADOPT_EXISTING: Duration = Duration::from_secs(60);
/// The same for interfaces that appear while the agent runs: only what happened since they appeared can be older.
const ADOPT_NEW: Duration = Duration::from_secs(5);
/// For how long the first sync waits for discovery to say something about every pod.
const FIRST_DISCOVERY: Duration = Duration::from_secs(3);
/// No map grows beyond this many entries: kernel memory is not endless.
const LARGEST_MAP: usize = 1 << 24;
/// How soon a failed write to the kernel is tried again, by a new generation.
const RETRY: Duration = Duration::from_secs(5);
/// After so many changed objects at once there is memory to give back,
const MANY_OBJECTS: usize = 1_000;
/// so much later, when what follows from them is done too.
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
    removals: Removals,
    /// The source has been read once, whole.
    synced: bool,
    /// When the first sync stops waiting for discovery.
    first_sync_by: Option<Instant>,
    /// Everything of the first sync is enforced, and what was stale is removed.
    pub(super) settled: bool,
    /// The kernel did not take a write: what, and when it is tried again.
    pub(super) broken: Option<(String, Instant)>,
    /// When endpoints that could not be attached are tried again.
    retry: Option<Instant>,
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
}

impl Agent {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
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
            synced: false,
            first_sync_by: None,
            settled: false,
            broken: None,
            retry: None,
            trim: None,
            world: None,
        }
    }

    // === What happens ===

    /// Events of the source, as many as there were. One plan for all of them.
    pub fn source_events(&mut self, events: Vec<SourceEvent>) {
        let changed = events.iter().map(|event| match event {
            SourceEvent::Reset(objects) => objects.len(),
            _ => 1,
        });
        if changed.sum::<usize>() >= MANY_OBJECTS {
            self.trim = Some(Instant::now() + TRIM_AFTER);
        }
        let mut output = IndexOutput::default();
        let mut refreshed = Vec::new();
        for event in events {
            match event {
                SourceEvent::Problems { origin, problems } => self.set_problems(origin, problems),
                SourceEvent::Refreshed(token) => refreshed.push(token),
                event => {
                    if matches!(event, SourceEvent::Reset(_)) && !self.synced {
                        self.synced = true;
                        self.first_sync_by = Some(Instant::now() + FIRST_DISCOVERY);
                    }
                    output.extend(self.index.apply(event));
                }
            }
        }
        self.changed(output);
        for token in refreshed {
            self.waits.refreshed(token);
        }
        self.progress();
    }

    /// What discovery found out.
    pub fn discovery_event(&mut self, event: endpoint::Event) {
        match event {
            endpoint::Event::Found {
                pod,
                ifindex,
                name,
                layer3,
                unlocated,
            } => {
                let interface = Interface { ifindex, name, layer3 };
                self.found(&pod, interface, &unlocated);
            }
            endpoint::Event::Lost { pod, ifindex } => self.lost(&pod, format!("its interface {ifindex} is gone")),
            endpoint::Event::Missing { pod, reason } => self.lost(&pod, reason),
            endpoint::Event::NodeAddresses(addresses) => {
                let output = self.index.set_node_addresses(addresses);
                self.changed(output);
            }
        }
        self.progress();
    }

    /// Something that was put off is due.
    pub fn tick(&mut self, now: Instant) {
        // What is left is due at once, after the changes that came meanwhile.
        if let Some(due) = self.removals.pop(now) {
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
                .filter(|(_, endpoint)| endpoint.interface.is_some() && !endpoint.attached);
            for pod in detached.map(|(pod, _)| pod.clone()).collect::<Vec<_>>() {
                self.bind(&pod);
            }
        }
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
        let first_sync = self.first_sync_by.filter(|_| !self.settled);
        [
            self.removals.next(),
            retry,
            self.retry,
            self.trim,
            first_sync,
            self.waits.next(),
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

    /// Why not everything is enforced, if something is not.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if !self.synced {
            return Some("the source has not been read yet".to_owned());
        }
        if let Some((what, _)) = &self.broken {
            return Some(what.clone());
        }
        if !self.settled {
            return Some("interfaces of pods are still being looked for".to_owned());
        }
        self.shortages.first().map(|shortage| {
            format!(
                "map {} is too small: {} entries needed, {} there; {}",
                shortage.map, shortage.needed, shortage.capacity, shortage.consequence
            )
        })
    }

    /// Local pods that are not enforced, with the reason.
    pub fn unenforced(&self) -> impl Iterator<Item = (&PeerKey, String)> {
        self.endpoints
            .iter()
            .filter(|(_, endpoint)| !endpoint.attached)
            .map(|(pod, endpoint)| {
                let reason = endpoint.trouble.clone();
                (
                    pod,
                    reason.unwrap_or_else(|| "its interface has not been found yet".to_owned()),
                )
            })
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

    fn changed(&mut self, output: IndexOutput) {
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
                    if let Some(ifindex) = self.endpoints.inherited_interface(&pod.addresses) {
                        self.discovery.assume(key.clone(), ifindex);
                    }
                    let endpoint = self.endpoints.put(key.clone(), pod);
                    if endpoint.interface.is_some() {
                        moved.push(key);
                    }
                }
                None => {
                    self.discovery.forget(key.clone());
                    if let Some(id) = self.endpoints.remove(&key).and_then(|endpoint| endpoint.id) {
                        changes.push(Change::Endpoint(id, None));
                        self.release(id);
                    }
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

    // === Endpoints ===

    fn found(&mut self, pod: &PeerKey, interface: Interface, unlocated: &[(IpAddr, String)]) {
        let Some(endpoint) = self.endpoints.get_mut(pod) else {
            return;
        };
        endpoint.answered = true;
        endpoint.trouble = None;
        endpoint.remark = unlocated.first().map(|(address, why)| {
            warn!(%pod, "address {address} does not lead to the pod's interface: {why}");
            format!("address {address} does not lead to its interface: {why}")
        });
        if endpoint.interface.as_ref() == Some(&interface) && endpoint.attached {
            return;
        }
        endpoint.interface = Some(interface);
        self.bind(pod);
    }

    fn lost(&mut self, pod: &PeerKey, reason: String) {
        let Some(endpoint) = self.endpoints.get_mut(pod) else {
            return;
        };
        endpoint.answered = true;
        endpoint.attached = false;
        if endpoint.trouble.as_ref() != Some(&reason) {
            warn!(%pod, "not enforced: {reason}");
        }
        endpoint.trouble = Some(reason);
        if endpoint.interface.take().is_some()
            && let Some(id) = endpoint.id
            && let Err(error) = self.datapath.clear_interface(id)
        {
            self.fail("let go of an interface", &error);
        }
    }

    /// Enforces a pod on the interface that was found: id, decisions, binding, programs.
    fn bind(&mut self, pod: &PeerKey) {
        let Some(endpoint) = self.endpoints.get(pod) else {
            return;
        };
        let Some(interface) = endpoint.interface.clone() else {
            return;
        };
        let local = endpoint.pod.clone();
        let (id, adopt_for) = match endpoint.id {
            Some(id) => (id, Duration::ZERO),
            None => match self.endpoints.claim_inherited(interface.ifindex, &local.addresses) {
                Some(id) => (
                    id,
                    if self.datapath.carried_over() {
                        ADOPT_EXISTING
                    } else {
                        Duration::ZERO
                    },
                ),
                None => match self.datapath.allocate_id() {
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
        match self.datapath.attach(id) {
            Ok(()) => {
                debug!(%pod, id, "enforced");
                if let Some(endpoint) = self.endpoints.get_mut(pod) {
                    endpoint.attached = true;
                    endpoint.trouble = None;
                }
            }
            Err(error) => self.trouble(pod, &error),
        }
    }

    fn trouble(&mut self, pod: &PeerKey, error: &datapath::Error) {
        error!(%pod, %error, "not enforced; it is tried again");
        self.retry = Some(Instant::now() + RETRY);
        if let Some(endpoint) = self.endpoints.get_mut(pod) {
            endpoint.attached = false;
            endpoint.trouble = Some(error.to_string());
        }
    }

    fn release(&mut self, id: u32) {
        if let Err(error) = self.datapath.remove_endpoint(id) {
            self.fail("let go of an endpoint", &error);
        }
        self.directory.write().set_endpoint(id, None);
    }

    fn name_endpoint(&self, id: u32, pod: &PeerKey) {
        let namespace = pod.namespace.as_deref().unwrap_or_default();
        let info = self.index.pod(namespace, &pod.name).cloned();
        self.directory.write().set_endpoint(id, info);
    }

    // === The kernel ===

    /// Add and flip now, remove after the grace period. Grows maps that are too small.
    fn execute(&mut self, plan: Plan) {
        let short = !plan.shortages.is_empty();
        if plan.shortages != self.shortages {
            for shortage in &plan.shortages {
                warn!(
                    map = shortage.map,
                    needed = shortage.needed,
                    capacity = shortage.capacity,
                    "{}",
                    shortage.consequence
                );
            }
            self.shortages.clone_from(&plan.shortages);
        }
        self.run(plan);
        if short && let Some(capacity) = grown(self.capacity, &self.shortages) {
            self.rebuild(capacity);
        }
    }

    fn run(&mut self, plan: Plan) {
        self.name_traces(&plan);
        let Plan {
            serial,
            add,
            flip,
            remove,
            ..
        } = plan;
        if add.is_empty() && flip.is_empty() && remove.is_empty() {
            self.compiler.executed(serial);
            return;
        }
        self.removals.spare(&add);
        self.removals.spare(&flip);
        if let Err(error) = self.datapath.execute(&add).and_then(|()| self.datapath.execute(&flip)) {
            self.fail("write decisions", &error);
        }
        self.removals.schedule(Instant::now(), serial, remove);
    }

    /// Before the plan is executed, so that no event comes too early.
    fn name_traces(&mut self, plan: &Plan) {
        self.hits.name(plan, &self.compiler);
        self.directory
            .write()
            .apply_plan(plan, |trace| self.compiler.trace(trace));
    }

    /// A new generation, filled with everything, to which every interface is flipped.
    fn rebuild(&mut self, capacity: Capacity) {
        info!(?capacity, "building a new generation");
        self.hits.retire_all(&self.datapath);
        if let Err(error) = self.datapath.regenerate(capacity) {
            return self.fail("build a new generation", &error);
        }
        self.capacity = capacity;
        self.broken = None;
        self.compiler.set_capacity(capacity);
        // What was to be removed or changed concerns the old maps: the new ones get the whole state that follows.
        let plan = self.compiler.apply(Vec::new());
        self.shortages.clone_from(&plan.shortages);
        self.name_traces(&plan);
        for serial in self.removals.clear().into_iter().chain([plan.serial]) {
            self.compiler.executed(serial);
        }
        let full = self.compiler.full();
        if let Err(error) = self
            .datapath
            .execute(&full.add)
            .and_then(|()| self.datapath.execute(&full.flip))
        {
            return self.fail("fill a new generation", &error);
        }
        let pods: Vec<(PeerKey, u32)> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.interface.is_some())
            .filter_map(|(pod, endpoint)| endpoint.id.map(|id| (pod.clone(), id)))
            .collect();
        for (pod, id) in pods {
            if let Err(error) = self.datapath.attach(id) {
                self.trouble(&pod, &error);
            }
        }
        if self.settled
            && let Err(error) = self.datapath.finish_first_sync()
        {
            self.fail("remove the old generation", &error);
        }
    }

    fn fail(&mut self, what: &str, error: &datapath::Error) {
        error!("cannot {what}: {error}");
        self.broken = Some((format!("cannot {what}: {error}"), Instant::now() + RETRY));
    }

    // === Progress ===

    /// Ends the first sync when it is over, and answers who waits for what is now true.
    fn progress(&mut self) {
        if self.synced && !self.settled && self.broken.is_none() {
            let late = self.first_sync_by.is_some_and(|by| by <= Instant::now());
            if late || self.endpoints.unanswered() == 0 {
                match self.datapath.finish_first_sync() {
                    Ok(()) => {
                        self.endpoints.forget_inherited();
                        self.settled = true;
                        info!(
                            endpoints = self.endpoints.iter().filter(|(_, endpoint)| endpoint.attached).count(),
                            "everything in the source is enforced"
                        );
                    }
                    Err(error) => self.fail("remove what an earlier agent left", &error),
                }
            }
        }
        self.answer_waits(Instant::now());
    }
}

/// Sizes with room for what did not fit, and as much again. None: there is no more room to give.
fn grown(capacity: Capacity, shortages: &[Shortage]) -> Option<Capacity> {
    use weir_common::layout::map;
    let mut larger = capacity;
    for shortage in shortages {
        let size = match shortage.map {
            map::ADDRESSES => &mut larger.addresses,
            map::CIDRS => &mut larger.cidrs,
            map::IDENTITIES => &mut larger.identities,
            map::ROWS => &mut larger.rows,
            map::DECISIONS => &mut larger.decisions,
            map::SOURCE_PORTS => &mut larger.source_ports,
            map::TRACES => &mut larger.traces,
            _ => continue,
        };
        let wanted = shortage.needed.max(*size).saturating_mul(2).min(LARGEST_MAP);
        *size = wanted.max(*size);
    }
    (larger != capacity).then_some(larger)
}

#[cfg(test)]
mod tests {
    use weir_common::layout::map;

    use super::*;

    const CAPACITY: Capacity = Capacity {
        addresses: 10,
        cidrs: 10,
        identities: 10,
        rows: 10,
        decisions: LARGEST_MAP,
        source_ports: 10,
        traces: 10,
    };

    fn shortage(map: &'static str, needed: usize) -> Shortage {
        Shortage {
            map,
            needed,
            capacity: 10,
            consequence: String::new(),
        }
    }

    #[test]
    fn maps_grow_to_twice_what_is_needed_and_not_without_end() {
        let larger = grown(CAPACITY, &[shortage(map::ROWS, 40), shortage(map::CIDRS, 11)]).expect("there is room");
        assert_eq!(
            larger,
            Capacity {
                rows: 80,
                cidrs: 22,
                ..CAPACITY
            }
        );
        assert_eq!(grown(CAPACITY, &[shortage(map::DECISIONS, LARGEST_MAP + 1)]), None);
        assert_eq!(grown(CAPACITY, &[]), None);
    }
}
