//! The only code that touches maps, programs and links.
//!
//! What runs in the kernel outlives the agent: maps, programs and links are pinned ([`pins`]), so a stopped, crashed
//! or upgraded agent changes nothing about what is enforced. A start builds a new [`generation`] beside the one that
//! runs, fills it, flips one hook of one interface after the other to it ([`links`]), and only then removes the old
//! one. The maps in [`state`] are shared by all generations; [`upgrade`] carries connections over where their layout
//! or size changes.
//!
//! Order of calls: [`Datapath::start`]; per pod [`Datapath::set_interface`] and, by the compiler's plan,
//! [`Datapath::execute`]; [`Datapath::attach`]; when the first full sync is enforced,
//! [`Datapath::finish_first_sync`]. Nothing pinned is removed before that. A map that must grow: the same again from
//! [`Datapath::regenerate`] on. What others take away meanwhile, [`Datapath::look`] finds.

mod counters;
mod detach;
mod endpoints;
mod environment;
mod error;
mod execute;
mod forwarding;
mod generation;
mod hooks;
mod inherit;
mod links;
mod netfilter;
mod netlink;
mod options;
mod pins;
mod settle;
mod shape;
mod state;
mod sweep;
mod sys;
mod table;
mod tc;
mod upgrade;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
};

use tracing::{debug, info, warn};
use weir_common::{
    endpoint::MAX_ENDPOINT_ID,
    layout::{LAYOUT, map},
};

pub use self::{
    counters::{Counters, MapUsage},
    detach::{Report, detach_all},
    endpoints::InterfaceBinding,
    environment::running_agent,
    error::{Error, Result},
    forwarding::Forward,
    hooks::Unhooked,
    inherit::{Inherited, OldEndpoint},
    links::{ForeignProgram, Mode},
    options::{AttachMode, Options},
    sweep::{SweepReport, Sweeper, Swept},
    sys::{clock, interface_name},
};
use self::{
    endpoints::{Endpoint, source_key},
    generation::Generation,
    links::{DIRECTIONS, Links},
    pins::{Numbered, Pins},
    settle::Unsettled,
    shape::Shape,
    state::Chosen,
    sweep::Shared,
};
use crate::{object, policy::plan::Capacity};

/// The kernel's side of this agent. Dropping it changes nothing in the kernel.
pub struct Datapath {
    options: Options,
    pins: Pins,
    shapes: BTreeMap<String, Shape>,
    state: Chosen,
    generation: Generation,
    links: Links,
    endpoints: HashMap<u32, Endpoint>,
    /// Interfaces that were attached in a hurry.
    unsettled: Unsettled,
    /// Endpoints of an earlier agent that nobody has claimed yet: id -> ifindex, epoch.
    inherited: HashMap<u32, (u32, u32)>,
    next_id: u32,
    /// What sweeps must know of endpoints, wherever they run.
    shared: Arc<Shared>,
    /// Why the kernel forwards between local pods; the outer None: nobody has looked yet.
    kernel_forwards: Option<Option<String>>,
    _locks: environment::Locks,
}

/// A machine that is fit, and both directories, which are this agent's now. Nothing has changed in the kernel.
pub struct Claim {
    options: Options,
    mode: Mode,
    locks: environment::Locks,
}

impl Claim {
    /// Checks the machine and takes both directories.
    ///
    /// # Errors
    /// One of its own for: kernel too old, missing privileges, no bpffs, another agent, a kernel without TCX where that is
    /// asked for.
    pub fn take(options: Options) -> Result<Self> {
        environment::check_kernel()?;
        environment::check_privileges()?;
        environment::check_bpffs(&options.bpffs)?;
        let locks = environment::Locks::take(&options.run_dir, &options.bpffs)?;
        let mode = match options.attach {
            AttachMode::Tc => Mode::Tc,
            AttachMode::Tcx if sys::has_tcx() => Mode::Tcx,
            AttachMode::Tcx => return Err(Error::NoTcx),
            AttachMode::Auto if sys::has_tcx() => Mode::Tcx,
            AttachMode::Auto => Mode::Tc,
        };
        Ok(Self { options, mode, locks })
    }
}

impl Datapath {
    /// [`Claim::take`] and [`Self::build`].
    ///
    /// # Errors
    /// Theirs.
    pub fn start(options: Options) -> Result<(Self, Inherited)> {
        Self::build(Claim::take(options)?)
    }

