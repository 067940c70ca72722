//! A pod sends from its own addresses.

use std::net::IpAddr;

use weir_common::{Addr, endpoint::EndpointEntry, identity::SOURCE_KEY_PREFIX, identity::SourceKey, reason::Reason};
use weir_tests::packet::{SYN, tcp, udp};

use crate::world::{ENDPOINT, FAMILIES, ISOLATED, V4, V6, World, allow_all};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn foreign_sources_are_dropped_with_and_without_policy() {
    let mut world = World::new(allow_all(), allow_all());
    for flags in [0, ISOLATED] {
        world.set_flags(flags);
        for family in FAMILIES {
            let foreign = family.outside;
            world.from_pod(
                "foreign",
                &tcp(foreign, family.peer, (1, 80), SYN),
                Reason::SpoofedSource,
            );
            world.from_pod(
                "the peer's",
                &tcp(family.peer, family.peer, (1, 80), SYN),
                Reason::SpoofedSource,
            );
        }
        world.from_pod(
            "none",
            &udp(address("0.0.0.0"), V4.peer, (68, 67)),
            Reason::SpoofedSource,
        );
        world.from_pod("none", &udp(address("::"), V6.peer, (1, 2)), Reason::SpoofedSource);
    }
    // What the pod receives may come from anywhere.
    world.to_pod("foreign", &tcp(V4.outside, V4.pod, (1, 80), SYN), Reason::Allowed);
}

#[test]
fn an_endpoint_without_an_address_of_a_family_sends_nothing_of_it() {
    let mut world = World::new(allow_all(), allow_all());
    world.endpoint.addr4 = Addr::UNSPECIFIED;
    world.endpoint.addr6 = Addr::UNSPECIFIED;
    world.store();
    for family in FAMILIES {
        world.from_pod(
            "no address",
            &tcp(family.pod, family.peer, (1, 80), SYN),
            Reason::SpoofedSource,
        );
    }
    world.from_pod("none", &udp(address("::"), V6.peer, (1, 2)), Reason::SpoofedSource);
}

#[test]
fn link_local_sources_talk_on_the_link_only() {
    let mut world = World::new(allow_all(), allow_all());
    let own = address("fe80::42");
    world.from_pod("neighbour", &udp(own, address("fe80::1"), (1, 2)), Reason::Allowed);
    world.from_pod(
        "multicast",
        &udp(own, address("ff02::fb"), (5353, 5353)),
        Reason::Allowed,
    );
    world.from_pod("beyond", &udp(own, V6.peer, (1, 2)), Reason::SpoofedSource);
    world.from_pod(
        "almost link-local",
        &udp(address("fec0::42"), address("fe80::1"), (1, 2)),
        Reason::SpoofedSource,
    );
}

#[test]
fn more_sources_may_be_allowed() {
    let mut world = World::new(allow_all(), allow_all());
    let packet = tcp(address("192.0.2.77"), V4.peer, (1, 80), SYN);
    let other = tcp(address("192.0.3.77"), V4.peer, (1, 80), SYN);
    let key = SourceKey {
        endpoint: ENDPOINT,
        addr: address("192.0.2.0").into(),
    };
    world
        .programs()
        .set_source(key, SOURCE_KEY_PREFIX + Addr::V4_PREFIX + 24)
        .expect("a source");
    world.from_pod("not looked up", &packet, Reason::SpoofedSource);
    world.set_flags(ISOLATED | EndpointEntry::MORE_SOURCES);
    world.from_pod("within", &packet, Reason::Allowed);
    world.from_pod("beside", &other, Reason::SpoofedSource);
    // Another endpoint's prefix is of no use here.
    world.programs().clear().expect("clearing");
    world
        .programs()
        .set_source(
            SourceKey {
                endpoint: ENDPOINT + 1,
                ..key
            },
            SOURCE_KEY_PREFIX + Addr::V4_PREFIX + 24,
        )
        .expect("a source");
    world.store();
    world.from_pod("another endpoint's", &packet, Reason::SpoofedSource);
}

#[test]
fn the_check_can_be_turned_off() {
    let mut world = World::new(allow_all(), allow_all());
    world.set_flags(ISOLATED | EndpointEntry::ANY_SOURCE);
    for family in FAMILIES {
        world.from_pod("any", &tcp(family.outside, family.peer, (1, 80), SYN), Reason::Allowed);
    }
}
