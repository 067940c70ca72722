//! Packets from one pod of the node to another, past the node's own forwarding.
//!
//! The pod of these tests is behind [`IFINDEX`], the other one behind [`OTHER_IFINDEX`]. Whatever is not proven goes the
//! kernel's way: each test changes one thing of what makes it direct.

use weir_common::{
    conntrack::{CtEntry, CtKey},
    endpoint::EndpointEntry,
    event::EventKind,
    layout::{Config, map},
    policy::Decision,
    reason::Reason,
};
use weir_tests::{
    packet::{ACK, FIN, Ip, PSH, RST, SYN, TCP, UDP, tcp, tcp_segment, udp},
    testrun::{Hook, IFINDEX, OTHER_IFINDEX},
};

use crate::world::{ALLOWING, FAMILIES, Family, ISOLATED, V4, V6, World, allow_all, deny_all, key, now};

const OTHER: u32 = 0x4321;
const LEASE: u64 = 3_600_000_000_000;

/// The other pod's endpoint.
fn other() -> EndpointEntry {
    let stamp = EndpointEntry::make_stamp(OTHER, 1);
    EndpointEntry {
        stamp,
        adopt_until: 0,
        ifindex: OTHER_IFINDEX,
        flags: ISOLATED | EndpointEntry::DIRECT,
        addr4: V4.peer.into(),
        addr6: V6.peer.into(),
        egress: allow_all(),
        ingress: allow_all(),
        stamp_end: stamp,
    }
}

/// The same flow as the other pod has it.
fn mirrored(key: &CtKey) -> CtKey {
    CtKey {
        endpoint_protocol: OTHER << 8 | u32::from(key.protocol()),
        local_port: key.peer_port,
        peer_port: key.local_port,
        local: key.peer,
        peer: key.local,
    }
}

/// Two pods that know each other.
fn world() -> World {
    let mut world = World::new(allow_all(), allow_all());
    world.set_flags(ISOLATED | EndpointEntry::DIRECT);
    world.programs().set_endpoint(&other()).expect("the other endpoint");
    world.programs().set_direct_until(now() + LEASE).expect("the lease");
    world
}

fn entry(flags: u16) -> CtEntry {
    let mut entry = CtEntry {
        epoch: 1,
        decision: Decision::new(true, false, ALLOWING),
        created: now(),
        flags,
        ..CtEntry::default()
    };
    for side in &mut entry.sides {
        side.last_seen = now();
    }
    entry
}

/// An entry of an open TCP connection, whose peer's packets come from `via`.
fn open(flags: u16, via: u32) -> CtEntry {
    let mut entry = entry(flags);
    for side in &mut entry.sides {
        side.packets = 2;
        side.flags = u32::from(SYN | ACK);
    }
    entry.sides[1].via = via;
    entry
}

/// What the opener's entry is after its first packet.
fn asked() -> CtEntry {
    let mut entry = entry(0);
    entry.sides[0].packets = 1;
    entry.sides[0].flags = u32::from(SYN);
    entry
}

/// A connection that either end knows to be straight: keys of both.
fn connected(world: &mut World, family: Family) -> (CtKey, CtKey) {
    let ours = key(TCP, (family.pod, 80), (family.peer, 1000));
    let theirs = mirrored(&ours);
    for (key, entry) in [
        (ours, open(CtEntry::OPENED_BY_PEER, OTHER_IFINDEX)),
        (theirs, open(0, IFINDEX)),
    ] {
        world
            .programs()
            .set_connection(map::CONNECTIONS, key, entry)
            .expect("an entry");
    }
    (ours, theirs)
}

/// Data from the pod to the other.
fn data(family: Family) -> Vec<u8> {
    tcp(family.pod, family.peer, (80, 1000), ACK | PSH)
}

#[test]
fn a_packet_that_both_ends_know_is_counted_for_both_and_handed_over() {
    let mut world = world();
    for family in FAMILIES {
        let (ours, theirs) = connected(&mut world, family);
        let packet = data(family);
        world.expect_sent("data", &packet, true);
        let bytes = packet.len() as u64 - 14;
        let ours = world.confirmed(&ours).expect("our entry");
        let theirs = world.confirmed(&theirs).expect("their entry");
        assert_eq!((ours.sides[0].packets, ours.sides[0].bytes), (3, bytes));
        assert_eq!((theirs.sides[1].packets, theirs.sides[1].bytes), (3, bytes));
        assert_eq!(theirs.sides[0].packets, 2, "only one side has spoken");
        assert_eq!(theirs.sides[1].flags, u32::from(SYN | ACK | PSH));
    }
    assert_eq!(world.tallies(), [0; 5]);
}

