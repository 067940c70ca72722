//! Conversions, semantic by semantic (the numbers are those of the conformance notes), and bad input.

mod core;
mod properties;
mod text;

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Object, Outcome, Parsed, Parser, Severity, Unknown};
use crate::policy::{
    model::{Order, PeerMatch, Policy, PolicyKind, PortMatch, Rule, TrafficMatch},
    selector::{Field, Selector},
};

fn parse(value: &Value) -> Parsed {
    Parser::new().parse(value, None)
}

fn network_policy(spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "ns"}, "spec": spec,
    })
}

#[track_caller]
fn valid(spec: Value) -> Arc<Policy> {
    let parsed = parse(&network_policy(spec));
    assert!(parsed.problems.is_empty() && parsed.unknown.is_empty(), "{parsed:#?}");
    match parsed.outcome {
        Outcome::Valid(Object::Policy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

/// What a broken policy becomes, and the fields of its errors.
#[track_caller]
fn partial(spec: Value) -> (Arc<Policy>, Vec<String>) {
    let parsed = parse(&network_policy(spec));
    let fields = error_fields(&parsed);
    match parsed.outcome {
        Outcome::Partial(Object::Policy(policy)) => (policy, fields),
        other => panic!("{other:?}"),
    }
}

fn error_fields(parsed: &Parsed) -> Vec<String> {
    for problem in &parsed.problems {
        assert!(!problem.remedy.is_empty(), "{problem}");
        assert_eq!(problem.object.as_deref(), Some("NetworkPolicy ns/p"));
    }
    let errors = parsed
        .problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error);
    errors.filter_map(|problem| problem.field.clone()).collect()
}

fn is_pod() -> Selector {
    Selector::equals(Field::Kind, "pod")
}

fn label(key: &str, value: &str) -> Selector {
    Selector::equals(Field::Label(key.into()), value)
}

fn pods(more: Vec<Selector>) -> PeerMatch {
    let mut parts = vec![is_pod()];
    parts.extend(more);
    PeerMatch {
        selector: Some(if parts.len() == 1 {
            is_pod()
        } else {
            Selector::And(parts)
        }),
        ..PeerMatch::default()
    }
}

fn own_namespace() -> Selector {
    Selector::equals(Field::Namespace, "ns")
}

fn only(rules: &Option<Vec<Rule>>) -> &Rule {
    match rules.as_deref() {
        Some([rule]) => rule,
        other => panic!("{other:?}"),
    }
}

fn traffic(protocol: u8, ports: Option<Vec<PortMatch>>) -> TrafficMatch {
    TrafficMatch {
        protocol: Some(protocol),
        ports,
        ..TrafficMatch::ANY
    }
}

fn matches_nothing(rule: &Rule) -> bool {
    rule.peers.as_ref().is_some_and(Vec::is_empty) && rule.traffic.is_empty()
}

#[test]
fn semantic_1_policy_types_inferred_and_given() {
    let directions = |spec| {
        let policy = valid(spec);
        (policy.ingress.is_some(), policy.egress.is_some())
    };
    assert_eq!(directions(json!({"podSelector": {}})), (true, false));
    assert_eq!(directions(json!({"podSelector": {}, "egress": []})), (true, false));
    assert_eq!(directions(json!({"podSelector": {}, "egress": [{}]})), (true, true));
    assert_eq!(
        directions(json!({"podSelector": {}, "policyTypes": [], "egress": [{}]})),
        (true, true)
    );
    assert_eq!(
        directions(json!({"podSelector": {}, "policyTypes": ["Egress"]})),
        (false, true)
    );
    assert_eq!(
        directions(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
        (true, true)
    );

    let parsed = parse(&network_policy(
        json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}),
    ));
    let Outcome::Valid(Object::Policy(policy)) = &parsed.outcome else {
        panic!("{parsed:?}")
    };
    assert_eq!((&policy.ingress, policy.egress.as_deref()), (&None, Some(&[][..])));
    assert_eq!(parsed.problems[0].severity, Severity::Warning);
    assert_eq!(parsed.problems[0].field.as_deref(), Some("spec.ingress"));
}

#[test]
fn semantic_2_isolation_is_of_the_policy_s_own_namespace_in_the_default_tier() {
    let policy = valid(json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    assert_eq!(
        policy.subject,
        Selector::And(vec![is_pod(), own_namespace(), label("app", "web")])
    );
    assert_eq!(policy.ingress, Some(vec![]));
    assert_eq!(
        (&*policy.tier, policy.order, policy.staged),
        ("default", Order(1000.0), false)
    );
    assert_eq!(policy.key.kind, PolicyKind::KubernetesNetworkPolicy);
    assert_eq!(policy.key.to_string(), "KubernetesNetworkPolicy ns/p");
}

#[test]
fn semantic_3_empty_null_and_absent() {
    for rule in [
        json!({}),
        json!({"from": null, "ports": null}),
        json!({"from": [], "ports": []}),
    ] {
        let policy = valid(json!({"podSelector": null, "ingress": [rule]}));
        assert_eq!(policy.subject, Selector::And(vec![is_pod(), own_namespace()]));
        let rule = only(&policy.ingress);
        assert_eq!((&rule.peers, &rule.traffic), (&None, &vec![TrafficMatch::ANY]));
    }
    let policy = valid(json!({"ingress": [{"from": [
        {"namespaceSelector": {}},
        {"podSelector": {"matchLabels": null, "matchExpressions": null}},
        {"podSelector": null, "namespaceSelector": {}},
    ]}]}));
    let expected = vec![pods(vec![]), pods(vec![own_namespace()]), pods(vec![])];
    assert_eq!(only(&policy.ingress).peers, Some(expected));
}

#[test]
fn semantics_4_and_5_peers_and_ports_belong_to_their_rule() {
    let policy = valid(json!({"policyTypes": ["Egress"], "egress": [
        {"to": [
            {"podSelector": {"matchLabels": {"a": "1"}}, "namespaceSelector": {"matchLabels": {"team": "x"}}},
            {"podSelector": {"matchLabels": {"b": "2"}}},
        ], "ports": [{"port": 80}]},
        {"ports": [{"port": 53, "protocol": "UDP"}]},
    ]}));
    let rules = policy.egress.as_deref().unwrap();
    let team = Selector::equals(Field::NamespaceLabel("team".into()), "x");
    let expected = vec![
        pods(vec![team, label("a", "1")]),
        pods(vec![own_namespace(), label("b", "2")]),
    ];
    assert_eq!(rules[0].peers, Some(expected));
    assert_eq!(
        rules[0].traffic,
        vec![traffic(6, Some(vec![PortMatch::Range(80..=80)]))]
    );
    assert_eq!((rules[0].index, rules[1].index), (0, 1));
    assert_eq!((&rules[1].peers, rules[1].traffic[0].protocol), (&None, Some(17)));
}

#[test]
fn semantics_6_to_8_protocols_names_and_ranges() {
    let policy = valid(json!({"ingress": [{"ports": [
        {"port": 80}, {"protocol": "TCP", "port": "web"}, {"protocol": "UDP"}, {"port": 53, "protocol": "UDP"},
        {"protocol": "SCTP", "port": 1, "endPort": 65535},
    ]}]}));
    let expected = vec![
        traffic(6, Some(vec![PortMatch::Range(80..=80), PortMatch::Named("web".into())])),
        traffic(17, None),
        traffic(132, Some(vec![PortMatch::Range(1..=65535)])),
    ];
    assert_eq!(only(&policy.ingress).traffic, expected);
    let policy = valid(json!({"ingress": [{"ports": [{}]}]}));
    assert_eq!(only(&policy.ingress).traffic, vec![traffic(6, None)]);
}

#[test]
fn semantic_9_ip_blocks() {
    let policy = valid(json!({"ingress": [{"from": [
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"ipBlock": {"cidr": "::/0"}},
    ]}]}));
    let block = |net: &str, except: &[&str]| PeerMatch {
        nets: Some(vec![net.parse().unwrap()]),
        not_nets: except.iter().map(|net| net.parse().unwrap()).collect(),
        ..PeerMatch::default()
    };
    let expected = vec![block("10.0.0.0/8", &["10.1.0.0/16"]), block("::/0", &[])];
    assert_eq!(only(&policy.ingress).peers, Some(expected));

    let parsed = parse(&network_policy(
        json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.1.2.3/8"}}]}]}),
    ));
    let Outcome::Valid(Object::Policy(policy)) = &parsed.outcome else {
        panic!("{parsed:?}")
    };
    assert_eq!(only(&policy.ingress).peers, Some(vec![block("10.0.0.0/8", &[])]));
    assert_eq!(
        parsed.problems[0].to_string(),
        "warning: NetworkPolicy ns/p: spec.ingress[0].from[0].ipBlock.cidr: 10.1.2.3/8 has host bits set; \
         it means 10.0.0.0/8 (write 10.0.0.0/8)"
    );
}

#[test]
fn semantic_10_expressions() {
    let policy = valid(json!({"podSelector": {"matchLabels": {"a": ""}, "matchExpressions": [
        {"key": "k", "operator": "In", "values": ["x", "y"]}, {"key": "k", "operator": "NotIn", "values": ["z"]},
        {"key": "e", "operator": "Exists"}, {"key": "n", "operator": "DoesNotExist", "values": []},
    ]}}));
    let field = |key: &str| Field::Label(key.into());
    let expected = Selector::And(vec![
        is_pod(),
        own_namespace(),
        label("a", ""),
        Selector::In(field("k"), ["x".into(), "y".into()].into()),
        Selector::Not(Box::new(label("k", "z"))),
        Selector::Has(field("e")),
        Selector::Not(Box::new(Selector::Has(field("n")))),
    ]);
    assert_eq!(policy.subject, expected);
}

#[test]
fn what_is_not_understood_matches_nothing_and_is_named() {
    let bad_peers = [
        (json!({}), "", "names no peer"),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0"}}),
            ".ipBlock.cidr",
            "no valid CIDR",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/33"}}),
            ".ipBlock.cidr",
            "no valid CIDR",
        ),
        (
            json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}}),
            ".ipBlock.cidr",
            "as IPv6",
        ),
        (json!({"ipBlock": {"cidr": 10}}), ".ipBlock.cidr", "must be a string"),
        (json!({"ipBlock": {}}), ".ipBlock.cidr", "is missing"),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}),
            ".ipBlock.except[0]",
            "no part of",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}),
            ".ipBlock.except[0]",
            "no part of",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
            "",
            "cannot stand together",
        ),
        (json!({"podSelector": []}), ".podSelector", "must be a map"),
        (
            json!({"podSelector": {"matchLabels": {"a": 1}}}),
            ".podSelector.matchLabels.a",
            "must be a string",
        ),
        (
            json!({"podSelector": {"matchLabels": {"-a": "x"}}}),
            ".podSelector.matchLabels",
            "no valid label key",
        ),
        (
            json!({"podSelector": {"matchLabels": {"a": "x y"}}}),
            ".podSelector.matchLabels.a",
            "no valid label value",
        ),
        (
            expression(json!({"key": "a", "operator": "in", "values": ["x"]})),
            ".operator",
            "no operator",
        ),
        (
            expression(json!({"key": "a", "operator": "In"})),
            ".values",
            "must not be empty",
        ),
        (
            expression(json!({"key": "a", "operator": "NotIn", "values": []})),
            ".values",
            "must not be empty",
        ),
        (
            expression(json!({"key": "a", "operator": "Exists", "values": ["x"]})),
            ".values",
            "must be empty",
        ),
        (expression(json!({"operator": "Exists"})), ".key", "is missing"),
        (expression(json!({"key": "a"})), ".operator", "is missing"),
        (json!("web"), "", "must be a map"),
        (Value::Null, "", "must be a map"),
    ];
    for (peer, field, message) in bad_peers {
        let spec = json!({"ingress": [{"from": [{"podSelector": {}}, peer]}, {}]});
        let parsed = parse(&network_policy(spec.clone()));
        let (policy, fields) = partial(spec);
        let rules = policy.ingress.as_deref().unwrap();
        assert!(matches_nothing(&rules[0]), "{peer}: {rules:?}");
        assert_eq!(rules[1].peers, None, "the good rule stays");
        let [place] = &fields[..] else {
            panic!("{peer}: {fields:?}")
        };
        assert!(
            place.starts_with("spec.ingress[0].from[1]") && place.ends_with(field),
            "{peer}: {place}"
        );
        assert!(
            parsed.problems[0].message.contains(message),
            "{peer}: {}",
            parsed.problems[0]
        );
    }
    let bad_ports = [
        (json!({"protocol": "tcp"}), ".protocol"),
        (json!({"protocol": "ICMP"}), ".protocol"),
        (json!({"port": "80"}), ".port"),
        (json!({"port": "-a"}), ".port"),
        (json!({"port": "a-name-that-is-too-long"}), ".port"),
        (json!({"port": 0}), ".port"),
        (json!({"port": 65536}), ".port"),
        (json!({"port": -1}), ".port"),
        (json!({"port": 80.5}), ".port"),
        (json!({"port": true}), ".port"),
        (json!({"port": 80, "endPort": 79}), ".endPort"),
        (json!({"port": "web", "endPort": 90}), ".endPort"),
        (json!({"endPort": 90}), ".endPort"),
    ];
    for (port, field) in bad_ports {
        let (policy, fields) = partial(json!({"egress": [{"ports": [{"port": 1}, port]}], "policyTypes": ["Egress"]}));
        assert!(matches_nothing(only(&policy.egress)), "{port}");
        assert_eq!(fields, [format!("spec.egress[0].ports[1]{field}")], "{port}");
    }
}

