//! What the agent is told.

use weir_common::{
    Direction,
    conntrack::CtEntry,
    event::{Event, EventKind},
    layout::Config,
    policy::Decision,
    reason::Reason,
};
use weir_tests::packet::{ACK, FIN, RST, SYN, TCP, icmp, tcp, udp};

use crate::world::{ALLOWING, DENYING, V4, V6, World, allow_all, deny_all, key};

fn listen(world: &mut World) {
    world
        .programs()
        .set_config(Config { events: 1, flags: 0 })
        .expect("the configuration");
}

/// The only event since the last call.
#[track_caller]
fn event(world: &mut World) -> Event {
    let events = world.programs().events().expect("events");
    assert_eq!(events.len(), 1, "{events:#?}");
    events[0]
}

#[track_caller]
fn silence(world: &mut World) {
    let events = world.programs().events().expect("events");
    assert!(events.is_empty(), "{events:#?}");
}

#[test]
fn nobody_listens() {
    let mut world = World::new(allow_all(), deny_all());
    world.from_pod("SYN", &tcp(V4.pod, V4.peer, (1, 80), SYN), Reason::Allowed);
    world.to_pod("denied", &udp(V4.peer, V4.pod, (1, 80)), Reason::PolicyDenied);
    silence(&mut world);
    assert!(world.programs().denials().expect("denials").is_empty());
    let flow = key(TCP, (V4.pod, 1), (V4.peer, 80));
    assert_eq!(world.unconfirmed(&flow).expect("the flow").flags & CtEntry::REPORTED, 0);
}

#[test]
fn a_flow_starts_and_ends_once() {
    let mut world = World::new(allow_all(), deny_all());
    listen(&mut world);
    let flow = key(TCP, (V4.pod, 1000), (V4.peer, 80));
    let syn = tcp(V4.pod, V4.peer, (1000, 80), SYN);
    let bytes = syn.len() as u64 - 14;
    world.from_pod("SYN", &syn, Reason::Allowed);
    let started = event(&mut world);
    assert_eq!(
        (started.kind, started.reason),
        (EventKind::Started as u8, Reason::Allowed as u8)
    );
    assert_eq!(
        (started.key, started.direction, started.tcp_flags),
        (flow, Direction::Egress as u8, SYN)
    );
    assert_eq!(started.decision, Decision::new(true, false, ALLOWING));
    assert_eq!(
        (started.packets, started.bytes, started.ifindex),
        ([1, 0], [bytes, 0], 1)
    );
    let entry = world.unconfirmed(&flow).expect("the flow");
    assert_eq!(entry.flags, CtEntry::REPORTED);
    assert_eq!(started.created, entry.created);

    world.to_pod(
        "SYN ACK",
        &tcp(V4.peer, V4.pod, (80, 1000), SYN | ACK),
        Reason::Established,
    );
    world.from_pod("ACK", &tcp(V4.pod, V4.peer, (1000, 80), ACK), Reason::Established);
    world.from_pod("FIN", &tcp(V4.pod, V4.peer, (1000, 80), FIN | ACK), Reason::Established);
    silence(&mut world);
    world.to_pod("FIN", &tcp(V4.peer, V4.pod, (80, 1000), FIN | ACK), Reason::Established);
    let ended = event(&mut world);
    assert_eq!(
        (ended.kind, ended.reason),
        (EventKind::Ended as u8, Reason::Established as u8)
    );
    assert_eq!(
        (ended.key, ended.created, ended.flags),
        (flow, entry.created, CtEntry::REPORTED)
    );
    assert_eq!((ended.packets, ended.bytes), ([3, 2], [3 * bytes, 2 * bytes]));
    world.from_pod("last ACK", &tcp(V4.pod, V4.peer, (1000, 80), ACK), Reason::Established);
    world.from_pod("RST", &tcp(V4.pod, V4.peer, (1000, 80), RST), Reason::Established);
    silence(&mut world);
    world.from_pod("SYN", &syn, Reason::Allowed);
    assert_eq!(event(&mut world).kind, EventKind::Started as u8);
}

