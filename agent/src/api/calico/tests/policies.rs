//! Tiers, order, types, names, subjects, staged policies (calico-semantics 1.1 to 1.4, 1.8, 1.10).

use weir_common::Direction::{Egress, Ingress};

use super::{Lab, all_but, global, namespaced};

const WEB: &str = "selector: app == 'web' && projectcalico.org/namespace == 'prod'";

fn gnp(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{{WEB}, types: [Ingress], {spec}}}}}\n"
    )
}

fn tier(name: &str, spec: &str) -> String {
    format!("---\n{{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n")
}

const ALLOW: &str = "ingress: [{action: Allow}]";
const DENY: &str = "ingress: [{action: Deny}]";

fn decided(lab: &Lab) -> Vec<String> {
    lab.decided(Ingress, "good", "prod/web", "tcp/80")
}

#[test]
fn trap_types_are_inferred_as_documented() {
    let denied = |spec: &str| {
        let lab = Lab::global(&format!("{WEB}{spec}"));
        (
            lab.reach("prod/web", "tcp/80").is_empty(),
            lab.reached_by("prod/web", "tcp/80").is_empty(),
        )
    };
    assert_eq!(denied(""), (true, false));
    assert_eq!(denied(", ingress: [{action: Deny}]"), (true, false));
    assert_eq!(denied(", egress: [{action: Deny}]"), (false, true));
    assert_eq!(
        denied(", ingress: [{action: Deny}], egress: [{action: Deny}]"),
        (true, true)
    );
    assert_eq!(denied(", types: [], egress: [{action: Deny}]"), (false, true));
    assert_eq!(denied(", types: [Egress]"), (false, true));
    assert_eq!(denied(", types: [INGRESS, egress]"), (true, true));

    let lab = Lab::new(&global(&format!("{WEB}, types: [Egress], ingress: [{{action: Deny}}]")));
    assert_eq!(lab.reach("prod/web", "tcp/80"), all_but("prod/web"));
    assert_eq!(lab.warnings(), ["spec.ingress"]);
}

#[test]
fn trap_tiers_and_policies_without_order_come_last() {
    // Tier `default` is 1,000,000: a tier without order comes after it, one with a greater order too.
    let lab = Lab::clean(
        &[
            tier("none", ""),
            tier("late", "order: 2000000"),
            tier("early", "order: -0.5, defaultAction: Pass"),
            gnp("n", &format!("tier: none, {ALLOW}")),
            gnp("l", &format!("tier: late, {DENY}")),
            gnp("d", "ingress: [{action: Pass}]"),
            gnp("e", "tier: early"),
        ]
        .concat(),
    );
    assert_eq!(decided(&lab), ["early e end Pass", "default d 0 Pass", "late l 0 Deny"]);
    let lab = Lab::clean(&[gnp("a", ALLOW), gnp("b", &format!("order: 1.5, {DENY}"))].concat());
    assert_eq!(decided(&lab), ["default b 0 Deny"]);
    let lab = Lab::clean(
        &[
            gnp("a", &format!("order: 0, {ALLOW}")),
            gnp("b", &format!("order: -1, {DENY}")),
        ]
        .concat(),
    );
    assert_eq!(decided(&lab), ["default b 0 Deny"]);
}

#[test]
fn trap_ties_are_broken_by_name_without_prefix() {
    let lab = Lab::clean(&[gnp("b", DENY), gnp("a", ALLOW)].concat());
    assert_eq!(decided(&lab), ["default a 0 Allow"]);
    // By the whole text `name/namespace/kind`: '-' and '.' come before '/'.
    for name in ["web-allow", "web.allow"] {
        let lab = Lab::clean(&[gnp("web", DENY), gnp(name, ALLOW)].concat());
        assert_eq!(decided(&lab), [format!("default {name} 0 Allow")]);
    }
    let lab = Lab::clean(&[gnp("web0", DENY), gnp("web", ALLOW)].concat());
    assert_eq!(decided(&lab), ["default web 0 Allow"]);
    // `default.b` is b.
    let lab = Lab::clean(&[gnp("default.b", DENY), gnp("c", ALLOW)].concat());
    assert_eq!(decided(&lab), ["default b 0 Deny"]);
    let lab = Lab::clean(&[tier("t", "order: 1"), gnp("t.b", &format!("tier: t, {DENY}"))].concat());
    assert_eq!(decided(&lab), ["t t.b 0 Deny"]);
    // The annotation of Calico's storage has the last word.
    let kept = r#"{apiVersion: crd.projectcalico.org/v1, kind: GlobalNetworkPolicy, spec: {types: [Ingress], ingress: [{action: Deny}]},
        metadata: {name: default.zz, annotations: {projectcalico.org/metadata: '{"name": "aa", "uid": "1"}'}}}
