//! From one pod of the node to another without the node's own forwarding: the sender's hook judges for both ends and
//! hands the packet to the receiver.
//!
//! Only what both ends know is handed over: packets of an open flow for which either end has a current entry that
//! allows it. Everything else goes the kernel's way, to the receiver's own hook: what opens a flow, what must be judged
//! again, fragments, errors, what is denied. So nothing is decided here that is not decided there.
//!
//! And only where the kernel would change nothing: the node may translate addresses (kube-proxy), route by policy, or
//! send packets of one direction elsewhere. So each direction of a flow must have shown that it goes straight: a
//! packet came to the receiver's hook, by the kernel's way, from the very interface of the sender, under the very tuple
//! that the sender's entry has. The receiver's entry remembers that interface
//! ([`weir_common::conntrack::CtSide::via`]). The entry that proves it must be of this flow and not of one that is
//! translated to the same tuple: the opener's has not been answered yet, the other's has been proven by that one.
//! Where the node routes by destination alone, what the opening has proven is good for the answers.

use aya_ebpf::{macros::map, maps::Array};
use weir_common::{
    Addr, Direction,
    conntrack::{CtEntry, CtKey, State},
    endpoint::EndpointEntry,
    policy::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
    reason::Reason,
};

use crate::{
    conntrack::{self, Place},
    counters,
    endpoint::Endpoint,
    flow::{Flow, same},
    kernel,
    packet::{Packet as _, Skb},
    scratch::{self, Scratch, own},
    stage::stage,
};

#[map]
static DIRECT_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// True while the agent has looked not long ago, and found nothing that needs the kernel's forwarding.
#[inline(always)]
fn enabled(now: u64) -> bool {
    match DIRECT_UNTIL.get_ptr(0) {
        // SAFETY: array elements live as long as their map; one word.
        Some(until) => unsafe { now < kernel::read(until) },
        None => false,
    }
}

/// True for a received packet that may prove which interface its flow comes from.
#[inline(always)]
pub const fn may_prove(endpoint: &Endpoint, flow: &Flow) -> bool {
    endpoint.has(EndpointEntry::DIRECT)
        && !flow.from_pod
        && flow.ingress_ifindex != 0
        && matches!(flow.key.protocol(), IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP)
}

/// An unconfirmed flow goes on: if this is its opener, and the packet an answer, remembers where answers come from.
#[inline(always)]
pub fn learn(entry: *mut CtEntry, scratch: &mut Scratch) {
    if !may_prove(&scratch.endpoint, &scratch.flow) {
        return;
    }
    // SAFETY: a live map element. What is written is a hint (see the field).
    unsafe {
        if kernel::read(&raw const (*entry).sides[1].via) == 0 && matches!((*entry).opener(), Direction::Egress) {
            let via = weir_prove(scratch, 0);
            kernel::write(&raw mut (*entry).sides[1].via, via);
        }
    }
}

stage! {
    /// The interface of the local pod from which the packet in hand came straight, or 0. `opens` tells whether the
    /// packet has opened its flow here; else it answers a flow that was opened here.
    pub fn weir_prove(scratch: *mut Scratch, opens: u32) -> u32 {
        // SAFETY: this packet's working memory.
        let Some(scratch) = (unsafe { own(scratch) }) else {
            return 0;
        };
        if proves(scratch, opens != 0) { scratch.flow.ingress_ifindex } else { 0 }
    }
}

#[inline(always)]
fn proves(scratch: &mut Scratch, opens: bool) -> bool {
    let Scratch { flow, mirror, .. } = &mut *scratch;
    let mut sender = Endpoint::default();
    if !enabled(flow.now) || !belongs(&mut sender, flow.ingress_ifindex, &flow.key.peer) {
        return false;
    }
    reflect(&flow.key, sender.id(), mirror);
    let Some((entry, _)) = conntrack::find(mirror) else {
        return false;
    };
    // SAFETY: a live map element of integers; that other processors write to them is expected.
    let known = unsafe { &*entry };
    if !known.decision.allows() || known.expired(mirror.protocol(), flow.now) {
        return false;
    }
    match (known.opener(), opens) {
        (Direction::Egress, true) => {
            matches!(known.state(mirror.protocol()), State::Opening) && known.sides[1].packets == 0
        }
        (Direction::Ingress, false) => known.sides[1].via == flow.ifindex,
        _ => false,
    }
}

/// Finds the endpoint behind an interface; true if it has this address and may be passed directly.
#[inline(always)]
fn belongs(endpoint: &mut Endpoint, ifindex: u32, addr: &Addr) -> bool {
    let Ok(entry) = endpoint.find(ifindex) else {
        return false;
    };
    let own = Endpoint::address(entry, addr.is_v4());
    endpoint.has(EndpointEntry::DIRECT) && same(&own, addr) && endpoint.is_current(entry)
}

