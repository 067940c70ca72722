//! What the agent is told: starts, ends and denials of flows, each once.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap, RingBuf},
};
use weir_common::{
    Direction,
    conntrack::{CtEntry, CtKey},
    counters::Tally,
    event::{DENIAL_LIFETIME, DenialEntry, Event, EventKind},
    layout::Config,
    policy::Decision,
    reason::Reason,
};

use crate::{
    counters,
    flow::Flow,
    kernel,
    scratch::{Scratch, own},
    stage::{memory, stage},
};

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static DENIALS: LruHashMap<CtKey, DenialEntry> = LruHashMap::with_max_entries(16384, 0);

/// True where somebody reads events.
#[inline(always)]
pub fn wanted() -> bool {
    match CONFIG.get_ptr(0) {
        // SAFETY: array elements live as long as their map; one word.
        Some(config) => unsafe { kernel::read(&raw const (*config).events) != 0 },
        None => false,
    }
}

stage! {
    /// A flow was allowed, for the reason in the working memory, and is about to get its entry. Not 0 where the agent
    /// will hear of it.
    pub fn weir_started(scratch: *mut Scratch) -> u32 {
        // SAFETY: this packet's working memory.
        let Some(scratch) = (unsafe { own(scratch) }) else {
            return 0;
        };
        let flow = &scratch.flow;
        let entry = &scratch.open.entry;
        let event = Parts {
            kind: EventKind::Started,
            reason: scratch.reason as u8,
            decision: entry.decision,
            created: entry.created,
            flags: entry.flags,
            packets: of_packet(flow, flow.packets),
            bytes: of_packet(flow, flow.bytes),
        };
        send(flow, &event) as u32
    }
}

stage! {
    /// A flow has closed, or was cut, or its entry makes room for a new flow. `entry` is its map element or a copy.
    pub fn weir_ended(flow: *mut Flow, entry: *const CtEntry, reason: u32) -> u32 {
        // SAFETY: this packet's working memory.
        let Some(flow) = (unsafe { memory(flow) }) else {
            return 0;
        };
        if !entry.is_null() && wanted() {
            ended(flow, entry, reason as u8);
        }
        0
    }
}

#[inline(always)]
fn ended(flow: &Flow, entry: *const CtEntry, reason: u8) {
    // SAFETY: the entry is a live map element or a copy of one; plain data, read word by word.
    let event = unsafe {
        Parts {
            kind: EventKind::Ended,
            reason,
            decision: kernel::read(&raw const (*entry).decision),
            created: kernel::read(&raw const (*entry).created),
            flags: kernel::read(&raw const (*entry).flags),
            packets: [
                kernel::read(&raw const (*entry).sides[0].packets),
                kernel::read(&raw const (*entry).sides[1].packets),
            ],
            bytes: [
                kernel::read(&raw const (*entry).sides[0].bytes),
                kernel::read(&raw const (*entry).sides[1].bytes),
            ],
        }
    };
    send(flow, &event);
}

/// Who had opened this flow, if it was cut not long ago.
#[inline(always)]
pub fn was_cut(flow: &Flow) -> Option<Direction> {
    let known = DENIALS.get_ptr(&flow.key)?;
    // SAFETY: a live map element. (If it is recycled meanwhile, a flow is judged as the opening of the wrong side.)
    let (last, cut) = unsafe {
        (
            kernel::read(&raw const (*known).last),
            kernel::read(&raw const (*known).cut),
        )
    };
    if flow.now >= DenialEntry::forgotten_at(last, cut) {
        return None;
    }
    match cut {
        DenialEntry::OPENED_BY_POD => Some(Direction::Egress),
        DenialEntry::OPENED_BY_PEER => Some(Direction::Ingress),
        _ => None,
    }
}

/// A packet was denied. That a flow was cut is remembered also where nobody reads events ([`was_cut`]).
#[inline(always)]
pub fn denied(scratch: &mut Scratch, reason: Reason) {
    if wanted() || matches!(reason, Reason::PolicyCut) {
        // SAFETY: this packet's working memory.
        unsafe { weir_denied(scratch) };
    }
}

stage! {
    /// A packet was denied, for the reason in the working memory: the first one of its flow is told, the others are
    /// counted.
    pub fn weir_denied(scratch: *mut Scratch) -> u32 {
        // SAFETY: this packet's working memory.
        if let Some(scratch) = unsafe { own(scratch) } {
            record_denied(scratch);
        }
        0
    }
}

