//! What the control loop says when it is asked for metrics: numbers that it has at hand.

use crate::{
    datapath::{Counters, MapUsage, Mode, SweepReport},
    policy::compile::Sizes,
};

/// One moment of the agent.
#[derive(Clone, Debug)]
pub struct Observation {
    pub ready: bool,
    pub audit: bool,
    pub attach: Mode,
    pub generation: u32,
    /// By kind; also kinds that have none.
    pub policies: Vec<(&'static str, u64)>,
    /// By kind; kinds that have none are not there.
    pub invalid_objects: Vec<(String, u64)>,
    /// Problems that are errors,
    pub errors: u64,
    /// and those that are not.
    pub warnings: u64,
    pub sizes: Sizes,
    pub endpoints: EndpointCounts,
    pub counters: Counters,
    pub maps: Vec<MapUsage>,
    pub shortages: u64,
    /// What the last sweep found. None: there was none yet.
    pub sweep: Option<SweepReport>,
}

/// Local pods by state ([`crate::control::query::EndpointState`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    pub enforced: u64,
    pub closed: u64,
    pub waiting: u64,
}
