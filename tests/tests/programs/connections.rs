//! The life of a flow's entry.

use weir_common::{
    conntrack::{CtEntry, CtSide, SCTP_END, SCTP_INIT},
    endpoint::EndpointEntry,
    layout::map,
    policy::Decision,
    reason::Reason,
};
use weir_tests::{
    packet::{ACK, FIN, PSH, RST, SCTP, SYN, TCP, UDP, sctp, tcp, udp},
    testrun::Hook,
};

use crate::world::{ALLOWING, FAMILIES, ISOLATED, V4, World, allow_all, deny_all, key, now};

const SECOND: u64 = 1_000_000_000;

/// Moves an entry's past.
fn age(world: &mut World, name: &str, key: weir_common::conntrack::CtKey, seconds: u64) {
    let (_, mut entry) = world
        .programs()
        .connections(name)
        .expect("connections")
        .into_iter()
        .find(|(found, _)| *found == key)
        .expect("the entry");
    for side in &mut entry.sides {
        side.last_seen = side.last_seen.saturating_sub(seconds * SECOND);
    }
    world.programs().set_connection(name, key, entry).expect("the entry");
}

#[test]
fn tcp_is_confirmed_by_the_openers_acknowledgement() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer) = (family.pod, family.peer);
        let flow = key(TCP, (pod, 1000), (peer, 80));
        let before = now();
        world.tallies();
        world.from_pod("SYN", &tcp(pod, peer, (1000, 80), SYN), Reason::Allowed);
        let entry = world.unconfirmed(&flow).expect("unconfirmed");
        assert_eq!(
            (entry.epoch, entry.decision, entry.flags),
            (1, Decision::new(true, false, ALLOWING), 0)
        );
        assert!(
            entry.created <= now() && entry.created + SECOND / 10 > before,
            "{entry:?} at {before}"
        );
        assert_eq!(entry.sides[1], CtSide::default());
        world.from_pod("SYN again", &tcp(pod, peer, (1000, 80), SYN), Reason::Established);
        world.to_pod("SYN ACK", &tcp(peer, pod, (80, 1000), SYN | ACK), Reason::Established);
        // Nobody who uses a false address can answer that: so far it is not worth more than the SYN.
        assert!(world.confirmed(&flow).is_none());
        world.from_pod("ACK", &tcp(pod, peer, (1000, 80), ACK), Reason::Established);
        assert!(world.unconfirmed(&flow).is_none());
        let entry = world.confirmed(&flow).expect("confirmed");
        let bytes = tcp(pod, peer, (1000, 80), SYN).len() as u64 - 14;
        let [sent, received] = entry.sides;
        assert_eq!(
            (sent.packets, sent.bytes, sent.flags),
            (3, 3 * bytes, u32::from(SYN | ACK))
        );
        assert_eq!(
            (received.packets, received.bytes, received.flags),
            (1, bytes, u32::from(SYN | ACK))
        );
        assert_eq!(world.tallies(), [1, 1, 1, 0, 0]);
        world.to_pod("data", &tcp(peer, pod, (80, 1000), ACK | PSH), Reason::Established);
        assert_eq!(world.confirmed(&flow).expect("confirmed").sides[1].packets, 2);
        assert_eq!(world.tallies(), [0; 5]);
    }
}

#[test]
fn datagrams_are_confirmed_by_the_first_answer() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer) = (family.pod, family.peer);
        let flow = key(UDP, (pod, 1000), (peer, 53));
        world.from_pod("question", &udp(pod, peer, (1000, 53)), Reason::Allowed);
        world.from_pod("question", &udp(pod, peer, (1000, 53)), Reason::Established);
        assert!(world.confirmed(&flow).is_none());
        world.to_pod("answer", &udp(peer, pod, (53, 1000)), Reason::Established);
        assert!(world.confirmed(&flow).is_some() && world.unconfirmed(&flow).is_none());
        world.to_pod("of another port", &udp(peer, pod, (54, 1000)), Reason::PolicyDenied);
        world.to_pod(
            "of another peer",
            &udp(family.outside, pod, (53, 1000)),
            Reason::PolicyDenied,
        );
    }
}

