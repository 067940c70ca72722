//! The known worst cases, with their limits as docs/limits.md states them. With `WEIR_THOROUGH=1` at full size.

use super::{
    cluster::{allow, app, endpoint, from, pod, policy, put},
    sequences::{PLENTY, thorough},
};
use crate::policy::{
    change::Change,
    compile::{Compiler, Stats},
    model::{PeerMatch, PortMatch},
    random::Random,
    selector::Selector,
};

fn compile(changes: Vec<Change>) -> Stats {
    let mut compiler = Compiler::new(PLENTY, 1);
    let plan = compiler.apply(changes);
    assert!(plan.shortages.is_empty(), "{:?}", plan.shortages);
    compiler.stats()
}

fn size(full: usize, small: usize) -> usize {
    if thorough() { full } else { small }
}

fn port(port: u16) -> Vec<PortMatch> {
    vec![PortMatch::Range(port..=port)]
}

/// Classes whose rows differ only in what is not said by port share the ports' decisions.
#[test]
fn ports_for_anybody_times_classes() {
    let (ports, classes) = (size(1_000, 200), size(10_000, 500));
    let open = (0..ports).map(|n| allow(n as u32, None, Some(port(n as u16 * 61 + 7))));
    let peers = (0..classes).map(|n| allow(n as u32, from(app(format!("app{n}"))), None));
    let mut changes = vec![
        put(policy("ports", 1.0, Selector::All, open.collect())),
        put(policy("peers", 2.0, Selector::All, peers.collect())),
        pod(0, "local"),
        endpoint(0),
    ];
    changes.extend((1..=classes).map(|n| pod(n, &format!("app{}", n - 1))));
    let used = compile(changes);
    assert!(used.maps.decisions <= ports, "{used:?}");
    assert!(used.maps.rows <= classes, "{used:?}");
}

/// Where each peer has ports of its own beside them, they multiply: that is what capacity is for.
#[test]
fn ports_for_anybody_times_peers_with_ports_of_their_own() {
    let (ports, peers) = (40, 30);
    let open = (0..ports).map(|n| allow(n as u32, None, Some(port(n as u16 * 61 + 7))));
    let own = (0..peers).map(|n| allow(n as u32, from(app(format!("app{n}"))), Some(port(60_000 + n as u16))));
    let mut changes = vec![
        put(policy("ports", 1.0, Selector::All, open.collect())),
        put(policy("peers", 2.0, Selector::All, own.collect())),
        pod(0, "local"),
        endpoint(0),
    ];
    changes.extend((1..=peers).map(|n| pod(n, &format!("app{}", n - 1))));
    let used = compile(changes.clone());
    assert_eq!(used.maps.decisions, ports + peers * (ports + 1));
    let mut capacity = PLENTY;
    capacity.decisions = used.maps.decisions - 1;
    let mut compiler = Compiler::new(capacity, 1);
    let plan = compiler.apply(changes);
    assert_eq!(plan.shortages.len(), 1, "{:?}", plan.shortages);
    assert_eq!(compiler.stats().closed, 1);
}

#[test]
fn nets_times_rules() {
    let (nets, rules) = (size(256, 64), size(1_024, 64));
    let rules_list = (0..rules).map(|rule| {
        let cidrs = (0..nets).map(|net| {
            let number = (rule * nets + net) as u32;
            let first = std::net::Ipv4Addr::from(0x2000_0000 + (number << 8));
            ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(first, 24))
        });
        let peers = PeerMatch {
            nets: Some(cidrs.collect()),
            ..PeerMatch::default()
        };
        allow(rule as u32, Some(peers), Some(port(443)))
    });
    let changes = vec![
        put(policy("nets", 1.0, Selector::All, rules_list.collect())),
        pod(0, "local"),
        endpoint(0),
    ];
    let used = compile(changes);
    assert_eq!(used.maps.cidrs, nets * rules + 2);
    assert!(used.maps.identities <= nets * rules + 3, "{used:?}");
    assert!(used.classes <= rules + 3 && used.maps.rows <= rules, "{used:?}");
    assert!(used.maps.decisions <= rules, "{used:?}");
}

#[test]
fn random_port_ranges() {
    let mut random = Random::new(7);
    let ranges = size(2_000, 300);
    let rules = (0..ranges).map(|n| {
        let (a, b) = (random.draw() as u16, random.draw() as u16);
        allow(n as u32, None, Some(vec![PortMatch::Range(a.min(b)..=a.max(b))]))
    });
    let changes = vec![
        put(policy("ranges", 1.0, Selector::All, rules.collect())),
        pod(0, "local"),
        endpoint(0),
    ];
    let used = compile(changes);
    assert!(used.maps.decisions <= 60 * ranges, "{used:?}");
}

#[test]
fn identities_times_tables() {
    let (identities, tables, peers) = (size(10_000, 1_000), size(500, 50), 20);
    let mut changes = Vec::new();
    for table in 0..tables {
        let rules = (0..peers).map(|n| {
            let wanted = (table * 7 + n * 13) % identities;
            allow(n as u32, from(app(format!("app{wanted}"))), Some(port(80)))
        });
        let subject = app(format!("local{table}"));
        changes.push(put(policy(&format!("policy{table}"), 1.0, subject, rules.collect())));
        changes.push(pod(table, &format!("local{table}")));
        changes.push(endpoint(table));
    }
    changes.extend((0..identities).map(|n| pod(tables + n, &format!("app{n}"))));
    let used = compile(changes);
    assert!(used.maps.rows <= tables * peers, "{used:?}");
    assert!(used.maps.decisions <= tables * peers, "{used:?}");
    assert!(used.maps.identities <= identities + tables + 2, "{used:?}");
    assert!(used.classes <= tables * peers + 2, "{used:?}");
}
