//! The load of a large cluster: the one that the peers were measured under (10,000 remote pods and 1,000 policies), and one
//! with 20,000 pods and 10,000 of Calico's policies.

use serde_json::{Value, json};

use crate::world;

/// The node's own pods.
pub const LOCAL_PODS: [&str; 10] = [
    "client",
    "server",
    "cart",
    "catalogue",
    "checkout",
    "currency",
    "email",
    "payment",
    "search",
    "shipping",
];

/// Policies for the node's pods in turns (none for the first, which is the client of the measurements). Each has two
/// rules as real ones have them: some pods to some ports, and a network.
pub fn policies(count: usize) -> Vec<Value> {
    (0..count)
        .zip(LOCAL_PODS.iter().skip(1).cycle())
        .map(|(number, subject)| {
            let port = 1_024 + number % 512;
            let groups = [number, number + 1, number + 2].map(world::group);
            let net = format!("172.{}.{}.0/24", 16 + number % 16, number % 256);
            let rules = [
                json!({
                    "from": [{ "podSelector": { "matchExpressions": [
                        { "key": "app", "operator": "In", "values": groups },
                    ] } }],
                    "ports": [{ "protocol": "TCP", "port": port }, { "protocol": "TCP", "port": "http" }],
                }),
                json!({
                    "from": [{ "ipBlock": { "cidr": net } }],
                    "ports": [{ "protocol": "TCP", "port": port }],
                }),
            ];
            world::policy(&format!("load-{number:04}"), subject, &rules)
        })
        .collect()
}

/// Different selectors of [`services`] and [`global_policies`].
pub const SELECTORS: usize = 10_000;

/// The `app` label that a policy asks for.
pub fn service(number: usize) -> String {
    format!("service-{}", number % SELECTORS)
}

/// Remote pods, spread evenly over all [`service`]s.
pub fn services(count: usize) -> Vec<Value> {
    (0..count)
        .map(|number| world::remote_pod(number, &service(number)))
        .collect()
}

/// A GlobalNetworkPolicy each for one service, for all pods.
pub fn global_policies(count: usize) -> Vec<Value> {
    (0..count)
        .map(|number| global_policy(&format!("load-{number:05}"), &service(number), 1_024 + number % 64))
        .collect()
}

/// Lets pods with this label `app` reach every pod on one port.
pub fn global_policy(name: &str, app: &str, port: usize) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
        "metadata": { "name": format!("default.{name}") },
        "spec": {
            "tier": "default",
            "order": 100,
            "selector": "all()",
            "types": ["Ingress"],
            "ingress": [{
                "action": "Allow",
                "protocol": "TCP",
                "source": { "selector": format!("app == '{app}'") },
                "destination": { "ports": [port] },
            }],
        },
    })
}
