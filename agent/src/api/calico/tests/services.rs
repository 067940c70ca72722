//! Rules about Services (calico-semantics 1.6).

use super::Lab;
use crate::{api::manifest, source::SourceEvent};

const SERVICE: &str = "---
{apiVersion: v1, kind: Service, metadata: {namespace: prod, name: api}, spec: {clusterIP: 172.20.0.1, clusterIPs: [172.20.0.1], ports: [{port: 443, targetPort: 8080}]}}
";

fn slice(name: &str, endpoints: &str, ports: &str) -> String {
    format!(
        "---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{namespace: prod, name: {name}, labels: {{kubernetes.io/service-name: api}}}},
  endpoints: [{endpoints}], ports: [{ports}]}}
"
    )
}

const READY: &str = "{addresses: [10.0.0.2], conditions: {ready: true}}";
const NOT_READY: &str = "{addresses: [198.51.100.10], conditions: {ready: false}}";
const PORT: &str = "{name: https, protocol: TCP, port: 8080}";

fn egress(policy: &str) -> String {
    format!("{policy}\n{SERVICE}")
}

fn global(rest: &str) -> String {
    super::global(&format!(
        "selector: app == 'web', egress: [{{action: Allow, destination: {{services: {{name: api, namespace: prod}}}}{rest}}}]"
    ))
}

#[test]
fn trap_a_service_is_addresses_and_ports_of_its_endpoints_ready_or_not() {
    let slices = slice("api-1", &format!("{READY}, {NOT_READY}"), PORT);
    let lab = Lab::clean(&[egress(&global("")), slices].concat());
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "prod/api good");
    assert_eq!(lab.reached_by("prod/web", "tcp/443"), "");
    assert_eq!(lab.reached_by("prod/web", "udp/8080"), "");
    // Before translation: the Service's own address, with its own port.
    assert!(lab.reaches("prod/web", "172.20.0.1", "tcp/443"));
    assert!(!lab.reaches("prod/web", "172.20.0.1", "tcp/8080"));
}

#[test]
fn endpoints_follow_their_slices() {
    let mut lab = Lab::clean(&global(""));
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "");
    lab.apply(&slice("api-1", READY, PORT));
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "prod/api");
    lab.apply(&slice(
        "api-2",
        NOT_READY,
        "{port: 8080, protocol: TCP}, {port: 53, protocol: UDP}",
    ));
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "prod/api good");
    assert_eq!(lab.reached_by("prod/web", "udp/53"), "good");
    // A slice may go over to another Service.
    lab.apply(&slice("api-2", NOT_READY, PORT).replace("service-name: api", "service-name: other"));
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "prod/api");
    lab.delete(&slice("api-1", "", ""));
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "");
    lab.apply(&slice("api-1", READY, PORT));
    // A later version of the policy no longer follows.
    lab.apply(&super::global("selector: app == 'web', egress: [{action: Deny}]"));
    lab.apply(&slice("api-1", NOT_READY, PORT));
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "");
}

#[test]
fn trap_a_port_without_number_is_no_member() {
    let lab = Lab::clean(&[global(""), slice("api-1", READY, "{name: any, protocol: TCP}")].concat());
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "");
    let lab = Lab::clean(&[global(""), slice("api-1", READY, "")].concat());
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "");
}

#[test]
fn a_rule_about_a_service_keeps_its_other_conditions() {
    let slices = slice("api-1", READY, "{port: 8080, protocol: TCP}, {port: 53, protocol: UDP}");
    let lab = Lab::clean(&[global(", protocol: UDP, source: {selector: has(role)}"), slices].concat());
    assert_eq!(lab.reached_by("prod/web", "udp/53"), "prod/api");
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "");
    assert_eq!(lab.reached_by("dev/web", "udp/53"), "");
}

#[test]
fn trap_of_a_source_only_the_address_counts() {
    let policy =
        super::namespaced("selector: app == 'web', ingress: [{action: Allow, source: {services: {name: api}}}]");
    let lab = Lab::clean(&[policy, slice("api-1", &format!("{READY}, {NOT_READY}"), "")].concat());
    // And a namespaced policy means its own namespace.
    assert_eq!(lab.reach("prod/web", "tcp/80"), "prod/api good");
    assert_eq!(lab.reach("prod/web", "udp/1"), "prod/api good");
}

#[test]
fn several_services_in_one_policy_keep_their_places() {
    let policy = super::global(
        "selector: app == 'web', egress: [
            {action: Deny, destination: {services: {name: other, namespace: prod}}},
            {action: Allow, destination: {services: {name: api, namespace: prod}}},
            {action: Deny}]",
    );
    let other = slice("other-1", READY, PORT).replace("service-name: api", "service-name: other");
    let two = slice(
        "api-1",
        &format!("{READY}, {NOT_READY}"),
        &format!("{PORT}, {{port: 9090}}"),
    );
    let lab = Lab::clean(&[policy, other, two].concat());
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "good");
    let decided = |to, what| lab.decided(weir_common::Direction::Egress, "prod/web", to, what);
    assert_eq!(decided("prod/api", "tcp/8080"), ["default p 0 Deny"]);
    assert_eq!(decided("prod/api", "tcp/9090"), ["default p 1 Allow"]);
    assert_eq!(decided("bad", "tcp/9090"), ["default p 2 Deny"]);
}

