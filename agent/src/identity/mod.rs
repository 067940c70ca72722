//! Peers (pods, sets, CIDRs, nodes) -> identities -> classes. Pure.
//!
//! | file | what |
//! |---|---|
//! | `region` | policy CIDRs; each address lies in one most specific one |
//! | `asked` | what policies ask of peers |
//! | `view` | an entity, cut down to what is asked |
//! | `index` | which selectors match which views |
//! | `entity` | what is known of pods, nodes, sets, namespaces; who claims which address |
//! | `matcher` | the peer matches of live tables, and which identities they match |
//! | `class` | identities that no live table tells apart |
//! | `settle` | after changes: who moved where |
//!
//! An **identity** is a view (or nobody) in a region. A **class** is a set of identities of one family that the same live
//! peer matches tell from the rest of the world. Class ids are never given out again; identity ids are, once
//! nothing in the kernel can hold them ([`Identities::executed`]).

pub mod asked;
mod class;
mod entity;
pub(crate) mod index;
mod matcher;
pub mod region;
mod settle;
pub mod slab;
pub mod view;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

pub use class::{Class, ClassKey};
pub use settle::{AddressMove, CidrMove, Grouping, IdentityMove, Movement};

use self::{
    asked::Asked,
    class::Classes,
    entity::Entities,
    index::Index,
    matcher::Matchers,
    region::{Cidr, Regions},
};
use crate::policy::model::Family;

/// All that is known of addresses.
#[derive(Debug)]
pub struct Identities {
    asked: Asked,
    index: Index,
    entities: Entities,
    matchers: Matchers,
    classes: Classes,
    addresses: BTreeMap<u128, Address>,
    regions: Regions<Region>,
    identities: Vec<Option<Identity>>,
    /// Identity ids that may be given out again.
    free: Vec<u32>,
    /// Those that may be so once the plan of that serial is executed.
    quarantine: VecDeque<(u64, u32)>,
    by_view: FxHashMap<u32, FxHashSet<u32>>,
    /// Addresses with an identity.
    placed: usize,
    /// Names of ports that live tables ask of peers.
    live_ports: FxHashMap<Arc<str>, usize>,
    dirty: Dirty,
}

#[derive(Debug, Default)]
struct Address {
    /// (Seniority, entity), ascending: the last has it.
    claims: SmallVec<[(u64, u32); 1]>,
    identity: Option<u32>,
}

#[derive(Debug)]
struct Identity {
    view: Option<u32>,
    region: Cidr,
    /// Addresses that have it; for addresses of nobody 1.
    references: usize,
    class: u32,
    /// The class that it gets when this settling ends.
    next: u32,
    /// Made by this settling.
    fresh: bool,
}

#[derive(Debug)]
struct Region {
    references: usize,
    /// Identity of the region's addresses of nobody.
    world: u32,
    /// By view.
    identities: FxHashMap<u32, u32>,
    /// Active network sets with this prefix.
    sets: SmallVec<[u32; 1]>,
    /// Live matches with this prefix among their nets or not-nets.
    matchers: SmallVec<[u32; 2]>,
    /// Inserted since the last settling: the identity that its addresses of nobody had before.
    before: Option<u32>,
}

/// What changed since the last settling.
#[derive(Debug, Default)]
struct Dirty {
    entities: FxHashSet<u32>,
    /// Network sets whose selectors may match differently.
    sets: FxHashSet<u32>,
    identities: FxHashSet<u32>,
    /// By address: the identity it had of its own, and the one it had in effect.
    addresses: FxHashMap<u128, (Option<u32>, u32)>,
    added: Vec<Cidr>,
    /// May be without references.
    loose: Vec<Cidr>,
    matchers: FxHashSet<u32>,
}

impl Default for Identities {
    fn default() -> Self {
        Self::new()
    }
}

impl Identities {
    /// Nobody has an address, no CIDR splits the families.
    #[must_use]
    pub fn new() -> Self {
        let mut new = Self {
            asked: Asked::default(),
            index: Index::default(),
            entities: Entities::default(),
            matchers: Matchers::default(),
            classes: Classes::new(),
            addresses: BTreeMap::new(),
            regions: Regions::new(),
            identities: Vec::new(),
            free: Vec::new(),
            quarantine: VecDeque::new(),
            by_view: FxHashMap::default(),
            placed: 0,
            live_ports: FxHashMap::default(),
            dirty: Dirty::default(),
        };
        new.add_region(Cidr::V4);
        new.add_region(Cidr::V6);
        new
    }

    #[must_use]
    pub const fn classes(&self) -> &Classes {
        &self.classes
    }

    /// Whether a live match matches addresses of nobody outside of all CIDRs: a class's signature tells who differs.
    #[must_use]
    pub fn matches_world(&self, matcher: u32, family: Family) -> bool {
        self.matchers.matches_world(matcher, family)
    }

    /// Classes that a live match tells from the world.
    pub fn classes_of(&self, matcher: u32) -> impl Iterator<Item = u32> {
        self.matchers.classes(matcher)
    }

    #[must_use]
    pub fn entities(&self) -> &Entities {
        &self.entities
    }

