//! When to speak of a flow that lasts, that timed out, or that is denied again and again.
//!
//! Nothing is remembered per flow: an entry knows when it began, and a sweep knows when the last sweep was, so
//! whether a period of the flow ended in between is arithmetic.

use rustc_hash::FxHashMap;
use weir_common::{
    Direction,
    conntrack::{CtEntry, CtKey, State},
    event::{DenialEntry, Event, EventKind},
    reason::Reason,
};

use super::record::opener;

/// Who had opened the flows that were cut a moment ago.
///
/// The packet that cuts a flow makes two events: the flow's end, which knows its opener, and the denial, which knows the
/// packet only, and that may be an answer.
#[derive(Debug, Default)]
pub struct Cuts {
    openers: FxHashMap<CtKey, Direction>,
}

impl Cuts {
    /// More than a ring buffer holds: what is still here then has lost its other half.
    const LIMIT: usize = 16_384;

    /// To be told of every event, in order. Says who opened the flow that the event denies, if it was a flow.
    pub fn observe(&mut self, event: &Event) -> Option<Direction> {
        if event.reason != Reason::PolicyCut as u8 {
            return None;
        }
        if event.kind == EventKind::Ended as u8 {
            if self.openers.len() >= Self::LIMIT {
                self.openers.clear();
            }
            self.openers.insert(event.key, opener(event.flags));
            return None;
        }
        self.openers.remove(&event.key)
    }
}

/// One walk over the tables.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// When the walk before this one was, `CLOCK_MONOTONIC`, ns.
    pub previous: u64,
    /// When this one began.
    pub now: u64,
    /// How often a flow that lasts is told of, ns. Not 0.
    pub period: u64,
}

impl Sweep {
    /// Start of the period since `start` that `time` lies in.
    const fn period_of(&self, start: u64, time: u64) -> u64 {
        start + time.saturating_sub(start) / self.period * self.period
    }

    /// Whether a period since `start` ended between the last sweep and this one.
    const fn period_ended(&self, start: u64) -> bool {
        self.period_of(start, self.now) > self.period_of(start, self.previous)
    }

    /// Whether something is to be said of an entry of the connection table: that the flow lasts, or that it `ended` (timed
    /// out, or its pod is gone).
    #[must_use]
    pub fn tells_connection(&self, key: &CtKey, entry: &CtEntry, ended: bool) -> bool {
        let silent = entry.flags & CtEntry::STUB != 0
            // An audited denial has an entry too, and records of its own.
            || !entry.decision.allows()
            // Its end was an event; the entry only waits for late packets.
            || entry.state(key.protocol()) == State::Closed;
        !silent && (ended || self.period_ended(entry.created))
    }

    /// Whether something is to be said of an entry of the denial map. Its first packet was an event; a flow that was
    /// denied again is told of once a period, and when it is given up, with the count so far.
    #[must_use]
    pub const fn tells_denial(&self, entry: &DenialEntry, ended: bool) -> bool {
        let told = self.period_of(entry.first, self.previous);
        // Before the first period ends only the first packet is told, and the others may bear its time: the programs'
        // clock is coarse.
        let news = entry.packets > 1 && (told == entry.first || entry.last > told);
        news && (ended || self.period_ended(entry.first))
    }
}

#[cfg(test)]
mod tests {
    use weir_common::{
        conntrack::{CtSide, TCP_FIN},
        policy::{Decision, IPPROTO_TCP, IPPROTO_UDP},
    };

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    /// How often an entry is told of in sweeps every `step` seconds up to `until`.
    fn told(step: u64, until: u64, tells: impl Fn(&Sweep) -> bool) -> Vec<u64> {
        (1..=until / step)
            .map(|n| Sweep {
                previous: (n - 1) * step * SECOND,
                now: n * step * SECOND,
                period: MINUTE,
            })
            .filter(|sweep| tells(sweep))
            .map(|sweep| sweep.now / SECOND)
            .collect()
    }

