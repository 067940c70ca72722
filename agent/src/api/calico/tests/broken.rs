//! What is not understood fails closed, and is reported with its place.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Lab, all_but, global, namespaced};
use crate::api::{Object, Outcome, Parser, Severity};

#[test]
fn a_broken_rule_allows_nothing_or_denies_everything() {
    for (action, open) in [
        ("Allow", true),
        ("Log", true),
        ("Deny", false),
        ("Pass", false),
        ("Alow", false),
    ] {
        let rules = format!("[{{action: {action}, source: {{nets: [10.0.0.1]}}}}, {{action: Allow}}]");
        let lab = Lab::new(&global(&format!("selector: app == 'web', ingress: {rules}")));
        let expected = if open { all_but("prod/web") } else { String::new() };
        assert_eq!(lab.reach("prod/web", "tcp/80"), expected, "{action}");
        assert!(
            lab.errors().contains(&"spec.ingress[0].source.nets[0]"),
            "{action}: {:?}",
            lab.errors()
        );
        // Only what it is about.
        assert!(lab.reaches("prod/web", "good", "tcp/80"), "{action}");
    }
}

#[test]
fn errors_name_their_fields() {
    for (rule, field) in [
        (
            "action: Allow, source: {nets: [10.0.0.1/8]}",
            "spec.ingress[0].source.nets[0]",
        ),
        (
            "action: Allow, source: {nets: [10.0.0.0/33]}",
            "spec.ingress[0].source.nets[0]",
        ),
        (
            "action: Allow, source: {notNets: [0.0.0.0/0]}",
            "spec.ingress[0].source.notNets",
        ),
        (
            "action: Allow, source: {notNets: ['::/0']}",
            "spec.ingress[0].source.notNets",
        ),
        (
            "action: Allow, source: {selector: 'a = b'}",
            "spec.ingress[0].source.selector",
        ),
        (
            "action: Allow, source: {notSelector: 'a ='}",
            "spec.ingress[0].source.notSelector",
        ),
        (
            "action: Allow, source: {namespaceSelector: '('}",
            "spec.ingress[0].source.namespaceSelector",
        ),
        (
            "action: Allow, destination: {serviceAccounts: {selector: 'a'}}",
            "spec.ingress[0].destination.serviceAccounts.selector",
        ),
        ("action: Allow, ipVersion: 5", "spec.ingress[0].ipVersion"),
        ("action: 5", "spec.ingress[0].action"),
        ("protocol: TCP", "spec.ingress[0].action"),
        ("action: Allow, source: everybody", "spec.ingress[0].source"),
    ] {
        let lab = Lab::new(&global(&format!("ingress: [{{{rule}}}]")));
        assert_eq!(lab.errors(), [field], "{rule}");
        assert_eq!(lab.reach("prod/web", "tcp/80"), "", "{rule}");
    }
    let lab = Lab::new(&global("ingress: [{action: Allow, source: {selector: 'a == b'}}]"));
    assert_eq!(
        lab.problems[0].message,
        "does not parse at character 6, before \"b\": expected a value in quotes, as in \"web\""
    );
}

#[test]
fn a_policy_whose_subject_or_directions_are_unreadable_is_not_enforced() {
    for (spec, field) in [
        ("selector: 'app = web'", "spec.selector"),
        ("namespaceSelector: x", "spec.namespaceSelector"),
        ("serviceAccountSelector: 5", "spec.serviceAccountSelector"),
        ("types: [Both]", "spec.types[0]"),
        ("doNotTrack: perhaps", "spec.doNotTrack"),
    ] {
        let lab = Lab::new(&global(spec));
        assert_eq!(lab.errors(), [field], "{spec}");
        assert_eq!(lab.index.policies().count(), 0, "{spec}");
    }
}

#[test]
fn a_policy_whose_place_is_unreadable_denies_before_all_others_and_allows_nothing() {
    let other = "---\n{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: a}, spec: {order: -5, ingress: [{action: Allow}]}}";
    for spec in ["order: first", "tier: [a]", "order: 'nan'"] {
        let rules = "ingress: [{action: Deny, source: {selector: app == 'api'}}, {action: Pass, source: {selector: app == 'web'}}]";
        let lab = Lab::new(&[&global(&format!("{spec}, {rules}")), "\n", other].concat());
        assert_eq!(lab.errors().len(), 1, "{spec}");
        assert_eq!(lab.reach("prod/web", "tcp/80"), "dev/web good bad", "{spec}");
        assert_eq!(
            lab.decided(weir_common::Direction::Ingress, "dev/web", "prod/web", "tcp/80"),
            ["default a 0 Allow"]
        );
    }
}

#[test]
fn rules_that_are_no_list_deny() {
    let lab = Lab::new(&global("selector: app == 'web', ingress: everything, egress: {}"));
    assert_eq!(lab.errors(), ["spec.ingress", "spec.egress"]);
    assert_eq!(
        (lab.reach("prod/web", "tcp/80"), lab.reached_by("prod/web", "tcp/80")),
        (String::new(), String::new())
    );
}

#[test]
fn tiers() {
    let tier = |spec: &str| {
        format!("{{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {{name: t}}, spec: {{{spec}}}}}\n---\n")
    };
    let policy = "{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: p}, spec: {tier: t}}";
    let lab = Lab::new(&[&tier("order: 5, defaultAction: pass"), policy].concat());
    assert_eq!(
        (lab.errors(), lab.reach("prod/web", "tcp/80")),
        (vec!["spec.defaultAction"], String::new())
    );
    let lab = Lab::new(&[&tier("order: x, defaultAction: Pass"), policy].concat());
    assert_eq!(
        (lab.errors(), lab.reach("prod/web", "tcp/80")),
        (vec!["spec.order"], String::new())
    );
    let lab = Lab::new("{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: a.b}, spec: {}}");
    assert_eq!(lab.errors(), ["metadata.name"]);
}