"#;
    let lab = Lab::clean(&[kept, &gnp("b", ALLOW)].concat());
    assert_eq!(decided(&lab), ["default aa 0 Deny"]);
    // One without a name in it changes nothing.
    let older = kept.replace(r#""name": "aa", "#, "");
    let lab = Lab::clean(&[&older, &*gnp("b", ALLOW)].concat());
    assert_eq!(decided(&lab), ["default b 0 Allow"]);
}

#[test]
fn trap_both_groups_show_one_object() {
    let text = [
        gnp("p", ALLOW),
        gnp("default.p", DENY).replace("projectcalico.org/v3", "crd.projectcalico.org/v1"),
    ];
    let lab = Lab::clean(&text.concat());
    assert_eq!(decided(&lab), ["default p 0 Deny"]);
    assert_eq!(lab.index.policies().count(), 1);
}

#[test]
fn trap_a_tier_takes_part_only_where_a_policy_selects_that_direction() {
    let lab = Lab::clean(
        &[
            tier("t", "order: 1"),
            gnp("p", "tier: t, egress: [{action: Allow}]").replace("types: [Ingress]", "types: [Egress]"),
        ]
        .concat(),
    );
    assert_eq!(decided(&lab), ["profile"]);
    assert_eq!(lab.decided(Egress, "prod/web", "good", "tcp/80"), ["t p 0 Allow"]);
    // Nor where only staged policies do.
    let staged = gnp("s", &format!("tier: t, {DENY}")).replace("kind: Global", "kind: StagedGlobal");
    let lab = Lab::clean(&[tier("t", "order: 1"), staged].concat());
    assert_eq!(decided(&lab), ["profile"]);
}

#[test]
fn trap_a_tier_without_object_is_last_and_denies() {
    let lab = Lab::clean(&[gnp("u", "tier: unknown"), gnp("d", "ingress: [{action: Pass}]")].concat());
    assert_eq!(decided(&lab), ["default d 0 Pass", "unknown u end Deny"]);
}

#[test]
fn trap_built_in_tiers_cannot_be_changed() {
    let lab = Lab::new(
        &[
            tier("default", "order: 5, defaultAction: Pass"),
            tier("kube-admin", ""),
            gnp("d", ""),
            gnp("a", "tier: kube-admin"),
            gnp("b", "tier: kube-baseline"),
        ]
        .concat(),
    );
    assert_eq!(decided(&lab), ["kube-admin a end Pass", "default d end Deny"]);
    assert_eq!(lab.errors(), ["spec.order", "spec.defaultAction"]);
    let lab = Lab::clean(&tier("default", "order: 1000000, defaultAction: Deny"));
    assert!(lab.errors().is_empty());
}

#[test]
fn trap_pass_leaves_the_tier_and_log_decides_nothing() {
    let lab = Lab::clean(
        &[
            tier("t", "order: 1"),
            gnp("a", "tier: t, ingress: [{action: log}, {action: pass}, {action: Deny}]"),
            gnp("b", &format!("tier: t, {DENY}")),
            gnp("c", "ingress: [{action: LOG}]"),
        ]
        .concat(),
    );
    assert_eq!(
        decided(&lab),
        ["t a 0 Log", "t a 1 Pass", "default c 0 Log", "default c end Deny"]
    );
    assert!(lab.judge(Ingress, "good", "prod/web", "tcp/80").log);
    // After the last tier, the profile.
    let lab = Lab::clean(&gnp("a", "ingress: [{action: Pass}]"));
    assert_eq!(decided(&lab), ["default a 0 Pass", "profile"]);
}

#[test]
fn trap_kubernetes_policies_stand_at_order_1000_of_the_default_tier() {
    let kubernetes = r"
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: prod, name: k}, spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}}
";
    let from = |from: &str, spec: &str| {
        let lab = Lab::clean(&[kubernetes, &gnp("c", spec)].concat());
        lab.decided(Ingress, from, "prod/web", "tcp/80")
    };
    assert_eq!(from("prod/api", &format!("order: 999, {DENY}")), ["default c 0 Deny"]);
    assert_eq!(from("prod/api", &format!("order: 1001, {DENY}")), ["default k 0 Allow"]);
    assert_eq!(from("prod/api", DENY), ["default k 0 Allow"]);
    // It has no rule that denies: what comes later may still allow.
    assert_eq!(from("good", &format!("order: 1001, {ALLOW}")), ["default c 0 Allow"]);
    assert_eq!(from("good", "order: 5"), ["default k end Deny"]);
    // At the same order the name decides.
    assert_eq!(from("prod/api", &format!("order: 1000, {DENY}")), ["default c 0 Deny"]);
}

