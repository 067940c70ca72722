//! What the link layer says about a packet: the kernel has parsed it already.

use crate::packet::Packet;

/// Length of an Ethernet header.
pub const HEADER: u32 = 14;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// What follows the link layer's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Ipv4,
    Ipv6,
    Arp,
    /// Something else, or one of the above within a VLAN.
    Other,
}

impl Link {
    #[inline(always)]
    pub fn of<P: Packet>(packet: P) -> Self {
        if packet.tagged() {
            return Self::Other;
        }
        match packet.protocol() {
            ETHERTYPE_IPV4 => Self::Ipv4,
            ETHERTYPE_IPV6 => Self::Ipv6,
            ETHERTYPE_ARP => Self::Arp,
            _ => Self::Other,
        }
    }
}
