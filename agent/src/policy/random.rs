//! Random small worlds, their changes and flows, for tests: few names, addresses and ports, so that everything meets
//! everything. The same seed gives the same world.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weir_common::Direction;

use super::{
    change::{Change, NetworkSet, Peer, PeerKey},
    evaluate::{Flow, World},
    model::{
        Action, Family, IcmpMatch, NamedPort, Order, PeerMatch, Policy, PolicyKey, PolicyKind, PortMatch, Rule, Tier,
        TierDefault, TrafficMatch,
    },
    selector::{EntityKind, Field, Labels, Selector},
};

const NETS: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/29",
    "10.0.0.4/32",
    "10.0.1.0/24",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "::/0",
    "fd00::/8",
    "fd00::/64",
    "fd00::4/126",
    "fd00::5/128",
    "2001:db8::/32",
];
const OUTSIDE: [&str; 6] = [
    "192.0.2.1",
    "192.0.2.129",
    "198.51.100.1",
    "2001:db8::1",
    "2001:db9::1",
    "10.0.1.200",
];
const PORTS: [u16; 12] = [0, 1, 79, 80, 81, 443, 1023, 1024, 5000, 8080, 32768, 65535];
const PROTOCOLS: [u8; 8] = [6, 17, 132, 1, 58, 6, 17, 47];
const PORT_NAMES: [&str; 3] = ["http", "metrics", "dns"];
const KEYS: [&str; 3] = ["app", "role", "env"];
const VALUES: [&str; 3] = ["a", "b", "ab"];

/// Numbers that look random (xorshift64*, Vigna 2016).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.draw() >> 33) as usize % end
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

fn name(prefix: &str, number: usize) -> Arc<str> {
    format!("{prefix}{number}").into()
}

fn labels(random: &mut Random) -> Labels {
    let mut labels = BTreeMap::new();
    for key in KEYS {
        if !random.once_in(3) {
            labels.insert(key.to_owned(), (*random.pick(&VALUES)).to_owned());
        }
    }
    Arc::new(labels)
}

fn address(random: &mut Random, family: Family) -> IpAddr {
    let host = random.below(14);
    let text = match family {
        Family::V4 => format!("10.0.0.{host}"),
        Family::V6 => format!("fd00::{host:x}"),
    };
    text.parse().unwrap_or(IpAddr::from([10, 0, 0, 1]))
}

fn net(random: &mut Random) -> IpNet {
    random.pick(&NETS).parse().unwrap_or_default()
}

fn field(random: &mut Random) -> Field {
    let key = (*random.pick(&KEYS)).to_owned();
    match random.below(8) {
        0 | 1 => Field::NamespaceLabel(key),
        2 => Field::ServiceAccountLabel(key),
        3 => Field::Namespace,
        4 => Field::Kind,
        _ => Field::Label(key),
    }
}

fn value(random: &mut Random, field: &Field) -> String {
    match field {
        Field::Namespace => format!("ns{}", random.below(3)),
        Field::ServiceAccount => format!("sa{}", random.below(2)),
        Field::Kind => (*random.pick(&["pod", "networkset", "node"])).to_owned(),
        _ => (*random.pick(&VALUES)).to_owned(),
    }
}

/// An expression of at most that depth.
pub fn selector(random: &mut Random, depth: usize) -> Selector {
    let field = field(random);
    let several = |random: &mut Random| {
        let count = random.below(3);
        (0..count).map(|_| selector(random, depth - 1)).collect::<Vec<_>>()
    };
    match random.below(if depth == 0 { 8 } else { 13 }) {
        0 => Selector::All,
        1 => Selector::Has(field),
        2 => Selector::StartsWith(field, "a".into()),
        3 => Selector::EndsWith(field, "b".into()),
        4 => Selector::Contains(field, "b".into()),
        5 => {
            let values: BTreeSet<String> = (0..2).map(|_| value(random, &field)).collect();
            Selector::In(field, values.into())
        }
        6 | 7 => {
            let value = value(random, &field);
            Selector::equals(field, value)
        }
        8 => Selector::Not(Box::new(selector(random, depth - 1))),
        9 | 10 => Selector::And(several(random)),
        11 => Selector::Or(several(random)),
        _ => Selector::Nothing,
    }
}

