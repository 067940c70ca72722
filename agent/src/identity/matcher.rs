//! The peer matches of live tables, and how an identity's class follows from them.
//!
//! A match differs between an identity and the world (addresses of nobody outside of all CIDRs) only if one of its
//! selectors matches an entity there, or one of its nets holds the region. So only matches posted under those are tried.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::{
    Identities,
    asked::{self, fields_of_match},
    class::ClassKey,
    region::{Chain, Cidr},
    slab::Slab,
    view::relevant_ports,
};
use crate::policy::{
    model::{Family, PeerMatch},
    selector::{Field, Selector},
};

#[derive(Debug)]
struct Matcher {
    references: usize,
    wanted: Arc<PeerMatch>,
    family: Option<Family>,
    selector: Option<u32>,
    not_selector: Option<u32>,
    /// Sorted.
    nets: Option<Box<[Cidr]>>,
    /// Sorted.
    not_nets: Box<[Cidr]>,
    /// Whether it matches the world of each family.
    world: [bool; 2],
    /// Classes with this match in their signature.
    classes: FxHashSet<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Matchers {
    matchers: Slab<Matcher>,
    ids: FxHashMap<Arc<PeerMatch>, u32>,
    by_selector: FxHashMap<u32, Vec<u32>>,
}

const fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

fn cidrs(nets: &[ipnet::IpNet]) -> Box<[Cidr]> {
    let mut cidrs: Vec<_> = nets.iter().filter_map(|&net| Cidr::new(net)).collect();
    cidrs.sort_unstable();
    cidrs.dedup();
    cidrs.into()
}

impl Matcher {
    /// `selectors`: held ones that match an entity at the address, sorted. `chain`: the prefixes that hold it.
    fn matches(&self, family: Family, selectors: &[u32], chain: &[Cidr]) -> bool {
        let matches = |selector: u32| selectors.binary_search(&selector).is_ok();
        let within = |nets: &[Cidr]| chain.iter().any(|cidr| nets.binary_search(cidr).is_ok());
        self.family.is_none_or(|own| own == family)
            && self.selector.is_none_or(matches)
            && !self.not_selector.is_some_and(matches)
            && self.nets.as_deref().is_none_or(within)
            && !within(&self.not_nets)
    }

    fn nets(&self) -> impl Iterator<Item = Cidr> {
        self.nets.iter().flatten().chain(&self.not_nets).copied()
    }
}

impl Matchers {
    pub(super) fn matches_world(&self, matcher: u32, family: Family) -> bool {
        self.matchers[matcher].world[index(family)]
    }

    pub(super) fn classes(&self, matcher: u32) -> impl Iterator<Item = u32> {
        self.matchers[matcher].classes.iter().copied()
    }

    pub(super) fn post_class(&mut self, class: u32, key: &ClassKey) {
        for &matcher in &key.signature {
            if let Some(matcher) = self.matchers.get_mut(matcher) {
                matcher.classes.insert(class);
            }
        }
    }

    pub(super) fn unpost_class(&mut self, class: u32, key: &ClassKey) {
        for &matcher in &key.signature {
            if let Some(matcher) = self.matchers.get_mut(matcher) {
                matcher.classes.remove(&class);
            }
        }
    }
}

impl Identities {
    /// A policy exists that asks this of peers: from the next settling on they are told apart by it.
    pub fn ask(&mut self, wanted: &PeerMatch) {
        fields_of_match(wanted, &mut |field| self.ask_field(field));
    }

    /// Takes back one [`Identities::ask`].
    pub fn unask(&mut self, wanted: &PeerMatch) {
        fields_of_match(wanted, &mut |field| self.unask_field(field));
    }

