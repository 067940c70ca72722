//! ICMP: echo, messages of their own, and errors that belong to the flows they quote.

use weir_common::{
    policy::{Decision, PrefixMask, Row},
    reason::Reason,
};
use weir_tests::packet::{
    ACK, ICMP, ICMPV6, Ip, SYN, TCP, UDP, icmp, icmp_message, tcp, tcp_segment, udp, udp_datagram,
};

use crate::world::{FAMILIES, Family, PEER, V4, V6, World, allow_all, deny_all, key};

/// Numbers of ICMP messages in a family: protocol, echo, echo reply, unreachable, time exceeded.
fn numbers(family: Family) -> (u8, u8, u8, u8, u8) {
    if family.pod.is_ipv4() {
        (ICMP, 8, 0, 3, 11)
    } else {
        (ICMPV6, 128, 129, 1, 3)
    }
}

#[test]
fn echo_replies_follow_their_requests() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer) = (family.pod, family.peer);
        let (protocol, echo, reply, ..) = numbers(family);
        world.from_pod("request", &icmp(pod, peer, echo, 0, 77, b"data"), Reason::Allowed);
        let flow = key(protocol, (pod, 77), (peer, 8));
        assert!(world.unconfirmed(&flow).is_some());
        world.to_pod("reply", &icmp(peer, pod, reply, 0, 77, b"data"), Reason::Established);
        assert_eq!(
            world.confirmed(&flow).expect("the flow").opener_icmp,
            u16::from(echo) << 8
        );
        world.to_pod(
            "reply to nobody",
            &icmp(peer, pod, reply, 0, 78, b""),
            Reason::PolicyDenied,
        );
        world.to_pod("request", &icmp(peer, pod, echo, 0, 77, b""), Reason::PolicyDenied);
        world.from_pod("reply to nobody", &icmp(pod, peer, reply, 0, 79, b""), Reason::Allowed);
    }
}

#[test]
fn a_request_does_not_come_back_by_a_flow_of_the_other_direction() {
    // Identifier 8 makes both sides' keys the same.
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer) = (family.pod, family.peer);
        let (_, echo, reply, ..) = numbers(family);
        world.from_pod("request", &icmp(pod, peer, echo, 0, 8, b""), Reason::Allowed);
        world.to_pod("request", &icmp(peer, pod, echo, 0, 8, b""), Reason::PolicyDenied);
        world.to_pod("reply", &icmp(peer, pod, reply, 0, 8, b""), Reason::Established);
        // Messages without flows are one way only.
        let kind = if pod.is_ipv4() { 13 } else { 138 };
        world.from_pod("message", &icmp(pod, peer, kind, 0, 1, b""), Reason::Allowed);
        world.from_pod("message", &icmp(pod, peer, kind, 0, 2, b""), Reason::Established);
        world.to_pod("message", &icmp(peer, pod, kind, 0, 1, b""), Reason::PolicyDenied);
    }
}

#[test]
fn types_and_codes_are_judged() {
    let mut world = World::new(deny_all(), deny_all());
    // Row 1 for the peer's class: type 8 by every code, type 13 by code 5 only.
    let prefixes = PrefixMask(0b0101 << 12);
    let row = Row {
        id: 1,
        prefixes,
        base: [Decision::DENY; 5],
    };
    let policy = world.table(3, PEER, row, Decision::DENY);
    let allow = Decision::new(true, false, 1);
    world.decide(1, ICMP, 8 << 8, 8, allow);
    world.decide(1, ICMP, 13 << 8 | 5, 16, allow);
    world.flip(policy, deny_all());
    for (kind, code, reason) in [
        (8, 0, Reason::Allowed),
        (8, 3, Reason::Established),
        (13, 5, Reason::Allowed),
        (13, 4, Reason::PolicyDenied),
        (0, 0, Reason::PolicyDenied),
        (5, 1, Reason::PolicyDenied),
    ] {
        world.from_pod(
            &format!("{kind}/{code}"),
            &icmp(V4.pod, V4.peer, kind, code, 1, b""),
            reason,
        );
    }
}

/// An error about `quoted`, from some router to `to`.
fn error(family: Family, from: std::net::IpAddr, to: std::net::IpAddr, quoted: &[u8]) -> Vec<u8> {
    let (_, _, _, unreachable, _) = numbers(family);
    icmp(from, to, unreachable, 4, 0, quoted)
}