    /// Builds a new generation beside whatever an earlier agent left running, which goes on undisturbed. Takes up to a
    /// second, in which the kernel verifies the programs.
    ///
    /// # Errors
    /// Maps of another shape; programs that the kernel refuses.
    pub fn build(claim: Claim) -> Result<(Self, Inherited)> {
        let Claim { options, mode, locks } = claim;
        let pins = Pins::new(&options.bpffs);
        pins::make_dir(&pins.links())?;
        let links = Links {
            pins: pins.clone(),
            mode,
        };
        let found = pins.scan()?;
        let shapes = shape::declared(object::BYTES)?;
        let mut inherited = inherit::read(&found, &links)?;
        let state = state::choose(&pins, &found, &shapes, &options)?;
        let number = found.generations.last().map_or(1, |generation| generation.number + 1);
        let generation = load(&options, &pins, &shapes, &state, number)?;
        let shared = Arc::new(Shared::default());
        for old in &state.older {
            shared.carried(upgrade::carry_over(old, &state.current.path)?);
        }

        // Ids that entries of the connection table still name are not given away again.
        let remembered = sweep::remembered(&state.current, &pins, &shapes)?;
        inherited.next_trace = inherited.next_trace.max(remembered.last_trace.saturating_add(1));
        let live: HashSet<u32> = inherited.endpoints.iter().map(|endpoint| endpoint.id).collect();
        let last_id = live.iter().chain(&remembered.ids).copied().max().unwrap_or(0);
        shared.retire(remembered.ids.difference(&live).copied());
        info!(
            generation = number,
            mode = ?mode,
            endpoints = inherited.endpoints.len(),
            "built a new generation"
        );
        let datapath = Self {
            inherited: inherited
                .endpoints
                .iter()
                .map(|endpoint| (endpoint.id, (endpoint.ifindex, endpoint.epoch)))
                .collect(),
            options,
            pins,
            shapes,
            state,
            generation,
            links,
            endpoints: HashMap::new(),
            unsettled: Unsettled::default(),
            next_id: last_id % MAX_ENDPOINT_ID + 1,
            shared,
            kernel_forwards: None,
            _locks: locks,
        };
        Ok((datapath, inherited))
    }

