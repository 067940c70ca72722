//! ICMP errors belong to the flow that they quote.

use weir_common::{
    conntrack::CtKey,
    policy::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

use crate::{
    conntrack,
    flow::{Flow, ports, same},
    packet::Packet,
    parse::{
        Extent, Network, ipv4, ipv6,
        transport::{Icmp, Transport},
    },
};

/// Length of the header before the quotation.
const ERROR_HEADER: u32 = 8;

/// If the ICMP error in hand quotes a packet of a known flow, makes that flow's key the packet's own.
#[inline(never)]
pub fn adopt_key<P: Packet>(packet: &P, network: &Network, flow: &mut Flow) -> bool {
    let endpoint = flow.key.endpoint();
    let Some(key) = quoted_key(packet, network, endpoint, flow.from_pod) else {
        return false;
    };
    let Some((entry, _)) = conntrack::find(&key) else {
        return false;
    };
    // SAFETY: a live map element of integers.
    if unsafe { &*entry }.expired(key.protocol(), flow.now) {
        return false;
    }
    flow.key = key;
    true
}

/// The key of the flow of which an ICMP error quotes a packet. `network` is the error's own header.
#[inline(always)]
fn quoted_key<P: Packet>(packet: &P, network: &Network, endpoint: u32, from_pod: bool) -> Option<CtKey> {
    let at = network.transport + ERROR_HEADER;
    let quoted = if network.v4 {
        ipv4::parse(packet, at, Extent::Quoted)
    } else {
        ipv6::parse(packet, at, Extent::Quoted)
    };
    let Ok(quoted) = quoted else {
        return None;
    };
    // The error goes to the sender of what it quotes; nobody else has anything to do with that flow.
    if !same(&quoted.source, &network.destination) || quoted.is_later_fragment() {
        return None;
    }
    let mut transport = Transport::default();
    match quoted.protocol {
        IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP => {
            let [word] = packet.load::<1>(quoted.transport)?;
            let word = u32::from_be(word);
            transport.source_port = (word >> 16) as u16;
            transport.destination_port = word as u16;
        }
        protocol if Icmp::is(quoted.v4, protocol) => {
            // Eight bytes of the quoted packet are all that an IPv4 router must send.
            let [first, second] = packet.load::<2>(quoted.transport)?;
            transport.icmp = (u32::from_be(first) >> 16) as u16;
            let id = (u32::from_be(second) >> 16) as u16;
            match Icmp::of(quoted.v4, (transport.icmp >> 8) as u8) {
                Icmp::EchoRequest => (transport.source_port, transport.destination_port) = (id, 8),
                Icmp::EchoReply => (transport.source_port, transport.destination_port) = (8, id),
                // No errors about errors (RFC 1122 section 3.2.2).
                Icmp::Error => return None,
                Icmp::Other => {}
            }
        }
        _ => {}
    }
    // What is sent to the pod quotes what the pod has sent, and the other way round.
    let (local_port, peer_port) = ports(&quoted, &transport, !from_pod);
    let (local, peer) = if from_pod {
        (quoted.destination, quoted.source)
    } else {
        (quoted.source, quoted.destination)
    };
    Some(CtKey {
        endpoint_protocol: endpoint << 8 | quoted.protocol as u32,
        local_port,
        peer_port,
        local,
        peer,
    })
}