#[test]
fn a_refused_connection_is_not_confirmed() {
    let mut world = World::new(deny_all(), allow_all());
    let flow = key(TCP, (V4.pod, 80), (V4.peer, 1000));
    world.to_pod("SYN", &tcp(V4.peer, V4.pod, (1000, 80), SYN), Reason::Allowed);
    assert_eq!(
        world.unconfirmed(&flow).expect("the flow").flags,
        CtEntry::OPENED_BY_PEER
    );
    world.from_pod("RST", &tcp(V4.pod, V4.peer, (80, 1000), RST | ACK), Reason::Established);
    assert!(
        world.confirmed(&flow).is_none(),
        "floods of refused SYNs would evict live connections"
    );
    // Closed: the same ports make another connection at once.
    world.tallies();
    world.to_pod("SYN", &tcp(V4.peer, V4.pod, (1000, 80), SYN), Reason::Allowed);
    assert_eq!(world.tallies(), [1, 1, 0, 0, 0]);
}

/// Opens a TCP connection of the pod to the peer's port 80.
fn connect(world: &mut World, port: u16) {
    world.from_pod("SYN", &tcp(V4.pod, V4.peer, (port, 80), SYN), Reason::Allowed);
    world.to_pod(
        "SYN ACK",
        &tcp(V4.peer, V4.pod, (80, port), SYN | ACK),
        Reason::Established,
    );
    world.from_pod("ACK", &tcp(V4.pod, V4.peer, (port, 80), ACK), Reason::Established);
}

#[test]
fn a_syn_on_a_closed_tuple_is_a_new_flow() {
    let mut world = World::new(allow_all(), deny_all());
    let flow = key(TCP, (V4.pod, 1000), (V4.peer, 80));
    let syn = tcp(V4.pod, V4.peer, (1000, 80), SYN);
    for closing in ["FIN", "RST"] {
        connect(&mut world, 1000);
        if closing == "FIN" {
            world.from_pod("FIN", &tcp(V4.pod, V4.peer, (1000, 80), FIN | ACK), Reason::Established);
            world.from_pod("half closed", &syn, Reason::Established);
            world.to_pod("FIN", &tcp(V4.peer, V4.pod, (80, 1000), FIN | ACK), Reason::Established);
        } else {
            world.to_pod("RST", &tcp(V4.peer, V4.pod, (80, 1000), RST), Reason::Established);
        }
        world.from_pod("last ACK", &tcp(V4.pod, V4.peer, (1000, 80), ACK), Reason::Established);
        world.tallies();
        world.from_pod("SYN", &syn, Reason::Allowed);
        assert!(world.confirmed(&flow).is_none());
        let entry = world.unconfirmed(&flow).expect("a new entry");
        assert_eq!((entry.sides[0].packets, entry.sides[0].flags), (1, u32::from(SYN)));
        assert_eq!(world.tallies(), [1, 0, 0, 1, 0]);
        world
            .programs()
            .remove_connection(map::UNCONFIRMED, flow)
            .expect("removal");
    }
    // Judged afresh, by what holds now.
    connect(&mut world, 1000);
    world.to_pod("RST", &tcp(V4.peer, V4.pod, (80, 1000), RST), Reason::Established);
    world.endpoint.egress = deny_all();
    world.store();
    world.from_pod("SYN", &syn, Reason::PolicyDenied);
}