#[test]
fn subjects() {
    let isolated = |text: String| {
        let lab = Lab::clean(&text);
        super::list(|pod| pod.contains('/') && !lab.reaches("good", pod, "tcp/80"))
    };
    assert_eq!(isolated(global("")), "prod/web prod/api dev/web");
    assert_eq!(isolated(global("selector: all()")), "prod/web prod/api dev/web");
    assert_eq!(isolated(global("selector: app == 'web'")), "prod/web dev/web");
    assert_eq!(isolated(namespaced("selector: app == 'web'")), "prod/web");
    assert_eq!(isolated(namespaced("")), "prod/web prod/api");
    assert_eq!(isolated(global("namespaceSelector: env == 'dev'")), "dev/web");
    assert_eq!(
        isolated(global("namespaceSelector: all()")),
        "prod/web prod/api dev/web"
    );
    assert_eq!(
        isolated(global("namespaceSelector: projectcalico.org/name == 'dev'")),
        "dev/web"
    );
    assert_eq!(
        isolated(global("namespaceSelector: kubernetes.io/metadata.name == 'dev'")),
        "dev/web"
    );
    assert_eq!(
        isolated(global("selector: app == 'web', namespaceSelector: env != 'dev'")),
        "prod/web"
    );
    assert_eq!(isolated(global("serviceAccountSelector: trusted == 'yes'")), "prod/web");
    assert_eq!(
        isolated(global("serviceAccountSelector: all()")),
        "prod/web prod/api dev/web"
    );
    assert_eq!(
        isolated(global("serviceAccountSelector: projectcalico.org/name == 'front'")),
        "prod/web"
    );
    assert_eq!(isolated(namespaced("serviceAccountSelector: has(trusted)")), "prod/web");
    assert_eq!(
        isolated(global("selector: projectcalico.org/serviceaccount == 'default'")),
        "prod/api dev/web"
    );
    assert_eq!(
        isolated(global("selector: projectcalico.org/orchestrator == 'k8s'")),
        "prod/web prod/api dev/web"
    );
}

#[test]
fn trap_host_policies_never_affect_a_pod() {
    for flag in ["doNotTrack: true", "preDNAT: true"] {
        let lab = Lab::new(&gnp("p", &format!("applyOnForward: true, {flag}, {DENY}")));
        assert_eq!(lab.reach("prod/web", "tcp/80"), all_but("prod/web"));
        assert_eq!((lab.errors().len(), lab.warnings().len()), (0, 1));
        let lab = Lab::new(&gnp("p", &format!("{flag}, {DENY}")));
        assert_eq!(lab.errors(), ["spec.applyOnForward"]);
    }
    // On forwarded traffic too: a pod knows no difference.
    let lab = Lab::clean(&gnp("p", &format!("applyOnForward: true, {DENY}")));
    assert_eq!(lab.reach("prod/web", "tcp/80"), "");
    let lab = Lab::new(&global(
        "preDNAT: true, applyOnForward: true, doNotTrack: true, types: [Egress]",
    ));
    assert_eq!(lab.errors(), ["spec.preDNAT", "spec.preDNAT"]);
}

#[test]
fn trap_staged_policies_are_evaluated_and_never_enforced() {
    let staged = |kind: &str, spec: &str| {
        format!(
            "{{apiVersion: projectcalico.org/v3, kind: {kind}, metadata: {{namespace: prod, name: s}}, spec: {{{spec}}}}}"
        )
    };
    for (kind, spec) in [
        ("StagedNetworkPolicy", "selector: all()"),
        ("StagedNetworkPolicy", "stagedAction: Set"),
        ("StagedGlobalNetworkPolicy", "stagedAction: Learn"),
        ("StagedKubernetesNetworkPolicy", "podSelector: {}"),
    ] {
        let lab = Lab::clean(&staged(kind, spec));
        assert_eq!(lab.reach("prod/web", "tcp/80"), all_but("prod/web"), "{kind}");
        assert!(!lab.staged("good", "prod/web", "tcp/80").allow, "{kind}");
        let lab = Lab::clean(&staged(
            kind,
            &format!("{spec}, stagedAction: Delete")
                .replace("stagedAction: Set, ", "")
                .replace("stagedAction: Learn, ", ""),
        ));
        assert!(lab.staged("good", "prod/web", "tcp/80").allow, "{kind}");
        let lab = Lab::new(&staged(kind, "stagedAction: Apply"));
        assert_eq!(lab.errors(), ["spec.stagedAction"]);
    }
}
