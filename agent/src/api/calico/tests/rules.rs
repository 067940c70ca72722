//! Rules and their ends (calico-semantics 1.5 and 1.6). Each asks who reaches, or is reached by, pod prod/web.

use super::{Lab, all_but};

const WEB: &str = "selector: app == 'web' && projectcalico.org/namespace == 'prod'";

/// Who reaches prod/web under a policy with this one ingress rule.
#[track_caller]
fn global(rule: &str, what: &str) -> String {
    Lab::global(&format!("{WEB}, ingress: [{{action: Allow, {rule}}}]")).reach("prod/web", what)
}

#[track_caller]
fn namespaced(rule: &str, what: &str) -> String {
    Lab::namespaced(&format!("selector: app == 'web', ingress: [{{action: Allow, {rule}}}]")).reach("prod/web", what)
}

/// Whom prod/web reaches under a policy with this one egress rule.
#[track_caller]
fn egress(rule: &str, what: &str) -> String {
    Lab::global(&format!("{WEB}, egress: [{{action: Allow, {rule}}}]")).reached_by("prod/web", what)
}

const HTTP: &str = "tcp/80";

#[test]
fn trap_a_positive_selector_never_matches_the_outside() {
    assert_eq!(global("source: {}", HTTP), all_but("prod/web"));
    assert_eq!(global("source: {selector: ''}", HTTP), all_but("prod/web"));
    assert_eq!(global("source: {selector: all()}", HTTP), "prod/api dev/web");
    assert_eq!(global("source: {selector: '!has(nothing)'}", HTTP), "prod/api dev/web");
    assert_eq!(egress("destination: {selector: all()}", HTTP), "prod/api dev/web");
}

#[test]
fn trap_not_selector_matches_the_outside_and_is_folded_into_selector() {
    assert_eq!(global("source: {notSelector: app == 'web'}", HTTP), "prod/api good bad");
    assert_eq!(global("source: {selector: '!(app == \"web\")'}", HTTP), "prod/api");
    assert_eq!(
        global("source: {selector: all(), notSelector: app == 'web'}", HTTP),
        "prod/api"
    );
    assert_eq!(
        global("source: {namespaceSelector: all(), notSelector: app == 'api'}", HTTP),
        "dev/web"
    );
    // In a namespaced policy it means the own namespace, even alone.
    assert_eq!(namespaced("source: {notSelector: app == 'web'}", HTTP), "prod/api");
    assert_eq!(namespaced("source: {notSelector: app == 'other'}", HTTP), "prod/api");
}

/// A Node is known by its addresses, but it is no endpoint of Calico's: no selector finds it, and none leaves it out.
#[test]
fn trap_nodes_are_the_outside_for_selectors() {
    const NODE: &str = "---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {kubernetes.io/hostname: n1, app: web}},
 status: {addresses: [{type: InternalIP, address: 198.51.100.10}]}}
---
";
    let reach = |rule: &str| {
        let spec = format!("{WEB}, ingress: [{{action: Allow, source: {{{rule}}}}}]");
        Lab::clean(&[NODE, &super::global(&spec)].concat()).reach("prod/web", HTTP)
    };
    for (selector, found) in [
        ("selector: all()", "prod/api dev/web"),
        ("selector: app != 'api'", "dev/web"),
        ("selector: '!has(nothing)'", "prod/api dev/web"),
        ("selector: app == 'web'", "dev/web"),
        ("selector: kubernetes.io/hostname == 'n1'", ""),
        ("selector: \"kubernetes.io/hostname not in {'n2'}\"", "prod/api dev/web"),
        ("namespaceSelector: global()", ""),
        ("notSelector: all()", "good bad"),
        ("notSelector: app == 'web'", "prod/api good bad"),
        ("nets: [198.51.100.0/24]", "good"),
    ] {
        assert_eq!(reach(selector), found, "{selector}");
    }
}

