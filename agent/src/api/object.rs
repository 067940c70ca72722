//! What the rest of the agent sees of an object.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::policy::{
    model::{NamedPort, Policy, PolicyKind},
    selector::Labels,
};

/// The kinds that Weir reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    Node,
    Namespace,
    Pod,
    ServiceAccount,
    Policy(PolicyKind),
}

impl ObjectKind {
    /// The kind as its manifest says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::ServiceAccount => "ServiceAccount",
            Self::Policy(PolicyKind::KubernetesNetworkPolicy) => "NetworkPolicy",
            Self::Policy(PolicyKind::NetworkPolicy) => "Calico NetworkPolicy",
            Self::Policy(kind) => kind.name(),
        }
    }
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    pub kind: ObjectKind,
    /// None for cluster-wide kinds.
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
            None => write!(f, "{} {}", self.kind.name(), self.name),
        }
    }
}

/// One object, as far as Weir looks at it. Two versions that differ only elsewhere are equal: no work.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Node(Arc<Node>),
    Namespace(Arc<Namespace>),
    Pod(Arc<Pod>),
    ServiceAccount(Arc<ServiceAccount>),
    Policy(Arc<Policy>),
}

impl Object {
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let (kind, namespace, name) = match self {
            Self::Node(node) => (ObjectKind::Node, None, &node.name),
            Self::Namespace(namespace) => (ObjectKind::Namespace, None, &namespace.name),
            Self::Pod(pod) => (ObjectKind::Pod, Some(pod.namespace.clone()), &pod.name),
            Self::ServiceAccount(account) => (
                ObjectKind::ServiceAccount,
                Some(account.namespace.clone()),
                &account.name,
            ),
            Self::Policy(policy) => (
                ObjectKind::Policy(policy.key.kind),
                policy.key.namespace.clone(),
                &policy.key.name,
            ),
        };
        ObjectKey {
            kind,
            namespace,
            name: name.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    pub labels: Labels,
    /// status.addresses of type InternalIP and ExternalIP.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: Arc<str>,
    /// With `kubernetes.io/metadata.name`, which the API server always sets.
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: Labels,
}

/// status.phase
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl PodPhase {
    /// All containers have ended and will not start again: the addresses may be given to other pods.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: Labels,
    pub node_name: Option<Arc<str>>,
    pub host_network: bool,
    /// `default` if the pod names none.
    pub service_account: Arc<str>,
    /// Of containers and init containers. Sorted.
    pub named_ports: Arc<[NamedPort]>,
    /// status.podIPs, else status.podIP. Sorted.
    pub addresses: Vec<IpAddr>,
    pub phase: PodPhase,
    /// metadata.creationTimestamp, seconds since 1970.
    pub created: Option<i64>,
    /// Annotation `cni.projectcalico.org/allowedSourcePrefixes`: what the pod may send from besides its addresses.
    pub allowed_sources: Vec<IpNet>,
    pub workload: Option<Workload>,
}

/// What made the pod: its controlling owner; for a Deployment's ReplicaSet, the Deployment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    pub kind: Arc<str>,
    pub name: Arc<str>,
}