#[test]
fn services_stand_alone_and_in_their_places() {
    for (policy, field) in [
        (
            "egress: [{action: Allow, destination: {services: {name: a}}}]",
            "spec.egress[0].destination.services.namespace",
        ),
        (
            "egress: [{action: Allow, destination: {services: {namespace: a}}}]",
            "spec.egress[0].destination.services.name",
        ),
        (
            "egress: [{action: Allow, source: {services: {name: a, namespace: b}}}]",
            "spec.egress[0].source.services",
        ),
        (
            "ingress: [{action: Allow, destination: {services: {name: a, namespace: b}}}]",
            "spec.ingress[0].destination.services",
        ),
        (
            "egress: [{action: Allow, destination: {services: {name: a, namespace: b}, selector: all()}}]",
            "spec.egress[0].destination.selector",
        ),
        (
            "egress: [{action: Allow, destination: {services: {name: a, namespace: b}, nets: [10.0.0.0/8]}}]",
            "spec.egress[0].destination.nets",
        ),
        (
            "egress: [{action: Allow, protocol: TCP, destination: {services: {name: a, namespace: b}, ports: [80]}}]",
            "spec.egress[0].destination",
        ),
    ] {
        let lab = Lab::new(&super::global(policy));
        assert_eq!(lab.errors(), [field], "{policy}");
    }
}

/// What an EKS guide has for the API server: only labelled pods reach it.
#[test]
fn only_labelled_pods_reach_the_api_server() {
    let text = "
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: allow-kube-api}
spec:
  order: 10
  selector: role == 'front'
  types: [Egress]
  egress:
  - action: Allow
    destination: {services: {name: kubernetes, namespace: default}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: deny-kube-api}
spec:
  order: 20
  selector: projectcalico.org/orchestrator == 'k8s'
  types: [Egress]
  egress:
  - action: Deny
    destination: {services: {name: kubernetes, namespace: default}}
  - action: Allow
---
{apiVersion: v1, kind: Service, metadata: {name: kubernetes}, spec: {clusterIP: 172.20.0.1, ports: [{port: 443}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}}
endpoints: [{addresses: [198.51.100.10]}]
ports: [{name: https, port: 6443, protocol: TCP}]
";
    let lab = Lab::clean(text);
    for (from, to, what, reaches) in [
        ("prod/web", "good", "tcp/6443", true),
        ("prod/api", "good", "tcp/6443", false),
        ("prod/web", "172.20.0.1", "tcp/443", true),
        ("prod/api", "172.20.0.1", "tcp/443", false),
        ("prod/api", "good", "tcp/22", true),
    ] {
        assert_eq!(lab.reaches(from, to, what), reaches, "{from} {to} {what}");
    }
}

#[test]
fn what_is_kept_of_objects_parses_to_them() {
    let text = [
        SERVICE,
        &slice("api-1", READY, PORT),
        "---\n{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: t}, spec: {order: 1.5, defaultAction: Pass}}\n",
        "---\n{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: default}, spec: {}}\n",
        "---\n{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: last}, spec: {}}\n",
        "---\n{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: s, labels: {a: b}}, spec: {nets: [10.0.0.0/8, 'fd00::1']}}\n",
        "---\n{apiVersion: projectcalico.org/v3, kind: NetworkSet, metadata: {namespace: x, name: s}, spec: {}}\n",
    ]
    .concat();
    let mut parser = crate::api::Parser::new();
    let (documents, _) = crate::api::objects(std::path::Path::new("x.yaml"), &text, &mut parser);
    assert_eq!(documents.len(), 7);
    for document in documents {
        let crate::api::Outcome::Valid(object) = document.parsed.outcome else {
            panic!("{:?}", document.parsed)
        };
        let again = parser.parse(&manifest(&object).unwrap(), None);
        assert_eq!(again.outcome, crate::api::Outcome::Valid(object));
    }
    // A policy that names Services is kept as it was written.
    let (documents, _) = crate::api::objects(std::path::Path::new("x.yaml"), &global(""), &mut parser);
    let parsed = &documents[0].parsed;
    let kept: serde_json::Value = serde_json::from_str(parsed.manifest.as_deref().unwrap()).unwrap();
    assert_eq!(parser.parse(&kept, None).outcome, parsed.outcome);
}

#[test]
fn a_full_sync_forgets_what_is_gone() {
    let mut lab = Lab::clean(&[egress(&global("")), slice("api-1", READY, PORT)].concat());
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "prod/api");
    let (documents, _) = crate::api::objects(
        std::path::Path::new("x.yaml"),
        &[super::CLUSTER, "---\n", &global("")].concat(),
        &mut lab.parser,
    );
    let objects = documents
        .into_iter()
        .filter_map(|document| match document.parsed.outcome {
            crate::api::Outcome::Valid(object) => Some(object),
            _ => None,
        });
    let reset = SourceEvent::Reset(objects.collect());
    lab.event(reset);
    assert_eq!(lab.reached_by("prod/web", "tcp/8080"), "");
    assert!(!lab.reaches("prod/web", "172.20.0.1", "tcp/443"));
}
