//! What the programs make of well-formed packets of all kinds.

use weir_common::{endpoint::EndpointEntry, reason::Reason};
use weir_tests::{
    packet::{ACK, FIN, Ip, RST, SYN, TCP, UDP, ethernet, icmp, ip, sctp, tcp, tcp_segment, udp, udp_datagram},
    testrun::Hook,
};

use crate::world::{FAMILIES, ISOLATED, V4, V6, World, allow_all, deny_all, key};

#[test]
fn every_protocol_opens_a_flow_of_its_own() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer) = (family.pod, family.peer);
        for (name, packet) in [
            ("TCP", tcp(pod, peer, (1000, 80), SYN)),
            ("UDP", udp(pod, peer, (1000, 80))),
            ("SCTP", sctp(pod, peer, (1000, 80), 1)),
            (
                "ICMP",
                icmp(pod, peer, if peer.is_ipv4() { 8 } else { 128 }, 0, 77, b""),
            ),
            ("GRE", ip(pod, peer, 47, b"whatever")),
            ("ESP", ip(pod, peer, 50, b"whatever")),
            ("no next header", ip(pod, peer, 59, b"")),
        ] {
            world.from_pod(name, &packet, Reason::Allowed);
            world.from_pod(name, &packet, Reason::Established);
        }
    }
}

#[test]
fn ports_and_addresses_come_from_the_right_places() {
    let mut world = World::new(allow_all(), allow_all());
    for family in FAMILIES {
        let (pod, peer) = (family.pod, family.peer);
        world.from_pod("SYN", &tcp(pod, peer, (1000, 80), SYN), Reason::Allowed);
        assert!(world.unconfirmed(&key(TCP, (pod, 1000), (peer, 80))).is_some());
        world.to_pod("datagram", &udp(peer, pod, (5353, 53)), Reason::Allowed);
        assert!(world.unconfirmed(&key(UDP, (pod, 53), (peer, 5353))).is_some());
    }
}

#[test]
fn ipv4_options_are_stepped_over() {
    let mut world = World::new(allow_all(), deny_all());
    for length in [4, 20, 40] {
        let mut header = Ip::new(V4.pod, V4.peer, TCP);
        header.options = vec![1; length];
        let port = 1000 + length as u16;
        world.from_pod("options", &header.frame(&tcp_segment(port, 80, SYN)), Reason::Allowed);
        assert!(world.unconfirmed(&key(TCP, (V4.pod, port), (V4.peer, 80))).is_some());
    }
}

#[test]
fn ipv6_extension_headers_are_stepped_over_up_to_eight() {
    let mut world = World::new(allow_all(), deny_all());
    let mut header = Ip::new(V6.pod, V6.peer, TCP);
    header.extensions = vec![
        (0, 8),
        (60, 16),
        (43, 24),
        (51, 16),
        (135, 8),
        (139, 40),
        (140, 8),
        (60, 2048),
    ];
    world.from_pod("eight", &header.frame(&tcp_segment(1001, 80, SYN)), Reason::Allowed);
    assert!(world.unconfirmed(&key(TCP, (V6.pod, 1001), (V6.peer, 80))).is_some());

    header.extensions = vec![(60, 8); 9];
    world.from_pod(
        "nine",
        &header.frame(&tcp_segment(1002, 80, SYN)),
        Reason::TooManyHeaders,
    );
    header.extensions = vec![(60, 8), (0, 8)];
    world.from_pod(
        "hop-by-hop second",
        &header.frame(&tcp_segment(1003, 80, SYN)),
        Reason::BadHeader,
    );

    // Fragment header of a packet that is none (RFC 6946).
    header.extensions = vec![];
    header.fragment = Some((1, 0, false));
    world.from_pod("atomic", &header.frame(&tcp_segment(1004, 80, SYN)), Reason::Allowed);
    assert!(world.unconfirmed(&key(TCP, (V6.pod, 1004), (V6.peer, 80))).is_some());
}

