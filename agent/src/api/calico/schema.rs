//! The fields that Calico's kinds have.

use serde_json::Value;

use crate::api::schema::Misfits;

/// What a value may hold.
enum Shape {
    /// Anything: looked at elsewhere, or of no interest.
    Any,
    Map(&'static [(&'static str, Shape)]),
    List(&'static Shape),
}

use Shape::{Any, List, Map};

const ENTITY: Shape = Map(&[
    ("nets", Any),
    ("notNets", Any),
    ("selector", Any),
    ("notSelector", Any),
    ("namespaceSelector", Any),
    ("ports", Any),
    ("notPorts", Any),
    ("serviceAccounts", Map(&[("names", Any), ("selector", Any)])),
    ("services", Map(&[("name", Any), ("namespace", Any)])),
]);
const ICMP: Shape = Map(&[("type", Any), ("code", Any)]);
const RULES: Shape = List(&Map(&[
    ("action", Any),
    ("ipVersion", Any),
    ("protocol", Any),
    ("notProtocol", Any),
    ("icmp", ICMP),
    ("notICMP", ICMP),
    ("source", ENTITY),
    ("destination", ENTITY),
    ("http", Map(&[("methods", Any), ("paths", Any)])),
    ("metadata", Any),
]));

const NETWORK_POLICY: Shape = Map(&[
    ("tier", Any),
    ("order", Any),
    ("ingress", RULES),
    ("egress", RULES),
    ("selector", Any),
    ("types", Any),
    ("serviceAccountSelector", Any),
    ("namespaceSelector", Any),
    ("performanceHints", Any),
    ("stagedAction", Any),
]);
const GLOBAL_NETWORK_POLICY: Shape = Map(&[
    ("tier", Any),
    ("order", Any),
    ("ingress", RULES),
    ("egress", RULES),
    ("selector", Any),
    ("types", Any),
    ("serviceAccountSelector", Any),
    ("namespaceSelector", Any),
    ("doNotTrack", Any),
    ("preDNAT", Any),
    ("applyOnForward", Any),
    ("performanceHints", Any),
    ("stagedAction", Any),
]);
/// The selectors in it are Kubernetes' own.
const KUBERNETES_POLICY: Shape = Map(&[
    ("podSelector", Any),
    ("ingress", List(&Map(&[("from", Any), ("ports", Any)]))),
    ("egress", List(&Map(&[("to", Any), ("ports", Any)]))),
    ("policyTypes", Any),
    ("stagedAction", Any),
]);
const TIER: Shape = Map(&[("order", Any), ("defaultAction", Any)]);
const NETWORK_SET: Shape = Map(&[("nets", Any)]);

pub(super) fn network_policy(value: &Value) -> Misfits {
    misfits(value, &NETWORK_POLICY)
}

pub(super) fn global_network_policy(value: &Value) -> Misfits {
    misfits(value, &GLOBAL_NETWORK_POLICY)
}

pub(super) fn kubernetes_policy(value: &Value) -> Misfits {
    misfits(value, &KUBERNETES_POLICY)
}

pub(super) fn tier(value: &Value) -> Misfits {
    misfits(value, &TIER)
}

pub(super) fn network_set(value: &Value) -> Misfits {
    misfits(value, &NETWORK_SET)
}

fn misfits(value: &Value, spec: &'static Shape) -> Misfits {
    let mut out = Misfits::default();
    for (key, member) in value.as_object().into_iter().flatten() {
        match key.as_str() {
            "apiVersion" | "kind" | "metadata" | "status" => {}
            "spec" => unknown(member, spec, "spec", &mut out.unknown),
            _ => out.unknown.push(key.clone()),
        }
    }
    out
}

fn unknown(value: &Value, shape: &Shape, path: &str, out: &mut Vec<String>) {
    match (shape, value) {
        (Map(fields), Value::Object(map)) => {
            for (key, member) in map {
                let path = format!("{path}.{key}");
                match fields.iter().find(|(field, _)| field == key) {
                    Some((_, shape)) => unknown(member, shape, &path, out),
                    None if !out.contains(&path) => out.push(path),
                    None => {}
                }
            }
        }
        (List(shape), Value::Array(list)) => {
            for element in list {
                unknown(element, shape, &format!("{path}[]"), out);
            }
        }
        _ => {}
    }
}