fn expression(expression: Value) -> Value {
    json!({"namespaceSelector": {"matchExpressions": [expression]}})
}

#[test]
fn rules_that_are_no_list_still_isolate() {
    let (policy, fields) = partial(json!({"podSelector": {}, "ingress": {"from": []}, "egress": "all"}));
    assert_eq!(
        (policy.ingress.as_deref(), policy.egress.as_deref()),
        (Some(&[][..]), Some(&[][..]))
    );
    assert_eq!(fields, ["spec.ingress", "spec.egress"]);
}

#[test]
fn without_subject_or_directions_nothing_is_enforced() {
    for (spec, field) in [
        (json!({"podSelector": "all"}), "spec.podSelector"),
        (
            json!({"podSelector": {"matchLabels": {"a": true}}}),
            "spec.podSelector.matchLabels.a",
        ),
        (json!({"policyTypes": ["ingress"]}), "spec.policyTypes[0]"),
        (json!({"policyTypes": "Ingress"}), "spec.policyTypes"),
        (json!([]), "spec"),
    ] {
        let parsed = parse(&network_policy(spec));
        assert_eq!(parsed.outcome, Outcome::Invalid);
        assert!(parsed.key.is_some());
        assert_eq!(error_fields(&parsed), [field]);
    }
}

#[test]
fn unknown_fields_kinds_and_versions() {
    let parsed = parse(&network_policy(
        json!({"ingress": [{"form": []}, {"form": []}], "podSelectr": {}}),
    ));
    assert!(matches!(parsed.outcome, Outcome::Valid(_)));
    let field = |path: &str| Unknown::Field {
        kind: "NetworkPolicy",
        path: path.into(),
    };
    assert_eq!(parsed.unknown, [field("spec.ingress[].form"), field("spec.podSelectr")]);

    let parsed = parse(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}));
    assert_eq!((&parsed.key, &parsed.outcome), (&None, &Outcome::Ignored));
    assert!(
        parsed.unknown[0]
            .problem(3, "files")
            .to_string()
            .contains("Deployment (apps/v1) are ignored (in 3 files")
    );
    let parsed = parse(&json!({"apiVersion": "v1", "kind": "networkpolicy", "metadata": {"name": "web"}}));
    assert!(
        parsed.unknown[0]
            .problem(1, "files")
            .remedy
            .contains("apiVersion: networking.k8s.io/v1")
    );

    let parsed =
        parse(&json!({"apiVersion": "networking.k8s.io/v9", "kind": "NetworkPolicy", "metadata": {"name": "p"}}));
    assert_eq!(parsed.key.unwrap().to_string(), "NetworkPolicy default/p");
    assert_eq!(parsed.outcome, Outcome::Invalid);
}

