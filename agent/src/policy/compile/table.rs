//! Tables: what the policies of an endpoint's direction say of every class of peers.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use weir_common::{Direction, policy::DirectionPolicy};

use super::{
    row::{self, Ends, Step},
    rows::Rows,
    trace::{HitKey, Traces},
};
use crate::{
    identity::{ClassKey, Identities},
    policy::model::{Action, Family, Hit, NamedPort, Policy, PortMatch, Rule, TierDefault},
};

/// What makes a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableKey {
    pub direction: Direction,
    pub tiers: Vec<TierKey>,
    /// The endpoint's ports of names that the rules ask of it, sorted.
    pub ports: Box<[NamedPort]>,
    /// For each rule with a condition on the endpoint's own end: whether it holds, by family.
    pub local: Box<[[bool; 2]]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TierKey {
    pub name: Arc<str>,
    pub default_action: TierDefault,
    /// Numbers of the policies' rule lists, in order.
    pub rules: Vec<u32>,
}

/// The rules of a policy in a direction.
pub fn rules_of(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// Names of ports that rules ask of the endpoint, and those that they ask of the peer.
pub fn asked_ports(rules: &[Rule], direction: Direction) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
    let names = |ports: &[PortMatch], into: &mut Vec<Arc<str>>| {
        into.extend(ports.iter().filter_map(|port| match port {
            PortMatch::Named(name) => Some(name.clone()),
            PortMatch::Range(_) => None,
        }));
    };
    let (mut source, mut destination) = (Vec::new(), Vec::new());
    for traffic in rules.iter().flat_map(|rule| &rule.traffic) {
        names(traffic.ports.as_deref().unwrap_or_default(), &mut destination);
        names(&traffic.not_ports, &mut destination);
        names(traffic.source_ports.as_deref().unwrap_or_default(), &mut source);
        names(&traffic.not_source_ports, &mut source);
    }
    for list in [&mut source, &mut destination] {
        list.sort_unstable();
        list.dedup();
    }
    match direction {
        Direction::Ingress => (destination, source),
        Direction::Egress => (source, destination),
    }
}

#[derive(Debug)]
enum Item {
    Rule {
        action: Action,
        hit: u32,
        /// Numbers of the peer matches; None: anybody.
        peers: Option<Box<[u32]>>,
        local: [bool; 2],
        policy: usize,
        rule: usize,
    },
    EndOfTier {
        action: TierDefault,
        hit: u32,
    },
}

/// Rows that were compiled for a table in one go: (rules that hold, family, the peer's ports) -> row.
pub type Memo = FxHashMap<(Box<[u32]>, Family, Arc<[NamedPort]>), u32>;

/// An immutable table (but for classes that come and go).
#[derive(Debug)]
pub struct Table {
    pub id: u32,
    pub key: Arc<TableKey>,
    policies: Arc<[Arc<Policy>]>,
    items: Arc<[Item]>,
    /// Items that hold for the world, by family.
    world: Arc<[Vec<u32>; 2]>,
    /// Items by the peer matches they ask.
    by_matcher: Arc<FxHashMap<u32, SmallVec<[u32; 2]>>>,
    /// Names of ports asked of peers.
    peer_names: Arc<[Arc<str>]>,
    profile: u32,
    pub default_row: u32,
    /// The two families' worlds have different rows.
    pub by_family: bool,
    /// Rows other than the default one, by class.
    pub rows: FxHashMap<u32, u32>,
    /// Directions of endpoints that obey it.
    pub users: usize,
}

