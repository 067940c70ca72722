//! Per-CPU counters that every packet passes.

use crate::{Direction, pod, reason::Reason};

/// Value of the counter array; index by [`index`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Length of the counter array.
pub const COUNTERS: u32 = Reason::LIMIT as u32 * 2;

/// Where the packets of one reason and direction are counted.
#[inline(always)]
#[must_use]
pub const fn index(reason: Reason, direction: Direction) -> u32 {
    reason as u32 * 2 + direction as u32
}

/// Things that are counted but are no packets. Index of the second counter array (one `u64` each).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tally {
    /// Entries put into the unconfirmed connection map.
    Unconfirmed = 0,
    /// Entries put into the confirmed connection map.
    Confirmed = 1,
    /// Entries deleted by the programs from the unconfirmed map (promoted, replaced or cut).
    UnconfirmedDeleted = 2,
    /// Entries deleted by the programs from the confirmed map.
    ConfirmedDeleted = 3,
    /// Events that did not fit into the ring buffer.
    LostEvents = 4,
}

/// Length of the tally array.
pub const TALLIES: u32 = 8;

const _: () = assert!(size_of::<Counter>() == 16);
pod!(Counter);
