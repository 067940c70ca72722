//! Calico's objects, of crd.projectcalico.org/v1 and projectcalico.org/v3 (two sights of the same objects).
//!
//! Meaning: <https://docs.tigera.io/calico/latest/reference/resources/globalnetworkpolicy>; validity as in Calico's API
//! server, which objects of the crd group bypass. What is refused there is an error here too. A rule that is not
//! understood fails closed: if it allows (or logs) it matches nothing, else it denies everything in its direction.
//!
//! | file | what |
//! |---|---|
//! | `selector` | the selector language |
//! | `value` | numbers, ports, protocols, networks |
//! | `entity` | one end of a rule |
//! | `rule` | rules |
//! | `policy` | NetworkPolicy, GlobalNetworkPolicy, and the staged kinds |
//! | `tier`, `sets` | Tier; NetworkSet and GlobalNetworkSet |
//! | `name` | what a policy is called |
//! | `schema` | the fields that there are |
//! | `crd` | definitions of the kinds for an API server |

pub mod crd;
mod entity;
mod name;
mod policy;
mod rule;
mod schema;
pub mod selector;
mod sets;
#[cfg(test)]
mod tests;
mod tier;
mod value;

pub(super) use self::name::METADATA;
use super::{
    object::ObjectKind,
    registry::{Kind, as_written},
};
use crate::policy::model::PolicyKind;

/// What both groups have in common.
const KINDS: [Kind; 8] = [
    Kind {
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        object: ObjectKind::Policy(PolicyKind::NetworkPolicy),
        parse: |cx| policy::parse(cx, PolicyKind::NetworkPolicy),
        ..POLICY
    },
    Kind {
        kind: "GlobalNetworkPolicy",
        plural: "globalnetworkpolicies",
        object: ObjectKind::Policy(PolicyKind::GlobalNetworkPolicy),
        namespaced: false,
        parse: |cx| policy::parse(cx, PolicyKind::GlobalNetworkPolicy),
        schema: schema::global_network_policy,
        ..POLICY
    },
    Kind {
        kind: "StagedNetworkPolicy",
        plural: "stagednetworkpolicies",
        object: ObjectKind::Policy(PolicyKind::StagedNetworkPolicy),
        parse: |cx| policy::parse(cx, PolicyKind::StagedNetworkPolicy),
        schema: schema::staged_network_policy,
        ..POLICY
    },
    Kind {
        kind: "StagedGlobalNetworkPolicy",
        plural: "stagedglobalnetworkpolicies",
        object: ObjectKind::Policy(PolicyKind::StagedGlobalNetworkPolicy),
        namespaced: false,
        parse: |cx| policy::parse(cx, PolicyKind::StagedGlobalNetworkPolicy),
        schema: schema::staged_global_network_policy,
        ..POLICY
    },
    Kind {
        kind: "StagedKubernetesNetworkPolicy",
        plural: "stagedkubernetesnetworkpolicies",
        object: ObjectKind::Policy(PolicyKind::StagedKubernetesNetworkPolicy),
        parse: policy::staged_kubernetes,
        schema: schema::staged_kubernetes_policy,
        ..POLICY
    },
    Kind {
        kind: "Tier",
        plural: "tiers",
        object: ObjectKind::Tier,
        namespaced: false,
        name: as_written,
        parse: tier::parse,
        schema: schema::tier,
        ..POLICY
    },
    Kind {
        kind: "NetworkSet",
        plural: "networksets",
        object: ObjectKind::NetworkSet,
        name: as_written,
        parse: sets::namespaced,
        schema: schema::network_set,
        ..POLICY
    },
    Kind {
        kind: "GlobalNetworkSet",
        plural: "globalnetworksets",
        object: ObjectKind::GlobalNetworkSet,
        namespaced: false,
        name: as_written,
        parse: sets::global,
        schema: schema::network_set,
        ..POLICY
    },
];

const POLICY: Kind = Kind {
    group: "projectcalico.org",
    versions: &["v3"],
    kind: "",
    plural: "",
    object: ObjectKind::Policy(PolicyKind::NetworkPolicy),
    namespaced: true,
    name: name::of_policy,
    parse: |_| super::parse::Outcome::Ignored,
    schema: schema::network_policy,
};

/// The kinds as Calico's API server shows them.
pub(super) static SERVED: [Kind; 8] = KINDS;

/// The kinds as they are stored.
pub(super) static STORED: [Kind; 8] = {
    let mut kinds = KINDS;
    let mut n = 0;
    while n < kinds.len() {
        kinds[n].group = "crd.projectcalico.org";
        kinds[n].versions = &["v1"];
        n += 1;
    }
    kinds
};
