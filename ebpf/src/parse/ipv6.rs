//! IPv6 and its extension headers (RFC 8200).

use aya_ebpf::bindings::__sk_buff;
use weir_common::{Addr, reason::Reason};

use super::{Extent, Network};
use crate::{
    packet::{Packet, Skb},
    stage::{memory, stage},
};

const HEADER: u32 = 40;
/// Extension headers that are followed; no packet in earnest has more.
const MAX_EXTENSIONS: u32 = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

stage! {
    /// Parses the IPv6 header that begins at `offset`, of a packet or (`quoted` is not 0) of a quotation. The result
    /// is 0 or the number of the reason to drop the packet: [`super::failure`].
    pub fn weir_ipv6(context: *mut __sk_buff, network: *mut Network, offset: u32, quoted: u32) -> u32 {
        // SAFETY: this packet's working memory.
        let Some(network) = (unsafe { memory(network) }) else {
            return Reason::BadHeader as u32;
        };
        let extent = if quoted == 0 { Extent::Whole } else { Extent::Quoted };
        // SAFETY: the running program's context.
        match parse(unsafe { Skb::new(context) }, offset, extent, network) {
            Ok(()) => 0,
            Err(reason) => reason as u32,
        }
    }
}

/// Parses the IPv6 header that begins at `offset`, and the chain of extension headers behind it. ESP (50) and "no
/// next header" (59) end the chain as protocols of their own.
#[inline(always)]
pub fn parse<P: Packet>(packet: P, offset: u32, extent: Extent, network: &mut Network) -> Result<(), Reason> {
    let Some(words) = packet.load::<10>(offset) else {
        return Err(Reason::Truncated);
    };
    if u32::from_be(words[0]) >> 28 != 6 {
        return Err(Reason::BadHeader);
    }
    let second = u32::from_be(words[1]);
    let available = packet.len() - offset - HEADER;
    let mut payload = second >> 16;
    if extent == Extent::Quoted || (payload == 0 && packet.segmented()) {
        // As in IPv4. (A jumbogram proper, RFC 2675, is refused: its length option is not read.)
        payload = available;
    }
    if payload > available {
        return Err(Reason::Truncated);
    }
    network.source = Addr([words[2], words[3], words[4], words[5]]);
    network.destination = Addr([words[6], words[7], words[8], words[9]]);
    network.end = offset + HEADER + payload;
    network.transport = offset + HEADER;
    network.fragment_id = 0;
    network.fragment_offset = 0;
    network.fragment_start = 0;
    network.protocol = (second >> 8) as u8;
    network.fragment_protocol = 0;
    network.hops = second as u8;
    network.v4 = false;
    network.fragment = false;
    match network.protocol {
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
            extensions(packet, network)
        }
        _ => Ok(()),
    }
}

/// Walks the chain of extension headers.
#[inline(always)]
fn extensions<P: Packet>(packet: P, network: &mut Network) -> Result<(), Reason> {
    let mut next = network.protocol;
    let mut at = network.transport;
    let mut count = 0;
    loop {
        let fixed = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 | AUTHENTICATION => false,
            FRAGMENT => true,
            _ => break,
        };
        if count == MAX_EXTENSIONS {
            return Err(Reason::TooManyHeaders);
        }
        // Hop-by-hop options stand directly behind the IPv6 header or nowhere (RFC 8200 section 4.1).
        if next == HOP_BY_HOP && count != 0 {
            return Err(Reason::BadHeader);
        }
        count += 1;
        // All extension headers are at least eight bytes long.
        let Some(words) = packet.load::<2>(at) else {
            return Err(cut_off(network));
        };
        let first = u32::from_be(words[0]);
        let length = if fixed {
            8
        } else if next == AUTHENTICATION {
            ((first >> 16 & 0xff) + 2) * 4
        } else {
            ((first >> 16 & 0xff) + 1) * 8
        };
        if at + length > network.end {
            return Err(cut_off(network));
        }
        at += length;
        next = (first >> 24) as u8;
        if fixed {
            let fragment_offset = first & 0xfff8;
            let more = first & 1 != 0;
            // One with offset 0 and nothing to follow is no fragment (RFC 6946).
            if more || fragment_offset != 0 {
                if network.fragment || (more && !(network.end - at).is_multiple_of(8)) {
                    return Err(Reason::BadHeader);
                }
                network.fragment = true;
                network.fragment_offset = fragment_offset;
                network.fragment_id = u32::from_be(words[1]);
                network.fragment_start = at;
                network.fragment_protocol = next;
                if fragment_offset != 0 {
                    break;
                }
            }
        }
    }
    network.protocol = next;
    network.transport = at;
    Ok(())
}

/// A chain that ends within a header. The first fragment must hold all of it (RFC 7112).
#[inline(always)]
fn cut_off(network: &Network) -> Reason {
    if network.fragment {
        Reason::FragmentTiny
    } else {
        Reason::Truncated
    }
}
