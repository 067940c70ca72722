//! After changes: who moved where.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Identities, class::ClassKey, region::Cidr};

/// What a settling changed. "Old" is what the kernel holds before the plan, "new" after it.
#[derive(Debug, Default)]
pub struct Movement {
    /// (Identity, class, of this node): in use from now on, in nobody's hand before.
    pub fresh: Vec<(u32, u32, bool)>,
    pub addresses: Vec<AddressMove>,
    /// The most specific first.
    pub cidrs_added: Vec<CidrMove>,
    /// The least specific first.
    pub cidrs_removed: Vec<CidrMove>,
    /// Identities in use before and after, with another class.
    pub identities: Vec<IdentityMove>,
    pub new_classes: Vec<u32>,
    /// Nobody is in them any more. They are forgotten by [`Identities::bury`].
    pub dead_classes: Vec<u32>,
    /// In nobody's hand after the plan.
    pub dead_identities: Vec<u32>,
}

/// An address of a pod or node.
#[derive(Clone, Copy, Debug)]
pub struct AddressMove {
    pub number: u128,
    /// Its identity in the address map; None: it is not there.
    pub from: Option<u32>,
    pub to: Option<u32>,
    pub old_class: u32,
    pub new_class: u32,
    pub local_node: bool,
}

/// A prefix that comes or goes, with what its addresses of nobody are before and after.
#[derive(Clone, Copy, Debug)]
pub struct CidrMove {
    pub cidr: Cidr,
    /// Of the prefix itself.
    pub identity: u32,
    pub old_class: u32,
    pub new_class: u32,
}

/// An identity that stays in use.
#[derive(Clone, Copy, Debug)]
pub struct IdentityMove {
    pub identity: u32,
    pub old_class: u32,
    pub new_class: u32,
    pub local_node: bool,
}

/// Who belongs to which class from now on, not in force yet.
#[derive(Debug)]
pub struct Grouping {
    /// Prefixes that go and that the kernel has, with their identities.
    removed: Vec<(Cidr, u32)>,
    new_classes: Vec<u32>,
}

impl Grouping {
    /// Classes that this made.
    #[must_use]
    pub fn new_classes(&self) -> &[u32] {
        &self.new_classes
    }
}

/// (Address, identity that it has, view and region that it belongs to).
type Target = (u128, Option<u32>, Option<(u32, Cidr)>);

impl Identities {
    /// Brings everything up to date with what was said since the last time, but for who is in which class:
    /// [`Identities::movement`] does that.
    pub fn group(&mut self) -> Grouping {
        self.look_again();
        let removed = self.remove_regions();
        self.place_addresses();
        let new_classes = self.classify();
        Grouping { removed, new_classes }
    }

    /// Lets classes go on under other ids. Returns (new id -> old id); those that nobody will be in are left out.
    pub fn renew(&mut self, classes: &[u32], grouping: &mut Grouping) -> FxHashMap<u32, u32> {
        let mut going: FxHashMap<u32, Vec<u32>> = classes.iter().map(|&class| (class, Vec::new())).collect();
        if going.is_empty() {
            return FxHashMap::default();
        }
        let staying = classes.iter().filter_map(|&class| self.classes.get(class));
        let concerned = staying.flat_map(|class| &class.members).chain(&self.dirty.identities);
        for &id in concerned {
            if let Some(identity) = self.identities[id as usize].as_ref()
                && identity.references > 0
                && let Some(members) = going.get_mut(&identity.next)
            {
                members.push(id);
            }
        }
        let mut renewed = FxHashMap::default();
        for &old in classes {
            let members = going.remove(&old).unwrap_or_default();
            let Some(key) = self.classes.get(old).map(|class| class.key.clone()) else {
                continue;
            };
            if members.is_empty() {
                continue;
            }
            self.classes.unkey(old);
            self.matchers.post_class(self.classes.next_id(), &key);
            let new = self.classes.create(key);
            for id in members {
                self.identity_mut(id).next = new;
                self.dirty.identities.insert(id);
            }
            grouping.new_classes.push(new);
            renewed.insert(new, old);
        }
        renewed
    }

    /// Puts a grouping into force.
    pub fn movement(&mut self, grouping: Grouping) -> Movement {
        self.move_identities(grouping.removed, grouping.new_classes)
    }

