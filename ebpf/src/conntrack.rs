//! The connection table: packets of known flows need no policy.
//!
//! An entry belongs to an LRU map, whose elements are recycled at once. So what is read through a pointer may
//! suddenly be another flow's: that is good for passing one packet of a flow that had an entry a moment ago, and for
//! counting, but not for making a new entry. Who makes one from an old one copies it, and then asks whether the
//! element is still that flow's.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::LruHashMap};
use weir_common::{
    conntrack::{CtEntry, CtKey, State},
    counters::Tally,
    endpoint::EndpointEntry,
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP},
    reason::Reason,
};

use crate::{
    counters, direct,
    endpoint::Endpoint,
    event,
    flow::Flow,
    kernel,
    open::{open, rejudge},
    parse::transport::Icmp,
    scratch::{Scratch, own},
    stage::{memory, stage},
};

#[map]
static CONNECTIONS: LruHashMap<CtKey, CtEntry> = LruHashMap::with_max_entries(262_144, 0);

#[map]
static UNCONFIRMED: LruHashMap<CtKey, CtEntry> = LruHashMap::with_max_entries(65536, 0);

/// No entry expires sooner: it spares most packets the question which state their flow is in.
const SHORTEST_LIFETIME: u64 = CtEntry::lifetime(IPPROTO_TCP, State::Closed);

const EEXIST: i32 = -17;

/// Which of the two maps an entry is in.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Both sides have spoken (of TCP: the opener has acknowledged), or the flow was adopted.
    Confirmed = 1,
    Unconfirmed = 2,
}

/// How an insertion went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    Yes,
    /// Another processor was faster.
    Exists,
    Failed,
}

impl Place {
    /// A place, or none, as a stage's argument.
    #[inline(always)]
    pub const fn number(place: Option<Self>) -> u32 {
        match place {
            Some(place) => place as u32,
            None => 0,
        }
    }

    #[inline(always)]
    pub const fn of_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Confirmed),
            2 => Some(Self::Unconfirmed),
            _ => None,
        }
    }

    #[inline(always)]
    const fn map(self) -> &'static LruHashMap<CtKey, CtEntry> {
        match self {
            Self::Confirmed => &CONNECTIONS,
            Self::Unconfirmed => &UNCONFIRMED,
        }
    }

    #[inline(always)]
    pub fn get(self, key: &CtKey) -> Option<*mut CtEntry> {
        match self {
            Self::Confirmed => CONNECTIONS.get_ptr_mut(key),
            Self::Unconfirmed => UNCONFIRMED.get_ptr_mut(key),
        }
    }

    /// Makes an entry that must not be there yet.
    #[inline(always)]
    pub fn insert(self, key: &CtKey, entry: &CtEntry) -> Inserted {
        match self.map().insert(key, entry, BPF_NOEXIST as u64) {
            Ok(()) => {
                counters::tally(match self {
                    Self::Confirmed => Tally::Confirmed,
                    Self::Unconfirmed => Tally::Unconfirmed,
                });
                Inserted::Yes
            }
            Err(EEXIST) => Inserted::Exists,
            Err(_) => Inserted::Failed,
        }
    }

    /// Replaces an entry as a whole.
    #[inline(always)]
    pub fn replace(self, key: &CtKey, entry: &CtEntry) -> bool {
        self.map().insert(key, entry, 0).is_ok()
    }

    #[inline(always)]
    pub fn remove(self, key: &CtKey) {
        if self.map().remove(key).is_ok() {
            counters::tally(match self {
                Self::Confirmed => Tally::ConfirmedDeleted,
                Self::Unconfirmed => Tally::UnconfirmedDeleted,
            });
        }
    }
}

/// The entry of a flow, wherever it is.
#[inline(always)]
pub fn find(key: &CtKey) -> Option<(*mut CtEntry, Place)> {
    match CONNECTIONS.get_ptr_mut(key) {
        Some(entry) => Some((entry, Place::Confirmed)),
        None => UNCONFIRMED.get_ptr_mut(key).map(|entry| (entry, Place::Unconfirmed)),
    }
}

/// Passes a packet by its flow's entry, or judges it.
#[inline(always)]
pub fn follow(endpoint: *const EndpointEntry, scratch: &mut Scratch) -> Reason {
    let flow = &mut scratch.flow;
    let mut replaces = None;
    if let Some((entry, place)) = find(&flow.key) {
        // SAFETY: a live map element of integers; that other processors write to them is expected (see above).
        let known = unsafe { &*entry };
        if continues(known, flow) {
            let Some(reason) = current(known, &scratch.endpoint) else {
                return rejudge(endpoint, scratch, entry, place, true);
            };
            flow.decision = known.decision;
            touch(entry, flow);
            if flow.from_pod {
                // SAFETY: a live map element; one word, of which nothing is believed that is not checked.
                flow.via = unsafe { kernel::read(&raw const (*entry).sides[1].via) };
            }
            if matches!(place, Place::Unconfirmed) {
                direct::learn(entry, scratch);
                // SAFETY: a live map element, and this packet's working memory.
                unsafe { weir_promote(scratch, entry) };
            }
            return reason;
        }
        replaces = Some(place);
    }
    open(endpoint, scratch, replaces)
}

