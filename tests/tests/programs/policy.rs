//! Decision tables: the right row, the right port prefix, the right peer.

use std::net::IpAddr;

use weir_common::{
    Direction,
    policy::{
        Decision, DecisionKey, DirectionPolicy, PREFIX_LENGTHS, PrefixMask, Row, SOURCE_PORT_KEY_PREFIX, Slot,
        SourceClass, SourcePortKey,
    },
    reason::Reason,
};
use weir_tests::{
    packet::{SCTP, SYN, TCP, UDP, ip, sctp, tcp, udp},
    testrun::Hook,
};

use crate::world::{ALLOWING, DENYING, FAMILIES, PEER, V4, WORLD, World, allow_all, deny_all, hook, key};

const ALLOW: Decision = Decision::new(true, false, 21);
const DENY: Decision = Decision::new(false, false, 22);

fn row(id: u32, prefixes: u32, base: [Decision; 5]) -> Row {
    Row {
        id,
        prefixes: PrefixMask(prefixes),
        base,
    }
}

#[test]
fn the_peers_class_finds_the_row_in_both_directions() {
    for direction in [Direction::Egress, Direction::Ingress] {
        let mut world = World::new(deny_all(), deny_all());
        let policy = world.table(7, PEER, row(1, 0, [ALLOW; 5]), DENY);
        match direction {
            Direction::Egress => world.flip(policy, deny_all()),
            Direction::Ingress => world.flip(deny_all(), policy),
        }
        for family in FAMILIES {
            let packet = |peer: IpAddr| match direction {
                Direction::Egress => udp(family.pod, peer, (1, 2)),
                Direction::Ingress => udp(peer, family.pod, (1, 2)),
            };
            world.expect(
                "class of the peer",
                hook(direction),
                &packet(family.peer),
                Reason::Allowed,
            );
            world.expect(
                "another class",
                hook(direction),
                &packet(family.outside),
                Reason::PolicyDenied,
            );
            world.expect(
                "another class",
                hook(direction),
                &packet(family.node),
                Reason::PolicyDenied,
            );
            world.expect(
                "not in the other direction",
                hook(direction.reverse()),
                &match direction {
                    Direction::Egress => udp(family.peer, family.pod, (3, 4)),
                    Direction::Ingress => udp(family.pod, family.peer, (3, 4)),
                },
                Reason::PolicyDenied,
            );
        }
    }
}

#[test]
fn the_most_specific_cidr_and_the_exact_address_win() {
    let mut world = World::new(deny_all(), deny_all());
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    for (identity, class) in [(100, 30), (101, 31), (102, 32)] {
        world.programs().set_identity(identity, class, 0).expect("an identity");
    }
    for (text, length, identity) in [
        ("198.51.0.0", 16, 100),
        ("198.51.100.0", 24, 101),
        ("2001:db8:1::", 48, 100),
        ("2001:db8:1:2::", 64, 101),
    ] {
        world
            .programs()
            .set_cidr(address(text), length, identity)
            .expect("a CIDR");
    }
    world
        .programs()
        .set_address(address("198.51.100.7"), 102)
        .expect("an address");
    world
        .programs()
        .set_address(address("2001:db8:1:2::7"), 102)
        .expect("an address");
    for (class, addresses) in [
        (WORLD, ["198.52.0.1", "2001:db8:2::1"]),
        (30, ["198.51.99.1", "2001:db8:1:3::1"]),
        (31, ["198.51.100.8", "2001:db8:1:2::8"]),
        (32, ["198.51.100.7", "2001:db8:1:2::7"]),
    ] {
        let policy = world.table(40 + class, class, row(1, 0, [ALLOW; 5]), DENY);
        world.flip(policy, deny_all());
        for (other, all) in [
            (WORLD, ["198.52.0.1", "2001:db8:2::1"]),
            (30, ["198.51.99.1", "2001:db8:1:3::1"]),
            (31, ["198.51.100.8", "2001:db8:1:2::8"]),
            (32, ["198.51.100.7", "2001:db8:1:2::7"]),
        ] {
            for (text, family) in all.into_iter().zip(FAMILIES) {
                let reason = if other == class {
                    Reason::Allowed
                } else {
                    Reason::PolicyDenied
                };
                let packet = udp(family.pod, address(text), (class as u16, 2));
                world.from_pod(&format!("{text} for class {class}"), &packet, reason);
            }
        }
        assert_eq!(addresses.len(), 2);
    }
}

#[test]
fn an_element_of_another_address_is_not_believed() {
    let mut world = World::new(deny_all(), deny_all());
    let policy = world.table(7, PEER, row(1, 0, [ALLOW; 5]), DENY);
    world.flip(policy, deny_all());
    let address: IpAddr = "203.0.113.77".parse().expect("an address");
    world.programs().set_address(address, PEER).expect("an address");
    world.from_pod("the peer", &udp(V4.pod, address, (1, 2)), Reason::Allowed);
    // As if the element had been recycled between lookup and read.
    world
        .programs()
        .set_tagged_address(address, PEER, 0x0102_0304)
        .expect("an address");
    world.from_pod("by CIDR", &udp(V4.pod, address, (3, 4)), Reason::PolicyDenied);
    world.programs().remove_address(address).expect("removal");
}