#[test]
fn a_syn_against_the_opener_is_judged_in_its_own_direction() {
    let mut world = World::new(allow_all(), deny_all());
    let flow = key(TCP, (V4.pod, 1000), (V4.peer, 80));
    let syn = tcp(V4.peer, V4.pod, (80, 1000), SYN);
    connect(&mut world, 1000);
    world.to_pod("denied", &syn, Reason::PolicyDenied);
    assert!(
        world.confirmed(&flow).is_some(),
        "the packet is denied, the connection is not"
    );
    world.from_pod("data", &tcp(V4.pod, V4.peer, (1000, 80), ACK), Reason::Established);

    world.endpoint.ingress = allow_all();
    world.store();
    world.to_pod("allowed", &syn, Reason::Allowed);
    assert!(world.confirmed(&flow).is_none());
    assert_eq!(
        world.unconfirmed(&flow).expect("the flow").flags,
        CtEntry::OPENED_BY_PEER
    );

    // The same before the first connection is confirmed.
    world.endpoint.ingress = deny_all();
    world.store();
    world.from_pod("SYN", &tcp(V4.pod, V4.peer, (2000, 80), SYN), Reason::Allowed);
    world.to_pod("SYN", &tcp(V4.peer, V4.pod, (80, 2000), SYN), Reason::PolicyDenied);
    assert!(world.unconfirmed(&key(TCP, (V4.pod, 2000), (V4.peer, 80))).is_some());
}

#[test]
fn entries_expire_by_protocol_and_state() {
    let mut world = World::new(allow_all(), deny_all());
    let unanswered = key(TCP, (V4.pod, 1), (V4.peer, 80));
    let syn = tcp(V4.pod, V4.peer, (1, 80), SYN);
    world.from_pod("SYN", &syn, Reason::Allowed);
    age(&mut world, map::UNCONFIRMED, unanswered, 29);
    world.from_pod("within 30 s", &syn, Reason::Established);
    age(&mut world, map::UNCONFIRMED, unanswered, 31);
    world.tallies();
    world.from_pod("after 30 s", &syn, Reason::Allowed);
    assert_eq!(world.tallies(), [1, 1, 0, 0, 0]);

    connect(&mut world, 1000);
    let open = key(TCP, (V4.pod, 1000), (V4.peer, 80));
    let answer = tcp(V4.peer, V4.pod, (80, 1000), ACK);
    age(&mut world, map::CONNECTIONS, open, 3600);
    world.to_pod("within a day", &answer, Reason::Established);
    world.from_pod("FIN", &tcp(V4.pod, V4.peer, (1000, 80), FIN | ACK), Reason::Established);
    age(&mut world, map::CONNECTIONS, open, 119);
    world.to_pod("half closed, within 120 s", &answer, Reason::Established);
    age(&mut world, map::CONNECTIONS, open, 121);
    world.to_pod("half closed, after 120 s", &answer, Reason::PolicyDenied);

    let datagram = udp(V4.pod, V4.peer, (1, 53));
    let flow = key(UDP, (V4.pod, 1), (V4.peer, 53));
    world.from_pod("question", &datagram, Reason::Allowed);
    age(&mut world, map::UNCONFIRMED, flow, 31);
    world.to_pod(
        "an answer after 30 s",
        &udp(V4.peer, V4.pod, (53, 1)),
        Reason::PolicyDenied,
    );
    world.from_pod("question", &datagram, Reason::Allowed);
    world.to_pod("answer", &udp(V4.peer, V4.pod, (53, 1)), Reason::Established);
    age(&mut world, map::CONNECTIONS, flow, 119);
    world.to_pod("within 120 s", &udp(V4.peer, V4.pod, (53, 1)), Reason::Established);
    age(&mut world, map::CONNECTIONS, flow, 121);
    world.to_pod("after 120 s", &udp(V4.peer, V4.pod, (53, 1)), Reason::PolicyDenied);
}

