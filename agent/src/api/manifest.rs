//! Objects -> manifests, for those kinds whose object holds everything that matters.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    core::ALLOWED_SOURCES,
    object::{Object, Pod, PodPhase, TransportPort},
    service::SERVICE_NAME,
};
use crate::policy::model::{Order, TierDefault};

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
        Object::Tier(tier) => json!({
            "apiVersion": "projectcalico.org/v3", "kind": "Tier",
            "metadata": {"name": *tier.name},
            "spec": {
                "order": (tier.order != Order::LAST).then_some(tier.order.0),
                "defaultAction": match tier.default_action {
                    TierDefault::Deny => "Deny",
                    TierDefault::Pass => "Pass",
                },
            },
        }),
        Object::NetworkSet(set) => {
            let kind = if set.namespace.is_some() {
                "NetworkSet"
            } else {
                "GlobalNetworkSet"
            };
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": kind,
                "metadata": {"namespace": set.namespace.as_deref(), "name": *set.name, "labels": *set.labels},
                "spec": {"nets": set.nets},
            })
        }
        Object::Service(service) => json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": *service.namespace, "name": *service.name},
            "spec": {"externalIPs": service.addresses, "ports": ports(&service.ports)},
        }),
        Object::EndpointSlice(slice) => {
            let labels: BTreeMap<&str, &str> = slice.service.iter().map(|name| (SERVICE_NAME, &**name)).collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"namespace": *slice.namespace, "name": *slice.name, "labels": labels},
                "endpoints": [{"addresses": slice.addresses}], "ports": ports(&slice.ports),
            })
        }
        Object::Policy(_) | Object::ServicePolicy(_) => return None,
    })
}

fn ports(ports: &[TransportPort]) -> Vec<Value> {
    ports
        .iter()
        .map(|port| json!({"protocol": protocol_name(port.protocol), "port": port.port}))
        .collect()
}

fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        17 => "UDP",
        132 => "SCTP",
        _ => "TCP",
    }
}

fn pod_manifest(pod: &Pod) -> Value {
    let ports: Vec<Value> = pod
        .named_ports
        .iter()
        .map(|port| {
            let protocol = protocol_name(port.protocol);
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
