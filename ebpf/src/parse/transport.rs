//! Transport headers: TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260), ICMP (RFC 792), ICMPv6 (RFC 4443).

use weir_common::{
    conntrack::{SCTP_END, SCTP_INIT, TCP_FIN, TCP_RST, TCP_SYN},
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
    reason::Reason,
};

use super::Network;
use crate::{kernel, packet::Packet};

/// FIN, SYN, RST, PSH, ACK, URG: every segment of a connection has at least one.
const TCP_FLAGS: u32 = 0x3f;

const SCTP_CHUNK_INIT: u32 = 1;
const SCTP_CHUNK_ABORT: u32 = 6;
const SCTP_CHUNK_SHUTDOWN_ACK: u32 = 8;
const SCTP_CHUNK_SHUTDOWN_COMPLETE: u32 = 14;

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

/// The "port" on the answering side of an ICMP echo flow.
const ECHO_PORT: u16 = 8;

/// What a transport header says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// As they stand in a connection key: host order; ICMP as [`weir_common::conntrack::CtKey`] says, except that
    /// ICMP without a flow has both parts in `source_port` and `destination_port`, whichever side the pod is.
    pub source_port: u16,
    pub destination_port: u16,
    /// ICMP: type << 8 | code.
    pub icmp: u16,
    /// Length of the header, bytes; of TCP with its options.
    pub header: u16,
    /// TCP flags, or `SCTP_*`: what a connection's side remembers.
    pub flags: u32,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
}

/// The part an ICMP message plays in a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    EchoRequest,
    EchoReply,
    /// Quotes a packet of the flow that it belongs to.
    Error,
    Other,
}

impl Icmp {
    /// The part of a message type. An ICMP redirect (5) quotes a packet too, but it changes routes: it needs a rule.
    #[inline(always)]
    pub const fn of(v4: bool, kind: u8) -> Self {
        if v4 {
            match kind {
                ICMP_ECHO => Self::EchoRequest,
                ICMP_ECHO_REPLY => Self::EchoReply,
                3 | 4 | 11 | 12 => Self::Error,
                _ => Self::Other,
            }
        } else {
            match kind {
                ICMPV6_ECHO => Self::EchoRequest,
                ICMPV6_ECHO_REPLY => Self::EchoReply,
                1..=4 => Self::Error,
                _ => Self::Other,
            }
        }
    }

    /// True where `protocol` is ICMP in the packet's family.
    #[inline(always)]
    pub const fn is(v4: bool, protocol: u8) -> bool {
        if v4 {
            protocol == IPPROTO_ICMP
        } else {
            protocol == IPPROTO_ICMPV6
        }
    }
}

/// Parses the transport header of a packet that begins with one (no later fragment).
#[inline(always)]
pub fn parse<P: Packet>(packet: P, network: &Network, header: &mut Transport) -> Result<(), Reason> {
    // SAFETY: memory of our own, integers.
    unsafe { kernel::clear_words(header) };
    let found = match network.protocol {
        IPPROTO_TCP => tcp(packet, network, header),
        IPPROTO_UDP => udp(packet, network, header),
        IPPROTO_SCTP => sctp(packet, network, header),
        protocol if Icmp::is(network.v4, protocol) => icmp(packet, network, header),
        _ => Ok(()),
    };
    match found {
        Err(Reason::Truncated) if network.fragment => Err(Reason::FragmentTiny),
        found => found,
    }
}

/// `N` words of transport header, if the network layer's payload has them.
#[inline(always)]
fn load<P: Packet, const N: usize>(packet: P, network: &Network) -> Result<[u32; N], Reason> {
    if network.transport + 4 * N as u32 > network.end {
        return Err(Reason::Truncated);
    }
    packet.load::<N>(network.transport).ok_or(Reason::Truncated)
}

#[inline(always)]
fn tcp<P: Packet>(packet: P, network: &Network, header: &mut Transport) -> Result<(), Reason> {
    let words = load::<P, 5>(packet, network)?;
    let fourth = u32::from_be(words[3]);
    let length = (fourth >> 28) * 4;
    let flags = fourth >> 16 & 0xff;
    if length < 20 {
        return Err(Reason::BadHeader);
    }
    if network.transport + length > network.end {
        return Err(Reason::Truncated);
    }
    if flags & TCP_FLAGS == 0 || (flags & TCP_SYN != 0 && flags & (TCP_FIN | TCP_RST) != 0) {
        return Err(Reason::BadTcpFlags);
    }
    header.set_ports(words[0]);
    header.header = length as u16;
    header.flags = flags;
    header.tcp_flags = flags as u8;
    Ok(())
}

