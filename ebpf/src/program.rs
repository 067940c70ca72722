//! A packet's way through the programs, step by step.

use weir_common::{Direction, endpoint::EndpointEntry, reason::Reason};

use crate::{
    conntrack,
    endpoint::Endpoint,
    fragment, kernel,
    packet::{Packet as _, Skb},
    parse::{
        Extent,
        ethernet::{self, Link},
        failure, ipv4, ipv6,
        transport::{self, Icmp},
    },
    related,
    scratch::{self, Scratch},
    source, verdict,
};

/// Handles one packet of one direction; returns what the TC hook is to do with it.
#[inline(always)]
pub fn run(packet: Skb, direction: Direction) -> i32 {
    let ifindex = packet.ifindex();
    let packets = packet.segments();
    let Some(scratch) = scratch::of(direction) else {
        return verdict::leave(Reason::Unstable, direction, packets, packet.len());
    };
    let endpoint = match scratch.endpoint.find(ifindex) {
        Ok(endpoint) => endpoint,
        Err(reason) => return verdict::leave(reason, direction, packets, packet.len()),
    };
    let start = if scratch.endpoint.has(EndpointEntry::LAYER3) {
        0
    } else {
        ethernet::HEADER
    };
    let flow = &mut scratch.flow;
    flow.now = kernel::now();
    flow.packets = packets;
    flow.bytes = packet.len().saturating_sub(start);
    flow.ifindex = ifindex;
    flow.from_pod = matches!(direction, Direction::Egress);
    flow.ingress_ifindex = packet.ingress_ifindex();
    flow.from_node = flow.ingress_ifindex == 0;
    flow.via = 0;
    flow.key.endpoint_protocol = scratch.endpoint.id() << 8;
    scratch.reason = judge(packet, start, endpoint, scratch);
    verdict::exit(packet, scratch)
}

#[inline(always)]
fn judge(packet: Skb, start: u32, entry: *const EndpointEntry, scratch: &mut Scratch) -> Reason {
    let Scratch {
        endpoint,
        flow,
        network,
        header,
        ..
    } = &mut *scratch;
    let direction = flow.direction();
    let parsed = match Link::of(packet) {
        Link::Arp => return Reason::LinkLocalControl,
        Link::Ipv4 => ipv4::parse(packet, start, Extent::Whole, network),
        // SAFETY: the running program's context, and this packet's working memory.
        Link::Ipv6 => unsafe { failure(ipv6::weir_ipv6(packet.context(), network, start, 0)) },
        Link::Other => Err(Reason::UnknownProtocol),
    };
    if let Err(reason) = parsed {
        flow.forget();
        // Whose address it claims to have cannot be told, and must not pass for the pod's.
        let unproven = flow.from_pod && !matches!(reason, Reason::UnknownProtocol);
        if unproven && !endpoint.has(EndpointEntry::ANY_SOURCE) && !endpoint.is_closed(direction) {
            return reason;
        }
        return unparsed(reason, direction, endpoint);
    }
    flow.set_network(network);
    let parsed = if network.is_later_fragment() {
        Ok(())
    } else {
        transport::parse(packet, network, header)
    };
    if parsed.is_ok() && !network.is_later_fragment() {
        if transport::is_link_control(network, header, flow.from_pod) {
            return Reason::LinkLocalControl;
        }
        flow.set_transport(network, header);
    }
    if endpoint.is_closed(direction) {
        return Reason::EndpointClosed;
    }
    if flow.from_pod
        && let Err(reason) = source::check(entry, scratch)
    {
        return reason;
    }
    let Scratch { endpoint, network, .. } = &mut *scratch;
    if let Err(reason) = parsed {
        return unparsed(reason, direction, endpoint);
    }
    if network.fragment {
        // SAFETY: this packet's working memory.
        if unsafe { fragment::weir_fragment(scratch) } == 0 {
            return unparsed(scratch.reason, direction, &scratch.endpoint);
        }
        let Scratch {
            flow, network, header, ..
        } = &mut *scratch;
        flow.set_transport(network, header);
    }
    let Scratch { network, header, .. } = &*scratch;
    let error = Icmp::is(network.v4, network.protocol)
        && matches!(Icmp::of(network.v4, (header.icmp >> 8) as u8), Icmp::Error)
        && !network.is_later_fragment();
    if error
        // SAFETY: the running program's context, and this packet's working memory.
        && unsafe { related::weir_quoted(packet.context(), scratch) } != 0
        && let Some(reason) = conntrack::follow_related(entry, scratch)
    {
        return reason;
    }
    conntrack::follow(entry, scratch)
}

/// What becomes of a packet whose flow cannot be told: dropped where a policy wants to know it. Pieces of datagrams
/// are for the whole datagram's sake dropped where the endpoint has policy in any direction.
#[inline(always)]
fn unparsed(reason: Reason, direction: Direction, endpoint: &Endpoint) -> Reason {
    if endpoint.is_closed(direction) {
        return Reason::EndpointClosed;
    }
    let isolated = match reason {
        Reason::FragmentTiny | Reason::FragmentOverlap | Reason::FragmentDisagrees | Reason::FragmentOrphan => {
            endpoint.has(EndpointEntry::INGRESS_ISOLATED | EndpointEntry::EGRESS_ISOLATED)
        }
        _ => endpoint.is_isolated(direction),
    };
    if isolated { reason } else { Reason::NotIp }
}
