//! The naive evaluator: walks tiers, policies and rules as they are written.
//!
//! It is the reference for everything the compiler produces, and answers `weir explain`. It shares nothing with the
//! compiler but the model's types, and nothing in it is clever: it keeps the objects as they came and reads them from
//! the top for each flow.
//!
//! Points where the model leaves room, settled here:
//! - The pod's own end is the pod itself, whoever else claims its address; the other end is whoever has the address.
//! - A condition on ports holds only for TCP, UDP and SCTP, a condition on ICMP type and code only for ICMP packets of the
//!   flow's family, also the negated ones.
//! - A named port means what the owner of the address at that end declares; network sets declare none.
//! - A rule of an object that takes several rules of the model, and is passed more than once in a row, is one hit.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use weir_common::{
    Direction,
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

use super::{
    change::{Change, NetworkSet, Peer, PeerKey},
    model::{
        Action, Family, Hit, IcmpMatch, Judgement, NamedPort, PeerMatch, Policy, PolicyKey, PortMatch, Rule, Tier,
        TierDefault, TrafficMatch,
    },
    selector::{Entity, EntityKind, Field, Labels, Selector},
};

/// One flow, as it was opened, judged at one of its ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The pod whose policies are asked.
    pub endpoint: PeerKey,
    /// Ingress: the pod is the flow's destination.
    pub direction: Direction,
    pub local_addr: IpAddr,
    pub peer_addr: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// 0 for protocols without ports.
    pub source_port: u16,
    /// 0 for protocols without ports.
    pub destination_port: u16,
    /// Type and code of an ICMP or ICMPv6 packet.
    pub icmp: Option<(u8, u8)>,
}

/// All objects, as they came.
#[derive(Clone, Debug, Default)]
pub struct World {
    tiers: HashMap<Arc<str>, Tier>,
    policies: BTreeMap<PolicyKey, Arc<Policy>>,
    namespaces: HashMap<Arc<str>, Labels>,
    service_accounts: HashMap<(Arc<str>, Arc<str>), Labels>,
    peers: BTreeMap<PeerKey, Peer>,
    sets: BTreeMap<PeerKey, NetworkSet>,
}

