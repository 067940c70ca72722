//! From one consistent state to the next: the order of operations.
//!
//! What a packet meets is `row(table of its endpoint, class of its peer)`, and an update changes both: addresses and
//! identities move to other classes, endpoints flip to other tables. Each flow must have its old verdict until one
//! operation gives it the new one.
//!
//! - Rows, classes and identities that are new are made first: nothing leads to them.
//! - An identity's class is changed only when every address that leaves it has left, and before those that join it
//!   come: such addresses take their way over an identity made for the moment.
//! - Prefixes come the most specific first and go the least specific first, so that an address in several of them sees
//!   none of those between.
//! - Addresses move before endpoints flip. That is right where the old tables have equal rows for the old and the new class:
//!   a new policy only tells apart what the old ones did not. Where they differ (a namespace's labels decide both whom
//!   policies select and whom they allow) whatever moves takes its way over a class made for the moment, which has
//!   the old class's row in the tables that endpoints leave and the new class's row in all others. Old tables that
//!   also stay in use are replaced by a twin for those who stay or come. (If the rows for that do not fit, the endpoints
//!   that flip are closed for the moment.)
//! - A table that took over from another differs from it in renewed classes alone: it is not left, and what moves into
//!   those classes has the new decisions with that move.
//! - Epochs grow last.

use rustc_hash::{FxHashMap, FxHashSet};

use super::Compiler;
use crate::{
    identity::{ClassKey, Movement, region},
    policy::plan::{EndpointPolicy, Op, Plan},
};

/// Rows that are worth making for a moment; beyond it the endpoints that flip are closed while it lasts.
const LARGEST_DETOUR: usize = 1 << 16;

/// (Old class, new class).
type Pair = (u32, u32);

/// The classes that something moves between, each pair once.
fn pairs(movement: &Movement) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = movement
        .addresses
        .iter()
        .map(|moved| (moved.old_class, moved.new_class))
        .chain(
            movement
                .cidrs_added
                .iter()
                .map(|moved| (moved.old_class, moved.new_class)),
        )
        .chain(
            movement
                .cidrs_removed
                .iter()
                .map(|moved| (moved.old_class, moved.new_class)),
        )
        .chain(
            movement
                .identities
                .iter()
                .map(|moved| (moved.old_class, moved.new_class)),
        )
        .filter(|&(old, new)| old != new && old != 0)
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// Identities and classes for a moment.
#[derive(Debug, Default)]
struct Passage {
    /// By (class, of this node).
    identities: FxHashMap<(u32, bool), u32>,
    /// The class for a moment, by the classes it stands between.
    classes: FxHashMap<Pair, u32>,
}

impl Passage {
    fn class(&self, old: u32, new: u32) -> u32 {
        self.classes.get(&(old, new)).copied().unwrap_or(new)
    }
}

impl Compiler {
    /// Orders what moved and which endpoints flip. `in_place`: tables that took over from others, and differ from them in
    /// some classes that were renewed.
    pub(super) fn transition(&mut self, movement: &Movement, in_place: &[u32], plan: &mut Plan) {
        let pairs = pairs(movement);
        let leaving = self.leaving();
        let mut passage = Passage::default();
        let conflict = self.conflict(&pairs, &leaving);
        let detour = conflict && self.has_room_for_detour(&pairs, &leaving);
        if detour {
            self.replace_shared(&leaving, plan);
            for &(old, new) in &pairs {
                let class = self.identities.fresh_class_id();
                self.lend_rows(class, (old, new), &leaving, plan);
                passage.classes.insert((old, new), class);
            }
        }
        let flips = self.flips();
        // What is closed must not meet classes for which it has no rows.
        let closing = flips
            .iter()
            .filter_map(|policy| self.closing(policy, conflict && !detour));
        plan.flip.extend(closing.map(Op::SetPolicy));
        let moving: FxHashSet<u32> = movement.identities.iter().map(|moved| moved.identity).collect();
        self.put_identities(movement, &passage, plan);
        let last = self.move_addresses(movement, &moving, &mut passage, plan);
        for moved in &movement.cidrs_added {
            plan.flip.push(Op::PutCidr(moved.cidr.net(), moved.identity));
        }
        for moved in &movement.identities {
            plan.flip.push(Op::PutIdentity {
                identity: moved.identity,
                class: passage.class(moved.old_class, moved.new_class),
                local_node: moved.local_node,
            });
        }
        if detour {
            for moved in &movement.cidrs_removed {
                plan.flip.push(Op::PutIdentity {
                    identity: moved.identity,
                    class: passage.class(moved.old_class, moved.new_class),
                    local_node: false,
                });
            }
            plan.flip.extend(flips.iter().map(|&policy| Op::SetPolicy(policy)));
            let settled = movement.identities.iter();
            let settled = settled.map(|moved| (moved.identity, moved.new_class, moved.local_node));
            let added = movement.cidrs_added.iter();
            let added = added.map(|moved| (moved.identity, moved.new_class, false));
            for (identity, class, local_node) in settled.chain(added) {
                plan.flip.push(Op::PutIdentity {
                    identity,
                    class,
                    local_node,
                });
            }
        }
        for moved in &movement.cidrs_removed {
            plan.flip.push(Op::DeleteCidr(moved.cidr.net()));
        }
        plan.flip.extend(last);
        if !detour {
            plan.flip.extend(flips.iter().map(|&policy| Op::SetPolicy(policy)));
        }
        let flipped: FxHashSet<u32> = flips.iter().map(|policy| policy.endpoint).collect();
        self.bump_epochs(&pairs, in_place, &flipped, plan);
        for policy in flips {
            if let Some(endpoint) = self.endpoints.get_mut(policy.endpoint) {
                endpoint.told = Some(policy);
                endpoint.told_tables = endpoint.wanted;
            }
        }
        for class in passage.classes.into_values() {
            self.tables.remove_class(class, None, &mut self.rows, &mut plan.remove);
        }
        let borrowed = passage
            .identities
            .into_values()
            .chain(movement.dead_identities.iter().copied());
        self.identities.retire_ids(borrowed, plan.serial);
    }

