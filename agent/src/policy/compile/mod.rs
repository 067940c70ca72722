//! The compiler: changes of the world in, plans of map writes out.
//!
//! | file | what |
//! |---|---|
//! | `store` | policies and tiers, and which of them select which endpoint |
//! | `endpoint` | local pods and the tables that they obey |
//! | `lists` | rules of a policy, ready to be walked |
//! | `table`, `tables` | what policies say of all classes; the tables in use |
//! | `succeed` | a table takes another's place in the kernel, where little differs |
//! | `row`, `ports` | from rules to decisions by port |
//! | `rows`, `trace` | interned rows and lists of hits |
//! | `transition` | the order of operations |
//! | `capacity`, `loosen` | what happens when something does not fit |
//! | `report` | counts and dumps |
//!
//! Who peers are is settled in [`crate::identity`].

mod capacity;
mod dump;
mod endpoint;
mod lists;
mod loosen;
mod ports;
mod report;
mod row;
mod rows;
mod store;
mod succeed;
mod table;
mod tables;
mod trace;
mod transition;

use std::sync::Arc;

pub use report::{
    DecisionDump, DirectionDump, EndpointDump, IdentityDump, MapUse, PolicyRef, PortDecisionDump, RowDump, Sizes,
    Stats, TableDump,
};

use self::{capacity::Room, endpoint::Endpoints, rows::Rows, store::Store, tables::Tables, trace::Traces};
use super::{
    change::Change,
    model::Judgement,
    plan::{Capacity, Op, Plan},
};
use crate::identity::Identities;

/// Turns changes into plans. Execute the plans in order, each to its end.
#[derive(Debug)]
pub struct Compiler {
    capacity: Capacity,
    room: Room,
    serial: u64,
    executed: u64,
    identities: Identities,
    store: Store,
    endpoints: Endpoints,
    tables: Tables,
    rows: Rows,
    traces: Traces,
}

impl Compiler {
    /// `first_trace`: the lowest trace id it may use (above those of an earlier agent; at least 1).
    #[must_use]
    pub fn new(capacity: Capacity, first_trace: u32) -> Self {
        Self {
            capacity,
            room: Room::default(),
            serial: 0,
            executed: 0,
            identities: Identities::new(),
            store: Store::default(),
            endpoints: Endpoints::default(),
            tables: Tables::default(),
            rows: Rows::default(),
            traces: Traces::new(first_trace),
        }
    }

    /// Takes over changes, all at once: what is between the first and the last of them is never enforced.
    pub fn apply(&mut self, changes: Vec<Change>) -> Plan {
        self.serial += 1;
        self.tables
            .let_go(self.executed, &mut self.identities, &mut self.traces);
        self.retry();
        for change in changes {
            self.take(change);
        }
        self.endpoints.resolve(
            &mut self.store,
            &mut self.tables,
            &mut self.identities,
            &mut self.traces,
        );
        let mut grouping = self.identities.group();
        let mut plan = Plan {
            serial: self.serial,
            ..Plan::default()
        };
        let mut succession = self.succeed(&grouping, &mut plan);
        succession.renewed = self.identities.renew(&succession.classes, &mut grouping);
        let movement = self.identities.movement(grouping);
        let fresh = self.tables.fill(
            &movement.new_classes,
            &succession,
            &self.identities,
            &mut self.rows,
            &mut self.traces,
            &mut plan.add,
        );
        let movement = self.fit(movement, &fresh, &mut plan);
        self.transition(&movement, &succession.in_place, &mut plan);
        for &class in &movement.dead_classes {
            // A table with a row for a renewed class need not ask any more what makes the class.
            let key = self.identities.classes().get(class).map(|class| class.key.clone());
            let key = key.filter(|_| !succession.classes.contains(&class));
            self.tables
                .remove_class(class, key.as_ref(), &mut self.rows, &mut plan.remove);
        }
        self.identities.bury(&movement.dead_classes);
        self.tables.retire(self.serial, &mut self.rows, &mut plan.remove);
        self.sweep(&mut plan);
        self.count_removals(&plan);
        plan.renamed = self.traces.take_renamed();
        plan
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Tier(name, tier) => {
                if self.store.set_tier(name, tier) {
                    self.endpoints.touch_all();
                }
            }
            Change::Policy(key, policy) => {
                let change = self.store.set_policy(key.clone(), policy, &mut self.identities);
                self.endpoints.touch_views(&change.views, key, change.before);
                if let Some((number, policy)) = change.renamed {
                    self.traces.rename(number, &policy);
                }
            }
            Change::Namespace(name, labels) => {
                if self.identities.set_namespace(name.clone(), labels) {
                    self.endpoints.touch_namespace(&name);
                    // A namespace's labels are those of its network sets too.
                    if self.store.depends_on_sets() {
                        self.endpoints.touch_all();
                    }
                }
            }
            Change::ServiceAccount {
                namespace,
                name,
                labels,
            } => {
                if self.identities.set_service_account(namespace.clone(), name, labels) {
                    self.endpoints.touch_namespace(&namespace);
                }
            }
            Change::Peer(key, peer) => {
                if self.identities.set_peer(key.clone(), peer) {
                    self.endpoints.touch_key(&key);
                }
            }
            Change::NetworkSet(key, set) => {
                if self.identities.set_network_set(key, set) && self.store.depends_on_sets() {
                    self.endpoints.touch_all();
                }
            }
            Change::Endpoint(id, key) => {
                for table in self.endpoints.set(id, key, &mut self.store) {
                    self.tables.leave(table);
                }
            }
        }
    }

    /// Entries and counters that come and go, in front of what needs them and behind what needed them.
    fn sweep(&mut self, plan: &mut Plan) {
        self.rows.collect(&mut self.traces);
        self.traces.collect();
        let entries = self.rows.sweep();
        let (fresh, dead) = self.traces.sweep();
        let mut add: Vec<Op> = fresh.into_iter().map(Op::PutTrace).collect();
        for (row, entries) in entries.fresh {
            entries.put(row, &mut add);
        }
        add.append(&mut plan.add);
        plan.add = add;
        for (row, entries) in entries.dead {
            entries.delete(row, &mut plan.remove);
        }
        plan.remove.extend(dead.into_iter().map(Op::DeleteTrace));
    }

    /// The plan's remove phase is over, as are those of all plans before it. True: there is something left to tidy up;
    /// call [`Compiler::apply`] (with no changes) when there is time.
    pub fn executed(&mut self, serial: u64) -> bool {
        self.executed = self.executed.max(serial);
        self.identities.executed(self.executed);
        self.removed(self.executed);
        self.tables.has_retired(self.executed) || self.wants_retry()
    }

    /// What a trace id in a decision stands for. Known until the removal of its last decision was planned, and some
    /// time after.
    #[must_use]
    pub fn trace(&self, id: u32) -> Option<Arc<Judgement>> {
        self.traces.judgement(id)
    }

    /// Other maps than before (a new generation), to be filled with [`Compiler::full`]. What did not fit is tried again
    /// with the next [`Compiler::apply`].
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
        self.forget_frozen();
        self.room_appeared();
    }
}
