//! Fragments, honest and otherwise.

use weir_common::{endpoint::EndpointEntry, layout::map, reason::Reason};
use weir_tests::{
    packet::{ACK, Ip, SCTP, SYN, TCP, UDP, icmp_message, sctp_packet, tcp, tcp_segment, udp_datagram},
    testrun::Hook,
};

use crate::world::{FAMILIES, Family, V4, V6, World, allow_all, always, deny_all, key};
use weir_common::policy::Decision;

/// A piece of a datagram that the pod sends.
fn piece(family: Family, protocol: u8, id: u32, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = Ip::new(family.pod, family.peer, protocol);
    header.fragment = Some((id, offset, more));
    header.frame(payload)
}

#[test]
fn later_fragments_follow_the_first() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let data = udp_datagram(1000, 53, &[7; 2000]);
        world.from_pod("first", &piece(family, UDP, 1, 0, true, &data[..1448]), Reason::Allowed);
        world.from_pod(
            "second",
            &piece(family, UDP, 1, 1448, true, &data[1448..1456]),
            Reason::Established,
        );
        world.from_pod(
            "last",
            &piece(family, UDP, 1, 1456, false, &data[1456..]),
            Reason::Established,
        );
        let flow = world
            .unconfirmed(&key(UDP, (family.pod, 1000), (family.peer, 53)))
            .expect("the flow");
        assert_eq!(flow.sides[0].packets, 3);
        world.from_pod(
            "of another",
            &piece(family, UDP, 2, 1448, false, &data[1448..]),
            Reason::FragmentOrphan,
        );
        world.from_pod(
            "the same protocol only",
            &piece(family, TCP, 1, 1448, false, &[0; 64]),
            Reason::FragmentOrphan,
        );
    }
    assert_eq!(
        world
            .programs()
            .connections(map::UNCONFIRMED)
            .expect("connections")
            .len(),
        2
    );
}

#[test]
fn fragments_go_both_ways_and_by_every_protocol() {
    let mut world = World::new(allow_all(), allow_all());
    for family in FAMILIES {
        let (icmp, echo) = if family.pod.is_ipv4() { (1, 8) } else { (58, 128) };
        for (id, protocol, first) in [
            (1, TCP, tcp_segment(1, 80, SYN)),
            (2, UDP, udp_datagram(1, 53, &[0; 8])),
            (3, SCTP, sctp_packet(1, 80, 1)),
            (4, icmp, icmp_message(echo, 0, 9, &[0; 8])),
            (5, 47, vec![0; 16]),
        ] {
            let mut header = Ip::new(family.peer, family.pod, protocol);
            header.fragment = Some((id, 0, true));
            let length = first.len() as u16;
            let (first, length) = if length.is_multiple_of(8) {
                (first, length)
            } else {
                let padded = length.div_ceil(8) * 8;
                let mut first = first;
                first.resize(usize::from(padded), 0);
                (first, padded)
            };
            world.to_pod("first", &header.frame(&first), Reason::Allowed);
            header.fragment = Some((id, length, false));
            world.to_pod("last", &header.frame(b"rest"), Reason::Established);
        }
    }
}

#[test]
fn a_first_fragment_must_hold_the_transport_header() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (icmp, echo) = if family.pod.is_ipv4() { (1, 8) } else { (58, 128) };
        for (name, protocol, whole) in [
            ("TCP", TCP, tcp_segment(1, 80, SYN)),
            ("SCTP", SCTP, sctp_packet(1, 80, 1)),
            ("UDP", UDP, udp_datagram(1, 53, &[])),
            ("ICMP", icmp, icmp_message(echo, 0, 1, &[])),
        ] {
            let header = if protocol == TCP { 20 } else { whole.len() };
            for length in (0..header).step_by(8) {
                let tiny = piece(family, protocol, 1, 0, true, &whole[..length]);
                world.from_pod(name, &tiny, Reason::FragmentTiny);
            }
        }
        // Twenty bytes of TCP are there, but not the options that the header says it has.
        let mut options = tcp_segment(1, 80, SYN);
        options[12] = 15 << 4;
        world.from_pod(
            "options",
            &piece(family, TCP, 1, 0, true, &options),
            Reason::FragmentTiny,
        );
        world.from_pod(
            "nothing was remembered",
            &piece(family, TCP, 1, 64, false, &[0; 8]),
            Reason::FragmentOrphan,
        );
    }
    // The chain of extension headers must be in the first fragment, too (RFC 7112).
    let mut header = Ip::new(V6.pod, V6.peer, 60);
    header.fragment = Some((9, 0, true));
    world.from_pod(
        "chain",
        &header.frame(&[TCP, 3, 0, 0, 0, 0, 0, 0]),
        Reason::FragmentTiny,
    );
}

