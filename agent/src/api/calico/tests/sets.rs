//! Network sets (calico-semantics 1.7).

use super::{Lab, all_but};

fn global_set(spec: &str) -> String {
    format!(
        "---\n{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {{name: s, labels: {{role: partner}}}}, spec: {{{spec}}}}}\n"
    )
}

fn set(namespace: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: crd.projectcalico.org/v1, kind: NetworkSet, metadata: {{namespace: {namespace}, name: s, labels: {{role: partner}}}}, spec: {{{spec}}}}}\n"
    )
}

#[track_caller]
fn reach(objects: &str, policy: String) -> String {
    Lab::clean(&[&policy, "\n", objects].concat()).reach("prod/web", "tcp/80")
}

fn global(source: &str) -> String {
    super::global(&format!(
        "selector: app == 'web', ingress: [{{action: Allow, source: {{{source}}}}}]"
    ))
}

fn namespaced(source: &str) -> String {
    super::namespaced(&format!(
        "selector: app == 'web', ingress: [{{action: Allow, source: {{{source}}}}}]"
    ))
}

#[test]
fn trap_sets_take_bare_addresses_and_host_bits() {
    for net in ["198.51.100.10", "198.51.100.10/32", "198.51.100.77/24"] {
        assert_eq!(
            reach(
                &global_set(&format!("nets: ['{net}']")),
                global("selector: role == 'partner'")
            ),
            "good"
        );
    }
    let lab = Lab::new(&global_set("nets: [nonsense, 198.51.100.0/24]"));
    assert_eq!(lab.errors(), ["spec.nets[0]"]);
}

#[test]
fn a_selector_means_pods_and_sets() {
    let sets = global_set("nets: [198.51.100.0/24, 10.0.1.1/32, 'fd00::/8']");
    // By address, also where the set covers a pod.
    assert_eq!(reach(&sets, global("selector: role == 'partner'")), "dev/web good");
    assert_eq!(
        reach(&sets, global("selector: role == 'partner' || app == 'api'")),
        "prod/api dev/web good"
    );
    assert_eq!(reach(&sets, global("selector: all()")), "prod/api dev/web good");
    assert_eq!(
        reach(&sets, global("selector: \"projectcalico.org/orchestrator != 'k8s'\"")),
        "dev/web good"
    );
    assert_eq!(reach(&sets, global("notSelector: role == 'partner'")), "prod/api bad");
    // Who matches selector and not notSelector: the pod does, though a set with its address does not.
    assert_eq!(
        reach(&sets, global("selector: all(), notSelector: role == 'partner'")),
        "prod/api dev/web"
    );
}

#[test]
fn trap_global_sets_are_in_no_namespace_and_others_in_theirs() {
    let sets = [
        global_set("nets: [198.51.100.0/24]"),
        set("dev", "nets: [203.0.113.0/24]"),
    ]
    .concat();
    assert_eq!(
        reach(
            &sets,
            global("selector: role == 'partner', namespaceSelector: global()")
        ),
        "good"
    );
    assert_eq!(reach(&sets, global("namespaceSelector: global()")), "good");
    assert_eq!(
        reach(&sets, global("selector: role == 'partner', namespaceSelector: all()")),
        "bad"
    );
    assert_eq!(reach(&sets, global("namespaceSelector: env == 'dev'")), "dev/web bad");
    assert_eq!(reach(&sets, global("selector: role == 'partner'")), "good bad");
    // A namespaced policy sees neither, unless told to look elsewhere.
    assert_eq!(reach(&sets, namespaced("selector: role == 'partner'")), "");
    assert_eq!(
        reach(
            &sets,
            namespaced("selector: role == 'partner', namespaceSelector: global()")
        ),
        "good"
    );
    assert_eq!(
        reach(
            &sets,
            namespaced("selector: role == 'partner', namespaceSelector: env == 'dev'")
        ),
        "bad"
    );
    let own = set("prod", "nets: [203.0.113.0/24]");
    assert_eq!(reach(&own, namespaced("selector: role == 'partner'")), "bad");
    assert_eq!(reach(&own, namespaced("notSelector: role == 'partner'")), "prod/api");
}

#[test]
fn trap_a_set_cannot_claim_a_namespace() {
    let text = global_set("nets: [198.51.100.0/24]").replace("role: partner", "projectcalico.org/namespace: prod");
    let lab = Lab::new(&[&global("selector: projectcalico.org/namespace == 'prod'"), "\n", &*text].concat());
    assert_eq!(lab.errors(), ["metadata.labels.projectcalico.org/namespace"]);
    assert_eq!(lab.reach("prod/web", "tcp/80"), "prod/api");
}

#[test]
fn kubernetes_policies_never_mean_sets() {
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: prod, name: k}, spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}}";
    let sets = [global_set("nets: [0.0.0.0/0]"), set("prod", "nets: [203.0.113.0/24]")].concat();
    assert_eq!(reach(&sets, policy.to_owned()), "prod/api dev/web");
}

#[test]
fn sets_come_and_go() {
    let mut lab = Lab::clean(&global("selector: role == 'partner'"));
    assert_eq!(lab.reach("prod/web", "tcp/80"), "");
    lab.apply(&global_set("nets: [198.51.100.0/24]"));
    assert_eq!(lab.reach("prod/web", "tcp/80"), "good");
    lab.apply(&global_set("nets: [203.0.113.0/24]"));
    assert_eq!(lab.reach("prod/web", "tcp/80"), "bad");
    lab.delete(&global_set(""));
    assert_eq!(lab.reach("prod/web", "tcp/80"), "");
    lab.delete(&global(""));
    assert_eq!(lab.reach("prod/web", "tcp/80"), all_but("prod/web"));
}