#[test]
fn errors_belong_to_the_flow_that_they_quote() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer, router) = (family.pod, family.peer, family.outside);
        let (protocol, echo, reply, _, exceeded) = numbers(family);
        let quote = |protocol, payload: &[u8]| Ip::new(pod, peer, protocol).packet(payload);
        for (name, protocol, opening, other) in [
            ("TCP", TCP, tcp_segment(1000, 80, SYN), tcp_segment(1001, 80, SYN)),
            (
                "UDP",
                UDP,
                udp_datagram(1000, 53, b"question"),
                udp_datagram(1000, 54, b"question"),
            ),
            (
                "ICMP",
                protocol,
                icmp_message(echo, 0, 77, b"data"),
                icmp_message(echo, 0, 78, b"data"),
            ),
            ("GRE", 47, vec![0; 16], vec![]),
        ] {
            let whole = quote(protocol, &opening);
            world.to_pod("before", &error(family, router, pod, &whole), Reason::PolicyDenied);
            world.from_pod(name, &Ip::new(pod, peer, protocol).frame(&opening), Reason::Allowed);
            world.to_pod(name, &error(family, router, pod, &whole), Reason::Related);
            // Eight bytes of the transport header are what every router quotes.
            let header = if pod.is_ipv4() { 20 } else { 40 };
            world.to_pod(
                "short",
                &error(family, router, pod, &whole[..header + 8]),
                Reason::Related,
            );
            world.to_pod("exceeded", &icmp(router, pod, exceeded, 0, 0, &whole), Reason::Related);
            world.to_pod(
                "cut off",
                &error(family, router, pod, &whole[..header - 1]),
                Reason::PolicyDenied,
            );
            if !other.is_empty() {
                world.to_pod(
                    "other",
                    &error(family, router, pod, &quote(protocol, &other)),
                    Reason::PolicyDenied,
                );
                let ports = if name == "ICMP" { 7 } else { 3 };
                world.to_pod(
                    "no ports",
                    &error(family, router, pod, &whole[..header + ports]),
                    Reason::PolicyDenied,
                );
            }
        }
        // What the peer sent is quoted to the peer.
        let answer = Ip::new(peer, pod, UDP).packet(&udp_datagram(53, 1000, b"answer"));
        world.from_pod("to the peer", &error(family, pod, peer, &answer), Reason::Related);
        // A quotation of the peer's packet is not the pod's business, nor the other way round.
        world.to_pod("to the pod", &error(family, router, pod, &answer), Reason::PolicyDenied);
        let _ = reply;
    }
}

#[test]
fn errors_do_not_touch_the_flow_but_die_with_it() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer, router) = (family.pod, family.peer, family.outside);
        let flow = key(UDP, (pod, 1000), (peer, 53));
        world.from_pod("question", &udp(pod, peer, (1000, 53)), Reason::Allowed);
        let before = world.unconfirmed(&flow).expect("the flow");
        let error = error(family, router, pod, &udp(pod, peer, (1000, 53))[14..]);
        world.to_pod("error", &error, Reason::Related);
        assert_eq!(world.unconfirmed(&flow).expect("the flow"), before);
        // After a change the flow is judged again, and an error belongs to what is left of it.
        world.flip(allow_all(), deny_all());
        world.to_pod("still allowed", &error, Reason::Related);
        assert_eq!(
            world.unconfirmed(&flow).expect("the flow").epoch,
            world.endpoint.epoch()
        );
        world.flip(deny_all(), deny_all());
        world.to_pod("cut", &error, Reason::PolicyCut);
        assert!(world.unconfirmed(&flow).is_none());
        world.to_pod("gone", &error, Reason::PolicyDenied);
        world.flip(allow_all(), deny_all());
    }
}

#[test]
fn errors_without_flow_are_judged_as_icmp() {
    let mut world = World::new(allow_all(), allow_all());
    for family in FAMILIES {
        let (protocol, ..) = numbers(family);
        let (_, _, _, unreachable, _) = numbers(family);
        let quoted = tcp(family.pod, family.peer, (1, 2), ACK);
        world.to_pod(
            "error",
            &error(family, family.outside, family.pod, &quoted[14..]),
            Reason::Allowed,
        );
        let flow = key(
            protocol,
            (family.pod, u16::from(unreachable) << 8 | 4),
            (family.outside, 0),
        );
        assert!(world.unconfirmed(&flow).is_some());
    }
    // Extension headers within the quotation.
    let mut header = Ip::new(V6.pod, V6.peer, TCP);
    header.extensions = vec![(0, 8), (60, 16)];
    world.from_pod("SYN", &header.frame(&tcp_segment(5, 80, SYN)), Reason::Allowed);
    let quoted = header.packet(&tcp_segment(5, 80, SYN));
    world.to_pod("error", &error(V6, V6.outside, V6.pod, &quoted), Reason::Related);
}

#[test]
fn a_redirect_needs_a_rule() {
    let mut world = World::new(allow_all(), deny_all());
    world.from_pod("SYN", &tcp(V4.pod, V4.peer, (1000, 80), SYN), Reason::Allowed);
    let quoted = &tcp(V4.pod, V4.peer, (1000, 80), SYN)[14..];
    world.to_pod(
        "redirect",
        &icmp(V4.outside, V4.pod, 5, 1, 0, quoted),
        Reason::PolicyDenied,
    );
}
