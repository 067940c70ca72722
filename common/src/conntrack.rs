//! The connection table: what is remembered of a flow so that its packets need no policy lookup.
//!
//! Two LRU maps with the same key and value: unconfirmed entries (only the opener has spoken) and confirmed ones,
//! so that a flood of first packets cannot evict live connections.

use crate::{Addr, Direction, pod, policy::Decision};

/// A flow of one endpoint, seen from its pod, the same for both directions. All fields exact.
///
/// The endpoint's id is part of the key, so that neither a reused address nor the two ends of a flow between two
/// pods of one node share an entry. The id, not the ifindex: an ifindex comes again.
///
/// ICMP echo: the pair of "ports" is (identifier, 8) on the asking side and the answering side; other ICMP that no
/// flow explains: (type << 8 | code, 0) on the pod's and the peer's side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CtKey {
    /// `endpoint id << 8 | protocol`
    pub endpoint_protocol: u32,
    /// The pod's port, host order.
    pub local_port: u16,
    /// The peer's port, host order.
    pub peer_port: u16,
    pub local: Addr,
    pub peer: Addr,
}

impl CtKey {
    #[inline(always)]
    #[must_use]
    pub const fn endpoint(&self) -> u32 {
        self.endpoint_protocol >> 8
    }

    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.endpoint_protocol as u8
    }
}

/// What one side of a flow has done. The only part of an entry that is written through a pointer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CtSide {
    /// `CLOCK_MONOTONIC` (coarse), ns; 0: never.
    pub last_seen: u64,
    /// Packets as on the wire: a GSO packet counts its segments.
    pub packets: u64,
    /// Bytes from the network header on.
    pub bytes: u64,
    /// TCP: all flags seen, OR-ed (byte 13 of the header). SCTP: `SCTP_*`.
    pub flags: u32,
    /// Of what the pod received: ifindex of the local pod's interface from which the peer's packets are known to come
    /// straight, neither translated nor detoured (`direct` in ebpf/); 0: not known. Only ever a hint: who uses it
    /// asks the endpoint and the entry behind it.
    pub via: u32,
}

pub const TCP_FIN: u32 = 1;
pub const TCP_SYN: u32 = 2;
pub const TCP_RST: u32 = 4;
pub const TCP_ACK: u32 = 16;
/// An SCTP INIT chunk was seen (RFC 9260).
pub const SCTP_INIT: u32 = 1 << 8;
/// An SCTP ABORT, SHUTDOWN-ACK or SHUTDOWN-COMPLETE chunk was seen.
pub const SCTP_END: u32 = 1 << 9;

/// Value of both connection maps. Everything but `sides` is written only by replacing the whole entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CtEntry {
    /// The endpoint's epoch under which `decision` was made.
    pub epoch: u32,
    /// What allowed the flow (verdict, log, trace).
    pub decision: Decision,
    /// `CLOCK_MONOTONIC`, ns.
    pub created: u64,
    /// Service translation (planned): the other address of the flow, or unspecified.
    pub nat_addr: Addr,
    pub nat_port: u16,
    /// `CtEntry::*` flags.
    pub flags: u16,
    /// ICMP: type << 8 | code of the packet that opened the flow, to judge it again.
    pub opener_icmp: u16,
    pub pad: u16,
    /// By [`Direction`]: what the pod sent, what the pod received.
    pub sides: [CtSide; 2],
    /// Makes the upgrade test's second build another shape.
    #[cfg(feature = "next-layout")]
    pub reserved: u64,
}

impl CtEntry {
    /// The peer opened the flow (ingress policy decided); else the pod did.
    pub const OPENED_BY_PEER: u16 = 1;
    /// Opened by the node itself: exempt from ingress policy.
    pub const NODE: u16 = 2;
    /// Taken over mid-flow: neither side's handshake was seen.
    pub const ADOPTED: u16 = 4;
    /// Planned: this entry is a stub under the tuple before translation.
    pub const STUB: u16 = 8;
    /// The agent has been told that the flow started.
    pub const REPORTED: u16 = 16;

    /// Who opened the flow, as the direction of its first packet.
    #[inline(always)]
    #[must_use]
    pub const fn opener(&self) -> Direction {
        if self.flags & Self::OPENED_BY_PEER != 0 {
            Direction::Ingress
        } else {
            Direction::Egress
        }
    }
}

/// What the flags of both sides say about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Only one side has spoken. TCP: the opener has not acknowledged yet, so it may be somebody who uses a false
    /// address.
    Opening,
    Open,
    /// One side has sent FIN.
    Closing,
    /// Both sides have sent FIN, or one RST: a SYN on this tuple is a new flow.
    Closed,
}

const SECOND: u64 = 1_000_000_000;

impl CtEntry {
    /// The state of the connection under `protocol`, from what both sides have sent.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self, protocol: u8) -> State {
        let (a, b) = (&self.sides[0], &self.sides[1]);
        let spoken_both = a.packets != 0 && b.packets != 0;
        match protocol {
            crate::policy::IPPROTO_TCP => {
                if (a.flags | b.flags) & TCP_RST != 0 || a.flags & b.flags & TCP_FIN != 0 {
                    State::Closed
                } else if (a.flags | b.flags) & TCP_FIN != 0 {
                    State::Closing
                } else if spoken_both && self.sides[self.opener() as usize].flags & TCP_ACK != 0 {
                    State::Open
                } else {
                    State::Opening
                }
            }
            crate::policy::IPPROTO_SCTP if (a.flags | b.flags) & SCTP_END != 0 => State::Closed,
            _ if spoken_both => State::Open,
            _ => State::Opening,
        }
    }

    /// How long a silent entry of this protocol and state lives, ns. The datapath and the sweep both use it, so an
    /// entry expires also where no agent runs.
    #[inline(always)]
    #[must_use]
    pub const fn lifetime(protocol: u8, state: State) -> u64 {
        use crate::policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};
        let seconds = match (protocol, state) {
            (IPPROTO_TCP | IPPROTO_SCTP, State::Opening) => 30,
            (IPPROTO_TCP | IPPROTO_SCTP, State::Open) => 24 * 3600,
            (IPPROTO_TCP | IPPROTO_SCTP, State::Closing) => 120,
            (IPPROTO_TCP | IPPROTO_SCTP, State::Closed) => 10,
            (IPPROTO_UDP, State::Opening) => 30,
            (IPPROTO_UDP, _) => 120,
            (IPPROTO_ICMP | IPPROTO_ICMPV6, _) => 30,
            (_, _) => 600,
        };
        seconds * SECOND
    }

    /// When any side was last seen, ns.
    #[inline(always)]
    #[must_use]
    pub const fn last_seen(&self) -> u64 {
        if self.sides[0].last_seen > self.sides[1].last_seen {
            self.sides[0].last_seen
        } else {
            self.sides[1].last_seen
        }
    }

    /// True where the entry has been silent for longer than its state allows.
    #[inline(always)]
    #[must_use]
    pub const fn expired(&self, protocol: u8, now: u64) -> bool {
        now > self.last_seen() + Self::lifetime(protocol, self.state(protocol))
    }
}

const _: () = assert!(size_of::<CtKey>() == 40 && align_of::<CtKey>() == 4);
const _: () = assert!(size_of::<CtSide>() == 32);
#[cfg(not(feature = "next-layout"))]
const _: () = assert!(size_of::<CtEntry>() == 104);
#[cfg(feature = "next-layout")]
const _: () = assert!(size_of::<CtEntry>() == 112);
pod!(CtKey, CtSide, CtEntry);