#[test]
fn the_openers_acknowledgement_confirms_the_other_ends_entry() {
    let mut world = world();
    let ours = key(TCP, (V4.pod, 1000), (V4.peer, 80));
    let theirs = mirrored(&ours);
    let mut answered = asked();
    answered.sides[1].packets = 1;
    answered.sides[1].via = OTHER_IFINDEX;
    let mut asked = asked();
    asked.flags = CtEntry::OPENED_BY_PEER;
    asked.sides.swap(0, 1);
    asked.sides[0].packets = 1;
    asked.sides[1].via = IFINDEX;
    for (key, entry) in [(ours, answered), (theirs, asked)] {
        world
            .programs()
            .set_connection(map::UNCONFIRMED, key, entry)
            .expect("an entry");
    }
    world.expect_sent("ACK", &tcp(V4.pod, V4.peer, (1000, 80), ACK), true);
    for key in [ours, theirs] {
        assert!(world.unconfirmed(&key).is_none());
        assert!(world.confirmed(&key).expect("confirmed").sides[1].via != 0);
    }
    assert_eq!(world.tallies(), [0, 2, 2, 0, 0]);
}

#[test]
fn the_end_of_a_flow_is_told_for_both_ends() {
    let mut world = world();
    let (_, theirs) = connected(&mut world, V4);
    world
        .programs()
        .set_config(Config { events: 1, flags: 0 })
        .expect("events");
    world.expect_sent("RST", &tcp(V4.pod, V4.peer, (80, 1000), RST | ACK), true);
    let events = world.programs().events().expect("events");
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.kind, event.key.endpoint(), event.direction))
        .collect();
    assert_eq!(
        told,
        [
            (EventKind::Ended as u8, crate::world::ENDPOINT, 0),
            (EventKind::Ended as u8, OTHER, 1)
        ]
    );
    assert_eq!(events[1].key, theirs);
    assert_eq!((events[1].ifindex, events[1].packets), (OTHER_IFINDEX, [2, 3]));
}

