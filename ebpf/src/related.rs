//! ICMP errors belong to the flow that they quote.

use aya_ebpf::bindings::__sk_buff;
use weir_common::{
    conntrack::CtKey,
    policy::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

use crate::{
    conntrack,
    flow::{Flow, ports, same},
    kernel,
    packet::{Packet as _, Skb},
    parse::{
        Extent, Network, failure, ipv4, ipv6,
        transport::{Icmp, Transport},
    },
    scratch::{Scratch, own},
    stage::stage,
};

/// Length of the header before the quotation.
const ERROR_HEADER: u32 = 8;

stage! {
    /// If the ICMP error in hand quotes a packet of a known flow, makes that flow's key the packet's own; else 0.
    pub fn weir_quoted(context: *mut __sk_buff, scratch: *mut Scratch) -> u32 {
        // SAFETY: this packet's working memory.
        let Some(scratch) = (unsafe { own(scratch) }) else {
            return 0;
        };
        let Scratch { flow, network, quoted, .. } = scratch;
        // SAFETY: the running program's context.
        adopt_key(unsafe { Skb::new(context) }, network, flow, quoted) as u32
    }
}

#[inline(always)]
fn adopt_key(packet: Skb, network: &Network, flow: &mut Flow, quoted: &mut Quoted) -> bool {
    quoted.key.endpoint_protocol = flow.key.endpoint_protocol;
    if !quoted_key(packet, network, flow.from_pod, quoted) {
        return false;
    }
    let Some((entry, _)) = conntrack::find(&quoted.key) else {
        return false;
    };
    // SAFETY: a live map element of integers.
    if unsafe { &*entry }.expired(quoted.key.protocol(), flow.now) {
        return false;
    }
    // SAFETY: two keys at different places in memory.
    unsafe { kernel::copy_words(&raw const quoted.key, &raw mut flow.key) };
    true
}

/// What an error quotes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Quoted {
    network: Network,
    transport: Transport,
    key: CtKey,
}

/// Finds the key of the flow of which an ICMP error quotes a packet. `network` is the error's own header.
#[inline(always)]
fn quoted_key(packet: Skb, network: &Network, from_pod: bool, quoted: &mut Quoted) -> bool {
    let at = network.transport + ERROR_HEADER;
    let Quoted {
        network: inner,
        transport,
        key,
    } = quoted;
    let parsed = if network.v4 {
        ipv4::parse(packet, at, Extent::Quoted, inner)
    } else {
        // SAFETY: the running program's context, and this packet's working memory.
        unsafe { failure(ipv6::weir_ipv6(packet.context(), inner, at, 1)) }
    };
    // The error goes to the sender of what it quotes; nobody else has anything to do with that flow.
    if parsed.is_err() || !same(&inner.source, &network.destination) || inner.is_later_fragment() {
        return false;
    }
    transport.source_port = 0;
    transport.destination_port = 0;
    transport.icmp = 0;
    match inner.protocol {
        IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP => {
            let Some([word]) = packet.load::<1>(inner.transport) else {
                return false;
            };
            transport.set_ports(word);
        }
        protocol if Icmp::is(inner.v4, protocol) => {
            // Eight bytes of the quoted packet are all that an IPv4 router must send.
            let Some(words) = packet.load::<2>(inner.transport) else {
                return false;
            };
            transport.set_icmp(inner.v4, words);
            if let Icmp::Error = Icmp::of(inner.v4, (transport.icmp >> 8) as u8) {
                // No errors about errors (RFC 1122 section 3.2.2).
                return false;
            }
        }
        _ => {}
    }
    // What is sent to the pod quotes what the pod has sent, and the other way round.
    (key.local_port, key.peer_port) = ports(inner, transport, !from_pod);
    if from_pod {
        key.local = inner.destination;
        key.peer = inner.source;
    } else {
        key.local = inner.source;
        key.peer = inner.destination;
    }
    key.endpoint_protocol = key.endpoint_protocol & !0xff | inner.protocol as u32;
    true
}
