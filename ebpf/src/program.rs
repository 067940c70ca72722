//! A packet's way through the programs, step by step.

use weir_common::{Direction, endpoint::EndpointEntry, reason::Reason};

use crate::{
    conntrack,
    endpoint::Endpoint,
    fragment, kernel,
    packet::Packet,
    parse::{
        Extent,
        ethernet::{self, Link},
        ipv4, ipv6,
        transport::{self, Icmp},
    },
    related,
    scratch::{self, Scratch},
    source, verdict,
};

/// Handles one packet of one direction; returns what the TC hook is to do with it.
#[inline(always)]
pub fn run<P: Packet>(packet: P, direction: Direction) -> i32 {
    let ifindex = packet.ifindex();
    let packets = packet.segments();
    let mut endpoint = match Endpoint::find(ifindex) {
        Ok(endpoint) => endpoint,
        Err(reason) => return verdict::leave(reason, direction, packets, packet.len()),
    };
    let Some(scratch) = scratch::of(direction) else {
        return verdict::leave(Reason::Unstable, direction, packets, packet.len());
    };
    let start = if endpoint.has(EndpointEntry::LAYER3) {
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
    flow.from_node = packet.ingress_ifindex() == 0;
    flow.key.endpoint_protocol = endpoint.id() << 8;
    scratch.reason = judge(packet, start, &mut endpoint, scratch);
    verdict::exit(&endpoint, scratch)
}

#[inline(always)]
fn judge<P: Packet>(packet: P, start: u32, endpoint: &mut Endpoint, scratch: &mut Scratch) -> Reason {
    let Scratch {
        flow,
        network,
        header,
        quoted,
        ..
    } = &mut *scratch;
    let direction = flow.direction();
    let parsed = match Link::of(packet) {
        Link::Arp => return Reason::LinkLocalControl,
        Link::Ipv4 => ipv4::parse(packet, start, Extent::Whole, network),
        Link::Ipv6 => ipv6::parse(packet, start, Extent::Whole, network),
        Link::Other => Err(Reason::UnknownProtocol),
    };
    if let Err(reason) = parsed {
        flow.forget();
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
        && let Err(reason) = source::check(endpoint, network)
    {
        return reason;
    }
    if let Err(reason) = parsed {
        return unparsed(reason, direction, endpoint);
    }
    if network.fragment {
        if let Err(reason) = fragment::follow(endpoint.id(), flow.now, network, header) {
            return unparsed(reason, direction, endpoint);
        }
        flow.set_transport(network, header);
    }
    let error = Icmp::is(network.v4, network.protocol)
        && matches!(Icmp::of(network.v4, (header.icmp >> 8) as u8), Icmp::Error)
        && !network.is_later_fragment();
    if error
        && related::adopt_key(packet, network, flow, quoted)
        && let Some(reason) = conntrack::follow_related(endpoint, scratch)
    {
        return reason;
    }
    conntrack::follow(endpoint, scratch)
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