#[inline(always)]
fn udp<P: Packet>(packet: P, network: &Network, header: &mut Transport) -> Result<(), Reason> {
    let words = load::<P, 2>(packet, network)?;
    let length = u32::from_be(words[1]) >> 16;
    let available = network.end - network.transport;
    // A fragment's UDP header tells the length of the whole datagram; a merged packet's, perhaps of one segment.
    if length < 8 && !(length == 0 && packet.segmented()) || (length > available && !network.fragment) {
        return Err(Reason::Truncated);
    }
    header.set_ports(words[0]);
    header.header = 8;
    Ok(())
}

#[inline(always)]
fn sctp<P: Packet>(packet: P, network: &Network, header: &mut Transport) -> Result<(), Reason> {
    // The common header and the head of the first chunk.
    let words = load::<P, 4>(packet, network)?;
    header.set_ports(words[0]);
    header.header = 16;
    header.flags = match u32::from_be(words[3]) >> 24 {
        SCTP_CHUNK_INIT => SCTP_INIT,
        SCTP_CHUNK_ABORT | SCTP_CHUNK_SHUTDOWN_ACK | SCTP_CHUNK_SHUTDOWN_COMPLETE => SCTP_END,
        _ => 0,
    };
    Ok(())
}

#[inline(always)]
fn icmp<P: Packet>(packet: P, network: &Network, header: &mut Transport) -> Result<(), Reason> {
    let words = load::<P, 2>(packet, network)?;
    header.header = 8;
    header.set_icmp(network.v4, words);
    Ok(())
}

impl Transport {
    /// Fills in the ports from the first word of a TCP, UDP or SCTP header.
    #[inline(always)]
    pub fn set_ports(&mut self, word: u32) {
        let ports = u32::from_be(word);
        self.source_port = (ports >> 16) as u16;
        self.destination_port = ports as u16;
    }

    /// Fills in what the first eight bytes of an ICMP message say.
    #[inline(always)]
    pub fn set_icmp(&mut self, v4: bool, words: [u32; 2]) {
        let icmp = (u32::from_be(words[0]) >> 16) as u16;
        let id = (u32::from_be(words[1]) >> 16) as u16;
        self.icmp = icmp;
        (self.source_port, self.destination_port) = match Icmp::of(v4, (icmp >> 8) as u8) {
            Icmp::EchoRequest => (id, ECHO_PORT),
            Icmp::EchoReply => (ECHO_PORT, id),
            Icmp::Error | Icmp::Other => (icmp, icmp),
        };
    }
}

/// True for the messages that an IPv6 link needs to work: neighbour discovery (RFC 4861) and multicast listener
/// discovery (RFC 2710, RFC 3810). What could have come from, or could go, beyond the link is not among them, so
/// that nothing can be tunnelled past a policy this way; nor is a router advertisement that a pod sends.
#[inline(always)]
pub fn is_link_control(network: &Network, transport: &Transport, from_pod: bool) -> bool {
    /// Longest solicitation or advertisement with link-layer address and nonce options, bytes.
    const NEIGHBOUR_MESSAGE: u32 = 64;
    if network.v4 || network.fragment || network.protocol != IPPROTO_ICMPV6 {
        return false;
    }
    let stays_on_link = network.destination.is_v6_link_local() || network.destination.is_multicast();
    let kind = transport.icmp >> 8;
    let code = transport.icmp & 0xff;
    match kind {
        // Listener query, report, done, report of version 2.
        130..=132 | 143 => {
            network.hops == 1
                && network.destination.is_multicast()
                && (network.source.is_v6_link_local() || is_unspecified(network))
        }
        134 if from_pod => false,
        133 | 134 => network.hops == 255 && code == 0 && stays_on_link,
        // Neighbours are asked under their global addresses too.
        135 | 136 => {
            network.hops == 255 && code == 0 && (stays_on_link || network.end - network.transport <= NEIGHBOUR_MESSAGE)
        }
        _ => false,
    }
}

#[inline(always)]
fn is_unspecified(network: &Network) -> bool {
    let words = &network.source.0;
    words[0] | words[1] | words[2] | words[3] == 0
}
