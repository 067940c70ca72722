//! New flows, and flows that a change made doubtful: where policy is asked.

use weir_common::{
    Direction,
    conntrack::{CtEntry, CtSide, State},
    endpoint::EndpointEntry,
    policy::Slot,
    reason::Reason,
};

use crate::{
    conntrack::{Inserted, Place},
    counters, direct,
    endpoint::Endpoint,
    event,
    flow::Flow,
    kernel,
    policy::{self, Maps, Policy},
    scratch::{Open, Scratch, own},
    stage::stage,
};

stage! {
    /// Judges a flow, about which the working memory holds a question, by the policy of its opener's direction, read
    /// and applied as of one version of the endpoint; 0 where the endpoint changed twice meanwhile.
    pub fn weir_ask(scratch: *mut Scratch, endpoint: *const EndpointEntry) -> u32 {
        // SAFETY: this packet's working memory.
        match unsafe { own(scratch) } {
            Some(scratch) if !endpoint.is_null() => ask(endpoint, scratch) as u32,
            _ => 0,
        }
    }
}

#[inline(always)]
fn ask(mut entry: *const EndpointEntry, scratch: &mut Scratch) -> bool {
    let mut tries = 0;
    loop {
        let Scratch { flow, open, .. } = &mut *scratch;
        let policy = Endpoint::policy(entry, open.question.opener());
        let slot = Slot::of(flow.key.protocol(), flow.key.peer.is_v4());
        // SAFETY: a live map element.
        let policy = unsafe { Policy::read(policy, slot) };
        open.adopt_until = Endpoint::adopt_until(entry);
        open.question.own = Endpoint::address(entry, flow.key.peer.is_v4());
        open.answer = policy::judge(&Maps, &policy, slot, &flow.key, &open.question);
        // Rows are removed after their endpoints have flipped: who still finds the old stamp has seen all of them.
        if scratch.endpoint.is_current(entry) {
            return true;
        }
        tries += 1;
        if tries == 2 {
            return false;
        }
        entry = match scratch.endpoint.refresh() {
            Some(entry) => entry,
            None => return false,
        };
    }
}

/// Judges a packet that no entry explains, and makes one where it may pass. `replaces` says where a dead entry of the
/// same key lies, or a live one of the other direction's.
#[inline(always)]
pub fn open(endpoint: *const EndpointEntry, scratch: &mut Scratch, replaces: Option<Place>) -> Reason {
    // SAFETY: this packet's working memory, and a live map element.
    unsafe { weir_open(scratch, endpoint, Place::number(replaces)) };
    // SAFETY: this packet's working memory, where there is always a reason.
    unsafe { kernel::read(&raw const scratch.reason) }
}

stage! {
    /// [`open`]; the reason is in the working memory.
    pub fn weir_open(scratch: *mut Scratch, endpoint: *const EndpointEntry, replaces: u32) -> u32 {
        // SAFETY: this packet's working memory.
        if let Some(scratch) = unsafe { own(scratch) }
            && !endpoint.is_null()
        {
            scratch.reason = judge(endpoint, scratch, Place::of_number(replaces));
        }
        0
    }
}

#[inline(always)]
fn judge(endpoint: *const EndpointEntry, scratch: &mut Scratch, replaces: Option<Place>) -> Reason {
    let mut opener = scratch.flow.direction();
    let mut adopted = false;
    let mut first = true;
    // What policy has cut does not come back by being taken for something else: an old connection, or one that the
    // other side opens. It is judged as it was opened.
    let cut = if scratch.flow.is_midflow() {
        event::was_cut(&scratch.flow)
    } else {
        None
    };
    if let Some(direction) = cut {
        opener = direction;
    }
    loop {
        let Scratch { flow, open, .. } = &mut *scratch;
        open.question.icmp = flow.icmp;
        open.question.opened_by_peer = matches!(opener, Direction::Ingress);
        open.question.from_node = first && flow.from_node && !flow.from_pod;
        // SAFETY: this packet's working memory, and a live map element.
        if unsafe { weir_ask(scratch, endpoint) } == 0 {
            return Reason::Unstable;
        }
        let Scratch { flow, open, .. } = &mut *scratch;
        if first {
            flow.decision = open.answer.decision;
            adopted = cut.is_none() && flow.is_midflow() && flow.now < open.adopt_until;
        }
        // Who opened a connection that is older than this interface's programs is not known: either side will do.
        if open.answer.decision.allows() || !adopted || !first {
            break;
        }
        first = false;
        opener = opener.reverse();
    }
    let Scratch {
        endpoint, flow, open, ..
    } = &mut *scratch;
    let ruling = open.answer;
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
        // SAFETY: this packet's working memory.
        unsafe { weir_bury(scratch, Place::number(Some(place))) };
    }
    let Scratch {
        endpoint, flow, open, ..
    } = &mut *scratch;
    let entry = &mut open.entry;
    // SAFETY: memory of our own, integers.
    unsafe { kernel::clear(entry) };
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
    remember(entry, flow);
    scratch.reason = reason;
    if matches!(reason, Reason::Allowed) && direct::may_prove(&scratch.endpoint, &scratch.flow) {
        // SAFETY: this packet's working memory.
        scratch.open.entry.sides[1].via = unsafe { direct::weir_prove(scratch, 1) };
    }
    // SAFETY: this packet's working memory.
    if allowed && event::wanted() && unsafe { event::weir_started(scratch) } != 0 {
        scratch.open.entry.flags |= CtEntry::REPORTED;
    }
    let place = if adopted { Place::Confirmed } else { Place::Unconfirmed };
    match place.insert(&scratch.flow.key, &scratch.open.entry) {
        Inserted::Yes | Inserted::Exists => reason,
        Inserted::Failed => Reason::TableFull,
    }
}

