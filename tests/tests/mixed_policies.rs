//! Random sets of Kubernetes and Calico policies, with tiers and network sets, as manifests: what is compiled equals what
//! the naive evaluator says, walk by walk, after each change from one set to the next.

use std::path::Path;

use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};
use weir_tests::{
    conformance::{Cluster, Question, Suite, offline},
    lab::probe::Protocol,
};

/// Absent more often than not.
fn maybe(strategy: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop_oneof![3 => Just(Value::Null), 2 => strategy]
}

/// The members that are there.
fn object(members: Vec<(&'static str, Value)>) -> Value {
    let there = members.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(there.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn text(options: &'static [&'static str]) -> impl Strategy<Value = Value> {
    select(options).prop_map(Value::from)
}

const SELECTORS: &[&str] = &[
    "all()",
    "app == 'web'",
    "role != 'frontend'",
    "app in {'web', 'api'}",
    "!has(role)",
    "kind == 'partner'",
    "kind not in {'partner'} && has(kind)",
    "projectcalico.org/namespace == 'prod' || app starts with 'a'",
    "projectcalico.org/orchestrator == 'k8s'",
    "projectcalico.org/serviceaccount == 'api-sa'",
    "pcns.team contains 'r'",
];
const NAMESPACES: &[&str] = &[
    "all()",
    "global()",
    "env == 'prod'",
    "env != 'dev'",
    "projectcalico.org/name == 'ops'",
];
const NETS: &[&str] = &["10.244.0.0/16", "10.244.9.8/29", "198.51.100.0/24", "203.0.113.66/32"];

fn entity(with_ports: bool) -> impl Strategy<Value = Value> {
    let ports = || {
        let port = prop_oneof![
            Just(json!(80)),
            Just(json!("443")),
            Just(json!("50:90")),
            Just(json!("http")),
            Just(json!("dns"))
        ];
        prop::collection::vec(port, 1..3).prop_map(Value::from)
    };
    let accounts = prop_oneof![
        Just(json!({"names": ["api-sa", "web-sa"]})),
        Just(json!({"selector": "trusted == 'yes'"})),
        Just(json!({"names": ["api-sa"], "selector": "tier != 'front'"})),
    ];
    let nets = || prop::collection::vec(select(NETS), 1..3).prop_map(Value::from);
    (
        maybe(text(SELECTORS)),
        maybe(text(SELECTORS)),
        maybe(text(NAMESPACES)),
        maybe(accounts),
        maybe(nets()),
        maybe(nets()),
        maybe(ports()),
        maybe(ports()),
    )
        .prop_map(
            move |(selector, not_selector, namespaces, accounts, nets, not_nets, ports, not_ports)| {
                let mut members = vec![
                    ("selector", selector),
                    ("notSelector", not_selector),
                    ("namespaceSelector", namespaces),
                    ("serviceAccounts", accounts),
                    ("nets", nets),
                    ("notNets", not_nets),
                ];
                if with_ports {
                    members.extend([("ports", ports), ("notPorts", not_ports)]);
                }
                object(members)
            },
        )
}

fn rule() -> impl Strategy<Value = Value> {
    let traffic = prop_oneof![
        Just((Value::Null, true)),
        Just((json!("TCP"), true)),
        Just((json!("udp"), true)),
        Just((json!(1), false)),
    ];
    traffic.prop_flat_map(move |(protocol, has_ports)| {
        let ports = has_ports && !protocol.is_null();
        let not_protocol = if protocol.is_null() {
            text(&["TCP", "UDP", "ICMP"]).boxed()
        } else {
            Just(Value::Null).boxed()
        };
        (
            text(&["Allow", "Deny", "Pass", "Log", "allow"]),
            maybe(entity(ports)),
            maybe(entity(ports)),
            maybe(not_protocol),
            Just(protocol),
        )
            .prop_map(|(action, source, destination, not_protocol, protocol)| {
                object(vec![
                    ("action", action),
                    ("protocol", protocol),
                    ("notProtocol", not_protocol),
                    ("source", source),
                    ("destination", destination),
                ])
            })
    })
}

fn calico() -> impl Strategy<Value = Value> {
    let rules = || maybe(prop::collection::vec(rule(), 0..4).prop_map(Value::from));
    let types = prop_oneof![
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"]))
    ];
    let kinds = select(&["NetworkPolicy", "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy"][..]);
    let head = (kinds, select(&["prod", "dev"][..]), 0..3_u8);
    let place = (
        maybe(text(&["default", "first", "last"])),
        maybe(select(&[-1.5, 0.0, 1000.0, 1001.0][..]).prop_map(Value::from)),
    );
    (head, place, maybe(text(SELECTORS)), maybe(types), rules(), rules()).prop_map(
        |((kind, namespace, name), (tier, order), selector, types, ingress, egress)| {
            let spec = object(vec![
                ("tier", tier),
                ("order", order),
                ("selector", selector),
                ("types", types),
                ("ingress", ingress),
                ("egress", egress),
            ]);
            json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "spec": spec,
                "metadata": {"name": format!("p{name}"), "namespace": namespace}})
        },
    )
}

