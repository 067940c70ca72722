//! How long the compiler takes: `cargo run --release --example compiler_speed`.
//!
//! Prints the time from nothing, the times of single changes (median and 99th percentile) and the resident memory, for
//! a cluster of Kubernetes policies and for one of global policies with distinct selectors.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use weir::policy::{
    change::{Change, Peer, PeerKey},
    compile::Compiler,
    model::{Action, Order, PeerMatch, Policy, PolicyKey, PolicyKind, PortMatch, Rule, TrafficMatch},
    plan::{Capacity, Plan},
    selector::{EntityKind, Field, Labels, Selector},
};

const CAPACITY: Capacity = Capacity {
    addresses: 1 << 20,
    cidrs: 1 << 20,
    identities: 1 << 20,
    rows: 1 << 22,
    decisions: 1 << 22,
    source_ports: 1 << 20,
    traces: 1 << 20,
};

fn labels(pairs: &[(&str, String)]) -> Labels {
    let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    Arc::new(pairs.collect::<BTreeMap<_, _>>())
}

fn address(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number as u32 + 1))
}

fn key(kind: EntityKind, namespace: usize, name: String) -> PeerKey {
    PeerKey {
        kind,
        namespace: Some(format!("ns{namespace}").into()),
        name: name.into(),
    }
}

fn pod(number: usize, namespace: usize, labels: Labels) -> Change {
    Change::Peer(
        key(EntityKind::Pod, namespace, format!("pod{number}")),
        Some(Peer {
            labels,
            service_account: Some("default".into()),
            named_ports: Arc::new([]),
            addresses: vec![address(number)],
            claimed: number as u64,
            local_node: false,
        }),
    )
}

fn and(parts: Vec<Selector>) -> Selector {
    Selector::And(parts)
}

fn label(key: &str, value: String) -> Selector {
    Selector::equals(Field::Label(key.into()), value)
}

fn allow(selector: Selector, port: u16) -> Rule {
    Rule {
        action: Action::Allow,
        index: 0,
        name: None,
        peers: Some(vec![PeerMatch {
            selector: Some(selector),
            ..PeerMatch::default()
        }]),
        local: None,
        traffic: vec![TrafficMatch {
            protocol: Some(6),
            ports: Some(vec![PortMatch::Range(port..=port)]),
            ..TrafficMatch::ANY
        }],
    }
}

fn policy(kind: PolicyKind, name: String, subject: Selector, rule: Rule) -> Change {
    let key = PolicyKey {
        kind,
        namespace: None,
        name: name.into(),
    };
    let policy = Policy {
        key: key.clone(),
        tier: "default".into(),
        order: Order(1000.0),
        subject,
        ingress: Some(vec![rule]),
        egress: None,
        staged: false,
    };
    Change::Policy(key, Some(Arc::new(policy)))
}

fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or_default() * 4096.0 / 1e6
}

fn size(plan: &Plan) -> usize {
    plan.add.len() + plan.flip.len() + plan.remove.len()
}

fn apply(compiler: &mut Compiler, changes: Vec<Change>) -> (Duration, usize) {
    let start = Instant::now();
    let plan = compiler.apply(changes);
    let time = start.elapsed();
    compiler.executed(plan.serial);
    (time, size(&plan))
}

fn measure(what: &str, compiler: &mut Compiler, mut change: impl FnMut(usize) -> Change) {
    let mut times = Vec::new();
    let mut ops = 0;
    for round in 0..400 {
        let (time, size) = apply(compiler, vec![change(round)]);
        times.push(time);
        ops += size;
    }
    times.sort_unstable();
    println!(
        "  {what}: p50 {:?}, p99 {:?}, max {:?}, {:.1} operations each",
        times[200],
        times[395],
        times[399],
        ops as f64 / 400.0
    );
}

const NAMESPACES: usize = 50;

fn pod_labels(number: usize, version: usize) -> Labels {
    let app = number / NAMESPACES % 20;
    labels(&[
        ("app", format!("app{app}")),
        ("version", format!("v{version}")),
        ("pod-template-hash", format!("{:x}", app * 7919)),
        ("statefulset.kubernetes.io/pod-name", format!("pod-{number}")),
    ])
}

fn namespaced(namespace: usize, app: usize) -> Selector {
    and(vec![
        Selector::equals(Field::Kind, "pod"),
        Selector::equals(Field::Namespace, format!("ns{namespace}")),
        label("app", format!("app{app}")),
    ])
}