fn peer_match(random: &mut Random) -> PeerMatch {
    let mut wanted = PeerMatch::default();
    if random.once_in(6) {
        wanted.family = Some(if random.once_in(2) { Family::V4 } else { Family::V6 });
    }
    if !random.once_in(3) {
        wanted.selector = Some(selector(random, 2));
    }
    if random.once_in(6) {
        wanted.not_selector = Some(selector(random, 1));
    }
    if random.once_in(3) {
        let count = random.below(3);
        wanted.nets = Some((0..=count).map(|_| net(random)).collect());
    }
    if random.once_in(4) {
        wanted.not_nets = vec![net(random)];
    }
    wanted
}

fn ports(random: &mut Random) -> Vec<PortMatch> {
    let count = random.below(3);
    (0..=count)
        .map(|_| match random.below(4) {
            0 => PortMatch::Named((*random.pick(&PORT_NAMES)).into()),
            1 => {
                let (a, b) = (*random.pick(&PORTS), random.draw() as u16);
                PortMatch::Range(a.min(b)..=a.max(b))
            }
            _ => {
                let port = *random.pick(&PORTS);
                PortMatch::Range(port..=port)
            }
        })
        .collect()
}

fn icmp(random: &mut Random) -> IcmpMatch {
    IcmpMatch {
        kind: *random.pick(&[0, 8, 128, 255]),
        code: random.once_in(2).then(|| random.below(3) as u8),
    }
}

fn traffic(random: &mut Random) -> TrafficMatch {
    let mut traffic = TrafficMatch::ANY;
    if random.once_in(3) {
        return traffic;
    }
    if !random.once_in(4) {
        traffic.protocol = Some(*random.pick(&PROTOCOLS));
    } else if random.once_in(2) {
        traffic.not_protocol = Some(*random.pick(&PROTOCOLS));
    }
    if matches!(traffic.protocol, Some(1 | 58)) {
        if random.once_in(2) {
            traffic.icmp = Some(icmp(random));
        }
        if random.once_in(4) {
            traffic.not_icmp = Some(icmp(random));
        }
        return traffic;
    }
    if !random.once_in(3) {
        traffic.ports = Some(ports(random));
    }
    if random.once_in(6) {
        traffic.not_ports = ports(random);
    }
    if random.once_in(6) {
        traffic.source_ports = Some(ports(random));
    }
    if random.once_in(10) {
        traffic.not_source_ports = ports(random);
    }
    traffic
}

fn rule(random: &mut Random, index: u32) -> Rule {
    let action = match random.below(8) {
        0 => Action::Log,
        1 => Action::Pass,
        2 | 3 => Action::Deny,
        _ => Action::Allow,
    };
    let peers = match random.below(5) {
        0 => None,
        1 => Some((0..2).map(|_| peer_match(random)).collect()),
        2 if random.once_in(4) => Some(Vec::new()),
        _ => Some(vec![peer_match(random)]),
    };
    let count = random.below(2);
    Rule {
        action,
        index,
        name: random.once_in(3).then(|| name("rule", index as usize)),
        peers,
        local: random.once_in(6).then(|| peer_match(random)),
        traffic: (0..=count).map(|_| traffic(random)).collect(),
    }
}

fn rules(random: &mut Random) -> Option<Vec<Rule>> {
    let count = random.below(5);
    (!random.once_in(4)).then(|| (0..count as u32).map(|index| rule(random, index)).collect())
}

fn policy(random: &mut Random, key: PolicyKey) -> Policy {
    Policy {
        key,
        tier: (*random.pick(&["default", "default", "t1", "kube-admin", "kube-baseline"])).into(),
        order: match random.below(4) {
            0 => Order::LAST,
            n => Order(n as f64 * 100.0),
        },
        subject: if random.once_in(3) {
            Selector::All
        } else {
            selector(random, 2)
        },
        ingress: rules(random),
        egress: rules(random),
        staged: random.once_in(12),
    }
}

/// A pod of the small world.
#[must_use]
pub fn pod(number: usize) -> PeerKey {
    PeerKey {
        kind: EntityKind::Pod,
        namespace: Some(name("ns", number % 3)),
        name: name("pod", number),
    }
}

/// Pods of the small world.
pub const PODS: usize = 10;
/// Of those, pods that may have an interface here; their endpoint ids are their numbers.
pub const LOCAL_PODS: usize = 4;

fn peer(random: &mut Random, kind: EntityKind, claimed: u64) -> Peer {
    let mut addresses = Vec::new();
    if !random.once_in(8) {
        addresses.push(address(random, Family::V4));
    }
    if random.once_in(2) {
        addresses.push(address(random, Family::V6));
    }
    let mut named_ports: Vec<NamedPort> = (0..random.below(4))
        .map(|_| NamedPort {
            name: (*random.pick(&PORT_NAMES)).into(),
            protocol: *random.pick(&[6, 6, 17]),
            port: *random.pick(&PORTS),
        })
        .collect();
    named_ports.sort();
    Peer {
        labels: labels(random),
        service_account: (kind == EntityKind::Pod && random.once_in(2)).then(|| name("sa", random.below(2))),
        named_ports: named_ports.into(),
        addresses,
        claimed,
        local_node: kind == EntityKind::Node,
    }
}

