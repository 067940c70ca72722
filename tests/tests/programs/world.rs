//! One pod, a few peers, and counters that are all compared after every packet.

use std::{net::IpAddr, sync::Mutex};

use weir_common::{
    Addr, Direction,
    conntrack::{CtEntry, CtKey},
    counters::Tally,
    endpoint::EndpointEntry,
    identity::IdentityEntry,
    layout::map,
    policy::{Decision, DecisionKey, DirectionPolicy, PrefixMask, Row},
    reason::Reason,
};
use weir_tests::{
    packet::ETHERNET,
    testrun::{Counters, DROP, Hook, IFINDEX, PASS, Programs, REDIRECT, Sizes},
};

pub const ENDPOINT: u32 = 0x1234;
/// Trace of what [`allow_all`] and [`deny_all`] say.
pub const ALLOWING: u32 = 11;
pub const DENYING: u32 = 12;
/// Class and identity of the peer pod, of the node, and of everything else.
pub const PEER: u32 = 5;
pub const NODE: u32 = 2;
pub const WORLD: u32 = 1;

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub pod: IpAddr,
    pub peer: IpAddr,
    pub node: IpAddr,
    /// Known by CIDR only.
    pub outside: IpAddr,
}

pub const V4: Family = Family {
    pod: v4(10, 1, 0, 2),
    peer: v4(10, 2, 0, 1),
    node: v4(10, 0, 0, 1),
    outside: v4(203, 0, 113, 9),
};
pub const V6: Family = Family {
    pod: v6([0xfd00, 1, 0, 0, 0, 0, 0, 2]),
    peer: v6([0xfd00, 2, 0, 0, 0, 0, 0, 1]),
    node: v6([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
    outside: v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]),
};
pub const FAMILIES: [Family; 2] = [V4, V6];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d))
}