fn kubernetes(number: usize, port: u16) -> Change {
    let (namespace, app) = (number % NAMESPACES, number / NAMESPACES);
    policy(
        PolicyKind::KubernetesNetworkPolicy,
        format!("policy{number}"),
        namespaced(namespace, app),
        allow(namespaced((namespace + app % 2) % NAMESPACES, (app + 1) % 20), port),
    )
}

fn cluster() {
    println!("10,000 pods, 1,000 policies, 100 pods here");
    let before = resident();
    let mut changes: Vec<Change> = (0..1000).map(|number| kubernetes(number, 8080)).collect();
    changes.extend((0..10_000).map(|number| pod(number, number % NAMESPACES, pod_labels(number, 0))));
    for id in 0..100_usize {
        let number = id * 101 % 10_000;
        let key = key(EntityKind::Pod, number % NAMESPACES, format!("pod{number}"));
        changes.push(Change::Endpoint(id as u32, Some(key)));
    }
    let mut compiler = Compiler::new(CAPACITY, 1);
    let (time, size) = apply(&mut compiler, changes);
    println!("  from nothing: {time:?}, {size} operations");
    println!("  resident: {:.1} MB; {:?}", resident() - before, compiler.stats());
    measure("policy's port", &mut compiler, |round| {
        kubernetes(round * 7 % 1000, 8081 + (round % 2) as u16)
    });
    measure("label that nobody asks for", &mut compiler, |round| {
        let number = round * 31 % 10_000;
        pod(number, number % NAMESPACES, pod_labels(number, round + 1))
    });
    measure("label that policies ask for", &mut compiler, |round| {
        let number = round * 31 % 10_000;
        let app = labels(&[("app", format!("app{}", round % 20))]);
        pod(number, number % NAMESPACES, app)
    });
    measure("pod comes or goes", &mut compiler, |round| {
        let number = round / 2 * 31 % 10_000;
        if round % 2 == 0 {
            let key = key(EntityKind::Pod, number % NAMESPACES, format!("pod{number}"));
            Change::Peer(key, None)
        } else {
            pod(number, number % NAMESPACES, pod_labels(number, 0))
        }
    });
    measure("policy with a label nobody asked for", &mut compiler, |round| {
        policy(
            PolicyKind::GlobalNetworkPolicy,
            "new".into(),
            namespaced(1, 1),
            allow(label(["version", "pod-template-hash"][round % 2], "v1".into()), 80),
        )
    });
    measure("endpoint comes or goes", &mut compiler, |round| {
        let number = 5000 + round / 2;
        let key = key(EntityKind::Pod, number % NAMESPACES, format!("pod{number}"));
        Change::Endpoint(1000, (round % 2 == 0).then_some(key))
    });
}

fn global(number: usize, value: usize) -> Change {
    policy(
        PolicyKind::GlobalNetworkPolicy,
        format!("policy{number}"),
        Selector::All,
        allow(label("app", format!("app{value}")), 8080),
    )
}

fn distinct_selectors() {
    println!("20,000 pods, 10,000 global policies with distinct selectors on all pods, 10 pods here");
    let before = resident();
    let app = |app: usize| labels(&[("app", format!("app{app}")), ("team", format!("team{}", app % 17))]);
    let mut changes: Vec<Change> = (0..10_000).map(|number| global(number, number)).collect();
    changes.extend((0..20_000).map(|number| pod(number, number % NAMESPACES, app(number % 12_000))));
    for id in 0..10_usize {
        let key = key(EntityKind::Pod, id % NAMESPACES, format!("pod{id}"));
        changes.push(Change::Endpoint(id as u32, Some(key)));
    }
    let mut compiler = Compiler::new(CAPACITY, 1);
    let (time, size) = apply(&mut compiler, changes);
    println!("  from nothing: {time:?}, {size} operations");
    println!("  resident: {:.1} MB; {:?}", resident() - before, compiler.stats());
    measure("label", &mut compiler, |round| {
        let number = 100 + round * 31 % 10_000;
        pod(number, number % NAMESPACES, app(round * 13 % 12_000))
    });
    measure("policy", &mut compiler, |round| {
        global(round * 7 % 10_000, 10_000 + round)
    });
}

fn main() {
    cluster();
    distinct_selectors();
}
