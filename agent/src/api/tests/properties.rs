//! Whatever comes in: judged without panic, and what is in doubt never allows.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{matches_nothing, network_policy, parse, whole_pod};
use crate::api::{Object, ObjectKind, Outcome, Parser, Severity, manifest, objects};

/// Any JSON, biased to what objects are made of.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9./: -]{0,12}".prop_map(Value::from),
        "\\PC{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,6}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// A policy that uses every field, and the paths of all its values.
fn whole_policy() -> (Value, Vec<String>) {
    let value = network_policy(json!({
        "podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"podSelector": {}}],
            "ports": [{"port": 80, "endPort": 90, "protocol": "TCP"}]}, {}],
        "egress": [{"to": [{"namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "Exists"}]}}],
            "ports": [{"port": "dns", "protocol": "UDP"}]}],
    }));
    let mut paths = Vec::new();
    pointers(&value, String::new(), &mut paths);
    (value, paths)
}

fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            pointers(
                value,
                format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")),
                out,
            )
        }),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(n, value)| pointers(value, format!("{at}/{n}"), out)),
        _ => {}
    }
    out.push(at);
}

proptest! {
    #[test]
    fn any_mutation_of_a_policy_is_judged_without_panic(place in any::<prop::sample::Index>(), new in any_json()) {
        let (mut value, paths) = whole_policy();
        let path = place.get(&paths[..]).as_str();
        *value.pointer_mut(path).unwrap() = new;
        // Above the rules, rules of any kind may have come, `{}` among them, which allows all.
        let other_rules = ["", "/spec", "/spec/ingress", "/spec/egress"].contains(&path);
        let parsed = parse(&value);
        match &parsed.outcome {
            Outcome::Valid(object) => prop_assert_eq!(Some(object.key()), parsed.key),
            Outcome::Partial(Object::Policy(policy)) => {
                let rules = policy.ingress.iter().chain(&policy.egress).flatten();
                // What is in doubt never allows more than the whole policy does.
                for rule in rules {
                    prop_assert!(other_rules || rule.peers.is_some() || matches_nothing(rule) || rule.index == 1);
                }
                prop_assert!(parsed.problems.iter().any(|problem| problem.severity == Severity::Error));
            }
            Outcome::Partial(_) => prop_assert!(false),
            Outcome::Invalid => prop_assert!(parsed.problems.iter().any(|problem| problem.severity == Severity::Error)),
            Outcome::Ignored => prop_assert!(!parsed.unknown.is_empty()),
        }
    }

    #[test]
    fn any_mutation_of_a_pod_is_judged_without_panic(place in any::<prop::sample::Index>(), new in any_json()) {
        let mut value = whole_pod();
        let mut paths = Vec::new();
        pointers(&value, String::new(), &mut paths);
        *value.pointer_mut(place.get(&paths[..]).as_str()).unwrap() = new;
        let parsed = parse(&value);
        if let Outcome::Valid(object) = &parsed.outcome {
            prop_assert_eq!(object.key().kind, ObjectKind::Pod);
            let again = Parser::new().parse(&manifest(object).unwrap(), None);
            prop_assert_eq!(&again.outcome, &Outcome::Valid(object.clone()));
        }
    }

    #[test]
    fn any_text_is_read_without_panic(text in "[-a-zA-Z0-9 \\n:{}\\[\\]\"'&*|>!%#,.]{0,200}") {
        for path in ["x.yaml", "x.json"] {
            let _ = objects(Path::new(path), &text, &mut Parser::new());
        }
    }
}