#[test]
fn trap_a_namespaced_policy_means_its_own_namespace_unless_told_otherwise() {
    assert_eq!(namespaced("source: {}", HTTP), all_but("prod/web"));
    assert_eq!(namespaced("source: {selector: all()}", HTTP), "prod/api");
    assert_eq!(namespaced("source: {selector: app == 'web'}", HTTP), "");
    assert_eq!(
        namespaced("source: {serviceAccounts: {names: [default]}}", HTTP),
        "prod/api"
    );
    assert_eq!(namespaced("source: {serviceAccounts: {}}", HTTP), all_but("prod/web"));
    assert_eq!(
        namespaced(
            "source: {selector: app == 'web', namespaceSelector: env == 'dev'}",
            HTTP
        ),
        "dev/web"
    );
    assert_eq!(
        namespaced("source: {namespaceSelector: all()}", HTTP),
        "prod/api dev/web"
    );
    // Networks are not limited to a namespace.
    assert_eq!(
        namespaced("source: {nets: [198.51.100.0/24, 10.0.1.0/24]}", HTTP),
        "dev/web good"
    );
    assert_eq!(global("source: {selector: app == 'web'}", HTTP), "dev/web");
}

#[test]
fn trap_all_and_global_in_namespace_selectors() {
    assert_eq!(global("source: {namespaceSelector: all()}", HTTP), "prod/api dev/web");
    assert_eq!(global("source: {namespaceSelector: global()}", HTTP), "");
    assert_eq!(global("source: {namespaceSelector: ' global( ) '}", HTTP), "");
    assert_eq!(
        global("source: {namespaceSelector: projectcalico.org/name == 'dev'}", HTTP),
        "dev/web"
    );
    for rule in [
        "source: {selector: global()}",
        "source: {notSelector: global()}",
        "source: {namespaceSelector: global() || env == 'dev'}",
        "source: {serviceAccounts: {selector: global()}}",
    ] {
        let lab = Lab::new(&super::global(&format!("ingress: [{{action: Allow, {rule}}}]")));
        assert_eq!(lab.errors().len(), 1, "{rule}");
        assert_eq!(lab.reach("prod/web", HTTP), "", "{rule}");
    }
    for spec in [
        "selector: global()",
        "namespaceSelector: global()",
        "serviceAccountSelector: global()",
    ] {
        let lab = Lab::new(&super::global(spec));
        assert_eq!(lab.index.policies().count(), 0, "{spec}");
    }
}

#[test]
fn service_accounts_by_name_and_label() {
    assert_eq!(
        egress("destination: {serviceAccounts: {names: [default]}}", HTTP),
        "prod/api dev/web"
    );
    assert_eq!(
        egress("destination: {serviceAccounts: {selector: trusted == 'no'}}", HTTP),
        "dev/web"
    );
    assert_eq!(
        egress("destination: {serviceAccounts: {selector: trusted != 'no'}}", HTTP),
        "prod/api"
    );
    assert_eq!(
        egress(
            "destination: {serviceAccounts: {names: [default, x], selector: has(trusted)}}",
            HTTP
        ),
        "dev/web"
    );
    assert_eq!(
        egress(
            "destination: {serviceAccounts: {selector: projectcalico.org/name == 'default'}}",
            HTTP
        ),
        "prod/api dev/web"
    );
    assert_eq!(
        egress(
            "destination: {selector: app == 'api', serviceAccounts: {names: [default]}}",
            HTTP
        ),
        "prod/api"
    );
}

#[test]
fn nets_and_not_nets() {
    assert_eq!(global("source: {nets: [10.0.0.0/16]}", HTTP), "prod/api dev/web");
    assert_eq!(global("source: {notNets: [10.0.0.0/16]}", HTTP), "good bad");
    assert_eq!(
        global("source: {nets: [10.0.0.0/16], notNets: [10.0.1.0/24]}", HTTP),
        "prod/api"
    );
    assert_eq!(
        global("source: {selector: all(), nets: [10.0.1.0/24, 198.51.100.0/24]}", HTTP),
        "dev/web"
    );
    assert_eq!(global("source: {nets: [], notNets: []}", HTTP), all_but("prod/web"));
}

