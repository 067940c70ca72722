//! New flows, and flows that a change made doubtful: where policy is asked.

use weir_common::{
    Addr, Direction,
    conntrack::{CtEntry, CtSide, State},
    endpoint::EndpointEntry,
    policy::Decision,
    reason::Reason,
};

use crate::{
    conntrack::{Inserted, Place},
    counters,
    endpoint::Endpoint,
    event,
    flow::Flow,
    kernel,
    policy::{self, Maps, Question},
    scratch::{Open, Scratch},
};

/// What policy said.
#[derive(Default)]
struct Ruling {
    decision: Decision,
    node: bool,
}

/// How a flow was opened.
#[derive(Clone, Copy)]
struct Opening {
    opener: Direction,
    /// ICMP: type << 8 | code of the first packet.
    icmp: u16,
    /// The node itself made the packet in hand, which opens the flow.
    from_node: bool,
}

/// Judges a flow by the policy of its opener's direction, read and applied as of one version of the endpoint; false
/// where the endpoint changed twice meanwhile.
#[inline(always)]
fn ask(endpoint: &mut Endpoint, scratch: &mut Scratch, opening: Opening, ruling: &mut Ruling) -> bool {
    let key = &scratch.flow.key;
    let Open { view, row, .. } = &mut scratch.open;
    let question = Question {
        key,
        opener: opening.opener,
        icmp: opening.icmp,
        from_node: opening.from_node,
    };
    let mut tries = 0;
    loop {
        endpoint.policy(opening.opener, view);
        let own: Addr = endpoint.address(key.peer.is_v4());
        let answer = policy::judge(&Maps, &view.policy, &own, row, &question);
        ruling.decision = answer.decision;
        ruling.node = answer.node;
        // Rows are removed after their endpoints have flipped: who still finds the old stamp has seen all of them.
        if endpoint.is_current() {
            return true;
        }
        tries += 1;
        if tries == 2 || !endpoint.refresh() {
            return false;
        }
    }
}

/// Judges a packet that no entry explains, and makes one where it may pass. `scratch.open.replaces` says where
/// a dead entry of the same key lies, or a live one of the other direction's.
#[inline(never)]
pub fn open(endpoint: &mut Endpoint, scratch: &mut Scratch) -> Reason {
    let replaces = scratch.open.replaces;
    let mut ruling = Ruling::default();
    let mut opener = scratch.flow.direction();
    let mut adopted = false;
    let mut first = true;
    loop {
        let flow = &scratch.flow;
        let opening = Opening {
            opener,
            icmp: flow.icmp,
            from_node: first && flow.from_node && !flow.from_pod,
        };
        if !ask(endpoint, scratch, opening, &mut ruling) {
            return Reason::Unstable;
        }
        let flow = &mut scratch.flow;
        if first {
            flow.decision = ruling.decision;
            adopted = flow.is_midflow() && flow.now < scratch.open.view.adopt_until;
        }
        // Who opened a connection that is older than this interface's programs is not known: either side will do.
        // But one that was cut is not older, and its next packet must not bring it back to life from the other side.
        if ruling.decision.allows() || !adopted || !first || event::was_denied(flow) {
            break;
        }
        first = false;
        opener = opener.reverse();
    }
    let flow = &mut scratch.flow;
    let allowed = ruling.decision.allows();
    if allowed {
        flow.decision = ruling.decision;
    } else {
        opener = flow.direction();
    }
    counters::trace(flow.decision.trace());
    let reason = if !allowed {
        // Audited: an entry lets the flow's answers be audited as part of it.
        if replaces.is_some() || !endpoint.has(EndpointEntry::AUDIT) {
            return Reason::PolicyDenied;
        }
        Reason::PolicyDenied
    } else if ruling.node {
        Reason::Node
    } else if adopted {
        Reason::Adopted
    } else {
        Reason::Allowed
    };
    if flow.is_reset() {
        return reason;
    }

    if let Some(place) = replaces {
        bury(flow, place);
    }
    let entry = &mut scratch.open.entry;
    entry.epoch = endpoint.epoch();
    entry.decision = flow.decision;
    entry.created = flow.now;
    entry.opener_icmp = flow.icmp;
    entry.flags = if matches!(opener, Direction::Ingress) {
        CtEntry::OPENED_BY_PEER
    } else {
        0
    };
    if ruling.node {
        entry.flags |= CtEntry::NODE;
    }
    if adopted {
        entry.flags |= CtEntry::ADOPTED;
    }
    clear(entry);
    remember(entry, flow);
    if allowed && event::wanted() && event::started(flow, entry, reason) {
        entry.flags |= CtEntry::REPORTED;
    }
    let place = if adopted { Place::Confirmed } else { Place::Unconfirmed };
    match place.insert(&flow.key, entry) {
        Inserted::Yes | Inserted::Exists => reason,
        Inserted::Failed => Reason::TableFull,
    }
}

