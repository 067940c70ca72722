//! What does not fit is never cut silently.
//!
//! The entries that the maps will hold at a plan's fullest moment are counted before anything is decided. Tables that
//! do not fit are refused: an endpoint goes on under its old table if the new one only allows more, and is closed in that
//! direction otherwise. If addresses, prefixes or identities do not fit, nobody can be told who peers are: every
//! direction that asks is closed, and the maps stay as they are, until there is room.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use ipnet::IpNet;
use rustc_hash::FxHashSet;
use weir_common::{layout::map, policy::RowKey};

use super::{
    Compiler, MapUse,
    loosen::{Full, allows_all_of},
    store::DIRECTIONS,
};
use crate::{
    identity::Movement,
    policy::plan::{Capacity, Op, Plan, Shortage},
};

/// Room in the maps.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Entries whose removal was planned, and is not executed.
    pending: VecDeque<(u64, MapUse)>,
    /// What the address and prefix maps held when they could not be kept up to date any more.
    frozen: Option<Frozen>,
    /// What did not fit may fit now.
    retry: bool,
    /// What has not fitted since the last try.
    standing: Vec<Standing>,
}

#[derive(Debug)]
struct Standing {
    /// Endpoint and direction; None: all.
    whose: Option<(u32, usize)>,
    shortage: Shortage,
}

#[derive(Debug, Default)]
struct Frozen {
    addresses: FxHashSet<IpAddr>,
    cidrs: FxHashSet<IpNet>,
}