    /// Identities in use: (id, class, of this node, region, what policies see of it).
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, bool, Cidr, Option<&Arc<view::View>>)> {
        self.identities.iter().enumerate().filter_map(|(id, identity)| {
            let identity = identity.as_ref()?;
            let view = identity.view.map(|view| self.index.view(view));
            let local_node = view.is_some_and(|view| view.local_node);
            Some((id as u32, identity.class, local_node, identity.region, view))
        })
    }

    /// Pod and node addresses and their identities.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.addresses
            .iter()
            .filter_map(|(&number, address)| Some((region::address(number), address.identity?)))
    }

    /// Policy CIDRs and their identities.
    pub fn cidrs(&self) -> impl Iterator<Item = (Cidr, u32)> {
        self.regions.iter().map(|(cidr, region)| (cidr, region.world))
    }

    /// The class of an identity that is in use.
    #[must_use]
    pub fn class_of(&self, identity: u32) -> Option<u32> {
        Some(self.identities.get(identity as usize)?.as_ref()?.class)
    }

    /// A class id for a moment: used by a plan between its first and last operation.
    pub fn fresh_class_id(&mut self) -> u32 {
        self.classes.fresh_id()
    }

    /// An identity id for a moment: used by a plan between its first and last operation.
    pub fn borrow_id(&mut self) -> u32 {
        self.allocate()
    }

    /// Gives back ids that no kernel program can hold once the plan of `serial` is executed.
    pub fn retire_ids(&mut self, ids: impl IntoIterator<Item = u32>, serial: u64) {
        self.quarantine.extend(ids.into_iter().map(|id| (serial, id)));
    }

    /// The plan of that serial, and all before it, are executed.
    pub fn executed(&mut self, serial: u64) {
        while let Some(&(_, id)) = self.quarantine.front().filter(|(freed, _)| *freed <= serial) {
            self.free.push(id);
            self.quarantine.pop_front();
        }
    }

    /// Pod and node addresses with an identity.
    #[must_use]
    pub const fn address_count(&self) -> usize {
        self.placed
    }

    #[must_use]
    pub fn cidr_count(&self) -> usize {
        self.regions.count()
    }

    /// Identities in use, and those that wait to be given out again.
    #[must_use]
    pub fn identity_count(&self) -> usize {
        self.identities.len() - self.free.len()
    }

    /// Highest identity id given out so far, plus one.
    #[must_use]
    pub fn identity_slots(&self) -> usize {
        self.identities.len()
    }

    fn allocate(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.identities.push(None);
            (self.identities.len() - 1) as u32
        })
    }

    fn identity(&self, id: u32) -> &Identity {
        self.identities[id as usize].as_ref().expect("an identity in use")
    }

    fn identity_mut(&mut self, id: u32) -> &mut Identity {
        self.identities[id as usize].as_mut().expect("an identity in use")
    }

    fn new_identity(&mut self, view: Option<u32>, region: Cidr) -> u32 {
        let id = self.allocate();
        self.identities[id as usize] = Some(Identity {
            view,
            region,
            references: usize::from(view.is_none()),
            class: 0,
            next: 0,
            fresh: true,
        });
        if let Some(view) = view {
            self.index.retain_view(view);
            self.by_view.entry(view).or_default().insert(id);
        }
        self.dirty.identities.insert(id);
        id
    }

    fn add_region(&mut self, cidr: Cidr) {
        if let Some(region) = self.regions.get_mut(cidr) {
            region.references += 1;
            return;
        }
        let before = self.regions.get(self.regions.around(cidr)).map(Region::world_before);
        let range: Vec<u128> = self.addresses_in(cidr).map(|(number, _)| number).collect();
        for number in range {
            self.touch(number);
        }
        let world = self.new_identity(None, cidr);
        self.regions.insert(
            cidr,
            Region {
                references: 1,
                world,
                identities: FxHashMap::default(),
                sets: SmallVec::new(),
                matchers: SmallVec::new(),
                before: before.or(Some(world)),
            },
        );
        self.dirty.added.push(cidr);
    }

    fn release_region(&mut self, cidr: Cidr) {
        if let Some(region) = self.regions.get_mut(cidr) {
            region.references -= 1;
            if region.references == 0 {
                self.dirty.loose.push(cidr);
            }
        }
    }

    fn addresses_in(&self, cidr: Cidr) -> impl Iterator<Item = (u128, &Address)> {
        let root = cidr.root();
        self.addresses
            .range(cidr.numbers())
            .map(|(&number, address)| (number, address))
            .filter(move |&(number, _)| root == Cidr::V4 || !Cidr::V4.numbers().contains(&number))
    }

    /// Remembers what an address was before this settling.
    fn touch(&mut self, number: u128) {
        if self.dirty.addresses.contains_key(&number) {
            return;
        }
        let own = self.addresses.get(&number).and_then(|address| address.identity);
        let effective = own.or_else(|| {
            let region = self.regions.get(self.regions.of(number))?;
            Some(region.world_before())
        });
        if let Some(effective) = effective {
            self.dirty.addresses.insert(number, (own, effective));
        }
    }

    /// Everybody in a prefix may be matched differently.
    fn touch_identities_in(&mut self, cidr: Cidr) {
        for (_, region) in self.regions.within(cidr) {
            self.dirty.identities.insert(region.world);
            self.dirty.identities.extend(region.identities.values());
        }
    }
}

impl Region {
    const fn world_before(&self) -> u32 {
        match self.before {
            Some(before) => before,
            None => self.world,
        }
    }
}