#[inline(always)]
fn record_denied(scratch: &mut Scratch) {
    let Scratch {
        reason,
        endpoint,
        flow,
        open,
        denial,
        ..
    } = scratch;
    // What was cut stays so however its packets are denied afterwards.
    denial.cut = if matches!(reason, Reason::PolicyCut) {
        match open.entry.opener() {
            Direction::Egress => DenialEntry::OPENED_BY_POD,
            Direction::Ingress => DenialEntry::OPENED_BY_PEER,
        }
    } else {
        match was_cut(flow) {
            Some(Direction::Egress) => DenialEntry::OPENED_BY_POD,
            Some(Direction::Ingress) => DenialEntry::OPENED_BY_PEER,
            None => 0,
        }
    };
    let (reason, epoch) = (*reason as u8, endpoint.epoch());
    let direction = flow.direction() as u8;
    if let Some(known) = DENIALS.get_ptr_mut(&flow.key) {
        // SAFETY: a live map element (if it is recycled meanwhile, another denial is counted a packet too many).
        unsafe {
            let last = kernel::read(&raw const (*known).last);
            if kernel::read(&raw const (*known).epoch) == epoch
                && kernel::read(&raw const (*known).reason) == reason
                && kernel::read(&raw const (*known).direction) == direction
                && kernel::read(&raw const (*known).icmp) == flow.icmp
                && flow.now < last + DENIAL_LIFETIME
            {
                kernel::add(&raw mut (*known).packets, flow.packets as u64);
                kernel::add(&raw mut (*known).bytes, flow.bytes as u64);
                kernel::write(&raw mut (*known).last, flow.now);
                return;
            }
        }
    }
    denial.first = flow.now;
    denial.last = flow.now;
    denial.packets = flow.packets as u64;
    denial.bytes = flow.bytes as u64;
    denial.decision = flow.decision;
    denial.epoch = epoch;
    denial.reason = reason;
    denial.direction = direction;
    denial.icmp = flow.icmp;
    // Without an entry the flow's next packet is told as well: too much rather than too little.
    let _ = DENIALS.insert(&flow.key, &*denial, 0);
    if !wanted() {
        return;
    }
    send(
        flow,
        &Parts {
            kind: EventKind::Denied,
            reason,
            decision: flow.decision,
            created: 0,
            flags: 0,
            packets: of_packet(flow, flow.packets),
            bytes: of_packet(flow, flow.bytes),
        },
    );
}

/// A number of the packet in hand, by direction.
#[inline(always)]
const fn of_packet(flow: &Flow, number: u32) -> [u64; 2] {
    if flow.from_pod {
        [number as u64, 0]
    } else {
        [0, number as u64]
    }
}

/// What an event says beside the packet in hand.
struct Parts {
    kind: EventKind,
    reason: u8,
    decision: Decision,
    created: u64,
    flags: u16,
    packets: [u64; 2],
    bytes: [u64; 2],
}

/// Puts an event into the ring buffer, field by field; counts it as lost where it does not fit.
#[inline(always)]
fn send(flow: &Flow, parts: &Parts) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        counters::tally(Tally::LostEvents);
        return false;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: reserved memory of the event's size; every field is written before it is submitted.
    unsafe {
        (&raw mut (*event).time).write(flow.now);
        (&raw mut (*event).created).write(parts.created);
        kernel::copy_words(&raw const flow.key, &raw mut (*event).key);
        (&raw mut (*event).decision).write(parts.decision);
        (&raw mut (*event).kind).write(parts.kind as u8);
        (&raw mut (*event).reason).write(parts.reason);
        (&raw mut (*event).direction).write(flow.direction() as u8);
        (&raw mut (*event).tcp_flags).write(flow.tcp_flags);
        (&raw mut (*event).flags).write(parts.flags);
        (&raw mut (*event).icmp).write(flow.icmp);
        (&raw mut (*event).ifindex).write(flow.ifindex);
        (&raw mut (*event).packets[0]).write(parts.packets[0]);
        (&raw mut (*event).packets[1]).write(parts.packets[1]);
        (&raw mut (*event).bytes[0]).write(parts.bytes[0]);
        (&raw mut (*event).bytes[1]).write(parts.bytes[1]);
    }
    entry.submit(0);
    true
}
