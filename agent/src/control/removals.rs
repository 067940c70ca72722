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

/// The removals of one plan.
#[derive(Debug, PartialEq)]
pub struct Due {
    pub serial: u64,
    pub ops: Vec<Op>,
}

#[derive(Debug, Default)]
pub struct Removals {
    waiting: VecDeque<(Instant, Due)>,
}

impl Removals {
    /// Takes the removals of a plan that was flipped just now. (Also empty ones: the compiler waits for the serial.)
    pub fn schedule(&mut self, now: Instant, serial: u64, ops: Vec<Op>) {
        self.waiting.push_back((now + GRACE, Due { serial, ops }));
    }

    /// To be called before the operations of a later plan are executed: what it writes must not be removed after.
    pub fn spare(&mut self, written: &[Op]) {
        if self.waiting.iter().all(|(_, due)| due.ops.is_empty()) {
            return;
        }
        let written: FxHashSet<Element> = written.iter().filter_map(Element::of).collect();
        if written.is_empty() {
            return;
        }
        for (_, due) in &mut self.waiting {
            due.ops
                .retain(|op| Element::of(op).is_none_or(|element| !written.contains(&element)));
        }
    }

    /// When the next removals are due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|(at, _)| *at)
    }

    /// The oldest removals whose time has come.
    pub fn pop(&mut self, now: Instant) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.waiting.pop_front().map(|(_, due)| due)
    }

    /// Forgets all of them, as their maps are gone; gives back their serials.
    pub fn clear(&mut self) -> Vec<u64> {
        self.waiting.drain(..).map(|(_, due)| due.serial).collect()
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
                serial: 1,
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
        assert_eq!(removals.pop(later).map(|due| due.serial), Some(1));
        assert_eq!(removals.pop(later).map(|due| due.serial), Some(2));
        assert_eq!(removals.pop(later), None);
    }
}
