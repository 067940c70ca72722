//! When to speak of a flow that lasts, that timed out, or that is denied again and again.
//!
//! Nothing is remembered per flow: an entry knows when it began, and a sweep knows when the last sweep was, so
//! whether a minute of the flow ended in between is arithmetic.

use weir_common::{
    conntrack::{CtEntry, CtKey, State},
    event::DenialEntry,
};

use super::record::{Context, FlowRecord};

/// How often a flow that lasts is reported, ns.
pub const PERIOD: u64 = 60_000_000_000;

/// One walk over the tables.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// When the walk before this one was, `CLOCK_MONOTONIC`, ns.
    pub previous: u64,
    /// When this one began.
    pub now: u64,
}

impl Sweep {
    /// Whether `time` came after the last sweep and not after this one.
    const fn covers(&self, time: u64) -> bool {
        self.previous < time && time <= self.now
    }

    /// The last full period since `start` that ended between the last sweep and this one.
    const fn period_end(&self, start: u64) -> Option<u64> {
        let Some(age) = self.now.checked_sub(start) else {
            return None;
        };
        let end = start + age / PERIOD * PERIOD;
        if end > start && self.covers(end) {
            Some(end)
        } else {
            None
        }
    }

    /// What to say of an entry of the connection table, if anything: that the flow lasts, or that it timed out.
    #[must_use]
    pub fn connection(&self, context: &Context<'_>, key: &CtKey, entry: &CtEntry) -> Option<FlowRecord> {
        if entry.flags & CtEntry::STUB != 0 {
            return None;
        }
        let state = entry.state(key.protocol());
        if state == State::Closed {
            // Its end was an event; the entry only waits for late packets.
            return None;
        }
        let expiry = entry.last_seen() + CtEntry::lifetime(key.protocol(), state);
        if expiry < self.now {
            return self
                .covers(expiry)
                .then(|| context.connection(key, entry, true, self.now));
        }
        self.period_end(entry.created)
            .map(|_| context.connection(key, entry, false, self.now))
    }

    /// What to say of an entry of the denial map, if anything. Its first packet was an event; a flow that was denied
    /// again in the minute that ended is told of with the count so far. (A denial is forgotten after
    /// [`weir_common::event::DENIAL_LIFETIME`] of silence, which is a period: so every packet gets into a count.)
    #[must_use]
    pub fn denial(&self, context: &Context<'_>, key: &CtKey, entry: &DenialEntry) -> Option<FlowRecord> {
        let end = self.period_end(entry.first)?;
        (entry.packets > 1 && entry.last > end - PERIOD).then(|| context.denial(key, entry, self.now))
    }
}