/// What makes a flow go the kernel's way: changes of one thing each.
type Change = (&'static str, fn(&mut World, CtKey, CtKey));

#[test]
fn what_either_end_does_not_know_goes_the_kernels_way() {
    fn their(world: &mut World, key: CtKey, change: impl Fn(&mut CtEntry)) {
        let mut entry = world.confirmed(&key).expect("an entry");
        change(&mut entry);
        world
            .programs()
            .set_connection(map::CONNECTIONS, key, entry)
            .expect("an entry");
    }
    fn endpoint(world: &mut World, change: impl Fn(&mut EndpointEntry)) {
        let mut entry = other();
        change(&mut entry);
        world.programs().set_endpoint(&entry).expect("the endpoint");
    }
    let changes: [Change; 14] = [
        ("the agent has not looked for long", |world, _, _| {
            world.programs().set_direct_until(1).expect("the lease");
        }),
        ("the sender's interface is not fit", |world, _, _| {
            world.set_flags(ISOLATED)
        }),
        ("the receiver's interface is not fit", |world, _, _| {
            endpoint(world, |entry| entry.flags = ISOLATED)
        }),
        ("the receiver is closed", |world, _, _| {
            endpoint(world, |entry| entry.flags |= EndpointEntry::INGRESS_CLOSED);
        }),
        ("the receiver has another address", |world, _, _| {
            endpoint(world, |entry| entry.addr4 = V4.outside.into());
        }),
        ("another pod has the interface", |world, _, _| {
            endpoint(world, |entry| {
                entry.stamp = EndpointEntry::make_stamp(OTHER + 1, 1);
                entry.stamp_end = entry.stamp;
            });
        }),
        ("the receiver's policy has changed", |world, _, _| {
            endpoint(world, |entry| {
                entry.stamp = EndpointEntry::make_stamp(OTHER, 2);
                entry.stamp_end = entry.stamp;
                entry.ingress = deny_all();
            });
        }),
        ("the receiver knows no such flow", |world, _, theirs| {
            world
                .programs()
                .remove_connection(map::CONNECTIONS, theirs)
                .expect("removed");
        }),
        ("the receiver has not seen it come straight", |world, _, theirs| {
            their(world, theirs, |entry| entry.sides[1].via = 0);
        }),
        ("the receiver has seen it come from elsewhere", |world, _, theirs| {
            their(world, theirs, |entry| entry.sides[1].via = OTHER_IFINDEX);
        }),
        ("the receiver's entry has expired", |world, _, theirs| {
            // Closing, and silent for longer than that lasts.
            their(world, theirs, |entry| {
                entry.sides[0].flags |= u32::from(FIN);
                entry.sides[0].last_seen = now().saturating_sub(121_000_000_000);
                entry.sides[1].last_seen = entry.sides[0].last_seen;
            });
        }),
        (
            "the receiver is audited and would have refused it",
            |world, _, theirs| {
                endpoint(world, |entry| entry.flags |= EndpointEntry::AUDIT);
                their(world, theirs, |entry| entry.decision = Decision::DENY);
            },
        ),
        ("the sender has not seen answers come straight", |world, ours, _| {
            their(world, ours, |entry| entry.sides[1].via = 0);
        }),
        ("the receiver is gone", |world, _, _| {
            endpoint(world, |entry| entry.ifindex = OTHER_IFINDEX + 1);
            world.programs().remove_endpoint_of(OTHER_IFINDEX).expect("removed");
        }),
    ];
    for (name, change) in changes {
        let mut world = world();
        let (ours, theirs) = connected(&mut world, V4);
        change(&mut world, ours, theirs);
        let before = world.confirmed(&theirs);
        world.expect_sent(name, &data(V4), false);
        assert_eq!(
            world.confirmed(&theirs),
            before,
            "{name}: the receiver's own hook will count it"
        );
    }
}

#[test]
fn packets_that_are_the_kernels_business_go_its_way() {
    let mut world = world();
    for family in FAMILIES {
        let (ours, _) = connected(&mut world, family);
        let mut last = Ip::new(family.pod, family.peer, TCP);
        last.hops = 1;
        let last = last.frame(&tcp_segment(80, 1000, ACK));
        world.expect_sent("its last hop", &last, false);
        let reason = Reason::Established;
        world.from_pod("to another host of the segment", &data(family), reason);
        // From the other side of the flow's opener it would be another connection; from the opener it asks again.
        let mut opener = open(0, OTHER_IFINDEX);
        opener.sides[1].packets = 0;
        world
            .programs()
            .set_connection(map::CONNECTIONS, ours, opener)
            .expect("an entry");
        world.expect_sent("SYN again", &tcp(family.pod, family.peer, (80, 1000), SYN), false);
    }
}

/// A change of what the opener's side says of its flow, by its key there.
type OpenersChange = (&'static str, fn(&mut World, CtKey));

/// The entry that the pod gets for what the other one asks of it.
fn opened_by_peer(change: impl Fn(&mut World, CtKey), hook: Hook) -> u32 {
    let mut world = world();
    let ours = key(TCP, (V4.pod, 80), (V4.peer, 1000));
    let theirs = mirrored(&ours);
    world
        .programs()
        .set_connection(map::UNCONFIRMED, theirs, asked())
        .expect("an entry");
    change(&mut world, theirs);
    world.expect("SYN", hook, &tcp(V4.peer, V4.pod, (1000, 80), SYN), Reason::Allowed);
    let entry = world.unconfirmed(&ours).expect("an entry");
    entry.sides[1].via
}

#[test]
fn the_opening_packet_proves_its_way_only_by_the_openers_unanswered_entry() {
    assert_eq!(opened_by_peer(|_, _| {}, Hook::TO_POD), OTHER_IFINDEX);
    let elsewhere = Hook {
        ingress_ifindex: OTHER_IFINDEX + 1,
        ..Hook::TO_POD
    };
    assert_eq!(opened_by_peer(|_, _| {}, elsewhere), 0, "it came in elsewhere");
    assert_eq!(opened_by_peer(|_, _| {}, Hook::FROM_NODE), 0, "the node made it");
    fn with(change: impl Fn(&mut CtEntry)) -> u32 {
        let put = |world: &mut World, key: CtKey| {
            let mut entry = asked();
            change(&mut entry);
            world
                .programs()
                .set_connection(map::UNCONFIRMED, key, entry)
                .expect("an entry");
        };
        opened_by_peer(put, Hook::TO_POD)
    }
    assert_eq!(
        with(|entry| entry.sides[1].packets = 1),
        0,
        "answered: of another connection to the same tuple"
    );
    assert_eq!(with(|entry| entry.flags = CtEntry::OPENED_BY_PEER), 0, "not its own");
    assert_eq!(with(|entry| entry.decision = Decision::DENY), 0, "not allowed");
    let long_ago = |entry: &mut CtEntry| {
        entry.sides[0].last_seen = 1;
        entry.sides[1].last_seen = 1;
    };
    assert_eq!(with(long_ago), 0, "long ago");
    let changes: [OpenersChange; 5] = [
        ("translated: the opener's entry has another tuple", |world, key| {
            world
                .programs()
                .remove_connection(map::UNCONFIRMED, key)
                .expect("removed");
        }),
        ("our interface is not fit", |world, _| world.set_flags(ISOLATED)),
        ("the other's interface is not fit", |world, _| {
            let mut other = other();
            other.flags = ISOLATED;
            world.programs().set_endpoint(&other).expect("the endpoint");
        }),
        ("from an address that is not the pod's", |world, _| {
            let mut other = other();
            other.addr4 = V4.outside.into();
            world.programs().set_endpoint(&other).expect("the endpoint");
        }),
        ("the agent has not looked for long", |world, _| {
            world.programs().set_direct_until(1).expect("the lease");
        }),
    ];
    for (name, change) in changes {
        assert_eq!(opened_by_peer(change, Hook::TO_POD), 0, "{name}");
    }
}

#[test]
fn the_answer_proves_its_way_only_by_an_entry_that_the_opening_has_proven() {
    for (name, theirs, expected) in [
        ("proven", Some((CtEntry::OPENED_BY_PEER, IFINDEX)), OTHER_IFINDEX),
        ("not proven", Some((CtEntry::OPENED_BY_PEER, 0)), 0),
        ("proven for another", Some((CtEntry::OPENED_BY_PEER, OTHER_IFINDEX)), 0),
        ("their own", Some((0, IFINDEX)), 0),
        ("translated", None, 0),
    ] {
        for protocol in [TCP, UDP] {
            let mut world = world();
            let ours = key(protocol, (V4.pod, 1000), (V4.peer, 80));
            let (first, answer) = if protocol == TCP {
                (
                    tcp(V4.pod, V4.peer, (1000, 80), SYN),
                    tcp(V4.peer, V4.pod, (80, 1000), SYN | ACK),
                )
            } else {
                (udp(V4.pod, V4.peer, (1000, 80)), udp(V4.peer, V4.pod, (80, 1000)))
            };
            world.from_pod(name, &first, Reason::Allowed);
            if let Some((flags, via)) = theirs {
                let entry = open(flags, via);
                world
                    .programs()
                    .set_connection(map::UNCONFIRMED, mirrored(&ours), entry)
                    .expect("an entry");
            }
            world.to_pod(name, &answer, Reason::Established);
            let entry = world
                .unconfirmed(&ours)
                .or_else(|| world.confirmed(&ours))
                .expect("an entry");
            assert_eq!(entry.sides[1].via, expected, "{name}, protocol {protocol}");
        }
    }
}

#[test]
fn the_first_answer_goes_back_by_the_way_of_the_question_where_that_is_the_only_way() {
    let symmetric = ISOLATED | EndpointEntry::DIRECT | EndpointEntry::SYMMETRIC;
    let case = |flags: u32, place: &str, via: u32, change: fn(&mut CtEntry), direct: bool| {
        let mut world = world();
        let mut receiver = other();
        receiver.flags = flags;
        world.programs().set_endpoint(&receiver).expect("the endpoint");
        let ours = key(TCP, (V4.pod, 80), (V4.peer, 1000));
        let theirs = mirrored(&ours);
        let mut asked_of_us = asked();
        asked_of_us.flags = CtEntry::OPENED_BY_PEER;
        asked_of_us.sides.swap(0, 1);
        asked_of_us.sides[1].via = via;
        let mut asking = asked();
        change(&mut asking);
        for (name, key, entry) in [(map::UNCONFIRMED, ours, asked_of_us), (place, theirs, asking)] {
            world.programs().set_connection(name, key, entry).expect("an entry");
        }
        world.expect_sent("SYN ACK", &tcp(V4.pod, V4.peer, (80, 1000), SYN | ACK), direct);
        if direct {
            let entry = world.unconfirmed(&theirs).expect("their entry");
            assert_eq!((entry.sides[1].via, entry.sides[1].packets), (IFINDEX, 1));
        }
    };
    let (same, at_once) = (|_: &mut CtEntry| {}, OTHER_IFINDEX);
    case(symmetric, map::UNCONFIRMED, at_once, same, true);
    case(
        symmetric & !EndpointEntry::SYMMETRIC,
        map::UNCONFIRMED,
        at_once,
        same,
        false,
    );
    case(symmetric, map::CONNECTIONS, at_once, same, false);
    case(symmetric, map::UNCONFIRMED, 0, same, false);
    case(
        symmetric,
        map::UNCONFIRMED,
        at_once,
        |entry| entry.sides[1].packets = 1,
        false,
    );
    case(
        symmetric,
        map::UNCONFIRMED,
        at_once,
        |entry| entry.flags = CtEntry::OPENED_BY_PEER,
        false,
    );
    case(
        symmetric,
        map::UNCONFIRMED,
        at_once,
        |entry| entry.sides[1].via = OTHER_IFINDEX,
        false,
    );
}