impl World {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over one change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Tier(name, tier) => replace(&mut self.tiers, name, tier),
            Change::Policy(key, Some(policy)) => drop(self.policies.insert(key, policy)),
            Change::Policy(key, None) => drop(self.policies.remove(&key)),
            Change::Namespace(name, labels) => replace(&mut self.namespaces, name, labels),
            Change::ServiceAccount {
                namespace,
                name,
                labels,
            } => replace(&mut self.service_accounts, (namespace, name), labels),
            Change::Peer(key, Some(peer)) => drop(self.peers.insert(key, peer)),
            Change::Peer(key, None) => drop(self.peers.remove(&key)),
            Change::NetworkSet(key, Some(set)) => drop(self.sets.insert(key, set)),
            Change::NetworkSet(key, None) => drop(self.sets.remove(&key)),
            // Which pods have an interface here changes nothing about what policies say of them.
            Change::Endpoint(..) => {}
        }
    }

    /// The peer that has an address: of several that claim it the newest.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<(&PeerKey, &Peer)> {
        self.peers
            .iter()
            .filter(|(_, peer)| peer.addresses.contains(&address))
            .max_by_key(|(_, peer)| peer.claimed)
    }

    /// A peer, by its key.
    #[must_use]
    pub fn peer(&self, key: &PeerKey) -> Option<&Peer> {
        self.peers.get(key)
    }

    /// The enforced policies that select a pod in a direction, as they are walked: tiers in order, in each its policies.
    #[must_use]
    pub fn policies_of(&self, endpoint: &PeerKey, direction: Direction) -> Vec<(Tier, Vec<&Policy>)> {
        self.walk_order(endpoint, direction, false)
    }

    /// Whether any policy is staged.
    #[must_use]
    pub fn has_staged(&self) -> bool {
        self.policies.values().any(|policy| policy.staged)
    }

    /// What the policies say of a flow. A pod that nobody knows is denied everything, with no hit.
    #[must_use]
    pub fn judge(&self, flow: &Flow) -> Judgement {
        let tiers = self.walk_order(&flow.endpoint, flow.direction, false);
        self.walk(flow, &tiers)
    }

    /// The same with staged policies taking part as if they were enforced.
    #[must_use]
    pub fn judge_staged(&self, flow: &Flow) -> Judgement {
        let tiers = self.walk_order(&flow.endpoint, flow.direction, true);
        self.walk(flow, &tiers)
    }

    fn walk(&self, flow: &Flow, tiers: &[(Tier, Vec<&Policy>)]) -> Judgement {
        let mut judgement = Judgement {
            allow: false,
            log: false,
            hits: Vec::new(),
        };
        let Some(local) = self.peers.get(&flow.endpoint) else {
            return judgement;
        };
        let ends = Ends {
            flow,
            local: self.covering(flow.local_addr, Some(self.entity(&flow.endpoint, local))),
            peer: self.covering(
                flow.peer_addr,
                self.owner(flow.peer_addr).map(|(key, peer)| self.entity(key, peer)),
            ),
        };
        'tiers: for (tier, policies) in tiers {
            for policy in policies {
                for rule in rules(policy, flow.direction).unwrap_or_default() {
                    if !ends.matches(rule) {
                        continue;
                    }
                    let hit = Hit::Rule {
                        direction: flow.direction,
                        tier: tier.name.clone(),
                        policy: policy.key.clone(),
                        index: rule.index,
                        name: rule.name.clone(),
                        action: rule.action,
                    };
                    if judgement.hits.last() != Some(&hit) {
                        judgement.hits.push(hit);
                    }
                    match rule.action {
                        Action::Allow => {
                            judgement.allow = true;
                            return judgement;
                        }
                        Action::Deny => return judgement,
                        Action::Pass => continue 'tiers,
                        Action::Log => judgement.log = true,
                    }
                }
            }
            if let Some(last) = policies.last() {
                judgement.hits.push(Hit::EndOfTier {
                    direction: flow.direction,
                    tier: tier.name.clone(),
                    policy: last.key.clone(),
                    action: tier.default_action,
                });
                if tier.default_action == TierDefault::Deny {
                    return judgement;
                }
            }
        }
        judgement.hits.push(Hit::Profile);
        judgement.allow = true;
        judgement
    }

    fn walk_order(&self, endpoint: &PeerKey, direction: Direction, staged: bool) -> Vec<(Tier, Vec<&Policy>)> {
        let Some(peer) = self.peers.get(endpoint) else {
            return Vec::new();
        };
        let subject = self.entity(endpoint, peer);
        let mut tiers: BTreeMap<Arc<str>, Vec<&Policy>> = BTreeMap::new();
        for policy in self.policies.values() {
            if (staged || !policy.staged) && rules(policy, direction).is_some() && policy.subject.matches(&subject) {
                tiers.entry(policy.tier.clone()).or_default().push(policy);
            }
        }
        let mut walk: Vec<_> = tiers
            .into_iter()
            .map(|(name, mut policies)| {
                policies.sort_by(|a, b| (a.order, &a.key).cmp(&(b.order, &b.key)));
                let tier = self.tiers.get(&name).cloned();
                (tier.unwrap_or_else(|| Tier::implied(&name)), policies)
            })
            .collect();
        walk.sort_by(|(a, _), (b, _)| (a.order, &a.name).cmp(&(b.order, &b.name)));
        walk
    }

    /// Everything an address belongs to: its owner, if any, and the network sets that cover it.
    fn covering<'a>(&'a self, address: IpAddr, owner: Option<Subject<'a>>) -> End<'a> {
        let ports = owner.as_ref().map_or(&[][..], |owner| owner.ports);
        let sets = self
            .sets
            .iter()
            .filter(|(_, set)| set.nets.iter().any(|net| net.contains(&address)))
            .map(|(key, set)| self.subject(key, &set.labels, None, &[]));
        End {
            address,
            ports,
            entities: owner.into_iter().chain(sets).collect(),
        }
    }

    fn entity<'a>(&'a self, key: &'a PeerKey, peer: &'a Peer) -> Subject<'a> {
        self.subject(key, &peer.labels, peer.service_account.as_deref(), &peer.named_ports)
    }

    fn subject<'a>(
        &'a self,
        key: &'a PeerKey,
        labels: &'a Labels,
        service_account: Option<&'a str>,
        ports: &'a [NamedPort],
    ) -> Subject<'a> {
        let namespace = key.namespace.as_ref();
        let account = namespace.zip(service_account);
        Subject {
            kind: key.kind,
            namespace: namespace.map(AsRef::as_ref),
            labels,
            namespace_labels: namespace.and_then(|name| self.namespaces.get(name)),
            service_account,
            service_account_labels: account
                .and_then(|(namespace, name)| self.service_accounts.get(&(namespace.clone(), name.into()))),
            ports,
        }
    }
}

