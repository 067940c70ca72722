//! The compiler: changes of the world in, plans of map writes out.

mod report;

use std::sync::Arc;

pub use report::{
    DecisionDump, DirectionDump, EndpointDump, IdentityDump, MapUse, PolicyRef, PortDecisionDump, RowDump, Stats,
    TableDump,
};

use super::{
    change::Change,
    model::Judgement,
    plan::{Capacity, Plan},
};

/// Turns changes into plans. Execute the plans in order, each to its end.
#[derive(Debug)]
pub struct Compiler {
    capacity: Capacity,
    next_trace: u32,
}

impl Compiler {
    /// `first_trace`: the lowest trace id it may use (above those of an earlier agent; at least 1).
    #[must_use]
    pub fn new(capacity: Capacity, first_trace: u32) -> Self {
        Self {
            capacity,
            next_trace: first_trace.max(1),
        }
    }

    /// Takes over changes, all at once: what is between the first and the last of them is never enforced.
    pub fn apply(&mut self, changes: Vec<Change>) -> Plan {
        let _ = (changes, self.capacity, self.next_trace);
        Plan::default()
    }

    /// The plan's remove phase is over. True: there is something left to tidy up; call [`Compiler::apply`] (with no
    /// changes) when there is time.
    pub fn executed(&mut self, serial: u64) -> bool {
        let _ = serial;
        false
    }

    /// What a trace id in a decision stands for. Known until the removal of its last decision was executed, and some
    /// time after.
    #[must_use]
    pub fn trace(&self, id: u32) -> Option<Arc<Judgement>> {
        let _ = id;
        None
    }

    /// Everything in force, for maps that are empty: what a new generation is filled with. The same ids as before.
    #[must_use]
    pub fn full(&self) -> Plan {
        Plan::default()
    }

    /// Other maps than before (a new generation). What did not fit is tried again with the next [`Compiler::apply`].
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointDump> {
        Vec::new()
    }

    /// One endpoint.
    #[must_use]
    pub fn endpoint(&self, id: u32) -> Option<EndpointDump> {
        let _ = id;
        None
    }

    #[must_use]
    pub fn identities(&self) -> Vec<IdentityDump> {
        Vec::new()
    }

    #[must_use]
    pub fn tables(&self) -> Vec<TableDump> {
        Vec::new()
    }
}