#[test]
fn ports_by_prefix_longest_first() {
    let mut world = World::new(deny_all(), deny_all());
    for (protocol, slot) in [(TCP, Slot::Tcp), (UDP, Slot::Udp), (SCTP, Slot::Sctp)] {
        let id = 100 + u32::from(protocol);
        let mut base = [DENY; 5];
        base[slot as usize] = ALLOW;
        let policy = world.table(id, PEER, row(id, 0xf << (4 * slot as u32), base), DENY);
        // Nested: each longer prefix says the opposite of the shorter one.
        for (k, prefix) in PREFIX_LENGTHS.into_iter().enumerate() {
            let decision = if k % 2 == 0 { ALLOW } else { DENY };
            world.decide(id, protocol, DecisionKey::cut(0x1234, prefix), prefix, decision);
        }
        world.flip(deny_all(), policy);
        for (port, reason) in [
            (0x1234, Reason::Allowed),
            (0x1235, Reason::PolicyDenied),
            (0x1243, Reason::Allowed),
            (0x1334, Reason::PolicyDenied),
            (0x2234, Reason::Allowed),
        ] {
            let ports = (9, port);
            let packet = match protocol {
                TCP => tcp(V4.peer, V4.pod, ports, SYN),
                UDP => udp(V4.peer, V4.pod, ports),
                _ => sctp(V4.peer, V4.pod, ports, 1),
            };
            world.to_pod(&format!("{slot:?} {port:#x}"), &packet, reason);
        }
    }
}

#[test]
fn only_prefixes_that_the_row_names_are_asked() {
    let mut world = World::new(deny_all(), deny_all());
    let policy = world.table(7, PEER, row(50, 0b0010, [DENY; 5]), DENY);
    world.decide(50, TCP, 80, 16, ALLOW);
    world.decide(50, TCP, 8080, 16, ALLOW);
    world.decide(50, TCP, DecisionKey::cut(443, 12), 12, ALLOW);
    world.flip(policy, deny_all());
    world.from_pod("443 by 12 bits", &tcp(V4.pod, V4.peer, (1, 443), SYN), Reason::Allowed);
    world.from_pod(
        "8080 by 16 bits",
        &tcp(V4.pod, V4.peer, (1, 8080), SYN),
        Reason::PolicyDenied,
    );
    world.from_pod("UDP", &udp(V4.pod, V4.peer, (1, 443)), Reason::PolicyDenied);
}

#[test]
fn the_default_row_may_name_ports_too() {
    let mut world = World::new(deny_all(), deny_all());
    let default = DirectionPolicy {
        table: 0,
        default_row: row(60, 1, [DENY; 5]),
    };
    world.decide(60, TCP, 443, 16, ALLOW);
    world.flip(default, deny_all());
    world.from_pod("443", &tcp(V4.pod, V4.outside, (1, 443), SYN), Reason::Allowed);
    world.from_pod("80", &tcp(V4.pod, V4.outside, (1, 80), SYN), Reason::PolicyDenied);
}

#[test]
fn source_ports_choose_among_decisions() {
    let mut world = World::new(deny_all(), deny_all());
    let policy = world.table(7, PEER, row(70, PrefixMask::SOURCE_PORTS | 1, [DENY; 5]), DENY);
    // Source ports 0x8000..=0x80ff are class 1, 0x8080 is class 2.
    for (port, length, class, base) in [(0x8000_u16, 8, 1, DENY), (0x8080, 16, 2, ALLOW)] {
        let key = SourcePortKey {
            row: 70_u32.to_be_bytes(),
            protocol: TCP,
            port: port.to_be_bytes(),
            pad: 0,
        };
        world
            .programs()
            .set_source_port(key, SOURCE_PORT_KEY_PREFIX + length, SourceClass { class, base })
            .expect("a class");
    }
    world.decide(70, TCP, 22, 16, ALLOW);
    let entry = |source_class, prefix, port| DecisionKey {
        row: 70,
        protocol: TCP,
        prefix,
        source_class,
        port,
        pad: 0,
    };
    world
        .programs()
        .set_decision(entry(1, 16, 80), ALLOW)
        .expect("a decision");
    world
        .programs()
        .set_decision(entry(2, 16, 80), DENY)
        .expect("a decision");
    world.flip(policy, deny_all());
    for (ports, reason) in [
        ((1, 22), Reason::Allowed),
        ((1, 80), Reason::PolicyDenied),
        ((0x8001, 80), Reason::Allowed),
        ((0x8001, 22), Reason::PolicyDenied),
        ((0x8080, 80), Reason::PolicyDenied),
        ((0x8080, 22), Reason::Allowed),
        ((0x8080, 9999), Reason::Allowed),
    ] {
        world.from_pod(&format!("{ports:x?}"), &tcp(V4.pod, V4.peer, ports, SYN), reason);
    }
    // Answered flows are judged again by the opener's source port.
    world.to_pod(
        "SYN ACK",
        &tcp(V4.peer, V4.pod, (80, 0x8001), SYN | 16),
        Reason::Established,
    );
    world.flip(policy, deny_all());
    world.to_pod("data", &tcp(V4.peer, V4.pod, (80, 0x8001), 16), Reason::Rejudged);
}