#[test]
fn what_a_link_needs_passes_even_where_everything_is_closed() {
    let mut world = World::new(deny_all(), deny_all());
    let (closed, open) = (
        ISOLATED | EndpointEntry::EGRESS_CLOSED | EndpointEntry::INGRESS_CLOSED,
        ISOLATED,
    );
    let link_local = "fe80::1".parse().expect("an address");
    let all_nodes = "ff02::1".parse().expect("an address");
    let unspecified = "::".parse().expect("an address");
    let message = |source, destination, hops, kind, length| {
        let mut header = Ip::new(source, destination, 58);
        header.hops = hops;
        header.frame(&weir_tests::packet::icmp_message(kind, 0, 0, &vec![0; length]))
    };
    for flags in [closed, open] {
        world.set_flags(flags);
        world.from_pod("ARP", &ethernet(0x0806, &[0; 28]), Reason::LinkLocalControl);
        world.to_pod("ARP", &ethernet(0x0806, &[0; 28]), Reason::LinkLocalControl);
        world.from_pod(
            "DAD",
            &message(unspecified, all_nodes, 255, 135, 16),
            Reason::LinkLocalControl,
        );
        world.from_pod(
            "NS",
            &message(V6.pod, link_local, 255, 135, 24),
            Reason::LinkLocalControl,
        );
        world.from_pod("NA", &message(V6.pod, V6.node, 255, 136, 24), Reason::LinkLocalControl);
        world.to_pod(
            "NS",
            &message(link_local, V6.pod, 255, 135, 24),
            Reason::LinkLocalControl,
        );
        world.to_pod(
            "RA",
            &message(link_local, all_nodes, 255, 134, 56),
            Reason::LinkLocalControl,
        );
        world.from_pod(
            "RS",
            &message(link_local, all_nodes, 255, 133, 8),
            Reason::LinkLocalControl,
        );
        for kind in [131, 132, 143] {
            world.from_pod(
                "MLD",
                &message(link_local, all_nodes, 1, kind, 16),
                Reason::LinkLocalControl,
            );
        }
        world.to_pod(
            "MLD query",
            &message(link_local, all_nodes, 1, 130, 20),
            Reason::LinkLocalControl,
        );
    }
    // What has crossed a router, or could, is judged as any ICMPv6.
    world.set_flags(ISOLATED);
    world.to_pod(
        "routed NS",
        &message(V6.peer, V6.pod, 254, 135, 24),
        Reason::PolicyDenied,
    );
    world.from_pod(
        "routed MLD",
        &message(link_local, all_nodes, 2, 143, 16),
        Reason::PolicyDenied,
    );
    world.from_pod(
        "MLD unicast",
        &message(V6.pod, V6.peer, 1, 143, 16),
        Reason::PolicyDenied,
    );
    world.from_pod(
        "RA of a pod",
        &message(link_local, all_nodes, 255, 134, 56),
        Reason::PolicyDenied,
    );
    world.from_pod(
        "RS beyond the link",
        &message(V6.pod, V6.peer, 255, 133, 8),
        Reason::PolicyDenied,
    );
    world.from_pod(
        "NS with a load",
        &message(V6.pod, V6.peer, 255, 135, 1000),
        Reason::PolicyDenied,
    );
}

#[test]
fn a_closed_endpoint_passes_nothing_else() {
    let mut world = World::new(allow_all(), allow_all());
    let syn = tcp(V4.pod, V4.peer, (1000, 80), SYN);
    let answer = tcp(V4.peer, V4.pod, (80, 1000), SYN | ACK);
    world.from_pod("before", &syn, Reason::Allowed);
    world.set_flags(ISOLATED | EndpointEntry::EGRESS_CLOSED);
    world.from_pod("egress closed", &syn, Reason::EndpointClosed);
    world.to_pod("ingress open", &answer, Reason::Established);
    world.from_pod("no IP", &ethernet(0x88cc, &[0; 40]), Reason::EndpointClosed);
    world.set_flags(EndpointEntry::INGRESS_CLOSED);
    world.to_pod("ingress closed", &answer, Reason::EndpointClosed);
    world.to_pod("malformed", &ethernet(0x0800, &[0x05; 20]), Reason::EndpointClosed);
    world.expect(
        "from the node",
        Hook::FROM_NODE,
        &tcp(V4.node, V4.pod, (9, 80), SYN),
        Reason::EndpointClosed,
    );
}

#[test]
fn unknown_protocols_are_dropped_where_a_policy_selects_the_pod() {
    let mut world = World::new(allow_all(), allow_all());
    for (name, frame) in [
        ("LLDP", ethernet(0x88cc, &[0; 40])),
        ("VLAN", ethernet(0x8100, &tcp(V4.pod, V4.peer, (1, 2), SYN)[12..])),
        ("QinQ", ethernet(0x88a8, &[0; 40])),
        ("PPPoE", ethernet(0x8864, &[0; 40])),
    ] {
        world.set_flags(ISOLATED);
        world.from_pod(name, &frame, Reason::UnknownProtocol);
        world.to_pod(name, &frame, Reason::UnknownProtocol);
        world.set_flags(EndpointEntry::INGRESS_ISOLATED);
        world.from_pod(name, &frame, Reason::NotIp);
        world.to_pod(name, &frame, Reason::UnknownProtocol);
        world.set_flags(EndpointEntry::EGRESS_ISOLATED);
        world.from_pod(name, &frame, Reason::UnknownProtocol);
        world.to_pod(name, &frame, Reason::NotIp);
    }
}

