//! Nodes, namespaces, pods, service accounts.

use serde_json::{Value, json};

use super::{network_policy, parse, whole_pod};
use crate::api::{Object, Outcome, Parser, Severity, manifest};

#[test]
fn a_pod_is_read() {
    let parsed = parse(&whole_pod());
    assert!(parsed.problems.is_empty() && parsed.unknown.is_empty(), "{parsed:?}");
    let Outcome::Valid(Object::Pod(pod)) = parsed.outcome else {
        panic!()
    };
    let ports: Vec<_> = pod
        .named_ports
        .iter()
        .map(|port| (&*port.name, port.protocol, port.port))
        .collect();
    assert_eq!(ports, [("dns", 17, 53), ("http", 6, 8080), ("metrics", 6, 9100)]);
    assert_eq!(
        pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.9", "fd00::9"]
    );
    let workload = pod.workload.as_ref().unwrap();
    assert_eq!((&*workload.kind, &*workload.name), ("Deployment", "web"));
    assert_eq!(
        (pod.node_name.as_deref(), &*pod.service_account),
        (Some("n1"), "shopper")
    );
    assert_eq!((pod.host_network, pod.created), (false, Some(1_767_323_045)));
    assert_eq!(pod.allowed_sources.len(), 2);

    let bare = parse(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "status": {"podIP": "10.0.0.1"}}));
    let Outcome::Valid(Object::Pod(pod)) = bare.outcome else {
        panic!("{bare:?}")
    };
    assert_eq!(
        (&*pod.namespace, &*pod.service_account, pod.addresses.len()),
        ("default", "default", 1)
    );
}

#[test]
fn broken_pods() {
    let with = |pointer: &str, value: Value| {
        let mut pod = whole_pod();
        *pod.pointer_mut(pointer).unwrap() = value;
        parse(&pod)
    };
    for (pointer, value) in [
        ("/metadata/labels", json!({"app": 5})),
        ("/status/podIPs", json!([{"ip": "10.0.0.900"}])),
        ("/spec/hostNetwork", json!("yes")),
        ("/spec", json!([])),
    ] {
        let mut pod = whole_pod();
        pod["spec"]["hostNetwork"] = json!(false);
        *pod.pointer_mut(pointer).unwrap() = value;
        assert_eq!(parse(&pod).outcome, Outcome::Invalid, "{pointer}");
    }
    let parsed = with("/spec/containers/0/ports/0/containerPort", json!(0));
    let Outcome::Valid(Object::Pod(pod)) = &parsed.outcome else {
        panic!()
    };
    assert_eq!(pod.named_ports.len(), 2);
    assert_eq!(
        parsed.problems[0].field.as_deref(),
        Some("spec.containers[0].ports[0].containerPort")
    );
    let parsed = with(
        "/metadata/annotations",
        json!({"cni.projectcalico.org/allowedSourcePrefixes": "10.0.0.0/8"}),
    );
    let Outcome::Valid(Object::Pod(pod)) = &parsed.outcome else {
        panic!()
    };
    assert!(pod.allowed_sources.is_empty());
    assert_eq!(parsed.problems[0].severity, Severity::Error);
}

#[test]
fn manifests_of_objects_give_the_objects_again() {
    let mut parser = Parser::new();
    for value in [
        whole_pod(),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"a": "b"}}, "status":
            {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"}]}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"a": ""}}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "n", "labels": {"a": ""}}}),
    ] {
        let Outcome::Valid(object) = parser.parse(&value, None).outcome else {
            panic!("{value}")
        };
        let again = parser.parse(&manifest(&object).unwrap(), None);
        assert_eq!(again.outcome, Outcome::Valid(object));
    }
    let parsed = parser.parse(
        &network_policy(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "x"}}]}]})),
        None,
    );
    let text: Value = serde_json::from_str(parsed.manifest.as_deref().unwrap()).unwrap();
    assert_eq!(parser.parse(&text, None).outcome, parsed.outcome);
}

#[test]
fn a_namespace_always_has_its_name_as_label() {
    let parsed = parse(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    let Outcome::Valid(Object::Namespace(namespace)) = parsed.outcome else {
        panic!()
    };
    assert_eq!(
        namespace.labels.get("kubernetes.io/metadata.name").map(String::as_str),
        Some("shop")
    );
}