    /// Tables that an endpoint, told about them, obeys no longer.
    fn leaving(&self) -> FxHashSet<u32> {
        let mut leaving = FxHashSet::default();
        for (_, endpoint) in self.endpoints.iter() {
            for (told, wanted) in endpoint.told_tables.iter().zip(&endpoint.wanted) {
                if told != wanted {
                    leaving.extend(*told);
                }
            }
        }
        leaving
    }

    /// Whether something moves between classes that a table has different rows for while endpoints leave that table.
    fn conflict(&self, pairs: &[Pair], leaving: &FxHashSet<u32>) -> bool {
        let mut leaving = leaving.iter().filter_map(|id| self.tables.tables.get(id));
        leaving.any(|table| pairs.iter().any(|&(old, new)| table.row_of(old) != table.row_of(new)))
    }

    /// Whether rows for classes of a moment fit. If not, endpoints that flip are closed for that moment instead.
    fn has_room_for_detour(&self, pairs: &[Pair], leaving: &FxHashSet<u32>) -> bool {
        let twins = leaving.iter().filter_map(|id| self.tables.tables.get(id));
        let twins: usize = twins.map(|table| table.rows.len() + pairs.len()).sum();
        let more = twins + pairs.len() * self.tables.tables.len();
        more <= LARGEST_DETOUR && self.room_for_rows(more)
    }

    /// Tables that some endpoints leave while others stay or come get a twin for those.
    fn replace_shared(&mut self, leaving: &FxHashSet<u32>, plan: &mut Plan) {
        let mut shared: Vec<u32> = leaving.iter().copied().collect();
        shared.sort_unstable();
        for id in shared {
            if self.tables.tables.get(&id).is_none_or(|table| table.users == 0) {
                continue;
            }
            let twin = self
                .tables
                .duplicate(id, &mut self.traces, &mut self.rows, &mut plan.add);
            let Some(twin) = twin else {
                continue;
            };
            let users: Vec<u32> = self.endpoints.iter().map(|(id, _)| id).collect();
            for user in users {
                let Some(endpoint) = self.endpoints.get_mut(user) else {
                    continue;
                };
                for wanted in &mut endpoint.wanted {
                    if *wanted == Some(id) {
                        *wanted = Some(twin);
                        self.tables.join(Some(twin));
                        self.tables.leave(Some(id));
                    }
                }
            }
        }
    }

    /// Rows of a class for a moment: as before in tables that are left, as after in all others.
    fn lend_rows(&mut self, class: u32, (old, new): Pair, leaving: &FxHashSet<u32>, plan: &mut Plan) {
        let mut tables: Vec<u32> = self.tables.tables.keys().copied().collect();
        tables.sort_unstable();
        for id in tables {
            let table = &self.tables.tables[&id];
            let row = table.row_of(if leaving.contains(&id) { old } else { new });
            self.tables.lend_row(id, class, row, &mut self.rows, &mut plan.add);
        }
    }

    fn put_identities(&self, movement: &Movement, passage: &Passage, plan: &mut Plan) {
        let detours: FxHashMap<u32, u32> = movement
            .cidrs_added
            .iter()
            .map(|moved| (moved.identity, passage.class(moved.old_class, moved.new_class)))
            .collect();
        for &(identity, class, local_node) in &movement.fresh {
            plan.add.push(Op::PutIdentity {
                identity,
                class: detours.get(&identity).copied().unwrap_or(class),
                local_node,
            });
        }
    }