#[test]
fn no_fragment_may_rewrite_the_transport_header() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        // RFC 1858, RFC 3128: known or not, a TCP fragment at offset 8 can only mean this.
        world.from_pod(
            "RFC 3128",
            &piece(family, TCP, 1, 8, false, &[0; 32]),
            Reason::FragmentOverlap,
        );
        let mut syn = tcp_segment(1, 80, SYN);
        syn[12] = 6 << 4;
        world.from_pod("first", &piece(family, TCP, 1, 0, true, &syn), Reason::Allowed);
        for offset in [8, 16] {
            world.from_pod(
                "overlap",
                &piece(family, TCP, 1, offset, true, &[0; 8]),
                Reason::FragmentOverlap,
            );
        }
        world.from_pod(
            "behind",
            &piece(family, TCP, 1, 24, false, &[0; 8]),
            Reason::Established,
        );

        world.from_pod(
            "UDP",
            &piece(family, UDP, 2, 0, true, &udp_datagram(1, 53, &[0; 8])),
            Reason::Allowed,
        );
        world.from_pod("behind", &piece(family, UDP, 2, 8, false, &[0; 8]), Reason::Established);
    }
}

#[test]
fn first_fragments_must_agree() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let allowed = piece(family, UDP, 1, 0, true, &udp_datagram(1, 53, &[0; 8]));
        let other = piece(family, UDP, 1, 0, true, &udp_datagram(1, 54, &[0; 8]));
        world.from_pod("first", &allowed, Reason::Allowed);
        world.from_pod("again", &allowed, Reason::Established);
        world.from_pod("other port", &other, Reason::FragmentDisagrees);
        world.from_pod("last", &piece(family, UDP, 1, 16, false, &[0; 8]), Reason::Established);
    }
}

#[test]
fn fragment_entries_expire() {
    let mut world = World::new(allow_all(), deny_all());
    let first = piece(V4, UDP, 1, 0, true, &udp_datagram(1, 53, &[0; 8]));
    let other = piece(V4, UDP, 1, 0, true, &udp_datagram(1, 54, &[0; 8]));
    let last = piece(V4, UDP, 1, 16, false, &[0; 8]);
    world.from_pod("first", &first, Reason::Allowed);
    world.from_pod("last", &last, Reason::Established);
    world
        .programs()
        .change_fragments(|entry| entry.expires = 1)
        .expect("expiry");
    world.from_pod("too late", &last, Reason::FragmentOrphan);
    world.from_pod("the identification is used again", &other, Reason::Allowed);
    world.from_pod("last", &last, Reason::Established);
}

#[test]
fn pieces_that_end_between_units_are_malformed() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let packet = piece(family, UDP, 1, 0, true, &udp_datagram(1, 53, &[0; 5]));
        world.from_pod("13 bytes and more to follow", &packet, Reason::BadHeader);
    }
}

#[test]
fn the_transport_protocol_may_stand_behind_more_extension_headers() {
    let mut world = World::new(allow_all(), deny_all());
    let mut header = Ip::new(V6.pod, V6.peer, 60);
    header.fragment = Some((9, 0, true));
    let mut first = vec![TCP, 0, 0, 0, 0, 0, 0, 0];
    first.extend(tcp_segment(1, 80, SYN));
    world.from_pod("first", &header.frame(&first), Reason::Allowed);
    assert!(world.unconfirmed(&key(TCP, (V6.pod, 1), (V6.peer, 80))).is_some());
    header.fragment = Some((9, 24, true));
    world.from_pod("within the TCP header", &header.frame(&[0; 8]), Reason::FragmentOverlap);
    header.fragment = Some((9, 32, false));
    world.from_pod("last", &header.frame(&[0; 8]), Reason::Established);
}

#[test]
fn fragments_of_a_denied_flow_are_denied() {
    let mut world = World::new(deny_all(), allow_all());
    for family in FAMILIES {
        world.from_pod(
            "first",
            &piece(family, UDP, 1, 0, true, &udp_datagram(1, 53, &[0; 8])),
            Reason::PolicyDenied,
        );
        world.from_pod("last", &piece(family, UDP, 1, 16, false, &[0; 8]), Reason::PolicyDenied);
    }
}

#[test]
fn a_fragment_does_not_adopt_a_connection() {
    let mut world = World::new(deny_all(), always(Decision::new(true, false, 1)));
    world.endpoint.adopt_until = u64::MAX;
    world.store();
    let ack = tcp_segment(80, 1, ACK);
    world.from_pod("whole", &tcp(V4.pod, V4.peer, (80, 2), ACK), Reason::Adopted);
    world.from_pod("first", &piece(V4, TCP, 1, 0, true, &ack), Reason::Adopted);
    world.from_pod("last", &piece(V4, TCP, 1, 24, false, &[0; 8]), Reason::Established);
}

#[test]
fn without_policy_odd_fragments_pass() {
    let mut world = World::new(allow_all(), allow_all());
    let orphan = piece(V4, UDP, 1, 16, false, &[0; 8]);
    for (flags, reason) in [
        (0, Reason::NotIp),
        (EndpointEntry::INGRESS_ISOLATED, Reason::FragmentOrphan),
        (EndpointEntry::EGRESS_ISOLATED, Reason::FragmentOrphan),
    ] {
        world.set_flags(flags);
        world.expect("orphan", Hook::FROM_POD, &orphan, reason);
    }
}
