//! Objects -> manifests, for those kinds whose object holds everything that matters.

use serde_json::{Value, json};

use super::{
    core::ALLOWED_SOURCES,
    object::{Object, Pod, PodPhase},
};

/// The manifest of an object of these kinds: parsing it gives the object again.
pub fn manifest(object: &Object) -> Option<Value> {
    Some(match object {
        Object::Node(node) => {
            let addresses: Vec<Value> = node
                .addresses
                .iter()
                .map(|address| json!({"type": "InternalIP", "address": address}))
                .collect();
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": *node.name, "labels": *node.labels},
                "status": {"addresses": addresses},
            })
        }
        Object::Namespace(namespace) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": *namespace.name, "labels": *namespace.labels},
        }),
        Object::ServiceAccount(account) => json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"namespace": *account.namespace, "name": *account.name, "labels": *account.labels},
        }),
        Object::Pod(pod) => pod_manifest(pod),
        Object::Policy(_) => return None,
    })
}

fn pod_manifest(pod: &Pod) -> Value {
    let ports: Vec<Value> = pod
        .named_ports
        .iter()
        .map(|port| {
            let protocol = match port.protocol {
                17 => "UDP",
                132 => "SCTP",
                _ => "TCP",
            };
            json!({"name": *port.name, "protocol": protocol, "containerPort": port.port})
        })
        .collect();
    let mut metadata = json!({"namespace": *pod.namespace, "name": *pod.name, "labels": *pod.labels});
    if let Some(created) = pod
        .created
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
    {
        metadata["creationTimestamp"] = json!(created.to_string());
    }
    if !pod.allowed_sources.is_empty() {
        metadata["annotations"] = json!({ALLOWED_SOURCES: json!(pod.allowed_sources).to_string()});
    }
    if let Some(workload) = &pod.workload {
        // A Deployment is said outright: the pod-template-hash label is not asked for again.
        metadata["ownerReferences"] = json!([{"kind": *workload.kind, "name": *workload.name, "controller": true}]);
    }
    let phase = match pod.phase {
        PodPhase::Pending => "Pending",
        PodPhase::Running => "Running",
        PodPhase::Succeeded => "Succeeded",
        PodPhase::Failed => "Failed",
        PodPhase::Unknown => "Unknown",
    };
    let addresses: Vec<Value> = pod.addresses.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": pod.node_name.as_deref(), "hostNetwork": pod.host_network, "serviceAccountName": *pod.service_account,
            "containers": [{"ports": ports}],
        },
        "status": {"phase": phase, "podIPs": addresses},
    })
}
