//! What is known of the packet in hand, once parsed: the flow that it belongs to and its part in it.

use weir_common::{
    Addr, Direction,
    conntrack::{CtKey, SCTP_INIT, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    policy::{Decision, IPPROTO_SCTP, IPPROTO_TCP},
};

use crate::parse::{
    Network,
    transport::{Icmp, Transport},
};

/// One packet as part of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    /// `CLOCK_MONOTONIC` (coarse), ns.
    pub now: u64,
    /// Zero as far as the packet could not be parsed.
    pub key: CtKey,
    /// Packets on the wire, and their bytes from the network header on.
    pub packets: u32,
    pub bytes: u32,
    /// What the packet adds to its side's flags ([`weir_common::conntrack::CtSide::flags`]).
    pub flags: u32,
    /// What policy said, for the event.
    pub decision: Decision,
    pub ifindex: u32,
    /// The interface that the packet came in by; 0: the node itself made it.
    pub ingress_ifindex: u32,
    /// Of a packet that the pod sends: what its entry's [`weir_common::conntrack::CtSide::via`] says.
    pub via: u32,
    /// ICMP: type << 8 | code.
    pub icmp: u16,
    pub tcp_flags: u8,
    /// [`Direction`] of the packet.
    pub from_pod: bool,
    /// The node itself made this packet.
    pub from_node: bool,
    /// A later fragment: its transport header is known from the first one only.
    pub later_fragment: bool,
}

impl Flow {
    #[inline(always)]
    pub const fn direction(&self) -> Direction {
        if self.from_pod {
            Direction::Egress
        } else {
            Direction::Ingress
        }
    }

    /// Clears what parsing has not filled in, because it failed.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.key.local = Addr::UNSPECIFIED;
        self.key.peer = Addr::UNSPECIFIED;
        self.later_fragment = false;
        self.forget_transport();
    }

    #[inline(always)]
    const fn forget_transport(&mut self) {
        self.key.local_port = 0;
        self.key.peer_port = 0;
        self.flags = 0;
        self.decision = Decision::DENY;
        self.icmp = 0;
        self.tcp_flags = 0;
    }

    /// Fills in what the network header says.
    #[inline(always)]
    pub fn set_network(&mut self, network: &Network) {
        if self.from_pod {
            self.key.local = network.source;
            self.key.peer = network.destination;
        } else {
            self.key.local = network.destination;
            self.key.peer = network.source;
        }
        self.set_protocol(network.protocol);
        self.later_fragment = network.is_later_fragment();
        self.forget_transport();
    }

    #[inline(always)]
    const fn set_protocol(&mut self, protocol: u8) {
        self.key.endpoint_protocol = self.key.endpoint_protocol & !0xff | protocol as u32;
    }

    /// Fills in what the transport header says.
    #[inline(always)]
    pub fn set_transport(&mut self, network: &Network, transport: &Transport) {
        self.set_protocol(network.protocol);
        let (local, peer) = ports(network, transport, self.from_pod);
        self.key.local_port = local;
        self.key.peer_port = peer;
        self.flags = transport.flags;
        self.tcp_flags = transport.tcp_flags;
        self.icmp = transport.icmp;
    }

    /// True for a packet that asks for a new connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        match self.key.protocol() {
            IPPROTO_TCP => self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
            IPPROTO_SCTP => self.flags & SCTP_INIT != 0,
            _ => false,
        }
    }

    /// True for a TCP segment from the middle of a connection.
    #[inline(always)]
    pub const fn is_midflow(&self) -> bool {
        self.key.protocol() == IPPROTO_TCP && !self.later_fragment && !self.opens()
    }

    /// True for a segment after which nothing follows on a connection that nobody knows.
    #[inline(always)]
    pub const fn is_reset(&self) -> bool {
        self.key.protocol() == IPPROTO_TCP && self.flags & TCP_RST != 0
    }

    /// True for a packet that may close its connection.
    #[inline(always)]
    pub const fn may_close(&self) -> bool {
        match self.key.protocol() {
            IPPROTO_TCP => self.flags & (TCP_FIN | TCP_RST) != 0,
            IPPROTO_SCTP => self.flags & weir_common::conntrack::SCTP_END != 0,
            _ => false,
        }
    }
}

/// The pod's and the peer's port of a packet.
#[inline(always)]
pub const fn ports(network: &Network, transport: &Transport, from_pod: bool) -> (u16, u16) {
    if Icmp::is(network.v4, network.protocol)
        && matches!(
            Icmp::of(network.v4, (transport.icmp >> 8) as u8),
            Icmp::Error | Icmp::Other
        )
    {
        (transport.icmp, 0)
    } else if from_pod {
        (transport.source_port, transport.destination_port)
    } else {
        (transport.destination_port, transport.source_port)
    }
}

/// Addresses are compared word by word: `==` on arrays may become a call of a byte loop.
#[inline(always)]
pub const fn same(a: &Addr, b: &Addr) -> bool {
    (a.0[0] ^ b.0[0]) | (a.0[1] ^ b.0[1]) | (a.0[2] ^ b.0[2]) | (a.0[3] ^ b.0[3]) == 0
}