    /// Where all that look the same have the same value, they go on to: their view gets the field, and nobody moves.
    fn ask_field(&mut self, field: &Field) {
        if !self.asked.add(field) {
            return;
        }
        let Some(asked) = self.asked.field(field).cloned() else {
            return;
        };
        let users = self.entities.with_field(field);
        let mut values: FxHashMap<u32, (Box<str>, usize)> = FxHashMap::default();
        for &id in &users {
            let entity = self.entities.value(id, field);
            let Some((Some(view), value)) = entity else {
                continue;
            };
            let same = values.entry(view).or_insert_with(|| (value.into(), 0));
            same.1 += usize::from(*same.0 == *value);
        }
        values.retain(|view, (value, count)| {
            let all = self.entities.users_of(*view) == *count;
            all && self.index.extend_view(*view, &asked, value)
        });
        for id in users {
            let view = self.entities.entities[id].view;
            if view.is_none_or(|view| !values.contains_key(&view)) {
                self.dirty.entities.insert(id);
            }
        }
    }

    fn unask_field(&mut self, field: &Field) {
        for field in self.asked.remove(field) {
            self.dirty.entities.extend(self.entities.with_field(&field));
        }
    }

    /// A policy exists that asks peers for a port of that name.
    pub fn ask_port(&mut self, name: &Arc<str>) {
        if self.asked.add_port(name) {
            self.dirty.entities.extend(self.entities.with_port(name));
        }
    }

    /// Takes back one [`Identities::ask_port`].
    pub fn unask_port(&mut self, name: &Arc<str>) {
        if self.asked.remove_port(name) {
            self.dirty.entities.extend(self.entities.with_port(name));
        }
    }

    /// A live table asks peers for a port of that name: their classes differ by it.
    pub fn hold_port(&mut self, name: &Arc<str>) {
        self.ask_port(name);
        let count = self.live_ports.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 {
            self.touch_identities_with_port(name);
        }
    }