    /// Forgets classes in which nobody is.
    pub fn bury(&mut self, classes: &[u32]) {
        for &id in classes {
            if let Some(class) = self.classes.remove(id) {
                self.matchers.unpost_class(id, &class.key);
            }
        }
    }

    /// New views for changed entities; prefixes of network sets come and go with the selectors that match them.
    fn look_again(&mut self) {
        for id in std::mem::take(&mut self.dirty.entities) {
            let Some(entity) = self.entities.entities.get(id) else {
                continue;
            };
            let old = entity.view;
            let view = self.entities.view(id, &self.asked);
            if old.is_some_and(|old| **self.index.view(old) == view) {
                continue;
            }
            let view = self.index.hold_view(view);
            let entity = &mut self.entities.entities[id];
            entity.view = Some(view);
            self.entities.count_users(old, Some(view));
            if self.entities.sets.contains(&id) {
                self.dirty.sets.insert(id);
            }
            for number in self.entities.entities[id].addresses.clone() {
                self.touch(number);
            }
            if let Some(old) = old {
                self.index.release_view(old);
            }
        }
        for id in std::mem::take(&mut self.dirty.sets) {
            let Some(set) = self.entities.entities.get_mut(id) else {
                continue;
            };
            let matched = |view| !self.index.selectors_of(view).is_empty();
            let active = set.view.is_some_and(matched);
            let was = std::mem::replace(&mut set.active, active);
            for cidr in set.nets.clone() {
                match (was, active) {
                    (false, true) => self.hold_set_net(cidr, id),
                    (true, false) => self.release_set_net(cidr, id),
                    (true, true) => self.touch_identities_in(cidr),
                    (false, false) => {}
                }
            }
        }
    }

    /// Takes prefixes without references out. Returns those that the kernel has.
    fn remove_regions(&mut self) -> Vec<(Cidr, u32)> {
        let mut loose = std::mem::take(&mut self.dirty.loose);
        loose.sort_unstable();
        loose.dedup();
        loose.retain(|&cidr| self.regions.get(cidr).is_some_and(|region| region.references == 0));
        for &cidr in &loose {
            let range: Vec<u128> = self.addresses_in(cidr).map(|(number, _)| number).collect();
            for number in range {
                self.touch(number);
            }
        }
        let mut removed = Vec::new();
        for cidr in loose {
            let Some(region) = self.regions.remove(cidr) else {
                continue;
            };
            self.identity_mut(region.world).references = 0;
            if region.before.is_none() {
                removed.push((cidr, region.world));
            }
            // Identities of pods in it keep standing until their addresses have been placed.
            for identity in region.identities.into_values() {
                self.dirty.identities.insert(identity);
            }
        }
        removed
    }

    /// Gives touched addresses the identity that is theirs now.
    fn place_addresses(&mut self) {
        let mut targets: Vec<Target> = Vec::new();
        for &number in self.dirty.addresses.keys() {
            let target = self
                .owner(number)
                .and_then(|owner| Some((self.entities.entities[owner].view?, self.regions.of(number))));
            let current = self.addresses.get(&number).and_then(|address| address.identity);
            targets.push((number, current, target));
        }
        // The same ids whatever the order in which a hash map gives the addresses.
        targets.sort_unstable();
        let mut groups: FxHashMap<u32, (Option<(u32, Cidr)>, usize)> = FxHashMap::default();
        for &(_, current, target) in &targets {
            if let Some(current) = current {
                let group = groups.entry(current).or_insert((target, 0));
                if group.0 == target {
                    group.1 += 1;
                }
            }
        }
        for &(_, current, _) in &targets {
            // Where everybody with an identity goes to a place that nobody is at, the identity goes there.
            let Some((current, (Some((view, region)), count))) = current.and_then(|id| Some((id, *groups.get(&id)?)))
            else {
                continue;
            };
            groups.remove(&current);
            if count == self.identity(current).references {
                self.carry(current, view, region);
            }
        }
        for (number, current, target) in targets {
            let identity = target.map(|(view, region)| self.identity_at(view, region));
            self.placed = self.placed + usize::from(identity.is_some()) - usize::from(current.is_some());
            if identity == current {
                if identity.is_none() {
                    self.forget_address(number);
                }
                continue;
            }
            if let Some(identity) = identity {
                self.identity_mut(identity).references += 1;
                self.addresses.entry(number).or_default().identity = Some(identity);
            } else {
                if let Some(address) = self.addresses.get_mut(&number) {
                    address.identity = None;
                }
                self.forget_address(number);
            }
            if let Some(current) = current {
                self.identity_mut(current).references -= 1;
                self.dirty.identities.insert(current);
            }
        }
    }