/// Judges a flow again, as it was opened, because its endpoint's decisions have changed since. `entry` is its element
/// in `place`; `counts` tells whether the packet is one of the flow's own.
#[inline(always)]
pub fn rejudge(
    endpoint: *const EndpointEntry,
    scratch: &mut Scratch,
    entry: *mut CtEntry,
    place: Place,
    counts: bool,
) -> Reason {
    // SAFETY: this packet's working memory, and live map elements.
    unsafe { weir_rejudge(scratch, endpoint, entry, Place::number(Some(place)), counts as u32) };
    // SAFETY: this packet's working memory, where there is always a reason.
    unsafe { kernel::read(&raw const scratch.reason) }
}

stage! {
    /// [`rejudge`]; the reason is in the working memory.
    pub fn weir_rejudge(
        scratch: *mut Scratch, endpoint: *const EndpointEntry, entry: *mut CtEntry, place: u32, counts: u32,
    ) -> u32 {
        // SAFETY: this packet's working memory.
        if let Some(scratch) = unsafe { own(scratch) }
            && let Some(place) = Place::of_number(place)
            && !endpoint.is_null()
            && !entry.is_null()
        {
            scratch.reason = judge_again(endpoint, scratch, entry, place, counts != 0);
        }
        0
    }
}

#[inline(always)]
fn judge_again(
    endpoint: *const EndpointEntry,
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
    let Open {
        question,
        answer,
        entry: old,
        ..
    } = &mut scratch.open;
    if old.flags & CtEntry::NODE != 0 {
        answer.decision = old.decision;
    } else {
        question.icmp = old.opener_icmp;
        question.opened_by_peer = matches!(old.opener(), Direction::Ingress);
        question.from_node = false;
        // SAFETY: this packet's working memory, and a live map element.
        if unsafe { weir_ask(scratch, endpoint) } == 0 {
            return Reason::Unstable;
        }
    }
    let Scratch {
        endpoint,
        flow,
        open: Open {
            answer, entry: copy, ..
        },
        ..
    } = scratch;
    let decision = answer.decision;
    flow.decision = decision;
    let allowed = decision.allows();
    if !allowed && !endpoint.has(EndpointEntry::AUDIT) {
        place.remove(&flow.key);
        if copy.decision.allows() {
            // SAFETY: this packet's working memory.
            unsafe { event::weir_ended(flow, &raw const *copy, Reason::PolicyCut as u32) };
        }
        return Reason::PolicyCut;
    }
    let protocol = flow.key.protocol();
    let was_closed = matches!(copy.state(protocol), State::Closed);
    copy.epoch = endpoint.epoch();
    copy.decision = decision;
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
        // SAFETY: this packet's working memory.
        unsafe { event::weir_ended(flow, &raw const *copy, Reason::Rejudged as u32) };
    }
    Reason::Rejudged
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

stage! {
    /// Removes the entry that a new flow replaces. Its end is told unless that was done when it closed.
    pub fn weir_bury(scratch: *mut Scratch, place: u32) -> u32 {
        // SAFETY: this packet's working memory.
        if let Some(scratch) = unsafe { own(scratch) }
            && let Some(place) = Place::of_number(place)
        {
            bury(&mut scratch.flow, place);
        }
        0
    }
}

#[inline(always)]
fn bury(flow: &mut Flow, place: Place) {
    if let Some(entry) = place.get(&flow.key) {
        // SAFETY: a live map element of integers.
        let old = unsafe { &*entry };
        if old.decision.allows() && !matches!(old.state(flow.key.protocol()), State::Closed) {
            // SAFETY: this packet's working memory, and a live map element.
            unsafe { event::weir_ended(flow, entry, Reason::Established as u32) };
        }
    }
    place.remove(&flow.key);
}