fn replace<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// What selectors are asked about.
struct Subject<'a> {
    kind: EntityKind,
    namespace: Option<&'a str>,
    labels: &'a Labels,
    namespace_labels: Option<&'a Labels>,
    service_account: Option<&'a str>,
    service_account_labels: Option<&'a Labels>,
    ports: &'a [NamedPort],
}

impl Entity for Subject<'_> {
    fn field(&self, field: &Field) -> Option<&str> {
        match field {
            Field::Label(key) => self.labels.get(key).map(String::as_str),
            Field::NamespaceLabel(key) => self.namespace_labels?.get(key).map(String::as_str),
            Field::ServiceAccountLabel(key) => self.service_account_labels?.get(key).map(String::as_str),
            Field::Namespace => self.namespace,
            Field::ServiceAccount => self.service_account,
            Field::Kind => Some(self.kind.name()),
        }
    }
}

/// One end of a flow.
struct End<'a> {
    address: IpAddr,
    ports: &'a [NamedPort],
    entities: Vec<Subject<'a>>,
}

impl End<'_> {
    fn matches(&self, wanted: &PeerMatch) -> bool {
        let any = |selector: &Selector| self.entities.iter().any(|entity| selector.matches(entity));
        let within = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&self.address));
        wanted.family.is_none_or(|family| family == family_of(self.address))
            && wanted.selector.as_ref().is_none_or(any)
            && !wanted.not_selector.as_ref().is_some_and(any)
            && wanted.nets.as_deref().is_none_or(within)
            && !within(&wanted.not_nets)
    }

    fn port_matches(&self, wanted: &[PortMatch], protocol: u8, port: u16) -> bool {
        wanted.iter().any(|one| match one {
            PortMatch::Range(range) => range.contains(&port),
            PortMatch::Named(name) => self
                .ports
                .iter()
                .any(|own| own.name == *name && own.protocol == protocol && own.port == port),
        })
    }
}

struct Ends<'a> {
    flow: &'a Flow,
    local: End<'a>,
    peer: End<'a>,
}

impl Ends<'_> {
    fn matches(&self, rule: &Rule) -> bool {
        let peers = rule.peers.as_ref();
        peers.is_none_or(|any| any.iter().any(|one| self.peer.matches(one)))
            && rule.local.as_ref().is_none_or(|one| self.local.matches(one))
            && rule.traffic.iter().any(|one| self.traffic_matches(one))
    }

    fn traffic_matches(&self, wanted: &TrafficMatch) -> bool {
        let flow = self.flow;
        let (source, destination) = match flow.direction {
            Direction::Ingress => (&self.peer, &self.local),
            Direction::Egress => (&self.local, &self.peer),
        };
        let has_ports = matches!(flow.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP);
        let ports = |end: &End<'_>, port: u16, some: Option<&[PortMatch]>, none: &[PortMatch]| {
            some.is_none_or(|some| has_ports && end.port_matches(some, flow.protocol, port))
                && (none.is_empty() || has_ports && !end.port_matches(none, flow.protocol, port))
        };
        wanted.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && wanted.not_protocol.is_none_or(|protocol| protocol != flow.protocol)
            && ports(
                destination,
                flow.destination_port,
                wanted.ports.as_deref(),
                &wanted.not_ports,
            )
            && ports(
                source,
                flow.source_port,
                wanted.source_ports.as_deref(),
                &wanted.not_source_ports,
            )
            && wanted.icmp.is_none_or(|icmp| self.icmp(icmp) == Some(true))
            && wanted.not_icmp.is_none_or(|icmp| self.icmp(icmp) == Some(false))
    }

    /// None: not an ICMP packet.
    fn icmp(&self, wanted: IcmpMatch) -> Option<bool> {
        let own = match family_of(self.flow.peer_addr) {
            Family::V4 => IPPROTO_ICMP,
            Family::V6 => IPPROTO_ICMPV6,
        };
        let (kind, code) = self.flow.icmp.filter(|_| self.flow.protocol == own)?;
        Some(kind == wanted.kind && wanted.code.is_none_or(|wanted| wanted == code))
    }
}

fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}