    /// How programs are attached.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.links.mode
    }

    /// The number of the generation in use.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.pin.number
    }

    /// The state maps are new, filled from those of another layout or size: what happened in between is missing.
    #[must_use]
    pub fn carried_over(&self) -> bool {
        !self.state.older.is_empty()
    }

    /// The epoch of an endpoint's value.
    #[must_use]
    pub fn epoch(&self, id: u32) -> Option<u32> {
        self.endpoints.get(&id).map(|endpoint| endpoint.epoch)
    }

    /// An endpoint id that no endpoint has and no entry of the connection table names.
    ///
    /// # Errors
    /// [`Error::NoEndpointId`] where all are taken.
    pub fn allocate_id(&mut self) -> Result<u32> {
        for _ in 0..MAX_ENDPOINT_ID {
            let id = self.next_id;
            self.next_id = id % MAX_ENDPOINT_ID + 1;
            if !self.endpoints.contains_key(&id) && !self.inherited.contains_key(&id) && !self.shared.is_retired(id) {
                return Ok(id);
            }
        }
        Err(Error::NoEndpointId { limit: MAX_ENDPOINT_ID })
    }

    /// Binds an endpoint to its interface, or changes what was bound. An inherited id goes on with its epoch. Another
    /// endpoint that had this interface has it no longer. The value is written once the endpoint has a policy too; the
    /// programs are attached by [`Self::attach`].
    pub fn set_interface(&mut self, binding: InterfaceBinding) -> Result<()> {
        let (id, ifindex) = (binding.id, binding.ifindex);
        let mut inherited_epoch = 0;
        if let Some((old_ifindex, epoch)) = self.inherited.remove(&id) {
            inherited_epoch = epoch;
            if old_ifindex != ifindex && !self.is_bound(old_ifindex) {
                self.detach(old_ifindex)?;
            }
        }
        let old = self.endpoints.get(&id).and_then(|endpoint| endpoint.binding.clone());
        if old.as_ref().is_some_and(|old| old.ifindex != ifindex) {
            self.clear_interface(id)?;
        }
        let runs = self.displace(id, ifindex)?;
        for net in &binding.more_sources {
            self.generation.maps.sources.put(&source_key(id, net), &1)?;
        }
        let sources = binding.more_sources.clone();
        let endpoint = self.endpoints.entry(id).or_default();
        endpoint.epoch = endpoint.epoch.max(inherited_epoch);
        endpoint.attached |= runs;
        endpoint.bind(binding);
        endpoint.advance();
        self.write(id)?;
        for net in old
            .iter()
            .flat_map(|old| &old.more_sources)
            .filter(|net| !sources.contains(net))
        {
            self.generation.maps.sources.delete(&source_key(id, net))?;
        }
        Ok(())
    }

    /// Takes an interface from whichever other endpoint has it; what enforces there goes on until the new one's value
    /// takes its place. True: the current generation's programs run there.
    fn displace(&mut self, id: u32, ifindex: u32) -> Result<bool> {
        let old: Vec<u32> = self
            .inherited
            .iter()
            .filter(|(_, (index, _))| *index == ifindex)
            .map(|(id, _)| *id)
            .collect();
        for old in old {
            self.inherited.remove(&old);
            self.shared.retire([old]);
        }
        let mut runs = false;
        for (other, endpoint) in &mut self.endpoints {
            if *other == id
                || endpoint
                    .binding
                    .as_ref()
                    .is_none_or(|binding| binding.ifindex != ifindex)
            {
                continue;
            }
            debug!(endpoint = id, from = other, ifindex, "an interface changes hands");
            runs |= endpoint.attached;
            endpoint.attached = false;
            endpoint.written = None;
            for net in endpoint.binding.take().iter().flat_map(|binding| &binding.more_sources) {
                self.generation.maps.sources.delete(&source_key(*other, net))?;
            }
        }
        Ok(runs)
    }

    fn is_bound(&self, ifindex: u32) -> bool {
        let has = |endpoint: &Endpoint| {
            endpoint
                .binding
                .as_ref()
                .is_some_and(|binding| binding.ifindex == ifindex)
        };
        self.endpoints.values().any(has)
    }

    /// Puts the current generation's programs onto both hooks of an endpoint's interface, or flips the hooks to them
    /// where others of ours run. The endpoint must have its value: interface and policy.
    pub fn attach(&mut self, id: u32) -> Result<()> {
        let Some(ifindex) = self.to_attach(id)? else {
            return Ok(());
        };
        for direction in DIRECTIONS {
            self.links
                .attach(ifindex, direction, self.generation.program(direction))?;
        }
        self.unsettled.forget(ifindex);
        self.set_attached(id);
        Ok(())
    }

    /// The interface of an endpoint that is to be attached. None: it is.
    fn to_attach(&self, id: u32) -> Result<Option<u32>> {
        let endpoint = self.endpoints.get(&id).ok_or(Error::UnknownEndpoint { id })?;
        let Some(ifindex) = endpoint.written else {
            let missing = if endpoint.binding.is_none() {
                "an interface"
            } else {
                "a policy"
            };
            return Err(Error::EndpointIncomplete { id, missing });
        };
        Ok((!endpoint.attached).then_some(ifindex))
    }

    fn set_attached(&mut self, id: u32) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.attached = true;
        }
    }

    /// Takes ours off an interface.
    fn detach(&mut self, ifindex: u32) -> Result<()> {
        self.unsettled.forget(ifindex);
        self.links.detach(ifindex).map(drop)
    }

    /// The interface of an endpoint is gone (or no longer the pod's): takes its value and what is attached away, and
    /// keeps its policy for the next interface. An index that comes again inherits nothing.
    pub fn clear_interface(&mut self, id: u32) -> Result<()> {
        if let Some((ifindex, _)) = self.inherited.remove(&id)
            && !self.is_bound(ifindex)
        {
            self.detach(ifindex)?;
        }
        let bound = self.endpoints.get(&id).and_then(|endpoint| endpoint.binding.as_ref());
        if let Some(ifindex) = bound.map(|binding| binding.ifindex) {
            // The programs first: without its value the interface would be open for them all the same.
            self.detach(ifindex)?;
            self.erase(id)?;
        }
        Ok(())
    }

    /// The pod is gone: nothing of it stays but the entries of the connection table, which the next sweep ends.
    pub fn remove_endpoint(&mut self, id: u32) -> Result<()> {
        self.clear_interface(id)?;
        if self.endpoints.remove(&id).is_some() {
            self.shared.retire([id]);
        }
        Ok(())
    }

    /// Everything that the source holds is enforced: removes what is proven stale. That is: what is attached to
    /// interfaces of no endpoint of ours, older generations that no interface runs any more, older state maps (their
    /// connections are carried over once more first, as the old programs have added some).
    ///
    /// An endpoint that could not be attached keeps what it has; the generation that it runs then stays too.
    pub fn finish_first_sync(&mut self) -> Result<()> {
        let stale: Vec<u32> = self.inherited.keys().copied().collect();
        for id in stale {
            info!(endpoint = id, "an endpoint of an earlier agent whose pod is gone");
            self.clear_interface(id)?;
            self.shared.retire([id]);
        }
        let ours: HashSet<u32> = self
            .endpoints
            .values()
            .filter_map(|endpoint| endpoint.binding.as_ref())
            .map(|binding| binding.ifindex)
            .collect();
        let mut running = HashSet::new();
        for ifindex in self.links.attached()? {
            if ours.contains(&ifindex) {
                running.extend(self.links.programs(ifindex)?);
            } else {
                info!(ifindex, "detaching from an interface that is no endpoint's");
                self.detach(ifindex)?;
            }
        }
        self.retire_old(&running)
    }

    fn retire_old(&mut self, running: &HashSet<u32>) -> Result<()> {
        for old in &self.state.older {
            self.shared.carried(upgrade::carry_over(old, &self.state.current.path)?);
        }
        let found = self.pins.scan()?;
        let mut kept = false;
        for generation in found.generations {
            if generation == self.generation.pin {
                continue;
            }
            if inherit::program_ids(&generation).iter().any(|id| running.contains(id)) {
                warn!(path = %generation.path.display(), "an interface still runs an old generation; it stays");
                kept = true;
                continue;
            }
            debug!(path = %generation.path.display(), "removing an old generation");
            pins::remove_pins(&generation.path)?;
        }
        if !kept {
            for state in self.state.older.drain(..) {
                pins::remove_pins(&state.path)?;
            }
        }
        Ok(())
    }

    /// Begins a new generation with maps of other sizes. What runs goes on; the caller has the compiler say
    /// everything again for it ([`Self::execute`]), attaches every endpoint (which flips it), and ends with
    /// [`Self::finish_first_sync`]. Bindings stay, policies must come again.
    ///
    /// On failure the current generation stays in use.
    pub fn regenerate(&mut self, capacity: Capacity) -> Result<()> {
        let options = Options {
            capacity,
            ..self.options.clone()
        };
        let number = self.generation.pin.number + 1;
        let mut generation = load(&options, &self.pins, &self.shapes, &self.state, number)?;
        for (id, endpoint) in &self.endpoints {
            for net in endpoint.binding.iter().flat_map(|binding| &binding.more_sources) {
                generation.maps.sources.put(&source_key(*id, net), &1)?;
            }
        }
        for endpoint in self.endpoints.values_mut() {
            endpoint.policy = None;
            endpoint.written = None;
            endpoint.attached = false;
            endpoint.forwarding = None;
        }
        // Attaching them anew leaves nothing to be done.
        self.unsettled = Unsettled::default();
        self.generation = generation;
        self.options = options;
        Ok(())
    }

    /// TC programs of others on an endpoint's interface: reported, left in place.
    pub fn foreign_programs(&self, ifindex: u32) -> Result<Vec<ForeignProgram>> {
        self.links.foreign(ifindex)
    }

    /// Where the maps of the current generation and those that outlive it are pinned (for tools and tests).
    #[must_use]
    pub fn pinned(&self) -> [PathBuf; 2] {
        [self.generation.dir().clone(), self.state.current.path.clone()]
    }
}

fn load(
    options: &Options,
    pins: &Pins,
    shapes: &BTreeMap<String, Shape>,
    state: &Chosen,
    number: u32,
) -> Result<Generation> {
    let pin = Numbered {
        number,
        layout: LAYOUT,
        path: pins.generation(LAYOUT, number),
    };
    let generation = Generation::load(object::BYTES, options, shapes, &state.current.path, pin)?;
    // What aya has made or opened is what was declared: nobody slipped in between check and use.
    for name in map::STATE {
        state::open(&state.current, pins, shapes, name)?;
    }
    Ok(generation)
}

/// A failed system call as an error of a map.
fn map_error(map: &'static str, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Map { map, action, source }
}