/// Passes an ICMP error by the entry of the flow that it quotes, whose key the packet has taken over.
#[inline(always)]
pub fn follow_related(endpoint: *const EndpointEntry, scratch: &mut Scratch) -> Option<Reason> {
    let (entry, place) = find(&scratch.flow.key)?;
    // SAFETY: as in `follow`.
    let known = unsafe { &*entry };
    let reason = match current(known, &scratch.endpoint) {
        Some(reason) => reason,
        None => rejudge(endpoint, scratch, entry, place, false),
    };
    Some(match reason {
        Reason::Established | Reason::Rejudged => Reason::Related,
        other => other,
    })
}

/// The reason to pass (or, where the endpoint is only audited, to have dropped) a packet of this flow; `None` where
/// the flow must be judged again.
#[inline(always)]
pub fn current(entry: &CtEntry, endpoint: &Endpoint) -> Option<Reason> {
    if entry.epoch != endpoint.epoch() {
        None
    } else if entry.decision.allows() {
        Some(Reason::Established)
    } else if endpoint.has(EndpointEntry::AUDIT) {
        Some(Reason::PolicyDenied)
    } else {
        None
    }
}

/// True where the packet belongs to the flow of this entry; false where it begins another under the same key.
#[inline(always)]
pub fn continues(entry: &CtEntry, flow: &Flow) -> bool {
    let protocol = flow.key.protocol();
    if flow.now > entry.last_seen() + SHORTEST_LIFETIME && entry.expired(protocol, flow.now) {
        return false;
    }
    let forward = entry.opener() as u8 == flow.direction() as u8;
    if flow.opens() {
        // From the opener: sent again. From the other side: a connection of its own, to be judged in its own direction.
        return forward && !matches!(entry.state(protocol), State::Closed);
    }
    if protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 {
        let v4 = flow.key.peer.is_v4();
        if Icmp::is(v4, protocol) {
            let opener = (entry.opener_icmp >> 8) as u8;
            let kind = (flow.icmp >> 8) as u8;
            return if forward {
                kind == opener
            } else {
                matches!(Icmp::of(v4, opener), Icmp::EchoRequest) && matches!(Icmp::of(v4, kind), Icmp::EchoReply)
            };
        }
    }
    true
}

/// Remembers a packet in its flow's entry.
#[inline(always)]
pub fn touch(entry: *mut CtEntry, flow: &mut Flow) {
    // SAFETY: a live map element. Only counters, times and flags of one side are written, so that an element that
    // was recycled meanwhile gets no rights, but a wrong count at worst.
    unsafe {
        let side = if flow.from_pod {
            &raw mut (*entry).sides[0]
        } else {
            &raw mut (*entry).sides[1]
        };
        kernel::add(&raw mut (*side).packets, flow.packets as u64);
        kernel::add(&raw mut (*side).bytes, flow.bytes as u64);
        if kernel::read(&raw const (*side).last_seen) != flow.now {
            kernel::write(&raw mut (*side).last_seen, flow.now);
        }
        let flags = kernel::read(&raw const (*side).flags);
        if flags | flow.flags != flags {
            let before = (*entry).state(flow.key.protocol());
            kernel::write(&raw mut (*side).flags, flags | flow.flags);
            if flow.may_close() && !matches!(before, State::Closed) {
                weir_close(flow, entry);
            }
        }
    }
}

stage! {
    /// Tells the agent if the packet has closed its flow.
    pub fn weir_close(flow: *mut Flow, entry: *const CtEntry) -> u32 {
        // SAFETY: this packet's working memory, and a live map element of integers.
        let (Some(flow), Some(known)) = (unsafe { (memory(flow), entry.as_ref()) }) else {
            return 0;
        };
        if matches!(known.state(flow.key.protocol()), State::Closed) && known.decision.allows() {
            // SAFETY: as above.
            unsafe { event::weir_ended(flow, entry, Reason::Established as u32) };
        }
        0
    }
}

stage! {
    /// Moves an entry to the confirmed map once its flow is open. (One that was refused stays: whoever makes a pod send
    /// resets must not be able to evict live connections.)
    pub fn weir_promote(scratch: *mut Scratch, entry: *mut CtEntry) -> u32 {
        // SAFETY: this packet's working memory.
        if let Some(scratch) = unsafe { own(scratch) }
            && !entry.is_null()
        {
            promote(entry, scratch);
        }
        0
    }
}

#[inline(always)]
fn promote(entry: *mut CtEntry, scratch: &mut Scratch) {
    let key = &scratch.flow.key;
    let copy = &mut scratch.open.entry;
    // SAFETY: a live map element, and memory of our own.
    unsafe { kernel::copy(entry, copy) };
    if !matches!(copy.state(key.protocol()), State::Open | State::Closing) {
        return;
    }
    if UNCONFIRMED.get_ptr_mut(key) != Some(entry) {
        return;
    }
    if !matches!(Place::Confirmed.insert(key, copy), Inserted::Failed) {
        Place::Unconfirmed.remove(key);
    }
}