type Need = (&'static str, usize, usize);

/// What tables need.
fn table_needs(used: &MapUse, capacity: &Capacity) -> [Need; 4] {
    [
        (map::ROWS, used.rows, capacity.rows),
        (map::DECISIONS, used.decisions, capacity.decisions),
        (map::SOURCE_PORTS, used.source_ports, capacity.source_ports),
        (map::TRACES, used.traces, capacity.traces),
    ]
}

/// What addresses need.
fn address_needs(used: &MapUse, capacity: &Capacity) -> [Need; 3] {
    [
        (map::ADDRESSES, used.addresses, capacity.addresses),
        (map::CIDRS, used.cidrs, capacity.cidrs),
        (map::IDENTITIES, used.identities, capacity.identities),
    ]
}

fn first_over(needs: &[Need]) -> Option<Need> {
    needs.iter().copied().find(|&(_, needed, capacity)| needed > capacity)
}

fn removals(ops: &[Op]) -> MapUse {
    let mut gone = MapUse::default();
    for op in ops {
        match op {
            Op::DeleteRow(_) => gone.rows += 1,
            Op::DeleteDecision(_) => gone.decisions += 1,
            Op::DeleteSourcePort { .. } => gone.source_ports += 1,
            Op::DeleteTrace(_) => gone.traces += 1,
            _ => {}
        }
    }
    gone
}

impl Compiler {
    /// Tries again what did not fit, if there may be room for it now.
    pub(super) fn retry(&mut self) {
        if std::mem::take(&mut self.room.retry) {
            self.room.standing.clear();
            self.endpoints.touch_short();
        }
    }

    /// There may be room now.
    pub(super) fn room_appeared(&mut self) {
        self.room.retry = self.endpoints.any_short();
    }

    /// Whether [`Compiler::retry`] has something to try.
    pub(super) fn wants_retry(&self) -> bool {
        self.room.retry
    }

    /// Other maps, filled from [`Compiler::full`].
    pub(super) fn forget_frozen(&mut self) {
        self.room.frozen = None;
    }

    /// The removals of these plans are executed.
    pub(super) fn removed(&mut self, serial: u64) {
        let mut some = false;
        while let Some((_, gone)) = self.room.pending.front().filter(|(planned, _)| *planned <= serial) {
            some |= *gone != MapUse::default();
            self.room.pending.pop_front();
        }
        if some {
            self.room_appeared();
        }
    }

    /// Counts what a plan removes: it takes room until that is executed.
    pub(super) fn count_removals(&mut self, plan: &Plan) {
        self.room.pending.push_back((plan.serial, removals(&plan.remove)));
    }

    /// Entries of tables in the maps, with those that wait for their removal.
    fn table_peak(&self, planned: &[Op]) -> MapUse {
        let mut used = self.map_use();
        let mut dead = removals(planned);
        (dead.decisions, dead.source_ports) = self.rows.dying();
        dead.traces = self.traces.dying();
        for gone in self.room.pending.iter().map(|(_, gone)| gone).chain([&dead]) {
            used.rows += gone.rows;
            used.decisions += gone.decisions;
            used.source_ports += gone.source_ports;
            used.traces += gone.traces;
        }
        used
    }

    /// Whether the maps for tables are too small as things stand.
    pub(super) fn tables_overflow(&self) -> bool {
        first_over(&table_needs(&self.table_peak(&[]), &self.capacity)).is_some()
    }

    /// Entries in the maps at the fullest moment, as things stand.
    fn peak(&self, movement: &Movement, plan: &Plan) -> MapUse {
        let mut used = self.table_peak(&plan.remove);
        used.addresses += movement.addresses.iter().filter(|moved| moved.to.is_none()).count();
        used.cidrs += movement.cidrs_removed.len();
        // What a plan borrows for a moment is at most one identity for each that moves.
        let moving = if movement.identities.is_empty() {
            0
        } else {
            movement.addresses.len()
        };
        used.identities = self.identities.identity_slots() + moving;
        used
    }

    /// Whether so many rows more fit.
    pub(super) fn room_for_rows(&self, more: usize) -> bool {
        let pending: usize = self.room.pending.iter().map(|(_, gone)| gone.rows).sum();
        self.tables.row_count + pending + more <= self.capacity.rows
    }

    /// Refuses what does not fit. `fresh`: tables that the kernel does not have. Returns what may move.
    pub(super) fn fit(&mut self, movement: Movement, fresh: &[u32], plan: &mut Plan) -> Movement {
        self.rows.collect(&mut self.traces);
        self.traces.collect();
        let mut fresh = fresh.to_vec();
        while let Some(need) = first_over(&table_needs(&self.peak(&movement, plan), &self.capacity)) {
            let victim = fresh.pop().or_else(|| self.tables.numbered(most_rows(&plan.add)?));
            let Some(victim) = victim else {
                break;
            };
            self.refuse(victim, need, plan);
            self.rows.collect(&mut self.traces);
            self.traces.collect();
        }
        let over = first_over(&address_needs(&self.peak(&movement, plan), &self.capacity));
        let movement = match (over, self.room.frozen.take()) {
            (None, None) => movement,
            (None, Some(frozen)) => self.thaw(frozen, movement, plan),
            (Some(need), frozen) => {
                self.room.frozen = Some(frozen.unwrap_or_else(|| self.freeze(&movement)));
                self.close_asking(need);
                still(movement)
            }
        };
        self.room.standing.retain(|standing| match standing.whose {
            Some((endpoint, direction)) => self.endpoints.is_short(endpoint, direction),
            // After a thaw they open with the next plan.
            None => over.is_some() || self.endpoints.any_short(),
        });
        let standing = self.room.standing.iter();
        plan.shortages = standing.map(|standing| standing.shortage.clone()).collect();
        movement
    }

    /// Takes a table out; its endpoints keep the one that they had, if the new one only allows more, or are closed.
    fn refuse(&mut self, id: u32, (map, needed, capacity): Need, plan: &mut Plan) {
        let mut put: FxHashSet<RowKey> = FxHashSet::default();
        let number = self.tables.tables.get(&id).map(|table| table.number);
        plan.add.retain(|op| match op {
            Op::PutRow(key, _) if Some(key.table) == number => {
                put.insert(*key);
                false
            }
            _ => true,
        });
        for (endpoint, at) in self.endpoints.obeying(id) {
            let told = self.endpoints.told_table(endpoint, at).filter(|&told| told != id);
            let kept = told.filter(|&told| self.loosens(told, id));
            self.tables.join(kept);
            self.tables.leave(Some(id));
            self.endpoints.withhold(endpoint, at, kept);
            let name = self.endpoints.name(endpoint);
            let direction = if at == DIRECTIONS[0] as usize {
                "egress"
            } else {
                "ingress"
            };
            let consequence = match kept {
                Some(_) => format!("new {direction} rules of {name}, which only allow more, are put off"),
                None => format!("{direction} of {name} is closed"),
            };
            let whose = Some((endpoint, at));
            self.room.standing.retain(|standing| standing.whose != whose);
            self.room.standing.push(Standing {
                whose,
                shortage: Shortage {
                    map,
                    needed,
                    capacity,
                    consequence,
                },
            });
        }
        self.tables
            .refuse(id, plan.serial, &put, &mut self.rows, &mut plan.remove);
    }

    /// Whether a table allows all that another allows, to and from everybody.
    fn loosens(&self, old: u32, new: u32) -> bool {
        let (Some(old), Some(new)) = (self.tables.tables.get(&old), self.tables.tables.get(&new)) else {
            return false;
        };
        let full = |row: u32| Full {
            row: self.rows.row(row),
            entries: self.rows.entries(row),
        };
        let keeps = |class: Option<u32>| {
            let row = |table: &super::table::Table| class.map_or(table.default_row, |class| table.row_of(class));
            allows_all_of(full(row(new)), full(row(old)))
        };
        let classes = old.rows.keys().chain(new.rows.keys());
        keeps(None) && classes.into_iter().all(|&class| keeps(Some(class)))
    }

    /// Remembers what the maps hold before the plan at hand.
    fn freeze(&self, movement: &Movement) -> Frozen {
        let mut frozen = Frozen {
            addresses: self.identities.addresses().map(|(address, _)| address).collect(),
            cidrs: self.identities.cidrs().map(|(cidr, _)| cidr.net()).collect(),
        };
        for moved in &movement.addresses {
            let address = crate::identity::region::address(moved.number);
            match moved.from {
                Some(_) => frozen.addresses.insert(address),
                None => frozen.addresses.remove(&address),
            };
        }
        for added in &movement.cidrs_added {
            frozen.cidrs.remove(&added.cidr.net());
        }
        frozen
            .cidrs
            .extend(movement.cidrs_removed.iter().map(|removed| removed.cidr.net()));
        frozen
    }

    /// Closes every direction that asks who peers are.
    fn close_asking(&mut self, (map, needed, capacity): Need) {
        for (endpoint, direction, table) in self.endpoints.directions() {
            if self.tables.tables.get(&table).is_none_or(super::table::Table::is_flat) {
                continue;
            }
            self.tables.leave(Some(table));
            self.endpoints.withhold(endpoint, direction, None);
        }
        self.room.standing.retain(|standing| standing.whose.is_some());
        self.room.standing.push(Standing {
            whose: None,
            shortage: Shortage {
                map,
                needed,
                capacity,
                consequence: "every direction of a pod whose policies ask who its peers are is closed".into(),
            },
        });
    }

    /// Brings the maps up to date with everything that happened while they could not be.
    fn thaw(&mut self, frozen: Frozen, movement: Movement, plan: &mut Plan) -> Movement {
        for (identity, class, local_node, ..) in self.identities.iter() {
            plan.add.push(Op::PutIdentity {
                identity,
                class,
                local_node,
            });
        }
        // Nobody asks meanwhile, so what is stale can make room first.
        let (mut addresses, mut cidrs) = (frozen.addresses, frozen.cidrs);
        for (address, _) in self.identities.addresses() {
            addresses.remove(&address);
        }
        for (cidr, _) in self.identities.cidrs() {
            cidrs.remove(&cidr.net());
        }
        plan.flip.extend(addresses.into_iter().map(Op::DeleteAddress));
        plan.flip.extend(cidrs.into_iter().map(Op::DeleteCidr));
        let addresses = self.identities.addresses();
        plan.flip
            .extend(addresses.map(|(address, identity)| Op::PutAddress(address, identity)));
        let cidrs = self.identities.cidrs();
        plan.flip
            .extend(cidrs.map(|(cidr, identity)| Op::PutCidr(cidr.net(), identity)));
        self.room_appeared();
        still(movement)
    }
}

/// The number of the table that gets the most rows.
fn most_rows(add: &[Op]) -> Option<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for op in add {
        if let Op::PutRow(key, _) = op {
            *counts.entry(key.table).or_default() += 1;
        }
    }
    counts
        .into_iter()
        .max_by_key(|&(_, count)| count)
        .map(|(table, _)| table)
}

/// Nothing moves in the maps, whatever happened.
fn still(movement: Movement) -> Movement {
    Movement {
        new_classes: movement.new_classes,
        dead_classes: movement.dead_classes,
        dead_identities: movement.dead_identities,
        ..Movement::default()
    }
}