    fn forget_address(&mut self, number: u128) {
        if self.addresses.get(&number).is_some_and(|it| it.claims.is_empty()) {
            self.addresses.remove(&number);
        }
    }

    /// Lets an identity mean another view or region.
    fn carry(&mut self, id: u32, view: u32, region: Cidr) {
        let (old_view, old_region) = match self.identity(id) {
            identity if identity.view == Some(view) && identity.region == region => return,
            identity => (identity.view, identity.region),
        };
        let Some(old_view) = old_view else {
            return;
        };
        let taken = self
            .regions
            .get(region)
            .is_none_or(|at| at.identities.contains_key(&view));
        if taken || self.index.view(view).local_node != self.index.view(old_view).local_node {
            return;
        }
        if let Some(old) = self.regions.get_mut(old_region)
            && old.identities.get(&old_view) == Some(&id)
        {
            old.identities.remove(&old_view);
        }
        if let Some(new) = self.regions.get_mut(region) {
            new.identities.insert(view, id);
        }
        self.index.retain_view(view);
        self.leave_view(old_view, id);
        self.by_view.entry(view).or_default().insert(id);
        let identity = self.identity_mut(id);
        identity.view = Some(view);
        identity.region = region;
        self.dirty.identities.insert(id);
    }

    fn leave_view(&mut self, view: u32, id: u32) {
        if let Some(identities) = self.by_view.get_mut(&view) {
            identities.remove(&id);
            if identities.is_empty() {
                self.by_view.remove(&view);
            }
        }
        self.index.release_view(view);
    }

    fn identity_at(&mut self, view: u32, region: Cidr) -> u32 {
        let known = self
            .regions
            .get(region)
            .and_then(|at| at.identities.get(&view).copied());
        known.unwrap_or_else(|| {
            let id = self.new_identity(Some(view), region);
            if let Some(at) = self.regions.get_mut(region) {
                at.identities.insert(view, id);
            }
            id
        })
    }

    /// Finds the class of identities that may have another one now. Returns the classes that this made.
    fn classify(&mut self) -> Vec<u32> {
        let mut dirty: Vec<u32> = self.dirty.identities.iter().copied().collect();
        dirty.sort_unstable();
        let mut groups: Vec<(ClassKey, Vec<u32>)> = Vec::new();
        let mut by_key: FxHashMap<ClassKey, usize> = FxHashMap::default();
        for id in dirty {
            let alive = self.identities[id as usize]
                .as_ref()
                .is_some_and(|identity| identity.references > 0);
            if !alive {
                continue;
            }
            let key = self.class_key(id);
            let at = *by_key.entry(key).or_insert_with_key(|key| {
                groups.push((key.clone(), Vec::new()));
                groups.len() - 1
            });
            groups[at].1.push(id);
        }
        let mut new = Vec::new();
        // Classes that somebody joins as they are: they cannot become others.
        let joined: FxHashSet<u32> = groups.iter().filter_map(|(key, _)| self.classes.find(key)).collect();
        for (key, members) in groups {
            let known = self.classes.find(&key);
            let class = match known.or_else(|| self.grow_class(&key, &members, &joined)) {
                Some(class) => class,
                None => {
                    self.matchers.post_class(self.classes.next_id(), &key);
                    let class = self.classes.create(key);
                    new.push(class);
                    class
                }
            };
            for id in members {
                self.identity_mut(id).next = class;
            }
        }
        new
    }

    /// A class whose members all got the same new matches and nothing else is still the same for all tables that there
    /// were: it goes on under its new key.
    fn grow_class(&mut self, key: &ClassKey, members: &[u32], joined: &FxHashSet<u32>) -> Option<u32> {
        let id = self.identity(*members.first()?).class;
        let class = self.classes.get(id)?;
        let news = &self.dirty.matchers;
        let grown = class.keyed
            && !joined.contains(&id)
            && class.members.len() == members.len()
            && members.iter().all(|member| class.members.contains(member))
            && class.key.family == key.family
            && class.key.ports == key.ports
            && class
                .key
                .signature
                .iter()
                .all(|matcher| key.signature.binary_search(matcher).is_ok())
            && key
                .signature
                .iter()
                .all(|matcher| class.key.signature.binary_search(matcher).is_ok() || news.contains(matcher));
        if !grown {
            return None;
        }
        self.classes.rekey(id, key.clone());
        self.matchers.post_class(id, key);
        Some(id)
    }

