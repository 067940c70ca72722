//! What the programs tell the agent through the ring buffer.

use crate::{conntrack::CtKey, pod, policy::Decision};

/// What an event says.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A flow was allowed and has an entry now.
    Started = 1,
    /// The first denied packet of a flow; the following ones are counted in the denial map.
    Denied = 2,
    /// The flow closed (FIN both ways, RST, abort), or was cut. Time-outs are found by the agent's sweep.
    Ended = 3,
}

/// One record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC` (coarse), ns.
    pub time: u64,
    /// When the flow's entry was made, ns (`Ended`).
    pub created: u64,
    pub key: CtKey,
    pub decision: Decision,
    /// [`EventKind`]
    pub kind: u8,
    /// [`crate::reason::Reason`]
    pub reason: u8,
    /// [`crate::Direction`] of the packet.
    pub direction: u8,
    /// TCP flags of the packet, or 0.
    pub tcp_flags: u8,
    /// [`crate::conntrack::CtEntry`] flags.
    pub flags: u16,
    /// ICMP: type << 8 | code.
    pub icmp: u16,
    pub ifindex: u32,
    /// By direction: packets and bytes of the flow so far (`Ended`), of this packet otherwise.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
}

/// Value of the denial map (its key is the flow's [`CtKey`]): repeated denials are counted, not repeated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DenialEntry {
    /// First and last denied packet, ns.
    pub first: u64,
    pub last: u64,
    pub packets: u64,
    pub bytes: u64,
    pub decision: Decision,
    /// The endpoint's epoch: a changed policy is a new denial.
    pub epoch: u32,
    pub reason: u8,
    pub direction: u8,
    pub icmp: u16,
    /// Of an open flow that was cut: [`DenialEntry::OPENED_BY_POD`] or [`DenialEntry::OPENED_BY_PEER`]; else 0.
    pub cut: u32,
}

impl DenialEntry {
    pub const OPENED_BY_POD: u32 = 1;
    pub const OPENED_BY_PEER: u32 = 2;

    /// When it is forgotten, ns: [`DENIAL_LIFETIME`] or [`CUT_LIFETIME`] after its last packet.
    #[inline(always)]
    #[must_use]
    pub const fn forgotten_at(last: u64, cut: u32) -> u64 {
        last.saturating_add(if cut == 0 { DENIAL_LIFETIME } else { CUT_LIFETIME })
    }
}

/// A denial that has been silent for this long is a new one when it comes again, ns.
pub const DENIAL_LIFETIME: u64 = 60_000_000_000;

/// For how long the end of a cut flow is remembered after its last packet, ns: longer than TCP goes on repeating a segment
/// (`tcp_retries2` of 15 is 924.6 s, the last two repetitions 120 s apart), as a late repetition must not pass for a new flow.
pub const CUT_LIFETIME: u64 = 1_000_000_000_000;

const _: () = assert!(size_of::<Event>() == 104);
const _: () = assert!(size_of::<DenialEntry>() == 48);
pod!(Event, DenialEntry);