const fn v6(words: [u16; 8]) -> IpAddr {
    let [a, b, c, d, e, f, g, h] = words;
    IpAddr::V6(std::net::Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

pub const ISOLATED: u32 = EndpointEntry::INGRESS_ISOLATED | EndpointEntry::EGRESS_ISOLATED;

/// The same decision for everybody and everything.
pub const fn always(decision: Decision) -> DirectionPolicy {
    DirectionPolicy {
        table: 0,
        default_row: Row {
            id: 0,
            prefixes: PrefixMask(0),
            base: [decision; 5],
        },
    }
}

pub const fn allow_all() -> DirectionPolicy {
    always(Decision::new(true, false, ALLOWING))
}

pub const fn deny_all() -> DirectionPolicy {
    always(Decision::new(false, false, DENYING))
}

/// Loaded programs that no test uses right now: the verifier takes its time.
static IDLE: Mutex<Vec<Programs>> = Mutex::new(Vec::new());

/// The programs, their maps filled for one pod.
pub struct World {
    /// `Some` until dropped.
    programs: Option<Programs>,
    pub endpoint: EndpointEntry,
    counters: Counters,
    tallies: [u64; TALLIES],
}

/// How many tallies there are.
const TALLIES: usize = 5;

impl Drop for World {
    fn drop(&mut self) {
        let Some(mut programs) = self.programs.take() else {
            return;
        };
        if !std::thread::panicking() && programs.clear().is_ok() {
            IDLE.lock().expect("no test panics with the lock").push(programs);
        }
    }
}

impl World {
    /// A pod that policies select in both directions.
    pub fn new(egress: DirectionPolicy, ingress: DirectionPolicy) -> Self {
        let idle = IDLE.lock().expect("no test panics with the lock").pop();
        let mut programs =
            idle.unwrap_or_else(|| Programs::load(Sizes::default()).expect("loading the programs (as root)"));
        let stamp = EndpointEntry::make_stamp(ENDPOINT, 1);
        let endpoint = EndpointEntry {
            stamp,
            adopt_until: 0,
            ifindex: IFINDEX,
            flags: ISOLATED,
            addr4: V4.pod.into(),
            addr6: V6.pod.into(),
            egress,
            ingress,
            stamp_end: stamp,
        };
        for (identity, flags) in [(WORLD, 0), (NODE, IdentityEntry::LOCAL_NODE), (PEER, 0)] {
            programs.set_identity(identity, identity, flags).expect("an identity");
        }
        for family in FAMILIES {
            programs.set_address(family.peer, PEER).expect("the peer");
            programs.set_address(family.node, NODE).expect("the node");
        }
        programs
            .set_cidr("0.0.0.0".parse().expect("an address"), 0, WORLD)
            .expect("IPv4");
        programs
            .set_cidr("::".parse().expect("an address"), 0, WORLD)
            .expect("IPv6");
        let mut world = Self {
            counters: programs.counters().expect("the counters"),
            tallies: all_tallies(&mut programs),
            programs: Some(programs),
            endpoint,
        };
        world.store();
        world
    }

    pub fn programs(&mut self) -> &mut Programs {
        self.programs.as_mut().expect("not dropped")
    }

    /// How much the tallies have grown since the last call: put into and deleted from the unconfirmed map, the same
    /// for the confirmed map, lost events.
    pub fn tallies(&mut self) -> [u64; TALLIES] {
        let now = all_tallies(self.programs());
        let grown = std::array::from_fn(|i| now[i] - self.tallies[i]);
        self.tallies = now;
        grown
    }

    /// Writes the endpoint as it stands.
    pub fn store(&mut self) {
        let endpoint = self.endpoint;
        self.programs().set_endpoint(&endpoint).expect("the endpoint");
    }

    pub fn set_flags(&mut self, flags: u32) {
        self.endpoint.flags = flags;
        self.store();
    }

    /// Other policies, and so another epoch.
    pub fn flip(&mut self, egress: DirectionPolicy, ingress: DirectionPolicy) {
        self.endpoint.egress = egress;
        self.endpoint.ingress = ingress;
        self.endpoint.stamp += 1;
        self.endpoint.stamp_end = self.endpoint.stamp;
        self.store();
    }

    /// Hands over a packet and compares its fate, and all counters.
    #[track_caller]
    pub fn expect(&mut self, name: &str, hook: Hook, packet: &[u8], reason: Reason) {
        let link = if self.endpoint.flags & EndpointEntry::LAYER3 == 0 {
            ETHERNET
        } else {
            0
        };
        self.expect_bytes(name, hook, packet, reason, packet.len() - link);
    }

    /// As [`Self::expect`], with `bytes` to be counted.
    #[track_caller]
    pub fn expect_bytes(&mut self, name: &str, hook: Hook, packet: &[u8], reason: Reason, bytes: usize) {
        let action = match self.programs().run(hook, packet) {
            Ok(action) => action,
            Err(error) => panic!("{name}: {error:#}"),
        };
        let counters = self.programs().counters().expect("the counters");
        let packets = u64::from(hook.gso_segs.max(1));
        assert_eq!(
            counters.since(&self.counters),
            Counters::only(reason, hook.direction, packets, bytes as u64),
            "{name}: counters"
        );
        assert_eq!(action, if reason.is_drop() { DROP } else { PASS }, "{name}: action");
        self.counters = counters;
    }

    /// Hands over a packet that the pod sends to another one of the node, and compares that it is counted for both
    /// and handed on; or with `direct` not set, that it goes the kernel's way.
    #[track_caller]
    pub fn expect_sent(&mut self, name: &str, packet: &[u8], direct: bool) {
        let mut frame = packet.to_vec();
        // To the interface itself, as what goes through a router is: the loopback's address.
        frame[..6].fill(0);
        let action = match self.programs().run(Hook::FROM_POD, &frame) {
            Ok(action) => action,
            Err(error) => panic!("{name}: {error:#}"),
        };
        let counters = self.programs().counters().expect("the counters");
        let bytes = (packet.len() - ETHERNET) as u64;
        let mut expected = Counters::only(Reason::Established, Direction::Egress, 1, bytes);
        if direct {
            expected
                .0
                .extend(Counters::only(Reason::Established, Direction::Ingress, 1, bytes).0);
        }
        assert_eq!(counters.since(&self.counters), expected, "{name}: counters");
        assert_eq!(action, if direct { REDIRECT } else { PASS }, "{name}: action");
        self.counters = counters;
    }

    #[expect(clippy::wrong_self_convention, reason = "named after the hook")]
    #[track_caller]
    pub fn from_pod(&mut self, name: &str, packet: &[u8], reason: Reason) {
        self.expect(name, Hook::FROM_POD, packet, reason);
    }

    #[expect(clippy::wrong_self_convention, reason = "named after the hook")]
    #[track_caller]
    pub fn to_pod(&mut self, name: &str, packet: &[u8], reason: Reason) {
        self.expect(name, Hook::TO_POD, packet, reason);
    }

    #[track_caller]
    pub fn confirmed(&mut self, key: &CtKey) -> Option<CtEntry> {
        self.entry(map::CONNECTIONS, key)
    }

    #[track_caller]
    pub fn unconfirmed(&mut self, key: &CtKey) -> Option<CtEntry> {
        self.entry(map::UNCONFIRMED, key)
    }

    fn entry(&mut self, name: &str, key: &CtKey) -> Option<CtEntry> {
        let entries = self.programs().connections(name).expect("the connections");
        entries
            .into_iter()
            .find(|(found, _)| found == key)
            .map(|(_, entry)| entry)
    }

    /// A table with one row for one class; the rest of the classes get `default`.
    pub fn table(&mut self, table: u32, class: u32, row: Row, default: Decision) -> DirectionPolicy {
        self.programs().set_row(table, class, row).expect("a row");
        DirectionPolicy {
            table,
            default_row: Row {
                id: 0,
                prefixes: PrefixMask(0),
                base: [default; 5],
            },
        }
    }

    /// A decision for ports (or ICMP types) that begin with the first `prefix` bits of `port`.
    pub fn decide(&mut self, row: u32, protocol: u8, port: u16, prefix: u8, decision: Decision) {
        let key = DecisionKey {
            row,
            protocol,
            prefix,
            source_class: 0,
            port,
            pad: 0,
        };
        self.programs().set_decision(key, decision).expect("a decision");
    }
}

fn all_tallies(programs: &mut Programs) -> [u64; TALLIES] {
    [
        Tally::Unconfirmed,
        Tally::UnconfirmedDeleted,
        Tally::Confirmed,
        Tally::ConfirmedDeleted,
        Tally::LostEvents,
    ]
    .map(|tally| programs.tally(tally).expect("the tallies"))
}

/// The key of a flow between the pod and a peer.
pub fn key(protocol: u8, local: (IpAddr, u16), peer: (IpAddr, u16)) -> CtKey {
    CtKey {
        endpoint_protocol: ENDPOINT << 8 | u32::from(protocol),
        local_port: local.1,
        peer_port: peer.1,
        local: Addr::from(local.0),
        peer: Addr::from(peer.0),
    }
}

/// `CLOCK_MONOTONIC`, ns.
pub fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// The other direction's hook for a packet that was forwarded.
pub fn hook(direction: Direction) -> Hook {
    match direction {
        Direction::Egress => Hook::FROM_POD,
        Direction::Ingress => Hook::TO_POD,
    }
}