#[test]
fn other_protocols_by_number() {
    let mut world = World::new(deny_all(), deny_all());
    let mut base = [DENY; 5];
    base[Slot::Other as usize] = DENY;
    let policy = world.table(7, PEER, row(80, PrefixMask::OTHER_BY_NUMBER, base), DENY);
    world.decide(80, 47, 0, 0, ALLOW);
    world.flip(policy, deny_all());
    world.from_pod("GRE", &ip(V4.pod, V4.peer, 47, b"payload"), Reason::Allowed);
    world.from_pod("IGMP", &ip(V4.pod, V4.peer, 2, b"payload"), Reason::PolicyDenied);
    world.from_pod(
        "ICMPv6 in IPv4",
        &ip(V4.pod, V4.peer, 58, &[128, 0, 0, 0, 0, 1, 0, 1]),
        Reason::PolicyDenied,
    );
}

#[test]
fn the_node_reaches_its_own_pods() {
    let mut world = World::new(deny_all(), deny_all());
    for family in FAMILIES {
        let (node, pod) = (family.node, family.pod);
        let probe = tcp(node, pod, (1000, 80), SYN);
        world.expect("forwarded (masqueraded)", Hook::TO_POD, &probe, Reason::PolicyDenied);
        world.expect(
            "not from the node's address",
            Hook::FROM_NODE,
            &tcp(family.peer, pod, (1, 80), SYN),
            Reason::PolicyDenied,
        );
        world.expect("probe", Hook::FROM_NODE, &probe, Reason::Node);
        world.from_pod("its answer", &tcp(pod, node, (80, 1000), SYN | 16), Reason::Established);
        world.expect(
            "ACK",
            Hook::FROM_NODE,
            &tcp(node, pod, (1000, 80), 16),
            Reason::Established,
        );
        // A changed policy has nothing to say about it either.
        world.flip(deny_all(), deny_all());
        world.from_pod("data", &tcp(pod, node, (80, 1000), 16), Reason::Rejudged);
        world.from_pod("data", &tcp(pod, node, (80, 1000), 16), Reason::Established);
        let entry = world.confirmed(&key(TCP, (pod, 80), (node, 1000))).expect("the flow");
        assert_eq!(entry.flags, 1 | weir_common::conntrack::CtEntry::NODE);
        world.from_pod(
            "the pod to the node",
            &tcp(pod, node, (5, 22), SYN),
            Reason::PolicyDenied,
        );
    }
}

#[test]
fn a_pod_reaches_itself() {
    let mut world = World::new(deny_all(), deny_all());
    for family in FAMILIES {
        world.from_pod("itself", &udp(family.pod, family.pod, (1, 2)), Reason::Allowed);
        world.to_pod("itself", &udp(family.pod, family.pod, (1, 2)), Reason::Allowed);
    }
    // Having no address of a family is not the same as being "::".
    world.endpoint.addr6 = weir_common::Addr::UNSPECIFIED;
    world.store();
    let packet = udp(
        "::".parse().expect("an address"),
        "ff02::1".parse().expect("an address"),
        (1, 2),
    );
    world.to_pod("from nowhere", &packet, Reason::PolicyDenied);
}

#[test]
fn new_flows_are_counted_by_their_trace() {
    let mut world = World::new(allow_all(), deny_all());
    let start = |world: &mut World, trace| {
        world.programs().make_trace(trace).expect("a trace");
        world.programs().trace(trace).expect("a count")
    };
    assert_eq!((start(&mut world, ALLOWING), start(&mut world, DENYING)), (0, 0));
    for port in 0..3 {
        let syn = tcp(V4.pod, V4.peer, (port, 80), SYN);
        world.from_pod("SYN", &syn, Reason::Allowed);
        world.from_pod("again", &syn, Reason::Established);
    }
    world.to_pod("denied", &tcp(V4.peer, V4.pod, (1, 80), SYN), Reason::PolicyDenied);
    assert_eq!(world.programs().trace(ALLOWING).expect("a count"), 3);
    assert_eq!(world.programs().trace(DENYING).expect("a count"), 1);
}