#[test]
fn sctp_ends_by_its_chunks() {
    let mut world = World::new(allow_all(), deny_all());
    let flow = key(SCTP, (V4.pod, 1), (V4.peer, 80));
    for end in [6, 8, 14] {
        world.from_pod("INIT", &sctp(V4.pod, V4.peer, (1, 80), 1), Reason::Allowed);
        assert_eq!(world.unconfirmed(&flow).expect("the flow").sides[0].flags, SCTP_INIT);
        world.to_pod(
            "INIT against it",
            &sctp(V4.peer, V4.pod, (80, 1), 1),
            Reason::PolicyDenied,
        );
        world.to_pod("INIT ACK", &sctp(V4.peer, V4.pod, (80, 1), 2), Reason::Established);
        world.from_pod("DATA", &sctp(V4.pod, V4.peer, (1, 80), 0), Reason::Established);
        world.to_pod("end", &sctp(V4.peer, V4.pod, (80, 1), end), Reason::Established);
        assert_eq!(world.confirmed(&flow).expect("the flow").sides[1].flags, SCTP_END);
        // An INIT now opens another association (the next round's).
    }
}

#[test]
fn a_changed_policy_cuts_what_it_no_longer_allows() {
    let mut world = World::new(allow_all(), allow_all());
    let flow = key(TCP, (V4.pod, 1000), (V4.peer, 80));
    let (out, back) = (
        tcp(V4.pod, V4.peer, (1000, 80), ACK),
        tcp(V4.peer, V4.pod, (80, 1000), ACK),
    );
    connect(&mut world, 1000);
    // Ingress is not how this flow was opened: nothing to cut, whichever packet comes first.
    world.flip(allow_all(), deny_all());
    world.to_pod("answer", &back, Reason::Rejudged);
    let entry = world.confirmed(&flow).expect("the flow");
    assert_eq!((entry.epoch, entry.sides[1].packets), (2, 2));
    world.from_pod("data", &out, Reason::Established);
    world.flip(allow_all(), deny_all());
    world.from_pod("data", &out, Reason::Rejudged);

    world.flip(deny_all(), allow_all());
    world.tallies();
    world.to_pod("answer", &back, Reason::PolicyCut);
    assert_eq!(world.tallies(), [0, 0, 0, 1, 0]);
    assert!(world.confirmed(&flow).is_none());
    world.from_pod("data", &out, Reason::PolicyDenied);
}

#[test]
fn unconfirmed_entries_are_judged_again_too() {
    let mut world = World::new(deny_all(), allow_all());
    let flow = key(UDP, (V4.pod, 53), (V4.peer, 1000));
    let question = udp(V4.peer, V4.pod, (1000, 53));
    world.to_pod("question", &question, Reason::Allowed);
    world.flip(deny_all(), allow_all());
    world.to_pod("question", &question, Reason::Rejudged);
    assert_eq!(world.unconfirmed(&flow).expect("the flow").epoch, 2);
    world.flip(deny_all(), deny_all());
    world.from_pod("answer", &udp(V4.pod, V4.peer, (53, 1000)), Reason::PolicyCut);
    assert!(world.unconfirmed(&flow).is_none());
}

