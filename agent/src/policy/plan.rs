//! What the compiler wants done, as data: add, flip, remove.
//!
//! The executor (datapath/) runs `add` in order, then `flip`, and `remove` only after a grace period in which every
//! program that began before the flip has ended. After `add` nothing that a packet can meet has changed; every single
//! `flip` leaves each endpoint with its old or its new decision for each peer.

use std::net::IpAddr;

use ipnet::IpNet;
use weir_common::policy::{Decision, DecisionKey, DirectionPolicy, Row, RowKey, SourceClass};

/// One write to a map.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Makes the counter of a trace.
    PutTrace(u32),
    PutDecision(DecisionKey, Decision),
    PutSourcePort {
        row: u32,
        protocol: u8,
        prefix: u8,
        port: u16,
        class: SourceClass,
    },
    PutRow(RowKey, Row),
    PutIdentity {
        identity: u32,
        class: u32,
        local_node: bool,
    },
    PutAddress(IpAddr, u32),
    PutCidr(IpNet, u32),
    /// New decisions for an endpoint. Always with a new epoch.
    SetPolicy(EndpointPolicy),
    /// Some address means something else to this endpoint now: known flows must be judged again.
    BumpEpoch {
        endpoint: u32,
    },

    DeleteTrace(u32),
    DeleteDecision(DecisionKey),
    DeleteSourcePort {
        row: u32,
        protocol: u8,
        prefix: u8,
        port: u16,
    },
    DeleteRow(RowKey),
    DeleteAddress(IpAddr),
    DeleteCidr(IpNet),
}

/// The policy part of an endpoint's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicy {
    pub endpoint: u32,
    pub egress: DirectionPolicy,
    pub ingress: DirectionPolicy,
    /// Some policy selects the endpoint in that direction.
    pub egress_isolated: bool,
    pub ingress_isolated: bool,
    /// The direction's decisions do not fit into the maps: it must be closed.
    pub egress_closed: bool,
    pub ingress_closed: bool,
}

/// A whole update, from one consistent state to the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Grows by one with every plan.
    pub serial: u64,
    pub add: Vec<Op>,
    pub flip: Vec<Op>,
    pub remove: Vec<Op>,
    /// Traces in force that say something else now: rules with other names.
    pub renamed: Vec<u32>,
    /// Where capacity made the compiler withhold something: for status, metrics and Events.
    pub shortages: Vec<Shortage>,
}

/// How many entries the maps can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub addresses: usize,
    pub cidrs: usize,
    pub identities: usize,
    pub rows: usize,
    pub decisions: usize,
    pub source_ports: usize,
    pub traces: usize,
}

/// A change that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Which map ([`weir_common::layout::map`]).
    pub map: &'static str,
    pub needed: usize,
    pub capacity: usize,
    /// What was done instead: an endpoint's direction closed, a loosening change put off.
    pub consequence: String,
}
