//! Policies for namespaces `x` and `y`, drawn at random.

use serde_json::{Value, json};

use crate::churn::{APPS, Random};

/// The namespaces that are churned.
pub const NAMESPACES: [&str; 2] = ["x", "y"];
/// Values of the namespaces' label `team`.
pub const TEAMS: [&str; 3] = ["red", "green", "blue"];

/// The label `app` of a pod.
pub fn app(random: &mut Random) -> String {
    format!("app-{}", random.below(APPS as usize))
}

/// A policy, with the name of the one whose place it takes.
pub fn policy(random: &mut Random, namespace: &str, name: &str) -> Value {
    let subject = match random.below(4) {
        0 => json!({}),
        _ => {
            json!({"matchExpressions": [{"key": "app", "operator": "In", "values": [app(random), app(random), app(random)]}]})
        }
    };
    let types = [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])][random.below(3)].clone();
    let rules = |random: &mut Random, peers: &str| -> Vec<Value> {
        (0..random.below(4))
            .map(|_| {
                let mut rule = json!({});
                if random.below(5) > 0 {
                    let count = 1 + random.below(2);
                    rule[peers] = (0..count).map(|_| peer(random)).collect();
                }
                if random.below(2) == 0 {
                    rule["ports"] = json!([port(random)]);
                }
                rule
            })
            .collect()
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "podSelector": subject, "policyTypes": types,
            "ingress": rules(random, "from"), "egress": rules(random, "to"),
        },
    })
}

fn peer(random: &mut Random) -> Value {
    let apps = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": [app(random), app(random)]}]});
    let teams = json!({"matchLabels": {"team": TEAMS[random.below(TEAMS.len())]}});
    match random.below(4) {
        0 => json!({"podSelector": apps}),
        1 => json!({"namespaceSelector": teams}),
        2 => json!({"podSelector": apps, "namespaceSelector": {}}),
        _ => json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.90.0.0/18"]}}),
    }
}

fn port(random: &mut Random) -> Value {
    let protocol = ["TCP", "UDP"][random.below(2)];
    match random.below(3) {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": protocol, "port": 80}),
        _ => json!({"protocol": protocol, "port": 80, "endPort": 90}),
    }
}
