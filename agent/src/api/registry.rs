//! Which kinds are understood, and by which parser.

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use serde_json::Value;

use super::{
    at::At,
    calico, core, network_policy,
    object::ObjectKind,
    parse::{Context, Outcome},
    schema::{Misfits, misfits},
    service,
};
use crate::policy::model::PolicyKind;

/// One kind of object.
pub(super) struct Kind {
    pub(super) group: &'static str,
    /// Versions whose objects the parser understands.
    pub(super) versions: &'static [&'static str],
    pub(super) kind: &'static str,
    /// The resource's name in the paths of the API.
    pub(super) plural: &'static str,
    pub(super) object: ObjectKind,
    pub(super) namespaced: bool,
    /// The name by which the object is known, given its text and the name in its metadata.
    pub(super) name: fn(&At<'_>, &str) -> String,
    /// Makes the object, given its identity.
    pub(super) parse: fn(&mut Context<'_>) -> Outcome,
    pub(super) schema: fn(&Value) -> Misfits,
}

static KINDS: &[Kind] = &[
    Kind {
        group: "",
        versions: &["v1"],
        kind: "Node",
        plural: "nodes",
        object: ObjectKind::Node,
        namespaced: false,
        name: as_written,
        parse: core::node,
        schema: misfits::<Node>,
    },
    Kind {
        group: "",
        versions: &["v1"],
        kind: "Namespace",
        plural: "namespaces",
        object: ObjectKind::Namespace,
        namespaced: false,
        name: as_written,
        parse: core::namespace,
        schema: misfits::<Namespace>,
    },
    Kind {
        group: "",
        versions: &["v1"],
        kind: "Pod",
        plural: "pods",
        object: ObjectKind::Pod,
        namespaced: true,
        name: as_written,
        parse: core::pod,
        schema: misfits::<Pod>,
    },
    Kind {
        group: "",
        versions: &["v1"],
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        object: ObjectKind::ServiceAccount,
        namespaced: true,
        name: as_written,
        parse: core::service_account,
        schema: misfits::<ServiceAccount>,
    },
    Kind {
        group: "",
        versions: &["v1"],
        kind: "Service",
        plural: "services",
        object: ObjectKind::Service,
        namespaced: true,
        name: as_written,
        parse: service::service,
        schema: misfits::<Service>,
    },
    Kind {
        group: "discovery.k8s.io",
        versions: &["v1"],
        kind: "EndpointSlice",
        plural: "endpointslices",
        object: ObjectKind::EndpointSlice,
        namespaced: true,
        name: as_written,
        parse: service::endpoint_slice,
        schema: misfits::<EndpointSlice>,
    },
    Kind {
        group: "networking.k8s.io",
        versions: &["v1"],
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        object: ObjectKind::Policy(PolicyKind::KubernetesNetworkPolicy),
        namespaced: true,
        name: as_written,
        parse: network_policy::parse,
        schema: misfits::<NetworkPolicy>,
    },
];

/// A kind as the Kubernetes API serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiKind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// Its name in paths, as in `/apis/networking.k8s.io/v1/networkpolicies`.
    pub plural: &'static str,
    pub object: ObjectKind,
    pub namespaced: bool,
}

/// Every kind that is understood, in every group that may serve it.
pub fn api_kinds() -> impl Iterator<Item = ApiKind> {
    all().map(|kind| ApiKind {
        group: kind.group,
        version: kind.versions.first().copied().unwrap_or_default(),
        kind: kind.kind,
        plural: kind.plural,
        object: kind.object,
        namespaced: kind.namespaced,
    })
}

/// Group and version of an apiVersion (`v1` is version v1 of the group without a name).
pub(super) fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

pub(super) fn find(group: &str, kind: &str) -> Option<&'static Kind> {
    all().find(|known| known.group == group && known.kind == kind)
}

fn all() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().chain(&calico::SERVED).chain(&calico::STORED)
}

/// Most objects are known by the name in their metadata.
pub(super) fn as_written(_: &At<'_>, name: &str) -> String {
    name.to_owned()
}

/// The kind that the author may have meant: the same word in another case or group.
pub(super) fn similar(kind: &str) -> Option<&'static Kind> {
    all().find(|known| known.kind.eq_ignore_ascii_case(kind))
}

impl Kind {
    /// As in `networking.k8s.io/v1`.
    pub(super) fn api_version(&self) -> String {
        let version = self.versions.first().copied().unwrap_or_default();
        if self.group.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.group)
        }
    }
}
