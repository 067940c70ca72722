//! The fields that Calico's kinds have: what unknown fields are told from, and what the CRDs are made of.
//!
//! Meaning and limits: <https://docs.tigera.io/calico/latest/reference/resources/networkpolicy>. The types are those of
//! Calico's own CRDs, so that what one takes the other takes too; what else must hold of a value, its parser says.

use serde_json::Value;

use super::{
    entity::{LONGEST_SELECTOR, MOST_NAMES, MOST_NETS, MOST_PORTS},
    rule::MOST_RULES,
};
use crate::api::schema::Misfits;

/// What a value may hold.
#[derive(Debug)]
pub(super) enum Shape {
    /// No field of this kind, but spoken of elsewhere: CRDs do not have it.
    Foreign,
    Boolean,
    /// A whole number in a range.
    Integer(u16, u16),
    Number,
    Text,
    /// A text of at most so many characters.
    Bounded(usize),
    /// A text that matches a regular expression.
    Pattern(&'static str),
    /// A number or a text.
    IntOrText,
    /// Texts by names that nobody knows beforehand.
    Texts,
    Map(&'static [Field]),
    /// With the most entries that there may be.
    List(&'static Shape, Option<usize>),
}

/// A field of an object.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) required: bool,
    /// What it means.
    pub(super) about: &'static str,
}

use Shape::{Boolean, Bounded, Foreign, IntOrText, Integer, List, Map, Number, Pattern, Text, Texts};

const fn field(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field {
        name,
        shape,
        required: false,
        about,
    }
}

const fn required(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field {
        name,
        shape,
        required: true,
        about,
    }
}

const SELECTOR: Shape = Bounded(LONGEST_SELECTOR);

const ENTITY: Shape = Map(&[
    field(
        "nets",
        List(&Text, Some(MOST_NETS)),
        "CIDRs, one of which it must be in.",
    ),
    field("notNets", List(&Text, Some(MOST_NETS)), "CIDRs that it must not be in."),
    field(
        "selector",
        SELECTOR,
        "Labels of the pods and network sets that it must be one of, as in app == \"web\".",
    ),
    field("notSelector", SELECTOR, "Labels of those that it must not be."),
    field(
        "namespaceSelector",
        SELECTOR,
        "Labels of the namespaces in which the selectors look; global() for what is in none.",
    ),
    field(
        "ports",
        List(&IntOrText, Some(MOST_PORTS)),
        "Numbers, ranges such as \"8000:8080\", or names of container ports.",
    ),
    field(
        "notPorts",
        List(&IntOrText, Some(MOST_PORTS)),
        "Ports that it must not have.",
    ),
    field(
        "serviceAccounts",
        Map(&[
            field("names", List(&Text, Some(MOST_NAMES)), "Their names."),
            field("selector", SELECTOR, "Their labels."),
        ]),
        "Service accounts, of which the pod must have one.",
    ),
    field(
        "services",
        Map(&[
            field("name", Text, "Its name."),
            field("namespace", Text, "Its namespace; by default the policy's own."),
        ]),
        "A Service, one of whose endpoints it must be.",
    ),
]);

const ICMP: Shape = Map(&[
    field("type", Integer(0, 254), "The type, as in 8 for an echo request."),
    field("code", Integer(0, 255), "The code; needs a type."),
]);

const HTTP: Shape = Map(&[
    field("methods", List(&Text, None), "Methods."),
    field(
        "paths",
        List(
            &Map(&[
                field("exact", Text, "A whole path."),
                field("prefix", Text, "How a path begins."),
            ]),
            None,
        ),
        "Paths.",
    ),
]);

const RULE: Shape = Map(&[
    required(
        "action",
        Pattern("^(?i:allow|deny|log|pass)$"),
        "Allow, Deny, Pass (on to the next tier) or Log (and on to the next rule).",
    ),
    field("ipVersion", Integer(4, 6), "4 or 6; both if it is not given."),
    field(
        "protocol",
        IntOrText,
        "TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, or a number.",
    ),
    field("notProtocol", IntOrText, "A protocol that it must not be."),
    field("icmp", ICMP, "An ICMP message; needs protocol ICMP or ICMPv6."),
    field("notICMP", ICMP, "An ICMP message that it must not be."),
    field("source", ENTITY, "Where it comes from."),
    field("destination", ENTITY, "Where it goes to."),
    field(
        "http",
        HTTP,
        "HTTP is not looked into: a rule that asks for it matches nothing, and is reported.",
    ),
    field(
        "metadata",
        Map(&[field("annotations", Texts, "Annotations, without effect.")]),
        "About the rule.",
    ),
]);
const RULES: Shape = List(&RULE, Some(MOST_RULES));

const IN_TIER: Field = field(
    "tier",
    Text,
    "The tier that the policy is part of; default, if it is not given.",
);
const ORDER: Field = field(
    "order",
    Number,
    "Its place in the tier, lower first; last, if it is not given.",
);
const INGRESS: Field = field(
    "ingress",
    RULES,
    "Rules for what comes in; the first that matches decides.",
);
const EGRESS: Field = field(
    "egress",
    RULES,
    "Rules for what goes out; the first that matches decides.",
);
const SUBJECT: Field = field(
    "selector",
    SELECTOR,
    "Labels of the pods that the policy is about; all, if it is not given.",
);
const TYPES: Field = field(
    "types",
    List(&Pattern("^(?i:ingress|egress)$"), Some(2)),
    "Directions that the policy is about. By default those that it has rules for, or Ingress if it has none.",
);
const ACCOUNTS: Field = field(
    "serviceAccountSelector",
    SELECTOR,
    "Labels of the service accounts whose pods the policy is about.",
);
const NAMESPACES: Field = field(
    "namespaceSelector",
    SELECTOR,
    "Labels of the namespaces whose pods the policy is about.",
);
const NO_NAMESPACES: Field = field(
    "namespaceSelector",
    Foreign,
    "A policy's parser says that it is ignored.",
);
const HINTS: Field = field("performanceHints", List(&Text, None), "Without effect.");
const DO_NOT_TRACK: Field = field(
    "doNotTrack",
    Boolean,
    "Such a policy is for host endpoints alone: it affects no pod.",
);
const PRE_DNAT: Field = field(
    "preDNAT",
    Boolean,
    "Such a policy is for host endpoints alone: it affects no pod.",
);
const ON_FORWARD: Field = field(
    "applyOnForward",
    Boolean,
    "About host endpoints: without effect on pods.",
);
const STAGED: Field = field(
    "stagedAction",
    Pattern("^(Set|Delete|Learn|Ignore)?$"),
    "Set, or Delete to stage the absence of the policy.",
);

pub(super) static NETWORK_POLICY: Shape = Map(&[
    IN_TIER,
    ORDER,
    SUBJECT,
    ACCOUNTS,
    NO_NAMESPACES,
    TYPES,
    INGRESS,
    EGRESS,
    HINTS,
]);
pub(super) static STAGED_NETWORK_POLICY: Shape = Map(&[
    STAGED,
    IN_TIER,
    ORDER,
    SUBJECT,
    ACCOUNTS,
    NO_NAMESPACES,
    TYPES,
    INGRESS,
    EGRESS,
    HINTS,
]);
pub(super) static GLOBAL_NETWORK_POLICY: Shape = Map(&[
    IN_TIER,
    ORDER,
    SUBJECT,
    ACCOUNTS,
    NAMESPACES,
    TYPES,
    INGRESS,
    EGRESS,
    DO_NOT_TRACK,
    PRE_DNAT,
    ON_FORWARD,
    HINTS,
]);
pub(super) static STAGED_GLOBAL_NETWORK_POLICY: Shape = Map(&[
    STAGED,
    IN_TIER,
    ORDER,
    SUBJECT,
    ACCOUNTS,
    NAMESPACES,
    TYPES,
    INGRESS,
    EGRESS,
    DO_NOT_TRACK,
    PRE_DNAT,
    ON_FORWARD,
    HINTS,
]);

const LABELS: Shape = Map(&[
    field("matchLabels", Texts, "Labels with their values."),
    field(
        "matchExpressions",
        List(
            &Map(&[
                required("key", Text, "The label."),
                required("operator", Text, "In, NotIn, Exists or DoesNotExist."),
                field("values", List(&Text, None), "Values, for In and NotIn."),
            ]),
            None,
        ),
        "Conditions on labels, all of which must hold.",
    ),
]);
const PEERS: Shape = List(
    &Map(&[
        field("podSelector", LABELS, "Labels of pods."),
        field("namespaceSelector", LABELS, "Labels of their namespaces."),
        field(
            "ipBlock",
            Map(&[
                required("cidr", Text, "A CIDR."),
                field("except", List(&Text, None), "CIDRs in it that are left out."),
            ]),
            "Addresses.",
        ),
    ]),
    None,
);
const PORTS: Shape = List(
    &Map(&[
        field("protocol", Text, "TCP, UDP or SCTP; TCP, if it is not given."),
        field("port", IntOrText, "A number, or the name of a container port."),
        field(
            "endPort",
            Integer(1, 65535),
            "The last of a range that begins with port.",
        ),
    ]),
    None,
);

/// As of networking.k8s.io/v1.
pub(super) static STAGED_KUBERNETES_POLICY: Shape = Map(&[
    STAGED,
    field(
        "podSelector",
        LABELS,
        "Labels of the pods that the policy is about; {} for all.",
    ),
    field(
        "policyTypes",
        List(&Pattern("^(Ingress|Egress)$"), Some(2)),
        "Directions that the policy is about.",
    ),
    field(
        "ingress",
        List(
            &Map(&[
                field("from", PEERS, "Where it may come from; everywhere, if it is not given."),
                field("ports", PORTS, "Ports that it may go to; all, if they are not given."),
            ]),
            None,
        ),
        "What may come in.",
    ),
    field(
        "egress",
        List(
            &Map(&[
                field("to", PEERS, "Where it may go to; everywhere, if it is not given."),
                field("ports", PORTS, "Ports that it may go to; all, if they are not given."),
            ]),
            None,
        ),
        "What may go out.",
    ),
]);

pub(super) static TIER: Shape = Map(&[
    field(
        "order",
        Number,
        "Its place among the tiers, lower first; last, if it is not given.",
    ),
    field(
        "defaultAction",
        Pattern("^(Deny|Pass)?$"),
        "What becomes of traffic of a pod that policies of the tier select, and that none of their rules match: Deny, \
         if it is not given, or Pass.",
    ),
]);

pub(super) static NETWORK_SET: Shape = Map(&[field("nets", List(&Text, None), "CIDRs and addresses.")]);

pub(super) fn network_policy(value: &Value) -> Misfits {
    misfits(value, &NETWORK_POLICY)
}

pub(super) fn staged_network_policy(value: &Value) -> Misfits {
    misfits(value, &STAGED_NETWORK_POLICY)
}

pub(super) fn global_network_policy(value: &Value) -> Misfits {
    misfits(value, &GLOBAL_NETWORK_POLICY)
}

pub(super) fn staged_global_network_policy(value: &Value) -> Misfits {
    misfits(value, &STAGED_GLOBAL_NETWORK_POLICY)
}

pub(super) fn staged_kubernetes_policy(value: &Value) -> Misfits {
    misfits(value, &STAGED_KUBERNETES_POLICY)
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
                match fields.iter().find(|field| field.name == key) {
                    Some(field) => unknown(member, &field.shape, &path, out),
                    None if !out.contains(&path) => out.push(path),
                    None => {}
                }
            }
        }
        (List(shape, _), Value::Array(list)) => {
            for element in list {
                unknown(element, shape, &format!("{path}[]"), out);
            }
        }
        _ => {}
    }
}