#[test]
fn trap_a_list_of_the_other_family_never_means_everybody() {
    for rule in [
        "source: {nets: [10.0.0.0/16]}",
        "source: {notNets: [10.0.0.0/16]}",
        "destination: {nets: [10.0.0.0/16]}",
    ] {
        assert_eq!(global(rule, "tcp6/80"), "", "{rule}");
    }
    assert_eq!(global("source: {nets: ['fd00::/16']}", "tcp6/80"), "prod/api dev/web");
    assert_eq!(global("source: {nets: ['fd00::/16']}", HTTP), "");
    assert_eq!(global("source: {notNets: ['fd00::/16']}", HTTP), "");
    assert_eq!(global("source: {notNets: ['fd00::/16']}", "tcp6/80"), "good bad");
    // The family of one end is that of the rule.
    assert_eq!(
        global(
            "source: {notNets: ['fd00::/64']}, destination: {notNets: ['fd01::/64']}",
            HTTP
        ),
        ""
    );
    for rule in [
        "source: {nets: [10.0.0.0/8, 'fd00::/8']}",
        "source: {nets: [10.0.0.0/8]}, destination: {notNets: ['fd00::/8']}",
        "ipVersion: 6, source: {nets: [10.0.0.0/8]}",
        "protocol: ICMP, ipVersion: 6",
        "protocol: ICMPv6, source: {nets: [10.0.0.0/8]}",
    ] {
        let lab = Lab::new(&super::global(&format!("{WEB}, ingress: [{{action: Allow, {rule}}}]")));
        assert_eq!(lab.errors().len(), 1, "{rule}");
    }
}

#[test]
fn ip_version() {
    assert_eq!(global("ipVersion: 4", HTTP), all_but("prod/web"));
    assert_eq!(global("ipVersion: 4", "tcp6/80"), "");
    assert_eq!(
        global("ipVersion: '6', source: {selector: all()}", "tcp6/80"),
        "prod/api dev/web"
    );
    assert_eq!(global("ipVersion: 6", HTTP), "");
}

#[test]
fn trap_protocols_by_any_case_number_and_text() {
    for protocol in ["TCP", "tcp", "Tcp", "6", "'6'"] {
        let rule = format!("protocol: {protocol}");
        assert_eq!(global(&rule, HTTP), all_but("prod/web"), "{protocol}");
        assert_eq!(global(&rule, "udp/80"), "", "{protocol}");
        let rule = format!("notProtocol: {protocol}");
        assert_eq!(global(&rule, HTTP), "", "{protocol}");
        assert_eq!(global(&rule, "udp/80"), all_but("prod/web"), "{protocol}");
        assert_eq!(global(&rule, "icmp/8/0"), all_but("prod/web"), "{protocol}");
    }
    assert_eq!(global("protocol: UDPLite", "136"), all_but("prod/web"));
    assert_eq!(global("protocol: 47", "47"), all_but("prod/web"));
    assert_eq!(global("protocol: sctp", "sctp/9"), all_but("prod/web"));
    assert_eq!(global("protocol: icmpv6", "icmp6/128/0"), all_but("prod/web"));
    for protocol in ["0", "256", "GRE", "'-1'", "6.5", "true"] {
        let lab = Lab::new(&super::global(&format!(
            "ingress: [{{action: Allow, protocol: {protocol}}}]"
        )));
        assert_eq!(lab.errors(), ["spec.ingress[0].protocol"], "{protocol}");
        assert_eq!(lab.reach("prod/web", HTTP), "", "{protocol}");
    }
}

