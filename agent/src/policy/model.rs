//! One shape for every policy language: tiers of policies of rules.
//!
//! Kubernetes NetworkPolicies become Allow rules in tier `default` at order 1000; Calico's own objects map one to
//! one; ClusterNetworkPolicies become the tiers `kube-admin` and `kube-baseline`.
//!
//! How a packet is judged, for the pod at its end and one direction: tiers by (order, name). A tier takes part if a
//! policy in it that is not staged selects the pod for this direction. In it policies by (order, name/namespace/kind),
//! their rules top-down, first match: Allow and Deny end the walk, Pass goes on with the next tier, Log goes on with the
//! next rule. End of a tier that took part: its default action (Deny ends, Pass goes on). After the last tier: the
//! pod's profile, which allows.

use std::{cmp::Ordering, fmt, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;
use weir_common::Direction;

use super::selector::Selector;

/// Sort position of a tier or policy: ascending, absent last. Total (NaN never gets here).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Order(pub f64);

impl Order {
    pub const LAST: Self = Self(f64::INFINITY);
}

impl Eq for Order {}
impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What happens to a packet that no rule of a tier decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TierDefault {
    Deny,
    Pass,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    pub name: Arc<str>,
    pub order: Order,
    pub default_action: TierDefault,
}

impl Tier {
    /// Where Kubernetes NetworkPolicies live.
    pub const DEFAULT: &'static str = "default";

    /// A tier that is always there, also without an object: `default` (1,000,000, Deny), `kube-admin` (1,000, Pass),
    /// `kube-baseline` (10,000,000, Pass). Any other name without an object: last, Deny (as Calico does).
    #[must_use]
    pub fn implied(name: &str) -> Self {
        let (order, default_action) = match name {
            "kube-admin" => (Order(1_000.0), TierDefault::Pass),
            Self::DEFAULT => (Order(1_000_000.0), TierDefault::Deny),
            "kube-baseline" => (Order(10_000_000.0), TierDefault::Pass),
            _ => (Order::LAST, TierDefault::Deny),
        };
        Self {
            name: name.into(),
            order,
            default_action,
        }
    }
}

/// Which object a policy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    KubernetesNetworkPolicy,
    ClusterNetworkPolicy,
    NetworkPolicy,
    GlobalNetworkPolicy,
    StagedNetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
}

impl PolicyKind {
    /// In the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::KubernetesNetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::NetworkPolicy,
        Self::GlobalNetworkPolicy,
        Self::StagedNetworkPolicy,
        Self::StagedGlobalNetworkPolicy,
        Self::StagedKubernetesNetworkPolicy,
    ];

    /// Kind as shown to people and as part of the tie-break between policies of one order.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
        }
    }
}

/// Identifies a policy. Ordered as Calico breaks ties: by the text `name/namespace/kind`, so that `web-allow` comes before
/// `web`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicyKey {
    pub kind: PolicyKind,
    /// None for cluster-wide kinds.
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

impl PolicyKey {
    /// The text that breaks ties, but for so many bytes of the name.
    fn tie_break(&self, skip: usize) -> impl Iterator<Item = u8> + '_ {
        let namespace = self.namespace.as_deref().unwrap_or("");
        let rest = [
            &self.name.as_bytes()[skip..],
            namespace.as_bytes(),
            self.kind.name().as_bytes(),
        ];
        // After each part, also the last: that makes no difference.
        rest.into_iter().flat_map(|part| part.iter().copied().chain([b'/']))
    }
}