/// A change to the small world. `claimed` grows with each.
pub fn change(random: &mut Random, claimed: u64) -> Change {
    let keep = !random.once_in(4);
    match random.below(20) {
        0 => {
            let name: Arc<str> = (*random.pick(&["default", "t1"])).into();
            let tier = Tier {
                name: name.clone(),
                order: Order(*random.pick(&[10.0, 1e9])),
                default_action: if random.once_in(2) {
                    TierDefault::Deny
                } else {
                    TierDefault::Pass
                },
            };
            Change::Tier(name, keep.then_some(tier))
        }
        1..=6 => {
            let number = random.below(6);
            let key = PolicyKey {
                kind: PolicyKind::GlobalNetworkPolicy,
                namespace: None,
                name: name("policy", number),
            };
            let policy = Arc::new(policy(random, key.clone()));
            Change::Policy(key, keep.then_some(policy))
        }
        7 | 8 => Change::Namespace(name("ns", random.below(3)), keep.then(|| labels(random))),
        9 => Change::ServiceAccount {
            namespace: name("ns", random.below(3)),
            name: name("sa", random.below(2)),
            labels: keep.then(|| labels(random)),
        },
        10..=14 => {
            let key = pod(random.below(PODS));
            Change::Peer(key, keep.then(|| peer(random, EntityKind::Pod, claimed)))
        }
        15 => {
            let key = PeerKey {
                kind: EntityKind::Node,
                namespace: None,
                name: name("node", random.below(2)),
            };
            Change::Peer(key, keep.then(|| peer(random, EntityKind::Node, claimed)))
        }
        16 | 17 => {
            let number = random.below(3);
            let key = PeerKey {
                kind: EntityKind::NetworkSet,
                namespace: (number > 0).then(|| name("ns", number)),
                name: name("set", number),
            };
            let set = NetworkSet {
                labels: labels(random),
                nets: (0..2).map(|_| net(random)).collect(),
            };
            Change::NetworkSet(key, keep.then_some(set))
        }
        _ => {
            let number = random.below(LOCAL_PODS);
            Change::Endpoint(number as u32, keep.then(|| pod(number)))
        }
    }
}

/// A flow of a local pod: to or from anybody, over anything. Its own address is for [`aim`] to fill in.
pub fn flow(random: &mut Random) -> Flow {
    let family = if random.once_in(3) { Family::V6 } else { Family::V4 };
    let peer_addr = if random.once_in(4) {
        random.pick(&OUTSIDE).parse().unwrap_or(IpAddr::from([192, 0, 2, 1]))
    } else {
        address(random, family)
    };
    let protocol = *random.pick(&PROTOCOLS);
    let has_ports = matches!(protocol, 6 | 17 | 132);
    let port = |random: &mut Random| match random.below(3) {
        _ if !has_ports => 0,
        0 => random.draw() as u16,
        _ => *random.pick(&PORTS),
    };
    let kind = *random.pick(&[0, 8, 128, 255, 3]);
    let is_icmp = (protocol == 1) == peer_addr.is_ipv4() && matches!(protocol, 1 | 58);
    Flow {
        endpoint: pod(random.below(LOCAL_PODS)),
        direction: if random.once_in(2) {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        local_addr: peer_addr,
        peer_addr,
        protocol,
        source_port: port(random),
        destination_port: port(random),
        icmp: is_icmp.then(|| (kind, random.below(3) as u8)),
    }
}

/// Where something can differ: outside addresses in and out of the nets, and one address inside the pods' net that no pod
/// has.
#[must_use]
pub fn outside() -> Vec<IpAddr> {
    let texts = OUTSIDE.iter().chain(&["10.0.0.14", "fd00::7:0", "fd00::6"]);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The flow with the pod's own address, as it is in that world. None: it has none of the family.
#[must_use]
pub fn aim(world: &World, flow: &Flow) -> Option<Flow> {
    let peer = world.peer(&flow.endpoint)?;
    let same_family = |own: &&IpAddr| own.is_ipv4() == flow.peer_addr.is_ipv4();
    let local_addr = *peer.addresses.iter().find(same_family)?;
    Some(Flow {
        local_addr,
        ..flow.clone()
    })
}
