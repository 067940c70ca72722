//! Decision tables: what a policy verdict costs is a few exact lookups, whatever the number of rules.
//!
//! `(table, peer class, local class) -> row`, then `(row, protocol, port prefix, source-port class) -> decision`.
//! Tables and rows are immutable and never reuse an id, so a reader sees an old or a new one, never a mixture.

use crate::pod;

pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_ICMPV6: u8 = 58;
pub const IPPROTO_SCTP: u8 = 132;

/// Verdict, log flag and trace in one word, so that a reader can never see halves of two.
///
/// Bit 0: allow. Bit 1: log. Bits 2..31: trace, the interned list of rules that the policy walk passed.
/// The all-zero word is "deny, no trace": what an empty slot means is the closed side.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Decision(pub u32);

impl Decision {
    /// Deny, attributed to nothing.
    pub const DENY: Self = Self(0);
    /// Highest trace id that fits.
    pub const MAX_TRACE: u32 = (1 << 30) - 1;

    #[must_use]
    pub const fn new(allow: bool, log: bool, trace: u32) -> Self {
        Self(allow as u32 | (log as u32) << 1 | trace << 2)
    }

    #[inline(always)]
    #[must_use]
    pub const fn allows(self) -> bool {
        self.0 & 1 != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn logs(self) -> bool {
        self.0 & 2 != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn trace(self) -> u32 {
        self.0 >> 2
    }
}

/// Protocols that a row tells apart without a lookup.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    Tcp = 0,
    Udp = 1,
    Sctp = 2,
    /// ICMP on IPv4, ICMPv6 on IPv6 (a peer's class fixes the family). "Port" is type << 8 | code.
    Icmp = 3,
    /// Everything else, told apart by exact protocol number in [`DecisionKey`] where a rule names one.
    Other = 4,
}

impl Slot {
    pub const COUNT: usize = 5;

    /// The slot of a protocol number; `v4` says the packet's family.
    #[inline(always)]
    #[must_use]
    pub const fn of(protocol: u8, v4: bool) -> Self {
        match protocol {
            IPPROTO_TCP => Self::Tcp,
            IPPROTO_UDP => Self::Udp,
            IPPROTO_SCTP => Self::Sctp,
            IPPROTO_ICMP if v4 => Self::Icmp,
            IPPROTO_ICMPV6 if !v4 => Self::Icmp,
            _ => Self::Other,
        }
    }
}

/// Lengths of port prefixes that tables may use, longest first: the order in which the datapath tries them.
/// (Length 0 is [`Row::base`].) A range of ports is a handful of such prefixes.
pub const PREFIX_LENGTHS: [u8; 4] = [16, 12, 8, 4];

/// Which prefix lengths a row uses, per slot: bit `4 * slot + k` stands for `PREFIX_LENGTHS[k]`.
/// Of slot `Other` only bit 16 is used: the row has entries by exact protocol number (prefix length 0).
/// Bit 31: the row distinguishes source ports.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PrefixMask(pub u32);

impl PrefixMask {
    pub const OTHER_BY_NUMBER: u32 = 1 << 16;
    pub const SOURCE_PORTS: u32 = 1 << 31;

    /// The four bits of one slot; bit k stands for `PREFIX_LENGTHS[k]`.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, slot: Slot) -> u32 {
        self.0 >> (4 * slot as u32) & 0xf
    }
}

/// All that a policy says about one peer class, but for single ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row {
    /// Names the entries in the decision map; meaningless while `prefixes` is 0. Never reused.
    pub id: u32,
    pub prefixes: PrefixMask,
    /// By slot: the decision where no port prefix (or protocol number) matches.
    pub base: [Decision; Slot::COUNT],
}

/// Where to find a row. All fields exact.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RowKey {
    pub table: u32,
    /// Class of the peer's identity.
    pub class: u32,
    /// 0 for pods (their own addresses are resolved when the table is compiled); a class for host endpoints.
    pub local_class: u32,
}

/// Where to find a decision for a port. All fields exact; `port` is cut to `prefix` bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DecisionKey {
    pub row: u32,
    /// IP protocol number (the packet's, also for ICMPv6).
    pub protocol: u8,
    /// One of [`PREFIX_LENGTHS`]; 0 for entries by protocol number.
    pub prefix: u8,
    /// 0: the row has no rules with source ports, or no such rule covers this source port.
    pub source_class: u16,
    /// Destination port, or ICMP type << 8 | code, host order, low bits beyond the prefix cleared.
    pub port: u16,
    pub pad: u16,
}

impl DecisionKey {
    /// `port` with all bits beyond the first `prefix` cleared.
    #[inline(always)]
    #[must_use]
    pub const fn cut(port: u16, prefix: u8) -> u16 {
        if prefix == 0 {
            0
        } else {
            port & (0xffff_u16 << (16 - prefix as u32))
        }
    }
}

/// Longest-prefix key of the source-port classes of a row: `row` and `protocol` are matched whole (40 bits).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourcePortKey {
    /// Big-endian, as longest-prefix matching starts with the first byte.
    pub row: [u8; 4],
    pub protocol: u8,
    /// Big-endian source port.
    pub port: [u8; 2],
    pub pad: u8,
}

/// Source ports that a row tells apart from others: each entry of a class says the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceClass {
    /// Never 0, which is the class of all ports without an entry.
    pub class: u32,
    /// The class's own [`Row::base`].
    pub base: Decision,
}

/// Bits of [`SourcePortKey`] before the port.
pub const SOURCE_PORT_KEY_PREFIX: u32 = 40;

/// What one direction of an endpoint obeys. Part of the endpoint's value: one write flips it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DirectionPolicy {
    /// 0: no table; `default_row` decides for every peer and no peer is looked up.
    pub table: u32,
    /// The row of every class for which the table has no row of its own.
    pub default_row: Row,
}

const _: () = assert!(size_of::<Decision>() == 4);
const _: () = assert!(size_of::<Row>() == 28);
const _: () = assert!(size_of::<RowKey>() == 12);
const _: () = assert!(size_of::<DecisionKey>() == 12);
const _: () = assert!(size_of::<SourcePortKey>() == 8);
const _: () = assert!(size_of::<SourceClass>() == 8);
const _: () = assert!(size_of::<DirectionPolicy>() == 32);
pod!(
    Decision,
    PrefixMask,
    Row,
    RowKey,
    DecisionKey,
    SourcePortKey,
    SourceClass,
    DirectionPolicy
);