impl PartialOrd for PolicyKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for PolicyKey {
    fn cmp(&self, other: &Self) -> Ordering {
        let (ours, theirs) = (self.name.as_bytes(), other.name.as_bytes());
        let common = ours.len().min(theirs.len());
        ours[..common]
            .cmp(&theirs[..common])
            .then_with(|| self.tie_break(common).cmp(other.tie_break(common)))
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
            None => write!(f, "{} {}", self.kind.name(), self.name),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub key: PolicyKey,
    pub tier: Arc<str>,
    pub order: Order,
    /// The pods (later also host endpoints) it applies to. Namespace limits are part of the expression.
    pub subject: Selector,
    /// None: the policy says nothing about this direction. Empty: it applies and no rule matches.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
    /// Evaluated for reports, never enforced.
    pub staged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
    Pass,
    Log,
}

/// One rule. Matches a packet if its peer, its own end and its traffic all match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    pub action: Action,
    /// Position in the object's list of this direction. Several rules of the model may share it, where the object's
    /// language says in one rule what takes several here.
    pub index: u32,
    /// The rule's name, where its language has names.
    pub name: Option<Arc<str>>,
    /// The other end of the flow. None: anybody. Else one of these (an empty list matches nobody).
    pub peers: Option<Vec<PeerMatch>>,
    /// The pod's own end (Calico: destination fields in ingress rules, source fields in egress rules).
    pub local: Option<PeerMatch>,
    /// One of these. Empty matches nothing; [`TrafficMatch::ANY`] matches everything.
    pub traffic: Vec<TrafficMatch>,
}

/// Address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// Conditions on one end of a flow; all of those present must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerMatch {
    pub family: Option<Family>,
    /// The address belongs to an entity (pod, network set, …) that matches. An address of nobody never does.
    pub selector: Option<Selector>,
    /// The address belongs to no entity that matches. An address of nobody always does.
    pub not_selector: Option<Selector>,
    /// The address is in one of these; None: no condition. (Some and empty matches nothing.)
    pub nets: Option<Vec<IpNet>>,
    /// The address is in none of these.
    pub not_nets: Vec<IpNet>,
}

/// Conditions on protocol and ports; all of those present must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficMatch {
    pub protocol: Option<u8>,
    pub not_protocol: Option<u8>,
    /// Ports at the flow's destination: one of these; None: no condition.
    pub ports: Option<Vec<PortMatch>>,
    pub not_ports: Vec<PortMatch>,
    pub source_ports: Option<Vec<PortMatch>>,
    pub not_source_ports: Vec<PortMatch>,
    pub icmp: Option<IcmpMatch>,
    pub not_icmp: Option<IcmpMatch>,
}

impl TrafficMatch {
    pub const ANY: Self = Self {
        protocol: None,
        not_protocol: None,
        ports: None,
        not_ports: Vec::new(),
        source_ports: None,
        not_source_ports: Vec::new(),
        icmp: None,
        not_icmp: None,
    };
}

/// A port condition matches only TCP, UDP and SCTP packets: other protocols have no ports, so a rule with `ports`
/// (or `not_ports`) never matches them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMatch {
    Range(RangeInclusive<u16>),
    /// A port that the pod at that end declares under this name, with the protocol it declares for it.
    Named(Arc<str>),
}

/// ICMP or ICMPv6 (as the packet's family has it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IcmpMatch {
    pub kind: u8,
    pub code: Option<u8>,
}

/// A port that a pod declares.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    pub name: Arc<str>,
    pub protocol: u8,
    pub port: u16,
}

/// What decided, as explain, flow records and hit counters name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hit {
    /// A rule matched; `action` is its own.
    Rule {
        /// In which list of the policy the rule is.
        direction: Direction,
        tier: Arc<str>,
        policy: PolicyKey,
        index: u32,
        name: Option<Arc<str>>,
        action: Action,
    },
    /// No rule of the tier matched. `policy` is the last policy of the tier that applied.
    EndOfTier {
        direction: Direction,
        tier: Arc<str>,
        policy: PolicyKey,
        action: TierDefault,
    },
    /// No tier decided: the profile of the pod's namespace allows.
    Profile,
}

/// The verdict of one direction of a flow: all rules that the walk passed, the last one decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Judgement {
    pub allow: bool,
    /// A Log rule was passed.
    pub log: bool,
    pub hits: Vec<Hit>,
}