/// Judges a flow again, as it was opened, because its endpoint's decisions have changed since. `entry` is its element
/// in `place`; `counts` tells whether the packet is one of the flow's own.
#[inline(never)]
pub fn rejudge(
    endpoint: &mut Endpoint,
    scratch: &mut Scratch,
    entry: *mut CtEntry,
    place: Place,
    counts: bool,
) -> Reason {
    // SAFETY: a live map element, and memory of our own.
    unsafe { kernel::copy(entry, &raw mut scratch.open.entry) };
    if place.get(&scratch.flow.key) != Some(entry) {
        // Recycled before or during the copy: the packet's sender will send it again.
        return Reason::Unstable;
    }
    let old = &scratch.open.entry;
    let mut ruling = Ruling {
        decision: old.decision,
        node: true,
    };
    if old.flags & CtEntry::NODE == 0 {
        let opening = Opening {
            opener: old.opener(),
            icmp: old.opener_icmp,
            from_node: false,
        };
        if !ask(endpoint, scratch, opening, &mut ruling) {
            return Reason::Unstable;
        }
    }
    let Scratch {
        flow,
        open: Open { entry: copy, .. },
        ..
    } = scratch;
    flow.decision = ruling.decision;
    let allowed = ruling.decision.allows();
    if !allowed && !endpoint.has(EndpointEntry::AUDIT) {
        place.remove(&flow.key);
        if copy.decision.allows() {
            event::ended(flow, &raw const *copy, Reason::PolicyCut);
        }
        return Reason::PolicyCut;
    }
    let protocol = flow.key.protocol();
    let was_closed = matches!(copy.state(protocol), State::Closed);
    copy.epoch = endpoint.epoch();
    copy.decision = ruling.decision;
    if counts {
        remember(copy, flow);
    }
    if !place.replace(&flow.key, copy) {
        return Reason::TableFull;
    }
    if !allowed {
        return Reason::PolicyCut;
    }
    if flow.may_close() && !was_closed && matches!(copy.state(protocol), State::Closed) {
        event::ended(flow, &raw const *copy, Reason::Rejudged);
    }
    Reason::Rejudged
}

/// Empties an entry of what an earlier packet has left there, but for what [`open`] sets.
#[inline(always)]
fn clear(entry: &mut CtEntry) {
    entry.nat_addr = Addr::UNSPECIFIED;
    entry.nat_port = 0;
    entry.pad = 0;
    let [a, b] = &mut entry.sides;
    for side in [a, b] {
        side.last_seen = 0;
        side.packets = 0;
        side.bytes = 0;
        side.flags = 0;
        side.pad = 0;
    }
}

/// Adds a packet to an entry that no map holds yet.
#[inline(always)]
fn remember(entry: &mut CtEntry, flow: &Flow) {
    let side: &mut CtSide = if flow.from_pod {
        &mut entry.sides[0]
    } else {
        &mut entry.sides[1]
    };
    side.last_seen = flow.now;
    side.packets += flow.packets as u64;
    side.bytes += flow.bytes as u64;
    side.flags |= flow.flags;
}

/// Removes the entry that a new flow replaces. Its end is told unless that was done when it closed.
#[inline(never)]
fn bury(flow: &Flow, place: Place) {
    if let Some(entry) = place.get(&flow.key) {
        // SAFETY: a live map element of integers.
        let old = unsafe { &*entry };
        if old.decision.allows() && !matches!(old.state(flow.key.protocol()), State::Closed) {
            event::ended(flow, entry, Reason::Established);
        }
    }
    place.remove(&flow.key);
}