    fn move_identities(&mut self, removed: Vec<(Cidr, u32)>, new_classes: Vec<u32>) -> Movement {
        let mut movement = Movement {
            new_classes,
            ..Movement::default()
        };
        self.address_moves(&mut movement);
        self.cidr_moves(removed, &mut movement);
        let mut left: FxHashSet<u32> = FxHashSet::default();
        let mut dirty: Vec<u32> = self.dirty.identities.drain().collect();
        dirty.sort_unstable();
        for id in dirty {
            let Some(identity) = self.identities[id as usize].as_ref() else {
                continue;
            };
            let (alive, fresh, old, new, view) = (
                identity.references > 0,
                identity.fresh,
                identity.class,
                identity.next,
                identity.view,
            );
            if !alive {
                if fresh {
                    self.free.push(id);
                } else {
                    movement.dead_identities.push(id);
                    left.insert(old);
                }
                self.drop_identity(id);
                continue;
            }
            let local_node = view.is_some_and(|view| self.index.view(view).local_node);
            if fresh {
                movement.fresh.push((id, new, local_node));
            } else if old != new {
                movement.identities.push(IdentityMove {
                    identity: id,
                    old_class: old,
                    new_class: new,
                    local_node,
                });
            }
            if old != new {
                left.insert(old);
                if let Some(class) = self.classes.get_mut(old) {
                    class.members.remove(&id);
                }
                if let Some(class) = self.classes.get_mut(new) {
                    class.members.insert(id);
                }
            }
            let identity = self.identity_mut(id);
            identity.class = new;
            identity.fresh = false;
        }
        let deserted = |class: &u32| self.classes.get(*class).is_some_and(|class| class.members.is_empty());
        movement.dead_classes = left.into_iter().filter(deserted).collect();
        movement.dead_classes.sort_unstable();
        self.dirty.matchers.clear();
        movement
    }

    fn address_moves(&mut self, movement: &mut Movement) {
        for (number, (from, effective)) in std::mem::take(&mut self.dirty.addresses) {
            let to = self.addresses.get(&number).and_then(|address| address.identity);
            if from == to {
                continue;
            }
            let after = to.or_else(|| Some(self.regions.get(self.regions.of(number))?.world));
            let view = to.and_then(|to| self.identity(to).view);
            movement.addresses.push(AddressMove {
                number,
                from,
                to,
                old_class: self.identity(effective).class,
                new_class: after.map_or(0, |after| self.identity(after).next),
                local_node: view.is_some_and(|view| self.index.view(view).local_node),
            });
        }
        movement.addresses.sort_unstable_by_key(|moved| moved.number);
    }

    fn cidr_moves(&mut self, removed: Vec<(Cidr, u32)>, movement: &mut Movement) {
        for cidr in std::mem::take(&mut self.dirty.added) {
            let Some(region) = self.regions.get_mut(cidr) else {
                continue;
            };
            let Some(before) = region.before.take() else {
                continue;
            };
            let world = region.world;
            movement.cidrs_added.push(CidrMove {
                cidr,
                identity: world,
                old_class: self.identity(before).class,
                new_class: self.identity(world).next,
            });
        }
        movement
            .cidrs_added
            .sort_by_key(|added| std::cmp::Reverse(added.cidr.length()));
        for (cidr, identity) in removed {
            let around = self.regions.get(self.regions.around(cidr)).map(|region| region.world);
            self.dirty.identities.insert(identity);
            movement.cidrs_removed.push(CidrMove {
                cidr,
                identity,
                old_class: self.identity(identity).class,
                new_class: around.map_or(0, |around| self.identity(around).next),
            });
        }
        movement.cidrs_removed.sort_by_key(|removed| removed.cidr.length());
    }

    fn drop_identity(&mut self, id: u32) {
        let Some(identity) = self.identities[id as usize].take() else {
            return;
        };
        if let Some(class) = self.classes.get_mut(identity.class) {
            class.members.remove(&id);
        }
        if let Some(view) = identity.view {
            if let Some(region) = self.regions.get_mut(identity.region)
                && region.identities.get(&view) == Some(&id)
            {
                region.identities.remove(&view);
            }
            self.leave_view(view, id);
        }
    }
}