    /// Moves addresses; returns what has to wait for the end.
    fn move_addresses(
        &mut self,
        movement: &Movement,
        moving: &FxHashSet<u32>,
        passage: &mut Passage,
        plan: &mut Plan,
    ) -> Vec<Op> {
        let mut last = Vec::new();
        for moved in &movement.addresses {
            let address = region::address(moved.number);
            let end = moved
                .to
                .map_or(Op::DeleteAddress(address), |to| Op::PutAddress(address, to));
            let busy = |identity: Option<u32>| identity.is_some_and(|identity| moving.contains(&identity));
            let class = passage.class(moved.old_class, moved.new_class);
            let direct = !busy(moved.to) && class == moved.new_class && passage.classes.is_empty();
            if direct && moved.to.is_some() {
                plan.flip.push(end);
                continue;
            }
            if passage.classes.is_empty() && moved.to.is_none() && !busy(moved.from) {
                last.push(end);
                continue;
            }
            let identities = &mut self.identities;
            let identity = *passage.identities.entry((class, moved.local_node)).or_insert_with(|| {
                let identity = identities.borrow_id();
                plan.add.push(Op::PutIdentity {
                    identity,
                    class,
                    local_node: moved.local_node,
                });
                identity
            });
            plan.flip.push(Op::PutAddress(address, identity));
            last.push(end);
        }
        last
    }

    /// New decisions of endpoints, in order of their ids.
    fn flips(&self) -> Vec<EndpointPolicy> {
        let endpoints = self.endpoints.sorted().into_iter();
        endpoints
            .map(|(id, endpoint)| (self.policy_of(id, endpoint.wanted), endpoint.told))
            .filter(|(policy, told)| Some(*policy) != *told)
            .map(|(policy, _)| policy)
            .collect()
    }

    /// What it was told, with the directions closed that were open and are to be closed; `all`: those that flip too.
    fn closing(&self, policy: &EndpointPolicy, all: bool) -> Option<EndpointPolicy> {
        let told = self.endpoints.get(policy.endpoint).and_then(|endpoint| endpoint.told)?;
        let closing = EndpointPolicy {
            egress_closed: told.egress_closed || policy.egress_closed || all && told.egress != policy.egress,
            ingress_closed: told.ingress_closed || policy.ingress_closed || all && told.ingress != policy.ingress,
            ..told
        };
        (closing != told).then_some(closing)
    }

    /// What the kernel is told of an endpoint that obeys these tables.
    pub(super) fn policy_of(&self, endpoint: u32, [egress, ingress]: [Option<u32>; 2]) -> EndpointPolicy {
        let table = |id: Option<u32>| id.and_then(|id| self.tables.tables.get(&id));
        let (egress, ingress) = (table(egress), table(ingress));
        EndpointPolicy {
            endpoint,
            egress: egress.map_or_else(Default::default, |table| table.direction_policy(&self.rows)),
            ingress: ingress.map_or_else(Default::default, |table| table.direction_policy(&self.rows)),
            egress_isolated: egress.is_some_and(|table| !table.key.tiers.is_empty()),
            ingress_isolated: ingress.is_some_and(|table| !table.key.tiers.is_empty()),
            egress_closed: egress.is_none(),
            ingress_closed: ingress.is_none(),
        }
    }

    /// Endpoints that keep their tables, but whose tables have other rows for something that moved.
    fn bump_epochs(&self, pairs: &[Pair], in_place: &[u32], flipped: &FxHashSet<u32>, plan: &mut Plan) {
        let mut changed: FxHashSet<u32> = FxHashSet::default();
        for &(old, new) in pairs {
            let key = |class: u32| -> Option<&ClassKey> { Some(&self.identities.classes().get(class)?.key) };
            let (Some(old_key), Some(new_key)) = (key(old), key(new)) else {
                continue;
            };
            let telling_apart = self.tables.telling_apart(old_key, new_key);
            for &id in telling_apart.iter().chain(in_place) {
                if !changed.contains(&id)
                    && let Some(table) = self.tables.tables.get(&id)
                    && table.row_of(old) != table.row_of(new)
                {
                    changed.insert(id);
                }
            }
        }
        if changed.is_empty() {
            return;
        }
        for (id, endpoint) in self.endpoints.sorted() {
            let obeys = |table: &Option<u32>| table.is_some_and(|table| changed.contains(&table));
            if !flipped.contains(&id) && endpoint.wanted.iter().any(obeys) {
                plan.flip.push(Op::BumpEpoch { endpoint: id });
            }
        }
    }
}