#[test]
fn objects_without_identity() {
    for (value, field) in [
        (json!({"kind": "Pod"}), Some("apiVersion")),
        (json!({"apiVersion": "v1", "metadata": {"name": "x"}}), Some("kind")),
        (json!({"apiVersion": "v1", "kind": "Pod"}), Some("metadata")),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "x-"}}),
            Some("metadata.name"),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": 7}}),
            Some("metadata.name"),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": []}),
            Some("metadata"),
        ),
        (json!([1]), None),
    ] {
        let parsed = parse(&value);
        assert_eq!((&parsed.key, &parsed.outcome), (&None, &Outcome::Invalid));
        assert_eq!(parsed.problems[0].field.as_deref(), field, "{value}");
    }
}

fn whole_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-6d4b75cb6d-abcde", "namespace": "shop",
            "labels": {"app": "web", "pod-template-hash": "6d4b75cb6d"},
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "annotations": {"cni.projectcalico.org/allowedSourcePrefixes": "[\"10.8.0.0/16\", \"fd00::1/128\"]"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4b75cb6d",
                "uid": "u", "controller": true}],
        },
        "spec": {
            "nodeName": "n1", "serviceAccountName": "shopper",
            "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8080}, {"containerPort": 9}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ]}],
            "initContainers": [{"name": "i", "restartPolicy": "Always", "ports": [{"name": "metrics", "containerPort": 9100}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "fd00::9"}, {"ip": "10.0.0.9"}]},
    })
}