#[test]
fn an_interface_without_endpoint_passes_everything() {
    let mut world = World::new(deny_all(), deny_all());
    world.programs().remove_endpoint().expect("removing the endpoint");
    let syn = tcp(V4.pod, V4.peer, (1000, 80), SYN);
    // Counted from the first byte: without an endpoint nobody knows where the network header is.
    world.expect_bytes("no endpoint", Hook::FROM_POD, &syn, Reason::NoEndpoint, syn.len());
    world.expect_bytes("no endpoint", Hook::TO_POD, &syn, Reason::NoEndpoint, syn.len());
}

#[test]
fn an_element_that_is_being_rewritten_is_not_believed() {
    let mut world = World::new(allow_all(), allow_all());
    world.endpoint.stamp_end += 1;
    world.store();
    let syn = tcp(V4.pod, V4.peer, (1000, 80), SYN);
    world.expect_bytes("torn", Hook::FROM_POD, &syn, Reason::Unstable, syn.len());
}

#[test]
fn packets_without_link_layer_begin_with_their_network_header() {
    let mut world = World::new(allow_all(), deny_all());
    // The kernel's test run takes the EtherType from where Ethernet has it: these sources have it there, too.
    let v4 = "8.0.0.7".parse().expect("an address");
    let v6 = "2001:db8:86dd::7".parse().expect("an address");
    world.endpoint.addr4 = weir_common::Addr::from(v4);
    world.endpoint.addr6 = weir_common::Addr::from(v6);
    world.set_flags(ISOLATED | EndpointEntry::LAYER3);
    for (source, family) in [(v4, V4), (v6, V6)] {
        let packet = Ip::new(source, family.peer, UDP).packet(&udp_datagram(1000, 53, b"question"));
        world.from_pod("datagram", &packet, Reason::Allowed);
        assert!(
            world
                .unconfirmed(&key(UDP, (source, 1000), (family.peer, 53)))
                .is_some()
        );
    }
}

#[test]
fn gso_packets_count_their_segments() {
    let mut world = World::new(allow_all(), deny_all());
    let flow = key(TCP, (V4.pod, 1000), (V4.peer, 80));
    world.from_pod("SYN", &tcp(V4.pod, V4.peer, (1000, 80), SYN), Reason::Allowed);
    let hook = Hook {
        gso_segs: 17,
        gso_size: 1448,
        ..Hook::FROM_POD
    };
    let data = tcp(V4.pod, V4.peer, (1000, 80), ACK);
    world.expect("GSO", hook, &data, Reason::Established);
    let side = world.unconfirmed(&flow).expect("the flow").sides[0];
    assert_eq!((side.packets, side.bytes), (18, 2 * (data.len() as u64 - 14)));
    assert_eq!(side.flags, u32::from(SYN | ACK));
}

#[test]
fn merged_packets_beyond_64_kib_have_no_length_field() {
    let mut world = World::new(allow_all(), deny_all());
    let hook = Hook {
        gso_segs: 50,
        gso_size: 1448,
        ..Hook::FROM_POD
    };
    for family in FAMILIES {
        let mut packet = tcp(family.pod, family.peer, (1000, 80), SYN);
        let field = if family.pod.is_ipv4() { 16 } else { 18 };
        packet[field..field + 2].fill(0);
        world.expect("BIG TCP", hook, &packet, Reason::Allowed);
        world.expect("no GSO", Hook::FROM_POD, &packet, Reason::Truncated);
    }
}

#[test]
fn tcp_flags_that_no_connection_sends() {
    let mut world = World::new(allow_all(), allow_all());
    for family in FAMILIES {
        for flags in [
            0,
            SYN | FIN,
            SYN | RST,
            SYN | FIN | RST | ACK,
            0xc0,
            0x40,
            SYN | FIN | 0x80,
        ] {
            let packet = tcp(family.pod, family.peer, (1000, 80), flags);
            world.set_flags(ISOLATED);
            world.from_pod("isolated", &packet, Reason::BadTcpFlags);
            world.set_flags(EndpointEntry::INGRESS_ISOLATED);
            world.from_pod("not in this direction", &packet, Reason::NotIp);
        }
    }
}