#[test]
fn limits_are_reported_and_what_is_beyond_them_is_enforced() {
    let nets: Vec<String> = (0..=256).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let lab = Lab::new(&global(&format!(
        "ingress: [{{action: Allow, source: {{nets: [{}]}}}}]",
        nets.join(", ")
    )));
    assert_eq!(lab.errors(), ["spec.ingress[0].source.nets"]);
    assert_eq!(lab.reach("prod/web", "tcp/80"), "prod/api dev/web");
    let ports: Vec<String> = (50..=100).map(|n| n.to_string()).collect();
    let rule = format!(
        "{{action: Allow, protocol: TCP, destination: {{ports: [{}]}}}}",
        ports.join(", ")
    );
    let lab = Lab::new(&global(&format!("ingress: [{rule}]")));
    assert_eq!(lab.errors(), ["spec.ingress[0].destination.ports"]);
    assert_eq!(lab.reach("prod/web", "tcp/80"), all_but("prod/web"));
    let long = format!("app == 'web' || app == '{}'", "x".repeat(1024));
    let lab = Lab::new(&global(&format!("selector: \"{long}\"")));
    assert_eq!(lab.errors(), ["spec.selector"]);
    assert_eq!(lab.reach("prod/web", "tcp/80"), "");
    let rules = vec!["{action: Log}"; 1025].join(", ");
    let lab = Lab::new(&global(&format!("ingress: [{rules}]")));
    assert_eq!(lab.errors(), ["spec.ingress"]);
}

#[test]
fn unknown_fields_are_told() {
    let lab = Lab::new(&global(
        "selctor: all(), ingress: [{action: Allow, form: {}, source: {nts: []}}]",
    ));
    let mut fields = lab.warnings();
    fields.sort_unstable();
    assert_eq!(
        fields,
        ["spec.ingress[].form", "spec.ingress[].source.nts", "spec.selctor"]
    );
    let lab = Lab::new(&namespaced("namespaceSelector: env == 'dev'"));
    assert_eq!(lab.warnings(), ["spec.namespaceSelector"]);
}

/// A policy with every field.
fn whole() -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "p", "annotations": {"projectcalico.org/metadata": "{\"name\": \"q\"}"}},
        "spec": {
            "tier": "t", "order": 5.5, "selector": "has(a)", "namespaceSelector": "all()", "serviceAccountSelector": "b == 'c'",
            "types": ["Ingress", "Egress"], "applyOnForward": true, "doNotTrack": false,
            "ingress": [
                {"action": "Allow", "protocol": "TCP", "ipVersion": 4,
                    "source": {"selector": "a in {'b'}", "notSelector": "has(c)", "nets": ["10.0.0.0/8"], "notNets": ["10.1.0.0/16"], "ports": ["1:2"]},
                    "destination": {"ports": [80, "90:99", "http"], "notPorts": [81], "serviceAccounts": {"names": ["x"], "selector": "y != 'z'"}}},
                {"action": "Allow", "protocol": 1, "icmp": {"type": 8, "code": 0}, "notICMP": {"type": 3}},
                {"action": "Allow", "source": {"services": {"name": "s", "namespace": "n"}}},
            ],
            "egress": [{"action": "Allow", "notProtocol": "udp", "destination": {"namespaceSelector": "global()"}}],
        },
    })
}

fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            pointers(
                value,
                format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")),
                out,
            );
        }),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(n, value)| pointers(value, format!("{at}/{n}"), out)),
        _ => {}
    }
    out.push(at);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9./: =\"'!()-]{0,12}".prop_map(Value::from),
        "\\PC{0,4}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["x"])),
        Just(json!({"x": 1})),
    ]
}

proptest! {
    #[test]
    fn any_mutation_is_judged_without_panic(place in any::<prop::sample::Index>(), new in any_value()) {
        let mut value = whole();
        let mut paths = Vec::new();
        pointers(&value, String::new(), &mut paths);
        let path = place.get(&paths[..]);
        *value.pointer_mut(path).unwrap() = new;
        let parsed = Parser::new().parse(&value, None);
        let told = parsed.problems.iter().any(|problem| problem.severity == Severity::Error);
        match &parsed.outcome {
            Outcome::Valid(object) => prop_assert_eq!(Some(object.key()), parsed.key),
            Outcome::Partial(object) => {
                let policy = match object {
                    Object::Policy(policy) => policy,
                    Object::ServicePolicy(object) => &object.policy,
                    other => panic!("{other:?}"),
                };
                prop_assert!(told);
                prop_assert_eq!(Some(object.key()), parsed.key);
                // What is in doubt never becomes a rule for everybody.
                for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
                    let everybody = rule.peers.is_none() && rule.local.is_none();
                    let allows = rule.action == crate::policy::model::Action::Allow;
                    prop_assert!(!(everybody && allows) || rule.traffic.iter().all(|traffic| traffic.protocol == Some(1)));
                }
            }
            Outcome::Invalid => prop_assert!(told),
            Outcome::Ignored => prop_assert!(!parsed.unknown.is_empty()),
        }
    }
}