#[test]
fn mid_flow_packets_are_adopted_for_a_while() {
    for (opener, egress, ingress) in [
        ("the pod", allow_all(), deny_all()),
        ("the peer", deny_all(), allow_all()),
    ] {
        let mut world = World::new(egress, ingress);
        let flags = CtEntry::ADOPTED
            | if opener == "the peer" {
                CtEntry::OPENED_BY_PEER
            } else {
                0
            };
        world.endpoint.adopt_until = now() + 60 * SECOND;
        world.store();
        for (port, first_from_pod) in [(1000, true), (1001, false)] {
            let flow = key(TCP, (V4.pod, port), (V4.peer, 80));
            let out = tcp(V4.pod, V4.peer, (port, 80), ACK);
            let back = tcp(V4.peer, V4.pod, (80, port), ACK | PSH);
            world.tallies();
            if first_from_pod {
                world.from_pod(opener, &out, Reason::Adopted);
            } else {
                world.to_pod(opener, &back, Reason::Adopted);
            }
            assert_eq!(world.tallies(), [0, 0, 1, 0, 0]);
            assert_eq!(
                world.confirmed(&flow).expect("the flow").flags,
                flags,
                "opened by {opener}"
            );
            world.from_pod(opener, &out, Reason::Established);
            world.to_pod(opener, &back, Reason::Established);
        }
        // No adoption of what is no TCP, or begins.
        let denied = if opener == "the pod" {
            Hook::TO_POD
        } else {
            Hook::FROM_POD
        };
        let (from, to) = if opener == "the pod" {
            (V4.peer, V4.pod)
        } else {
            (V4.pod, V4.peer)
        };
        world.expect("SYN", denied, &tcp(from, to, (1, 2), SYN), Reason::PolicyDenied);
        world.expect("UDP", denied, &udp(from, to, (1, 2)), Reason::PolicyDenied);

        world.endpoint.adopt_until = now() - SECOND;
        world.store();
        world.expect("too late", denied, &tcp(from, to, (3, 4), ACK), Reason::PolicyDenied);
        let allowed = if opener == "the pod" {
            Hook::FROM_POD
        } else {
            Hook::TO_POD
        };
        world.expect("a new flow", allowed, &tcp(to, from, (5, 6), ACK), Reason::Allowed);
    }
    let mut world = World::new(deny_all(), deny_all());
    world.endpoint.adopt_until = u64::MAX;
    world.store();
    world.from_pod("neither side", &tcp(V4.pod, V4.peer, (1, 2), ACK), Reason::PolicyDenied);
    world.to_pod("neither side", &tcp(V4.peer, V4.pod, (2, 1), ACK), Reason::PolicyDenied);
}

#[test]
fn an_adopted_flow_is_judged_again_by_the_side_that_was_found_to_open_it() {
    let mut world = World::new(deny_all(), allow_all());
    world.endpoint.adopt_until = u64::MAX;
    world.store();
    let data = tcp(V4.pod, V4.peer, (80, 1000), ACK);
    world.from_pod("data", &data, Reason::Adopted);
    world.flip(deny_all(), allow_all());
    world.from_pod("data", &data, Reason::Rejudged);
    world.flip(allow_all(), deny_all());
    world.from_pod("data", &data, Reason::PolicyCut);
}

#[test]
fn a_reset_of_nothing_leaves_nothing() {
    let mut world = World::new(allow_all(), deny_all());
    world.from_pod("RST", &tcp(V4.pod, V4.peer, (1, 80), RST), Reason::Allowed);
    assert_eq!(world.tallies(), [0; 5]);
}

#[test]
fn audited_endpoints_pass_what_would_be_dropped() {
    let mut world = World::new(deny_all(), deny_all());
    world.set_flags(ISOLATED | EndpointEntry::AUDIT);
    let flow = key(TCP, (V4.pod, 80), (V4.peer, 1000));
    world.to_pod("SYN", &tcp(V4.peer, V4.pod, (1000, 80), SYN), Reason::Audit);
    // The answer belongs to the flow that would have been denied; it is not denied for reasons of its own.
    world.endpoint.egress = allow_all();
    world.store();
    world.from_pod("SYN ACK", &tcp(V4.pod, V4.peer, (80, 1000), SYN | ACK), Reason::Audit);
    world.to_pod("ACK", &tcp(V4.peer, V4.pod, (1000, 80), ACK), Reason::Audit);
    assert!(!world.confirmed(&flow).expect("the flow").decision.allows());
    world.from_pod("foreign source", &udp(V4.outside, V4.peer, (1, 2)), Reason::Audit);
    world.from_pod(
        "malformed",
        &weir_tests::packet::ethernet(0x0800, &[0x05; 20]),
        Reason::Audit,
    );
    // In earnest, nothing of it stays, also if the epoch were forgotten.
    world.set_flags(ISOLATED);
    world.to_pod("ACK", &tcp(V4.peer, V4.pod, (1000, 80), ACK), Reason::PolicyCut);
    world.to_pod("ACK", &tcp(V4.peer, V4.pod, (1000, 80), ACK), Reason::PolicyDenied);
    // And an open connection that only an audited change would cut is kept.
    world.flip(allow_all(), deny_all());
    connect(&mut world, 2000);
    world.endpoint.flags |= EndpointEntry::AUDIT;
    world.flip(deny_all(), deny_all());
    world.to_pod("data", &tcp(V4.peer, V4.pod, (80, 2000), ACK), Reason::Audit);
    world.from_pod("data", &tcp(V4.pod, V4.peer, (2000, 80), ACK), Reason::Audit);
    world.flip(allow_all(), deny_all());
    world.from_pod("data", &tcp(V4.pod, V4.peer, (2000, 80), ACK), Reason::Rejudged);
}