    fn entry(created: u64) -> CtEntry {
        CtEntry {
            created: created * SECOND,
            decision: Decision::new(true, false, 1),
            sides: [CtSide {
                last_seen: created * SECOND,
                packets: 1,
                ..CtSide::default()
            }; 2],
            ..CtEntry::default()
        }
    }

    fn key(protocol: u8) -> CtKey {
        CtKey {
            endpoint_protocol: 1 << 8 | u32::from(protocol),
            ..CtKey::default()
        }
    }

    #[test]
    fn a_flow_that_lasts_is_told_of_once_a_minute_whatever_the_cadence() {
        let entry = entry(7);
        for step in [1, 5, 7, 30] {
            let told = told(step, 216, |sweep| {
                sweep.tells_connection(&key(IPPROTO_TCP), &entry, false)
            });
            assert_eq!(told.len(), 3, "{told:?}");
            for (told, due) in told.into_iter().zip([67, 127, 187]) {
                assert!((due..due + step).contains(&told), "every {step} s: {told}");
            }
        }
    }

    #[test]
    fn an_end_is_told_once_by_whoever_finds_it() {
        let sweep = Sweep {
            previous: 5 * SECOND,
            now: 10 * SECOND,
            period: MINUTE,
        };
        let udp = entry(3);
        assert!(sweep.tells_connection(&key(IPPROTO_UDP), &udp, true));
        let mut closed = entry(3);
        for side in &mut closed.sides {
            side.flags = TCP_FIN;
        }
        assert!(
            !sweep.tells_connection(&key(IPPROTO_TCP), &closed, true),
            "its end was an event"
        );
        let mut audited = entry(3);
        audited.decision = Decision::DENY;
        assert!(!sweep.tells_connection(&key(IPPROTO_UDP), &audited, true));
        let mut stub = entry(3);
        stub.flags = CtEntry::STUB;
        assert!(!sweep.tells_connection(&key(IPPROTO_UDP), &stub, true));
    }

    #[test]
    fn repeated_denials_are_told_once_a_minute_and_never_twice() {
        let denial = |first: u64, last: u64, packets: u64| DenialEntry {
            first: first * SECOND,
            last: last * SECOND,
            packets,
            ..DenialEntry::default()
        };
        let single = denial(3, 3, 1);
        assert_eq!(told(5, 100, |sweep| sweep.tells_denial(&single, false)), [] as [u64; 0]);
        let burst = denial(3, 20, 9);
        assert_eq!(told(5, 200, |sweep| sweep.tells_denial(&burst, false)), [65]);
        let within_a_tick = denial(3, 3, 9);
        assert_eq!(told(5, 200, |sweep| sweep.tells_denial(&within_a_tick, false)), [65]);
        // Given up after a minute of silence: all that there was is told already.
        let sweep = Sweep {
            previous: 80 * SECOND,
            now: 85 * SECOND,
            period: MINUTE,
        };
        assert!(!sweep.tells_denial(&burst, true));
        // Given up early, because its pod is gone.
        let sweep = Sweep {
            previous: 20 * SECOND,
            now: 25 * SECOND,
            period: MINUTE,
        };
        assert!(sweep.tells_denial(&burst, true));
        // It went on after the first minute.
        let long = denial(3, 70, 30);
        assert_eq!(told(5, 200, |sweep| sweep.tells_denial(&long, false)), [65, 125]);
    }

    #[test]
    fn the_denial_of_a_cut_flow_knows_who_opened_it() {
        let mut cuts = Cuts::default();
        let ended = Event {
            key: key(IPPROTO_TCP),
            kind: EventKind::Ended as u8,
            reason: Reason::PolicyCut as u8,
            flags: CtEntry::OPENED_BY_PEER,
            ..Event::default()
        };
        let denied = Event {
            kind: EventKind::Denied as u8,
            ..ended
        };
        assert_eq!(cuts.observe(&denied), None);
        assert_eq!(cuts.observe(&ended), None);
        assert_eq!(cuts.observe(&denied), Some(Direction::Ingress));
        assert_eq!(cuts.observe(&denied), None, "told once");
    }
}
