//! New flows, and flows that a change made doubtful: where policy is asked.

use weir_common::{
    Addr, Direction,
    conntrack::{CtEntry, CtKey, CtSide, State},
    endpoint::EndpointEntry,
    policy::Decision,
    reason::Reason,
};

use crate::{
    conntrack::{Inserted, Place},
    counters,
    endpoint::{Endpoint, PolicyView},
    event,
    flow::Flow,
    kernel,
    policy::{self, Maps, Question},
};

/// What policy said, under which epoch.
#[derive(Default)]
struct Ruling {
    decision: Decision,
    epoch: u32,
    adopt_until: u64,
    node: bool,
}

/// Judges a flow by the policy of `opener`'s direction, read and applied as of one version of the endpoint; false
/// where the endpoint changed twice meanwhile.
#[inline(always)]
fn ask(endpoint: &mut Endpoint, key: &CtKey, opener: Direction, icmp: u16, from_node: bool, ruling: &mut Ruling) -> bool {
    let mut view = PolicyView::closed();
    let mut tries = 0;
    loop {
        endpoint.policy(opener, &mut view);
        let own: Addr = endpoint.address(key.peer.is_v4());
        let answer = policy::judge(&Maps, &view.policy, &own, &Question { key, opener, icmp, from_node });
        ruling.decision = answer.decision;
        ruling.node = answer.node;
        ruling.epoch = view.epoch;
        ruling.adopt_until = view.adopt_until;
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

/// Judges a packet that no entry explains, and makes one where it may pass. `replaces` says where a dead entry of
/// the same key lies, or a live one of the other direction's.
#[inline(never)]
pub fn open(endpoint: &mut Endpoint, flow: &mut Flow, replaces: Option<Place>) -> Reason {
    let mut ruling = Ruling::default();
    let mut opener = flow.direction();
    let mut adopted = false;
    let mut attempt = 0;
    loop {
        let from_node = flow.from_node && !flow.from_pod;
        if !ask(endpoint, &flow.key, opener, flow.icmp, from_node && attempt == 0, &mut ruling) {
            return Reason::Unstable;
        }
        if attempt == 0 {
            flow.decision = ruling.decision;
            adopted = flow.is_midflow() && flow.now < ruling.adopt_until;
        }
        if ruling.decision.allows() || !adopted || attempt == 1 {
            break;
        }
        // Who opened a connection that is older than this interface's programs is not known: either side will do.
        attempt = 1;
        opener = opener.reverse();
    }
    let allowed = ruling.decision.allows();
    if allowed {
        flow.decision = ruling.decision;
    } else {
        opener = flow.direction();
    }
    counters::trace(flow.decision.trace());
    if !allowed && (replaces.is_some() || !endpoint.has(EndpointEntry::AUDIT)) {
        return Reason::PolicyDenied;
    }
    let reason = if !allowed {
        // Audited: the entry lets the flow's answers be audited as part of it.
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
    let mut entry = CtEntry {
        epoch: ruling.epoch,
        decision: flow.decision,
        created: flow.now,
        opener_icmp: flow.icmp,
        ..CtEntry::default()
    };
    if matches!(opener, Direction::Ingress) {
        entry.flags |= CtEntry::OPENED_BY_PEER;
    }
    if ruling.node {
        entry.flags |= CtEntry::NODE;
    }
    if adopted {
        entry.flags |= CtEntry::ADOPTED;
    }
    remember(&mut entry, flow);
    if allowed && event::wanted() && event::started(flow, &entry, reason) {
        entry.flags |= CtEntry::REPORTED;
    }
    let place = if adopted { Place::Confirmed } else { Place::Unconfirmed };
    match place.insert(&flow.key, &entry) {
        Inserted::Yes | Inserted::Exists => reason,
        Inserted::Failed => Reason::TableFull,
    }
}

/// Judges a flow again, as it was opened, because its endpoint's decisions have changed since. `entry` is its element
/// in `place`; `counts` tells whether the packet is one of the flow's own.
#[inline(never)]
pub fn rejudge(endpoint: &mut Endpoint, flow: &mut Flow, entry: *mut CtEntry, place: Place, counts: bool) -> Reason {
    // SAFETY: a live map element of integers, copied whole.
    let mut copy = unsafe { kernel::read(entry) };
    if place.get(&flow.key) != Some(entry) {
        // Recycled before or during the copy: the packet's sender will send it again.
        return Reason::Unstable;
    }
    let mut ruling = Ruling { decision: copy.decision, epoch: endpoint.epoch(), ..Ruling::default() };
    if copy.flags & CtEntry::NODE == 0
        && !ask(endpoint, &flow.key, copy.opener(), copy.opener_icmp, false, &mut ruling)
    {
        return Reason::Unstable;
    }
    flow.decision = ruling.decision;
    let allowed = ruling.decision.allows();
    if !allowed && !endpoint.has(EndpointEntry::AUDIT) {
        place.remove(&flow.key);
        if copy.decision.allows() {
            event::ended(flow, &raw const copy, Reason::PolicyCut);
        }
        return Reason::PolicyCut;
    }
    let protocol = flow.key.protocol();
    let before = copy.state(protocol);
    copy.epoch = ruling.epoch;
    copy.decision = ruling.decision;
    if counts {
        remember(&mut copy, flow);
    }
    if !place.replace(&flow.key, &copy) {
        return Reason::TableFull;
    }
    if !allowed {
        return Reason::PolicyCut;
    }
    if flow.may_close() && !matches!(before, State::Closed) && matches!(copy.state(protocol), State::Closed) {
        event::ended(flow, &raw const copy, Reason::Rejudged);
    }
    Reason::Rejudged
}

/// Adds a packet to an entry that no map holds yet.
#[inline(always)]
fn remember(entry: &mut CtEntry, flow: &Flow) {
    let side: &mut CtSide = if flow.from_pod { &mut entry.sides[0] } else { &mut entry.sides[1] };
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
