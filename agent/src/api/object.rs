//! What the rest of the agent sees of an object.

use std::{fmt, net::IpAddr, num::NonZeroU128, sync::Arc};

use ipnet::IpNet;
use smallvec::SmallVec;

use weir_common::Direction;

use crate::policy::{
    model::{NamedPort, Policy, PolicyKind, Rule, Tier},
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
    Tier,
    NetworkSet,
    GlobalNetworkSet,
    Service,
    EndpointSlice,
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
            Self::Tier => "Tier",
            Self::NetworkSet => "NetworkSet",
            Self::GlobalNetworkSet => "GlobalNetworkSet",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
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
    /// A policy of which some rules depend on Services.
    ServicePolicy(Arc<ServicePolicy>),
    Tier(Arc<Tier>),
    NetworkSet(Arc<NetworkSet>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
}

impl Object {
    /// Namespace (empty for cluster-wide kinds) and name.
    #[must_use]
    pub fn name(&self) -> (&str, &str) {
        match self {
            Self::Node(node) => ("", &node.name),
            Self::Namespace(namespace) => ("", &namespace.name),
            Self::Pod(pod) => (&pod.namespace, &pod.name),
            Self::ServiceAccount(account) => (&account.namespace, &account.name),
            Self::Policy(policy) => policy_name(policy),
            Self::ServicePolicy(object) => policy_name(&object.policy),
            Self::Tier(tier) => ("", &tier.name),
            Self::NetworkSet(set) => (set.namespace.as_deref().unwrap_or_default(), &set.name),
            Self::Service(service) => (&service.namespace, &service.name),
            Self::EndpointSlice(slice) => (&slice.namespace, &slice.name),
        }
    }

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
            Self::Policy(policy) => policy_key(policy),
            Self::ServicePolicy(object) => policy_key(&object.policy),
            Self::Tier(tier) => (ObjectKind::Tier, None, &tier.name),
            Self::NetworkSet(set) => {
                let kind = match set.namespace {
                    Some(_) => ObjectKind::NetworkSet,
                    None => ObjectKind::GlobalNetworkSet,
                };
                (kind, set.namespace.clone(), &set.name)
            }
            Self::Service(service) => (ObjectKind::Service, Some(service.namespace.clone()), &service.name),
            Self::EndpointSlice(slice) => (ObjectKind::EndpointSlice, Some(slice.namespace.clone()), &slice.name),
        };
        ObjectKey {
            kind,
            namespace,
            name: name.clone(),
        }
    }
}

fn policy_name(policy: &Policy) -> (&str, &str) {
    let key = &policy.key;
    (key.namespace.as_deref().unwrap_or_default(), &key.name)
}

fn policy_key(policy: &Policy) -> (ObjectKind, Option<Arc<str>>, &Arc<str>) {
    let key = &policy.key;
    (ObjectKind::Policy(key.kind), key.namespace.clone(), &key.name)
}

/// A policy with rules whose peers are the endpoints of Services.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePolicy {
    /// The policy as it is while none of the Services is known: those rules match nothing.
    pub policy: Policy,
    pub services: Vec<ServiceRule>,
}

/// A rule whose peers are the endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRule {
    pub direction: Direction,
    /// Its place in the policy's list of that direction.
    pub position: usize,
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// The Service's name.
    pub name: Arc<str>,
    /// Everything else that it asks for. Ingress: the source is one of the endpoints' addresses. Egress: the
    /// destination is one of them, and the port one of theirs.
    pub rule: Rule,
}

/// Named CIDRs with labels: Calico's NetworkSet, or GlobalNetworkSet (without a namespace).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSet {
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    pub labels: Labels,
    /// Sorted; without host bits.
    pub nets: Vec<IpNet>,
}

/// A port of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportPort {
    pub protocol: u8,
    pub port: u16,
}

/// What traffic to a Service is addressed to before it is translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// spec.clusterIPs, spec.externalIPs and status.loadBalancer. Sorted.
    pub addresses: Vec<IpAddr>,
    /// Sorted.
    pub ports: Vec<TransportPort>,
}

/// Endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// Of all endpoints, ready or not. Sorted.
    pub addresses: Vec<IpAddr>,
    /// Those that have a number. Sorted.
    pub ports: Vec<TransportPort>,
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

/// A pod. There may be tens of thousands: what they have in common is shared.
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
    pub addresses: SmallVec<[IpAddr; 1]>,
    pub phase: PodPhase,
    /// metadata.creationTimestamp, seconds since 1970.
    pub created: Option<i64>,
    /// The uid under which container runtimes know the pod.
    pub uid: Option<PodUid>,
    /// Annotation `cni.projectcalico.org/allowedSourcePrefixes`: what the pod may send from besides its addresses.
    pub allowed_sources: Box<[IpNet]>,
    /// Shared by all that it made.
    pub workload: Option<Arc<Workload>>,
}

/// A pod's uid: which pod of one name is meant. Of a pod whose uid is none of the usual form it is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodUid(NonZeroU128);

impl PodUid {
    /// Reads 32 hexadecimal digits, with or without dashes: a UUID, or the hash of a static pod's manifest.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut number: u128 = 0;
        let mut digits = 0;
        for character in text.chars().filter(|character| *character != '-') {
            number = number.checked_shl(4)? | u128::from(character.to_digit(16)?);
            digits += 1;
        }
        NonZeroU128::new(number).filter(|_| digits == 32).map(Self)
    }
}

/// What made the pod: its controlling owner; for a Deployment's ReplicaSet, the Deployment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    pub kind: Arc<str>,
    pub name: Arc<str>,
}
