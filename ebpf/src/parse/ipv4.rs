//! IPv4 (RFC 791).

use weir_common::{Addr, reason::Reason};

use super::{Extent, Network};
use crate::packet::Packet;

const HEADER: u32 = 20;
const MORE_FRAGMENTS: u32 = 0x2000;
const FRAGMENT_OFFSET: u32 = 0x1fff;

/// Parses the IPv4 header that begins at `offset`.
#[inline(always)]
pub fn parse<P: Packet>(packet: P, offset: u32, extent: Extent, network: &mut Network) -> Result<(), Reason> {
    let Some(words) = packet.load::<5>(offset) else {
        return Err(Reason::Truncated);
    };
    let first = u32::from_be(words[0]);
    let header = (first >> 24 & 0xf) * 4;
    if first >> 28 != 4 || header < HEADER {
        return Err(Reason::BadHeader);
    }
    let available = packet.len() - offset;
    let mut total = first & 0xffff;
    if extent == Extent::Quoted || (total == 0 && packet.segmented()) {
        // A quote ends before its packet. And a merged packet of 64 KiB and more has no length that fits the field
        // (kernel commit b1a78b9b9886, "BIG TCP").
        total = available;
    }
    if total > available || header > total {
        return Err(Reason::Truncated);
    }

    let second = u32::from_be(words[1]);
    let third = u32::from_be(words[2]);
    let more = second & MORE_FRAGMENTS != 0;
    let fragment_offset = (second & FRAGMENT_OFFSET) * 8;
    if more && !(total - header).is_multiple_of(8) && extent == Extent::Whole {
        // Only the last piece may end between units.
        return Err(Reason::BadHeader);
    }
    let protocol = (third >> 16) as u8;
    network.source = Addr::from_v4_word(words[3]);
    network.destination = Addr::from_v4_word(words[4]);
    network.end = offset + total;
    network.transport = offset + header;
    network.fragment_id = second >> 16;
    network.fragment_offset = fragment_offset;
    network.fragment_start = offset + header;
    network.protocol = protocol;
    network.fragment_protocol = protocol;
    network.hops = (third >> 24) as u8;
    network.v4 = true;
    network.fragment = more || fragment_offset != 0;
    Ok(())
}
