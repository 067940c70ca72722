//! From bytes to headers. Every length field is checked against the others and against the packet's real length.

pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod transport;

#[cfg(test)]
mod tests;

use weir_common::{Addr, reason::Reason};

/// The network layer of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    pub source: Addr,
    pub destination: Addr,
    /// Offset of the first byte behind the packet's network payload.
    pub end: u32,
    /// Offset of the transport header (of a later fragment: of its piece of payload).
    pub transport: u32,
    /// Fragments: identification.
    pub fragment_id: u32,
    /// Fragments: where in the datagram this piece begins, bytes. 0: the first piece.
    pub fragment_offset: u32,
    /// Fragments: offset of the piece in the packet (the transport header may stand behind extension headers).
    pub fragment_start: u32,
    /// Transport protocol; of a later fragment: what its fragment header says.
    pub protocol: u8,
    /// Fragments: the protocol that all pieces carry in their IPv4 header or IPv6 fragment header.
    pub fragment_protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    pub v4: bool,
    pub fragment: bool,
}

impl Network {
    /// True for a piece that does not begin with a transport header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment && self.fragment_offset != 0
    }
}

/// What a parsing stage's result says.
///
/// # Errors
/// The reason that its number stands for.
#[inline(always)]
pub const fn failure(number: u32) -> Result<(), Reason> {
    const TRUNCATED: u32 = Reason::Truncated as u32;
    const TOO_MANY: u32 = Reason::TooManyHeaders as u32;
    const TINY: u32 = Reason::FragmentTiny as u32;
    Err(match number {
        0 => return Ok(()),
        TRUNCATED => Reason::Truncated,
        TOO_MANY => Reason::TooManyHeaders,
        TINY => Reason::FragmentTiny,
        _ => Reason::BadHeader,
    })
}

/// How strictly lengths are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The packet is all there.
    Whole,
    /// An ICMP error quotes the beginning of a packet.
    Quoted,
}
