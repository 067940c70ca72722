//! What plans want removed, kept for the grace period.
//!
//! A program that read an endpoint's old table a moment ago may still look its rows up. So removals wait until every
//! program run that began before the flip has ended; and a key that a later plan writes again meanwhile is not
//! removed at all.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rustc_hash::FxHashSet;
use weir_common::policy::{DecisionKey, RowKey};

use crate::policy::plan::Op;

/// Longer than any program run: those last microseconds, and are not preempted for longer than a few milliseconds.
pub const GRACE: Duration = Duration::from_millis(100);

/// Removals that are executed at once: what takes about a quarter of a millisecond, since a change may be waiting.
const SLICE: usize = 512;

/// The element of a map that an operation writes or deletes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Element {
    Trace(u32),
    Decision(DecisionKey),
    SourcePort(u32, u8, u8, u16),
    Row(RowKey),
    Address(IpAddr),
    Cidr(IpNet),
}

impl Element {
    /// None: the operation concerns an element that is never deleted.
    fn of(op: &Op) -> Option<Self> {
        match op {
            Op::PutTrace(trace) | Op::DeleteTrace(trace) => Some(Self::Trace(*trace)),
            Op::PutDecision(key, _) | Op::DeleteDecision(key) => Some(Self::Decision(*key)),
            Op::PutSourcePort {
                row,
                protocol,
                prefix,
                port,
                ..
            }
            | Op::DeleteSourcePort {
                row,
                protocol,
                prefix,
                port,
            } => Some(Self::SourcePort(*row, *protocol, *prefix, *port)),
            Op::PutRow(key, _) | Op::DeleteRow(key) => Some(Self::Row(*key)),
            Op::PutAddress(address, _) | Op::DeleteAddress(address) => Some(Self::Address(*address)),
            Op::PutCidr(net, _) | Op::DeleteCidr(net) => Some(Self::Cidr(*net)),
            Op::PutIdentity { .. } | Op::SetPolicy(_) | Op::BumpEpoch { .. } => None,
        }
    }
}

/// Removals of one plan.
#[derive(Debug, PartialEq)]
pub struct Due {
    /// The plan, if these are the last of its removals.
    pub serial: Option<u64>,
    pub ops: Vec<Op>,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    serial: u64,
    ops: VecDeque<Op>,
}

#[derive(Debug, Default)]
pub struct Removals {
    waiting: VecDeque<Waiting>,
}

impl Removals {
    /// Takes the removals of a plan that was flipped just now. (Also empty ones: the compiler waits for the serial.)
    pub fn schedule(&mut self, now: Instant, serial: u64, ops: Vec<Op>) {
        self.waiting.push_back(Waiting {
            due: now + GRACE,
            serial,
            ops: ops.into(),
        });
    }

    /// To be called before the operations of a later plan are executed: what it writes must not be removed after.
    pub fn spare(&mut self, written: &[Op]) {
        if self.waiting.iter().all(|waiting| waiting.ops.is_empty()) {
            return;
        }
        let written: FxHashSet<Element> = written.iter().filter_map(Element::of).collect();
        if written.is_empty() {
            return;
        }
        for waiting in &mut self.waiting {
            waiting
                .ops
                .retain(|op| Element::of(op).is_none_or(|element| !written.contains(&element)));
        }
    }

    /// When the next removals are due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.due)
    }

    /// The oldest removals whose time has come, not too many of them. More may be due.
    pub fn pop(&mut self, now: Instant) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        let front = self.waiting.front_mut()?;
        let ops = front.ops.drain(..front.ops.len().min(SLICE)).collect();
        let serial = front.ops.is_empty().then_some(front.serial);
        if serial.is_some() {
            self.waiting.pop_front();
        }
        Some(Due { serial, ops })
    }

    /// Forgets all of them, as their maps are gone; gives back their serials.
    pub fn clear(&mut self) -> Vec<u64> {
        self.waiting.drain(..).map(|waiting| waiting.serial).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn an_address_that_comes_back_is_not_removed() {
        let start = Instant::now();
        let mut removals = Removals::default();
        removals.schedule(
            start,
            1,
            vec![Op::DeleteAddress(address(1)), Op::DeleteAddress(address(2))],
        );
        removals.spare(&[Op::PutAddress(address(1), 7), Op::PutTrace(3)]);
        assert_eq!(removals.pop(start), None, "the grace period is not over");
        let due = removals.pop(start + GRACE).expect("due now");
        assert_eq!(
            due,
            Due {
                serial: Some(1),
                ops: vec![Op::DeleteAddress(address(2))]
            }
        );
        assert_eq!(removals.next(), None);
    }

    #[test]
    fn plans_are_removed_in_order_and_empty_ones_are_told_too() {
        let start = Instant::now();
        let mut removals = Removals::default();
        removals.schedule(start, 1, vec![Op::DeleteTrace(1)]);
        removals.schedule(start, 2, Vec::new());
        let later = start + GRACE;
        assert_eq!(removals.pop(later).and_then(|due| due.serial), Some(1));
        assert_eq!(removals.pop(later).and_then(|due| due.serial), Some(2));
        assert_eq!(removals.pop(later), None);
    }

    #[test]
    fn many_removals_come_in_slices_and_the_last_names_the_plan() {
        let start = Instant::now();
        let mut removals = Removals::default();
        let count = SLICE as u32 * 2 + 1;
        removals.schedule(start, 9, (0..count).map(Op::DeleteTrace).collect());
        let later = start + GRACE;
        let first = removals.pop(later).expect("due");
        assert_eq!((first.serial, first.ops.len()), (None, SLICE));
        // What a change in between writes again stays, as before.
        removals.spare(&[Op::PutTrace(SLICE as u32), Op::PutTrace(count - 1)]);
        let rest = removals.pop(later).expect("due");
        assert_eq!((rest.serial, rest.ops.len()), (Some(9), SLICE - 1));
        assert_eq!(
            rest.ops.first(),
            Some(&Op::DeleteTrace(SLICE as u32 + 1)),
            "in their order"
        );
        assert_eq!(removals.next(), None);
    }
}