#[test]
fn trap_type_and_code_zero_are_values() {
    assert_eq!(
        global("protocol: ICMP, icmp: {type: 0}", "icmp/0/0"),
        all_but("prod/web")
    );
    assert_eq!(global("protocol: ICMP, icmp: {type: 0}", "icmp/8/0"), "");
    assert_eq!(
        global("protocol: ICMP, icmp: {type: 3, code: 0}", "icmp/3/0"),
        all_but("prod/web")
    );
    assert_eq!(global("protocol: ICMP, icmp: {type: 3, code: 0}", "icmp/3/1"), "");
    assert_eq!(global("protocol: ICMP, notICMP: {type: 8}", "icmp/8/0"), "");
    assert_eq!(
        global("protocol: ICMP, notICMP: {type: 8}", "icmp/0/0"),
        all_but("prod/web")
    );
    assert_eq!(global("protocol: ICMP, notICMP: {type: 8}", HTTP), "");
    assert_eq!(global("protocol: ICMP, icmp: {}", "icmp/8/0"), all_but("prod/web"));
    assert_eq!(global("source: {}", "icmp/8/0"), all_but("prod/web"));
    for (rule, field) in [
        ("protocol: ICMP, icmp: {code: 0}", "spec.ingress[0].icmp.type"),
        ("protocol: ICMP, icmp: {type: 255}", "spec.ingress[0].icmp.type"),
        (
            "protocol: ICMP, icmp: {type: 1, code: 256}",
            "spec.ingress[0].icmp.code",
        ),
        ("protocol: TCP, icmp: {type: 8}", "spec.ingress[0].icmp"),
        ("notICMP: {type: 8}", "spec.ingress[0].notICMP"),
    ] {
        let lab = Lab::new(&super::global(&format!("ingress: [{{action: Allow, {rule}}}]")));
        assert_eq!(lab.errors(), [field], "{rule}");
        assert_eq!(lab.reach("prod/web", "icmp/8/0"), "", "{rule}");
    }
}

#[test]
fn trap_ports_by_number_range_text_and_name() {
    let open = |ports: &str, what: &str| {
        !global(&format!("protocol: TCP, destination: {{ports: [{ports}]}}"), what).is_empty()
    };
    assert!(open("80", HTTP) && open("'80'", HTTP) && open("'79:81'", HTTP) && open("1, '80:80'", HTTP));
    assert!(!open("81", HTTP) && !open("'81:90'", HTTP) && !open("80", "udp/80"));
    assert!(open("http", HTTP) && open("81, http", HTTP) && !open("http", "tcp/81") && !open("dns", "tcp/53"));
    // Each pod has its own number for a name.
    assert_eq!(
        egress("protocol: TCP, destination: {ports: [http]}", "tcp/8080"),
        "prod/api"
    );
    assert_eq!(egress("protocol: TCP, destination: {ports: [http]}", HTTP), "");
    assert_eq!(
        egress(
            "protocol: TCP, destination: {ports: [http], selector: app == 'web'}",
            "tcp/8080"
        ),
        ""
    );
    // Names alone need no protocol: they bring their own.
    assert_eq!(global("destination: {ports: [dns]}", "udp/53"), all_but("prod/web"));
    assert_eq!(global("destination: {ports: [dns]}", "tcp/53"), "");
    assert_eq!(global("destination: {ports: [http]}", HTTP), all_but("prod/web"));
    assert_eq!(global("destination: {ports: [http]}", "icmp/8/0"), "");

    assert_eq!(
        global("protocol: TCP, destination: {notPorts: [80, '90:99']}", HTTP),
        ""
    );
    assert_eq!(
        global("protocol: TCP, destination: {notPorts: [80, '90:99']}", "tcp/100"),
        all_but("prod/web")
    );
    assert_eq!(global("protocol: TCP, destination: {notPorts: [http]}", HTTP), "");
    assert_eq!(
        global("protocol: TCP, destination: {notPorts: [http]}", "tcp/81"),
        all_but("prod/web")
    );
    assert_eq!(
        global("protocol: TCP, source: {ports: [40000]}", HTTP),
        all_but("prod/web")
    );
    assert_eq!(global("protocol: TCP, source: {ports: ['1:39999']}", HTTP), "");
    assert_eq!(
        global("protocol: TCP, source: {notPorts: ['1:39999']}", HTTP),
        all_but("prod/web")
    );
}