#[test]
fn the_two_ends_of_a_local_flow_share_nothing() {
    // The same tuple under another endpoint's id is another entry.
    let mut world = World::new(allow_all(), deny_all());
    connect(&mut world, 1000);
    world.endpoint.stamp = EndpointEntry::make_stamp(0x99, 1);
    world.endpoint.stamp_end = world.endpoint.stamp;
    world.store();
    world.to_pod("data", &tcp(V4.peer, V4.pod, (80, 1000), ACK), Reason::PolicyDenied);
    world.from_pod("SYN", &tcp(V4.pod, V4.peer, (1000, 80), SYN), Reason::Allowed);
}

#[test]
fn what_was_cut_is_judged_as_it_was_opened_whoever_speaks_next() {
    for adopting in [false, true] {
        let mut world = World::new(allow_all(), allow_all());
        if adopting {
            world.endpoint.adopt_until = u64::MAX;
            world.store();
        }
        for family in FAMILIES {
            let (pod, peer) = (family.pod, family.peer);
            let flow = key(TCP, (pod, 80), (peer, 1000));
            world.to_pod("SYN", &tcp(peer, pod, (1000, 80), SYN), Reason::Allowed);
            world.from_pod("SYN ACK", &tcp(pod, peer, (80, 1000), SYN | ACK), Reason::Established);
            world.to_pod("ACK", &tcp(peer, pod, (1000, 80), ACK), Reason::Established);
            world.flip(allow_all(), deny_all());
            world.to_pod("data", &tcp(peer, pod, (1000, 80), ACK | PSH), Reason::PolicyCut);
            // What the pod sends again is no connection of its own, which it would be allowed to open.
            for _ in 0..2 {
                world.from_pod("again", &tcp(pod, peer, (80, 1000), ACK | PSH), Reason::PolicyDenied);
                world.to_pod("again", &tcp(peer, pod, (1000, 80), ACK | PSH), Reason::PolicyDenied);
            }
            // TCP repeats a segment two minutes after the last time, in the end.
            world.programs().age_denials(121_000_000_000).expect("ages");
            world.from_pod("late", &tcp(pod, peer, (80, 1000), ACK | PSH), Reason::PolicyDenied);
            world.flip(allow_all(), allow_all());
            world.from_pod("allowed again", &tcp(pod, peer, (80, 1000), ACK | PSH), Reason::Allowed);
            let entry = world.unconfirmed(&flow).expect("an entry");
            assert_eq!(entry.flags, CtEntry::OPENED_BY_PEER);
            world.flip(allow_all(), allow_all());
        }
    }
}

#[test]
fn a_new_connection_on_the_ports_of_a_cut_one_is_its_openers() {
    let mut world = World::new(allow_all(), allow_all());
    let (pod, peer) = (V4.pod, V4.peer);
    world.to_pod("SYN", &tcp(peer, pod, (1000, 80), SYN), Reason::Allowed);
    world.flip(allow_all(), deny_all());
    world.to_pod("data", &tcp(peer, pod, (1000, 80), ACK | PSH), Reason::PolicyCut);
    world.from_pod("SYN", &tcp(pod, peer, (80, 1000), SYN), Reason::Allowed);
    let entry = world.unconfirmed(&key(TCP, (pod, 80), (peer, 1000))).expect("an entry");
    assert_eq!(entry.flags, 0, "the pod's own");
}