fn kubernetes() -> impl Strategy<Value = Value> {
    let pods = || {
        prop_oneof![
            Just(json!({})),
            Just(json!({"matchLabels": {"app": "web"}})),
            Just(json!({"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["database"]}]})),
        ]
    };
    let peer = prop_oneof![
        pods().prop_map(|pods| json!({"podSelector": pods})),
        Just(json!({"namespaceSelector": {"matchLabels": {"env": "prod"}}})),
        select(NETS).prop_map(|net| json!({"ipBlock": {"cidr": net}})),
    ];
    let port = prop_oneof![
        Just(json!({"port": 80})),
        Just(json!({"port": "dns", "protocol": "UDP"})),
        Just(json!({"port": 400, "endPort": 500}))
    ];
    let ports = prop::collection::vec(port, 0..2);
    let rules = prop::collection::vec((prop::collection::vec(peer, 0..3), ports), 0..3);
    (pods(), select(&["prod", "dev"][..]), 0..3_u8, rules, any::<bool>()).prop_map(
        |(pods, namespace, name, rules, ingress)| {
            let (list, peers, policy_type) = if ingress {
                ("ingress", "from", "Ingress")
            } else {
                ("egress", "to", "Egress")
            };
            let rules: Vec<Value> = rules
                .into_iter()
                .map(|(all, ports)| json!({peers: all, "ports": ports}))
                .collect();
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": format!("p{name}"), "namespace": namespace},
                "spec": {"podSelector": pods, "policyTypes": [policy_type], list: rules}})
        },
    )
}

fn others() -> impl Strategy<Value = Vec<Value>> {
    let tier = |name: &'static str, order: Option<f64>| {
        text(&["Pass", "Deny"]).prop_map(move |action| {
            let spec = object(vec![
                ("order", order.map_or(Value::Null, Value::from)),
                ("defaultAction", action),
            ]);
            json!({"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": name}, "spec": spec})
        })
    };
    let set = |kind: &'static str| {
        prop::collection::vec(select(NETS), 0..3).prop_map(move |nets| {
            json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "spec": {"nets": nets},
                "metadata": {"name": "s", "namespace": "ops", "labels": {"kind": "partner"}}})
        })
    };
    (
        tier("first", Some(1.0)),
        tier("last", None),
        set("NetworkSet"),
        set("GlobalNetworkSet"),
    )
        .prop_map(|(a, b, c, d)| vec![a, b, c, d])
}

fn manifests() -> impl Strategy<Value = String> {
    let policies = prop::collection::vec(prop_oneof![2 => calico(), 1 => kubernetes()], 0..7);
    (others(), policies).prop_map(|(others, policies)| {
        let all = others.iter().chain(&policies);
        all.map(|object| format!("---\n{object}\n")).collect()
    })
}

fn questions(cluster: &Cluster) -> Vec<Question> {
    let pods = cluster.pods.iter().map(weir_tests::conformance::Pod::key);
    let externals = cluster
        .externals
        .iter()
        .map(|external| format!("ext/{}", external.name));
    let hosts: Vec<String> = pods.chain(externals).collect();
    let kinds = [
        (Protocol::Tcp, 80),
        (Protocol::Tcp, 443),
        (Protocol::Udp, 53),
        (Protocol::Icmp, 8 << 8),
    ];
    let mut all = Vec::new();
    for from in &hosts {
        for to in hosts
            .iter()
            .filter(|to| !(from.starts_with("ext/") && to.starts_with("ext/")))
        {
            all.extend(kinds.map(|(protocol, port)| Question {
                from: from.clone(),
                to: to.clone(),
                protocol,
                port,
            }));
        }
    }
    all
}

#[test]
fn kubernetes_and_calico_policies_together() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let suite = Suite::load(&directory, &["calico"]).expect("the cases load");
    let (cluster, _) = suite
        .groups
        .iter()
        .find(|(cluster, _)| cluster.externals.len() == 2)
        .expect("the base cluster has two externals");
    let questions = questions(cluster);
    let cases = if std::env::var_os("WEIR_THOROUGH").is_some() {
        2000
    } else {
        60
    };
    let mut runner = TestRunner::new(Config::with_cases(cases));
    runner
        .run(&prop::collection::vec(manifests(), 1..4), |steps| {
            let answers = offline::agree(cluster, &steps, &questions)
                .map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            prop_assert_eq!(answers, steps.len() * questions.len());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