/// A flow's key as its other end has it.
#[inline(always)]
fn reflect(key: &CtKey, endpoint: u32, mirror: &mut CtKey) {
    mirror.endpoint_protocol = endpoint << 8 | key.protocol() as u32;
    mirror.local_port = key.peer_port;
    mirror.peer_port = key.local_port;
    // SAFETY: two keys at different places in memory.
    unsafe {
        kernel::copy_words(&raw const key.peer, &raw mut mirror.local);
        kernel::copy_words(&raw const key.local, &raw mut mirror.peer);
    }
}

/// True for a packet that may be handed over, as far as its sender's side can tell.
#[inline(always)]
pub fn may_deliver(packet: Skb, scratch: &Scratch) -> bool {
    let Scratch {
        endpoint,
        flow,
        network,
        ..
    } = scratch;
    // Who forwards says so to a packet whose hops end (RFC 1812 section 5.3.1): that is the kernel's business.
    flow.from_pod
        && endpoint.has(EndpointEntry::DIRECT)
        && !network.fragment
        && network.hops > 1
        && !flow.opens()
        && packet.to_host()
}

stage! {
    /// Judges the packet in hand for its receiver, as the receiver's own hook would; the receiver's interface, or 0
    /// where that hook must see the packet.
    pub fn weir_deliver(scratch: *mut Scratch) -> u32 {
        // SAFETY: this packet's working memory.
        let Some(scratch) = (unsafe { own(scratch) }) else {
            return 0;
        };
        // While this hook's program runs, no other one of this processor does: its memory is free.
        let Some(receiver) = scratch::of(Direction::Ingress) else {
            return 0;
        };
        if deliver(&scratch.flow, receiver) { scratch.flow.via } else { 0 }
    }
}

#[inline(always)]
fn deliver(sent: &Flow, receiver: &mut Scratch) -> bool {
    let Scratch { endpoint, flow, .. } = &mut *receiver;
    if !enabled(sent.now) || !belongs(endpoint, sent.via, &sent.key.peer) || endpoint.is_closed(Direction::Ingress) {
        return false;
    }
    reflect(&sent.key, endpoint.id(), &mut flow.key);
    flow.now = sent.now;
    flow.packets = sent.packets;
    flow.bytes = sent.bytes;
    flow.flags = sent.flags;
    flow.ifindex = sent.via;
    flow.ingress_ifindex = sent.ifindex;
    flow.via = 0;
    flow.icmp = 0;
    flow.tcp_flags = sent.tcp_flags;
    flow.from_pod = false;
    flow.from_node = false;
    flow.later_fragment = false;
    let Some((entry, place)) = conntrack::find(&flow.key) else {
        return false;
    };
    // SAFETY: a live map element of integers; that other processors write to them is expected.
    let known = unsafe { &*entry };
    if !(known.sides[1].via == sent.ifindex || is_first_answer(known, endpoint, place))
        || !conntrack::continues(known, flow)
        || !matches!(conntrack::current(known, endpoint), Some(Reason::Established))
    {
        return false;
    }
    flow.decision = known.decision;
    // SAFETY: a live map element. What is written is a hint (see the field).
    unsafe {
        if kernel::read(&raw const (*entry).sides[1].via) != sent.ifindex {
            kernel::write(&raw mut (*entry).sides[1].via, sent.ifindex);
        }
    }
    conntrack::touch(entry, flow);
    counters::packet(Reason::Established, Direction::Ingress, flow.packets, flow.bytes);
    if matches!(place, Place::Unconfirmed) {
        // SAFETY: the other direction's working memory, and a live map element.
        unsafe { conntrack::weir_promote(receiver, entry) };
    }
    true
}

/// True for the first answer to a flow that the receiver has opened, where answers go the way that questions came. The
/// question has proven that way: the sender's entry says so, or the packet would not have come here.
#[inline(always)]
fn is_first_answer(known: &CtEntry, receiver: &Endpoint, place: Place) -> bool {
    receiver.has(EndpointEntry::SYMMETRIC)
        && matches!(place, Place::Unconfirmed)
        && matches!(known.opener(), Direction::Egress)
        && known.sides[1].packets == 0
        && known.sides[1].via == 0
}

/// Gives the packet to the other end of an interface's pair, in its network namespace.
#[inline(always)]
pub fn hand_over(ifindex: u32) -> i32 {
    // SAFETY: the helper takes numbers (Linux 5.10, kernel commit 9aa1206e8f48; in TC ingress hooks).
    unsafe { aya_ebpf::helpers::generated::bpf_redirect_peer(ifindex, 0) as i32 }
}