#[test]
fn denials_of_a_flow_are_told_once_and_counted() {
    let mut world = World::new(allow_all(), deny_all());
    listen(&mut world);
    let syn = tcp(V6.peer, V6.pod, (1000, 80), SYN);
    let bytes = syn.len() as u64 - 14;
    world.to_pod("SYN", &syn, Reason::PolicyDenied);
    let denied = event(&mut world);
    let flow = key(TCP, (V6.pod, 80), (V6.peer, 1000));
    assert_eq!(
        (denied.kind, denied.reason),
        (EventKind::Denied as u8, Reason::PolicyDenied as u8)
    );
    assert_eq!((denied.key, denied.direction), (flow, Direction::Ingress as u8));
    assert_eq!(denied.decision, Decision::new(false, false, DENYING));
    assert_eq!((denied.packets, denied.bytes), ([0, 1], [0, bytes]));
    world.to_pod("again", &syn, Reason::PolicyDenied);
    world.to_pod("again", &syn, Reason::PolicyDenied);
    silence(&mut world);
    let denials = world.programs().denials().expect("denials");
    assert_eq!(denials.len(), 1);
    assert_eq!(
        (denials[0].0, denials[0].1.packets, denials[0].1.bytes),
        (flow, 3, 3 * bytes)
    );

    world.to_pod(
        "another flow",
        &tcp(V6.peer, V6.pod, (1001, 80), SYN),
        Reason::PolicyDenied,
    );
    assert_eq!(event(&mut world).key.peer_port, 1001);
    // Another policy, another denial.
    world.flip(allow_all(), deny_all());
    world.to_pod("SYN", &syn, Reason::PolicyDenied);
    assert_eq!(event(&mut world).key, flow);
}

#[test]
fn a_cut_is_an_end_and_a_denial() {
    let mut world = World::new(allow_all(), deny_all());
    listen(&mut world);
    world.from_pod("question", &udp(V4.pod, V4.peer, (1, 53)), Reason::Allowed);
    let started = event(&mut world);
    world.flip(deny_all(), deny_all());
    world.to_pod("answer", &udp(V4.peer, V4.pod, (53, 1)), Reason::PolicyCut);
    let events = world.programs().events().expect("events");
    let kinds: Vec<_> = events
        .iter()
        .map(|event| (event.kind, event.reason, event.key))
        .collect();
    let cut = Reason::PolicyCut as u8;
    assert_eq!(
        kinds,
        [
            (EventKind::Ended as u8, cut, started.key),
            (EventKind::Denied as u8, cut, started.key)
        ]
    );
    assert_eq!(events[0].packets, [1, 0]);
    assert_eq!(events[1].decision, Decision::new(false, false, DENYING));
}

#[test]
fn every_drop_names_what_is_known_of_its_flow() {
    let mut world = World::new(allow_all(), deny_all());
    listen(&mut world);
    world.from_pod("spoofed", &udp(V4.outside, V4.peer, (1, 53)), Reason::SpoofedSource);
    let spoofed = event(&mut world);
    assert_eq!(spoofed.key, key(17, (V4.outside, 1), (V4.peer, 53)));
    world.to_pod("ICMP", &icmp(V4.peer, V4.pod, 13, 0, 1, b""), Reason::PolicyDenied);
    assert_eq!(event(&mut world).icmp, 13 << 8);
    world.to_pod(
        "bad flags",
        &tcp(V4.peer, V4.pod, (1, 2), SYN | FIN),
        Reason::BadTcpFlags,
    );
    assert_eq!(event(&mut world).key, key(TCP, (V4.pod, 0), (V4.peer, 0)));
}

#[test]
fn lost_events_are_counted() {
    let mut world = World::new(allow_all(), deny_all());
    listen(&mut world);
    world.tallies();
    // One mebibyte holds less than ten thousand events.
    let mut lost = 0;
    for port in 0..10_000_u16 {
        world
            .programs()
            .run(weir_tests::testrun::Hook::TO_POD, &udp(V4.peer, V4.pod, (port, 80)))
            .expect("a run");
        if port % 1000 == 999 {
            lost = world.tallies()[4];
        }
    }
    let told = world.programs().events().expect("events").len() as u64;
    assert!(lost > 0 && lost <= 1000, "{lost}");
    assert!(told > 8000 && told < 10_000, "{told}");
}