#[test]
fn bad_ports() {
    for (rule, field) in [
        (
            "protocol: TCP, destination: {ports: [0]}",
            "spec.ingress[0].destination.ports[0]",
        ),
        (
            "protocol: TCP, destination: {ports: [1, 65536]}",
            "spec.ingress[0].destination.ports[1]",
        ),
        (
            "protocol: TCP, source: {ports: ['90:80']}",
            "spec.ingress[0].source.ports[0]",
        ),
        (
            "protocol: TCP, destination: {notPorts: [':80']}",
            "spec.ingress[0].destination.notPorts[0]",
        ),
        (
            "protocol: TCP, destination: {ports: ['a b']}",
            "spec.ingress[0].destination.ports[0]",
        ),
        ("destination: {ports: [80]}", "spec.ingress[0].destination.ports"),
        ("destination: {ports: [http, 80]}", "spec.ingress[0].destination.ports"),
        (
            "protocol: ICMP, destination: {ports: [http]}",
            "spec.ingress[0].destination.ports",
        ),
        (
            "protocol: UDPLite, source: {notPorts: [80]}",
            "spec.ingress[0].source.ports",
        ),
    ] {
        let lab = Lab::new(&super::global(&format!("ingress: [{{action: Allow, {rule}}}]")));
        assert_eq!(lab.errors(), [field], "{rule}");
        assert_eq!(lab.reach("prod/web", HTTP), "", "{rule}");
    }
    let lab = Lab::new(&super::global(
        "ingress: [{action: Allow, protocol: TCP, destination: {ports: [80-90]}}]",
    ));
    assert_eq!(lab.warnings(), ["spec.ingress[0].destination.ports[0]"]);
}

#[test]
fn trap_the_own_end_is_a_condition_too() {
    let lab = Lab::global("ingress: [{action: Allow, destination: {selector: app == 'api'}}]");
    assert_eq!(lab.reach("prod/web", HTTP), "");
    assert_eq!(lab.reach("prod/api", HTTP), all_but("prod/api"));
    let lab = Lab::global("egress: [{action: Allow, source: {selector: app == 'api', nets: [10.0.0.2/32]}}]");
    assert_eq!(lab.reached_by("prod/api", HTTP), all_but("prod/api"));
    assert_eq!(lab.reached_by("prod/api", "tcp6/80"), "");
    assert_eq!(lab.reached_by("prod/web", HTTP), "");
    // In a namespaced policy a selector for the own end means the own namespace as well.
    let lab = Lab::namespaced("ingress: [{action: Allow, destination: {notSelector: app == 'api'}}]");
    assert_eq!(
        (lab.reach("prod/web", HTTP), lab.reach("prod/api", HTTP)),
        (all_but("prod/web"), String::new())
    );
}

#[test]
fn all_conditions_of_a_rule_must_hold() {
    let rule = "protocol: TCP, source: {selector: all(), notNets: [10.0.1.0/24]}, destination: {ports: [80], notSelector: role == 'back'}";
    assert_eq!(global(rule, HTTP), "prod/api");
    assert_eq!(global(rule, "tcp/81"), "");
    assert_eq!(global(rule, "tcp6/80"), "");
    let rules = "{action: Deny, source: {selector: app == 'api'}}, {action: ALLOW, protocol: TCP, destination: {ports: [80]}}, {action: Deny}, {action: Allow}";
    let lab = Lab::global(&format!("{WEB}, ingress: [{rules}]"));
    assert_eq!(lab.reach("prod/web", HTTP), "dev/web good bad");
    assert_eq!(lab.reach("prod/web", "udp/80"), "");
}

#[test]
fn trap_http_is_never_a_plain_allow() {
    let lab = Lab::new(&super::global(
        "ingress: [{action: Allow, protocol: TCP, http: {methods: [GET]}}]",
    ));
    assert_eq!(
        (lab.reach("prod/web", HTTP), lab.errors()),
        (String::new(), vec!["spec.ingress[0].http"])
    );
    let lab = Lab::new(&super::global(
        "ingress: [{action: Deny, http: {paths: [{exact: /a}]}}, {action: Allow}]",
    ));
    assert_eq!(
        (lab.reach("prod/web", HTTP), lab.errors()),
        (String::new(), vec!["spec.ingress[0].http"])
    );
    let lab = Lab::new(&super::global("egress: [{action: Allow, http: {methods: [GET]}}]"));
    assert_eq!(
        (lab.reached_by("prod/web", HTTP), lab.errors()),
        (String::new(), vec!["spec.egress[0].http"])
    );
}
