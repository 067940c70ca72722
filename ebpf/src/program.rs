//! A packet's way through the programs, step by step.

use weir_common::{Direction, reason::Reason};

use crate::{
    conntrack,
    endpoint::Endpoint,
    flow::Flow,
    fragment, kernel,
    packet::Packet,
    parse::{
        Extent,
        ethernet::{self, Link},
        ipv4, ipv6,
        transport::{self, Icmp, Transport},
    },
    related, source, verdict,
};
use weir_common::endpoint::EndpointEntry;

/// Handles one packet of one direction; returns what the TC hook is to do with it.
#[inline(always)]
pub fn run<P: Packet>(packet: &P, direction: Direction) -> i32 {
    let ifindex = packet.ifindex();
    let packets = packet.segments();
    let mut endpoint = match Endpoint::find(ifindex) {
        Ok(endpoint) => endpoint,
        Err(reason) => return verdict::leave(reason, direction, packets, packet.len()),
    };
    let start = if endpoint.has(EndpointEntry::LAYER3) { 0 } else { ethernet::HEADER };
    let mut flow = Flow {
        now: kernel::now(),
        packets,
        bytes: packet.len().saturating_sub(start),
        ifindex,
        from_pod: matches!(direction, Direction::Egress),
        from_node: packet.ingress_ifindex() == 0,
        ..Flow::default()
    };
    flow.key.endpoint_protocol = endpoint.id() << 8;
    let reason = judge(packet, start, &mut endpoint, &mut flow);
    verdict::exit(reason, &endpoint, &flow)
}

#[inline(always)]
fn judge<P: Packet>(packet: &P, start: u32, endpoint: &mut Endpoint, flow: &mut Flow) -> Reason {
    let direction = flow.direction();
    let network = match Link::of(packet) {
        Link::Arp => return Reason::LinkLocalControl,
        Link::Ipv4 => ipv4::parse(packet, start, Extent::Whole),
        Link::Ipv6 => ipv6::parse(packet, start, Extent::Whole),
        Link::Other => Err(Reason::UnknownProtocol),
    };
    let mut network = match network {
        Ok(network) => network,
        Err(reason) => return unparsed(reason, direction, endpoint),
    };
    let id = endpoint.id();
    flow.set_network(id, &network);
    let header = if network.is_later_fragment() {
        Ok(Transport::default())
    } else {
        transport::parse(packet, &network)
    };
    if let Ok(header) = &header {
        if transport::is_link_control(&network, header, flow.from_pod) {
            return Reason::LinkLocalControl;
        }
        flow.set_transport(id, &network, header);
    }
    if endpoint.is_closed(direction) {
        return Reason::EndpointClosed;
    }
    if flow.from_pod
        && let Err(reason) = source::check(endpoint, &network)
    {
        return reason;
    }
    let mut header = match header {
        Ok(header) => header,
        Err(reason) => return unparsed(reason, direction, endpoint),
    };
    if network.fragment {
        if let Err(reason) = fragment::follow(id, flow.now, &mut network, &mut header) {
            return unparsed(reason, direction, endpoint);
        }
        flow.set_transport(id, &network, &header);
    }
    if Icmp::is(network.v4, network.protocol)
        && matches!(Icmp::of(network.v4, (header.icmp >> 8) as u8), Icmp::Error)
        && !network.is_later_fragment()
        && related::adopt_key(packet, &network, flow)
        && let Some(reason) = conntrack::follow_related(endpoint, flow)
    {
        return reason;
    }
    conntrack::follow(endpoint, flow)
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