const fn family_index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl Table {
    /// Holds the peer matches, port names and hits that it needs until [`Table::let_go`]. Without rows so far: those
    /// need classes ([`Table::compile_default`]).
    pub fn new(
        id: u32,
        key: Arc<TableKey>,
        policies: Vec<Arc<Policy>>,
        identities: &mut Identities,
        traces: &mut Traces,
    ) -> Self {
        let mut items = Vec::new();
        let mut names = Vec::new();
        let mut world = [Vec::new(), Vec::new()];
        let mut by_matcher: FxHashMap<u32, SmallVec<[u32; 2]>> = FxHashMap::default();
        let mut local = key.local.iter();
        let mut next_policy = 0;
        for tier in &key.tiers {
            for &rules in &tier.rules {
                let policy = &policies[next_policy];
                let list = rules_of(policy, key.direction).unwrap_or_default();
                names.extend(asked_ports(list, key.direction).1);
                for (number, rule) in list.iter().enumerate() {
                    let at = items.len() as u32;
                    let peers: Option<Box<[u32]>> = rule
                        .peers
                        .as_ref()
                        .map(|peers| peers.iter().map(|wanted| identities.hold(wanted)).collect());
                    let local = match &rule.local {
                        Some(_) => local.next().copied().unwrap_or_default(),
                        None => [true; 2],
                    };
                    for &matcher in peers.iter().flatten() {
                        let asking = by_matcher.entry(matcher).or_default();
                        if asking.last() != Some(&at) {
                            asking.push(at);
                        }
                    }
                    for family in [Family::V4, Family::V6] {
                        let holds = |peers: &[u32]| peers.iter().any(|&peer| identities.matches_world(peer, family));
                        if local[family_index(family)] && peers.as_deref().is_none_or(holds) {
                            world[family_index(family)].push(at);
                        }
                    }
                    let hit = traces.hold_hit(
                        HitKey::Rule {
                            rules,
                            index: rule.index,
                            action: rule.action,
                        },
                        || Hit::Rule {
                            direction: key.direction,
                            tier: tier.name.clone(),
                            policy: policy.key.clone(),
                            index: rule.index,
                            name: rule.name.clone(),
                            action: rule.action,
                        },
                    );
                    items.push(Item::Rule {
                        action: rule.action,
                        hit,
                        peers,
                        local,
                        policy: next_policy,
                        rule: number,
                    });
                }
                next_policy += 1;
            }
            let Some(&rules) = tier.rules.last() else {
                continue;
            };
            for world in &mut world {
                world.push(items.len() as u32);
            }
            let hit = traces.hold_hit(
                HitKey::EndOfTier {
                    rules,
                    tier: tier.name.clone(),
                    action: tier.default_action,
                },
                || Hit::EndOfTier {
                    direction: key.direction,
                    tier: tier.name.clone(),
                    policy: policies[next_policy - 1].key.clone(),
                    action: tier.default_action,
                },
            );
            items.push(Item::EndOfTier {
                action: tier.default_action,
                hit,
            });
        }
        names.sort_unstable();
        names.dedup();
        for name in &names {
            identities.hold_port(name);
        }
        Self {
            id,
            key,
            policies: policies.into(),
            items: items.into(),
            world: Arc::new(world),
            by_matcher: Arc::new(by_matcher),
            peer_names: names.into(),
            profile: traces.hold_hit(HitKey::Profile, || Hit::Profile),
            default_row: 0,
            by_family: false,
            rows: FxHashMap::default(),
            users: 0,
        }
    }

    /// The same under another id, with holds of its own.
    pub fn duplicate(&self, id: u32, identities: &mut Identities, traces: &mut Traces, rows: &mut Rows) -> Self {
        let policies = self.policies.to_vec();
        let mut twin = Self::new(id, self.key.clone(), policies, identities, traces);
        twin.default_row = self.default_row;
        twin.by_family = self.by_family;
        twin.rows = self.rows.clone();
        rows.hold(twin.default_row);
        twin.rows.values().for_each(|&row| rows.hold(row));
        twin
    }

    /// Gives back what it holds, but for its rows. Nothing in the kernel may know it any more.
    pub fn let_go(&self, identities: &mut Identities, traces: &mut Traces) {
        for item in &*self.items {
            match item {
                Item::Rule { hit, peers, .. } => {
                    traces.release_hit(*hit);
                    for &matcher in peers.iter().flatten() {
                        identities.release(matcher);
                    }
                }
                Item::EndOfTier { hit, .. } => traces.release_hit(*hit),
            }
        }
        for name in &*self.peer_names {
            identities.release_port(name);
        }
        traces.release_hit(self.profile);
    }

    /// Peer matches that it asks.
    pub fn matchers(&self) -> impl Iterator<Item = u32> {
        self.by_matcher.keys().copied()
    }

    pub fn asks_ports(&self) -> bool {
        !self.peer_names.is_empty()
    }

    pub fn policies(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Policy>)> {
        let tiers = self
            .key
            .tiers
            .iter()
            .flat_map(|tier| tier.rules.iter().map(move |_| &tier.name));
        tiers.zip(self.policies.iter())
    }

    /// The default row is the one of the IPv4 world.
    pub fn compile_default(&mut self, memo: &mut Memo, identities: &Identities, rows: &mut Rows, traces: &mut Traces) {
        let mut world = |family| {
            let key = ClassKey {
                family,
                signature: Box::default(),
                ports: Arc::new([]),
            };
            self.compile(&key, memo, identities, rows, traces)
        };
        let (v4, v6) = (world(Family::V4), world(Family::V6));
        rows.hold(v4);
        self.default_row = v4;
        self.by_family = v4 != v6;
    }

    /// The number of a class's row, not held.
    pub fn compile(
        &self,
        class: &ClassKey,
        memo: &mut Memo,
        identities: &Identities,
        rows: &mut Rows,
        traces: &mut Traces,
    ) -> u32 {
        let family = family_index(class.family);
        let world = &self.world[family];
        let mut asking: SmallVec<[u32; 16]> = SmallVec::new();
        for matcher in &class.signature {
            asking.extend(self.by_matcher.get(matcher).into_iter().flatten().copied());
        }
        asking.sort_unstable();
        asking.dedup();
        let mut holding: Vec<u32> = Vec::with_capacity(world.len() + asking.len());
        let mut world = world.iter().copied().peekable();
        for item in asking {
            while let Some(before) = world.next_if(|&before| before < item) {
                holding.push(before);
            }
            world.next_if_eq(&item);
            if self.holds(item, class, identities) {
                holding.push(item);
            }
        }
        holding.extend(world);
        let peer_ports = if self.asks_ports() {
            class.ports.clone()
        } else {
            Arc::new([])
        };
        let memo_key = (holding.into_boxed_slice(), class.family, peer_ports);
        if let Some(&row) = memo.get(&memo_key) {
            return row;
        }
        let ends = Ends {
            direction: self.key.direction,
            family: class.family,
            local_ports: &self.key.ports,
            peer_ports: &memo_key.2,
            profile: self.profile,
        };
        let steps: Vec<Step<'_>> = memo_key.0.iter().map(|&item| self.step(item)).collect();
        let row = rows.intern(row::compile(&steps, &ends, traces), traces);
        memo.insert(memo_key, row);
        row
    }

    fn holds(&self, item: u32, class: &ClassKey, identities: &Identities) -> bool {
        let Item::Rule { peers, local, .. } = &self.items[item as usize] else {
            return true;
        };
        let matches =
            |peer: &u32| identities.matches_world(*peer, class.family) != class.signature.binary_search(peer).is_ok();
        local[family_index(class.family)] && peers.as_deref().is_none_or(|peers| peers.iter().any(matches))
    }

    fn step(&self, item: u32) -> Step<'_> {
        match self.items[item as usize] {
            Item::Rule {
                action,
                hit,
                policy,
                rule,
                ..
            } => Step::Rule {
                action,
                hit,
                traffic: rules_of(&self.policies[policy], self.key.direction)
                    .and_then(|rules| rules.get(rule))
                    .map_or(&[][..], |rule| &rule.traffic),
            },
            Item::EndOfTier { action, hit } => Step::EndOfTier { action, hit },
        }
    }

    /// The number of the row that the kernel finds for a class.
    pub fn row_of(&self, class: u32) -> u32 {
        self.rows.get(&class).copied().unwrap_or(self.default_row)
    }

    /// The same for every peer.
    pub fn is_flat(&self) -> bool {
        self.by_matcher.is_empty() && !self.asks_ports() && !self.by_family
    }

    /// What the kernel gets of it.
    pub fn direction_policy(&self, rows: &Rows) -> DirectionPolicy {
        DirectionPolicy {
            table: if self.is_flat() { 0 } else { self.id },
            default_row: rows.row(self.default_row),
        }
    }
}