    /// Takes back one [`Identities::hold_port`].
    pub fn release_port(&mut self, name: &Arc<str>) {
        if let Some(count) = self.live_ports.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.live_ports.remove(name);
                self.touch_identities_with_port(name);
            }
        }
        self.unask_port(name);
    }

    fn touch_identities_with_port(&mut self, name: &str) {
        for view in self.index.views_with_port(name) {
            self.dirty
                .identities
                .extend(self.by_view.get(&view).into_iter().flatten());
        }
    }

    /// A live table has this match: from the next settling on classes differ by it. Its number stays until as many
    /// [`Identities::release`].
    pub fn hold(&mut self, wanted: &PeerMatch) -> u32 {
        if let Some(&id) = self.matchers.ids.get(wanted) {
            self.matchers.matchers[id].references += 1;
            return id;
        }
        let wanted = Arc::new(wanted.clone());
        let matcher = Matcher {
            references: 1,
            family: wanted.family,
            selector: wanted.selector.as_ref().map(|selector| self.hold_selector(selector)),
            not_selector: wanted
                .not_selector
                .as_ref()
                .map(|selector| self.hold_selector(selector)),
            nets: wanted.nets.as_deref().map(cidrs),
            not_nets: cidrs(&wanted.not_nets),
            world: [false; 2],
            classes: FxHashSet::default(),
            wanted: wanted.clone(),
        };
        let world = [
            matcher.matches(Family::V4, &[], &[Cidr::V4]),
            matcher.matches(Family::V6, &[], &[Cidr::V6]),
        ];
        let nets: SmallVec<[Cidr; 4]> = matcher.nets().collect();
        let selectors: SmallVec<[u32; 2]> = matcher.selector.into_iter().chain(matcher.not_selector).collect();
        let id = self.matchers.matchers.insert(Matcher { world, ..matcher });
        self.matchers.ids.insert(wanted, id);
        self.dirty.matchers.insert(id);
        for selector in selectors {
            self.matchers.by_selector.entry(selector).or_default().push(id);
            self.touch_selector(selector);
        }
        for cidr in nets {
            self.add_region(cidr);
            if let Some(region) = self.regions.get_mut(cidr) {
                region.matchers.push(id);
            }
            if cidr != cidr.root() {
                self.touch_identities_in(cidr);
            }
        }
        id
    }

    /// Takes back one [`Identities::hold`]. No table in the kernel may depend on it any more: classes that only this
    /// match told apart become one.
    pub fn release(&mut self, id: u32) {
        let matcher = &mut self.matchers.matchers[id];
        matcher.references -= 1;
        if matcher.references > 0 {
            return;
        }
        let Some(matcher) = self.matchers.matchers.remove(id) else {
            return;
        };
        self.matchers.ids.remove(&matcher.wanted);
        self.dirty.matchers.remove(&id);
        for cidr in matcher.nets() {
            if let Some(region) = self.regions.get_mut(cidr) {
                region.matchers.retain(|other| *other != id);
            }
            self.release_region(cidr);
        }
        for selector in matcher.selector.into_iter().chain(matcher.not_selector) {
            if let Some(list) = self.matchers.by_selector.get_mut(&selector) {
                list.retain(|other| *other != id);
                if list.is_empty() {
                    self.matchers.by_selector.remove(&selector);
                }
            }
            self.release_selector(selector);
        }
        for class in matcher.classes {
            self.forget_in_class(class, id);
        }
    }

    /// A class whose signature loses a match.
    fn forget_in_class(&mut self, id: u32, matcher: u32) {
        let Some(class) = self.classes.get_mut(id) else {
            return;
        };
        let mut key = class.key.clone();
        key.signature = key.signature.into_iter().filter(|own| *own != matcher).collect();
        if class.keyed && self.classes.find(&key).is_none() {
            self.classes.rekey(id, key);
            return;
        }
        // Another class is like this one now: its members join that.
        self.classes.unkey(id);
        if let Some(class) = self.classes.get_mut(id) {
            class.key = key;
            self.dirty.identities.extend(&class.members);
        }
    }

    fn hold_selector(&mut self, selector: &Selector) -> u32 {
        // First, so that the views it is tried on have all that it asks for.
        asked::fields(selector, &mut |field| self.ask_field(field));
        let (id, new) = self.index.hold_selector(selector);
        if !new {
            asked::fields(selector, &mut |field| self.unask_field(field));
        }
        id
    }

    fn release_selector(&mut self, id: u32) {
        if let Some((selector, views)) = self.index.release_selector(id) {
            asked::fields(&selector, &mut |field| self.unask_field(field));
            self.touch_sets(&views);
        }
    }

    /// Whoever a selector matches may be matched differently.
    fn touch_selector(&mut self, selector: u32) {
        let views: FxHashSet<u32> = self.index.views_of(selector).collect();
        for view in &views {
            self.dirty
                .identities
                .extend(self.by_view.get(view).into_iter().flatten());
        }
        self.touch_sets(&views);
    }

    fn touch_sets(&mut self, views: &FxHashSet<u32>) {
        for &id in &self.entities.sets {
            let view = self.entities.entities[id].view;
            if view.is_some_and(|view| views.contains(&view)) {
                self.dirty.sets.insert(id);
            }
        }
    }

    /// What makes the class of an identity, as of now.
    pub(super) fn class_key(&self, id: u32) -> ClassKey {
        let identity = self.identity(id);
        let family = identity.region.family();
        let chain: Chain = self.regions.chain(identity.region);
        let mut selectors: Vec<u32> = Vec::new();
        let mut candidates: Vec<u32> = Vec::new();
        if let Some(view) = identity.view {
            selectors.extend(self.index.selectors_of(view));
        }
        for cidr in &chain {
            let Some(region) = self.regions.get(*cidr) else {
                continue;
            };
            for &set in &region.sets {
                if let Some(view) = self.entities.entities[set].view {
                    selectors.extend(self.index.selectors_of(view));
                }
            }
            if *cidr != cidr.root() {
                candidates.extend(&region.matchers);
            }
        }
        selectors.sort_unstable();
        selectors.dedup();
        for selector in &selectors {
            candidates.extend(self.matchers.by_selector.get(selector).into_iter().flatten());
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|&candidate| {
            let matcher = &self.matchers.matchers[candidate];
            matcher.matches(family, &selectors, &chain) != matcher.world[index(family)]
        });
        let ports = identity.view.map_or(&[][..], |view| &self.index.view(view).ports);
        let ports = relevant_ports(ports, |name| self.live_ports.contains_key(name));
        ClassKey {
            family,
            signature: candidates.into(),
            ports: if ports.is_empty() {
                self.classes.no_ports()
            } else {
                ports.into()
            },
        }
    }
}
