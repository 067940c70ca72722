//! Tables: what the policies of an endpoint's direction say of every class of peers.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use weir_common::{Direction, policy::DirectionPolicy};

use super::{
    lists::{Lists, Local, family_index},
    row::{self, Ends, Step},
    rows::Rows,
    trace::{HitKey, Traces},
};
use crate::{
    identity::{ClassKey, Identities},
    policy::model::{Family, Hit, NamedPort, Policy, PolicyKey, PortMatch, Rule, TierDefault},
};

/// What makes a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableKey {
    pub direction: Direction,
    pub tiers: Vec<TierKey>,
    /// The endpoint's ports of names that the rules ask of it, sorted.
    pub ports: Box<[NamedPort]>,
    /// That of all rules, in order.
    pub local: Local,
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

/// The end of a tier's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// Lists up to here, those of earlier tiers included.
    after: u32,
    action: TierDefault,
    hit: u32,
}

/// Stands for the end of a tier where lists and their rules are named.
const END: u32 = u32::MAX;

/// Rows that were compiled for a table in one go: (rules that hold, family, the peer's ports) -> row.
pub type Memo = FxHashMap<(Box<[(u32, u32)]>, Family, Arc<[NamedPort]>), u32>;

/// What a table was made from: its rows are those of the other, but for classes that these matches tell from the world.
#[derive(Debug)]
pub struct Origin {
    pub table: u32,
    pub matchers: Vec<u32>,
}

/// A table. What it walks never changes; rows change with the classes that there are.
#[derive(Debug)]
pub struct Table {
    pub id: u32,
    /// Under which number the kernel knows it: that of the table that it took over from, or its own.
    pub number: u32,
    pub key: Arc<TableKey>,
    /// Rule lists, in order.
    pub walk: Vec<u32>,
    /// By tier.
    ends: Vec<End>,
    /// Of the lists in the walk.
    positions: FxHashMap<u32, u32>,
    /// Positions of lists that have a rule for the world.
    worldly: Vec<u32>,
    asks_matches: bool,
    asks_ports: bool,
    plain: bool,
    profile: u32,
    pub default_row: u32,
    /// The two families' worlds have different rows.
    pub by_family: bool,
    /// Rows other than the default one, by class.
    pub rows: FxHashMap<u32, u32>,
    /// Directions of endpoints that obey it.
    pub users: usize,
    /// Until it has rows.
    pub origin: Option<Origin>,
}

impl Table {
    /// Takes over lists that are held for it, by tier, and holds the hits that it needs until [`Table::let_go`]. Without
    /// rows so far: those need classes ([`Table::compile_default`]).
    pub fn new(id: u32, key: Arc<TableKey>, tiers: &[Vec<u32>], lists: &mut Lists, traces: &mut Traces) -> Self {
        let direction = key.direction;
        let mut ends = Vec::with_capacity(tiers.len());
        let mut walk = Vec::with_capacity(tiers.iter().map(Vec::len).sum());
        for (tier, own) in key.tiers.iter().zip(tiers) {
            walk.extend_from_slice(own);
            let Some(last) = own.last().map(|&last| &lists[last]) else {
                continue;
            };
            let hit = HitKey::EndOfTier {
                policy: last.number,
                direction,
                action: tier.default_action,
            };
            let hit = traces.hold_hit(hit, || Hit::EndOfTier {
                direction,
                tier: tier.name.clone(),
                policy: last.policy.key.clone(),
                action: tier.default_action,
            });
            ends.push(End {
                after: walk.len() as u32,
                action: tier.default_action,
                hit,
            });
        }
        let mut positions = FxHashMap::with_capacity_and_hasher(walk.len(), rustc_hash::FxBuildHasher);
        let mut worldly = Vec::new();
        let (mut asks_matches, mut asks_ports, mut plain) = (false, false, true);
        for (position, &list) in (0..).zip(&walk) {
            positions.insert(list, position);
            lists.join(list, id);
            let list = &lists[list];
            asks_matches |= !list.matchers.is_empty();
            asks_ports |= !list.peer_names.is_empty();
            plain &= list.plain;
            if list.worldly {
                worldly.push(position);
            }
        }
        Self {
            id,
            number: id,
            key,
            walk,
            ends,
            positions,
            worldly,
            asks_matches,
            asks_ports,
            plain,
            profile: traces.hold_hit(HitKey::Profile, || Hit::Profile),
            default_row: 0,
            by_family: false,
            rows: FxHashMap::default(),
            users: 0,
            origin: None,
        }
    }

    /// The same under another id, with holds of its own.
    pub fn duplicate(&self, id: u32, lists: &mut Lists, traces: &mut Traces, rows: &mut Rows) -> Self {
        for &list in &self.walk {
            lists.retain(list);
        }
        let mut twin = Self::new(id, self.key.clone(), &self.tiers(), lists, traces);
        twin.default_row = self.default_row;
        twin.by_family = self.by_family;
        twin.rows = self.rows.clone();
        rows.hold(twin.default_row);
        twin.rows.values().for_each(|&row| rows.hold(row));
        twin
    }

    /// Gives back what it holds, but for its rows. Nothing in the kernel may know it any more.
    pub fn let_go(&self, lists: &mut Lists, identities: &mut Identities, traces: &mut Traces) {
        for &list in &self.walk {
            lists.release(list, identities, traces);
        }
        for end in &self.ends {
            traces.release_hit(end.hit);
        }
        traces.release_hit(self.profile);
    }

    /// Its lists, by tier.
    pub fn tiers(&self) -> Vec<Vec<u32>> {
        let mut from = 0;
        let ends = self.ends.iter();
        ends.map(|end| {
            let after = end.after as usize;
            self.walk[std::mem::replace(&mut from, after)..after].to_vec()
        })
        .collect()
    }

    /// The place of a list: tier, and place in it.
    pub fn place(&self, list: u32) -> Option<(usize, usize)> {
        let position = *self.positions.get(&list)?;
        let tier = self.ends.partition_point(|end| end.after <= position);
        let first = if tier == 0 { 0 } else { self.ends[tier - 1].after };
        Some((tier, (position - first) as usize))
    }

    /// Whether what is said of the world is the same, where the tables differ in these lists.
    pub fn same_world(&self, other: &Self, differing: &[u32], lists: &Lists) -> bool {
        let ends =
            |table: &Self| -> Vec<(TierDefault, u32)> { table.ends.iter().map(|end| (end.action, end.hit)).collect() };
        ends(self) == ends(other) && !differing.iter().any(|&list| lists[list].worldly)
    }

    pub fn asks_ports(&self) -> bool {
        self.asks_ports
    }

    /// Depends on nothing of the endpoint but which policies select it.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Tier and policy of each list, in order.
    pub fn policies<'a>(&'a self, lists: &'a Lists) -> impl Iterator<Item = (&'a Arc<str>, &'a PolicyKey)> {
        let tiers = self
            .key
            .tiers
            .iter()
            .flat_map(|tier| tier.rules.iter().map(move |_| &tier.name));
        tiers.zip(self.walk.iter().map(|&list| &lists[list].policy.key))
    }

    /// The default row is the one of the IPv4 world.
    pub fn compile_default(
        &mut self,
        memo: &mut Memo,
        lists: &Lists,
        identities: &Identities,
        rows: &mut Rows,
        traces: &mut Traces,
    ) {
        let mut world = |family| {
            let key = ClassKey {
                family,
                signature: Box::default(),
                ports: Arc::new([]),
            };
            self.compile(&key, memo, lists, identities, rows, traces)
        };
        let (v4, v6) = (world(Family::V4), world(Family::V6));
        rows.hold(v4);
        self.default_row = v4;
        self.by_family = v4 != v6;
    }

    /// Positions of lists that ask some match of a class's signature, in order.
    fn asked(&self, class: &ClassKey, lists: &Lists) -> SmallVec<[u32; 16]> {
        let mut asked: SmallVec<[u32; 16]> = SmallVec::new();
        for matcher in &class.signature {
            let asking = lists.asking(*matcher);
            if asking.len() <= self.walk.len() {
                asked.extend(asking.iter().filter_map(|list| self.positions.get(list)).copied());
            } else {
                let own = (0..).zip(&self.walk);
                let own = own.filter(|&(_, &list)| lists[list].matchers.binary_search(matcher).is_ok());
                asked.extend(own.map(|(position, _)| position));
            }
        }
        asked.sort_unstable();
        asked.dedup();
        asked
    }

    /// The rules that hold for a class, as (list, item), with the ends of tiers between them.
    fn holding(&self, class: &ClassKey, lists: &Lists, identities: &Identities) -> Box<[(u32, u32)]> {
        let family = family_index(class.family);
        let mut asked = self.asked(class, lists).into_iter().peekable();
        let mut worldly = self.worldly.iter().copied().peekable();
        let mut holding = Vec::new();
        for (tier, end) in (0..).zip(&self.ends) {
            loop {
                let next = [asked.peek(), worldly.peek()].into_iter().flatten().min().copied();
                let Some(position) = next.filter(|&position| position < end.after) else {
                    break;
                };
                let is_asked = asked.next_if_eq(&position).is_some();
                worldly.next_if_eq(&position);
                let list = self.walk[position as usize];
                let items = (0..).zip(&lists[list].items);
                let items = items.filter(|(_, item)| {
                    if is_asked {
                        item.holds(class, identities)
                    } else {
                        item.world[family]
                    }
                });
                holding.extend(items.map(|(item, _)| (list, item)));
            }
            holding.push((END, tier));
        }
        holding.into()
    }

    /// The number of a class's row, not held.
    pub fn compile(
        &self,
        class: &ClassKey,
        memo: &mut Memo,
        lists: &Lists,
        identities: &Identities,
        rows: &mut Rows,
        traces: &mut Traces,
    ) -> u32 {
        let peer_ports = if self.asks_ports {
            class.ports.clone()
        } else {
            Arc::new([])
        };
        let memo_key = (self.holding(class, lists, identities), class.family, peer_ports);
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
        let step = |&(list, item): &(u32, u32)| {
            if list == END {
                let End { action, hit, .. } = self.ends[item as usize];
                return Step::EndOfTier { action, hit };
            }
            let list = &lists[list];
            let known = &list.items[item as usize];
            Step::Rule {
                action: known.action,
                hit: known.hit,
                traffic: list.traffic(item),
            }
        };
        let steps: Vec<Step<'_>> = memo_key.0.iter().map(step).collect();
        let row = rows.intern(row::compile(&steps, &ends, traces), traces);
        memo.insert(memo_key, row);
        row
    }

    /// The number of the row that the kernel finds for a class.
    pub fn row_of(&self, class: u32) -> u32 {
        self.rows.get(&class).copied().unwrap_or(self.default_row)
    }

    /// The same for every peer.
    pub fn is_flat(&self) -> bool {
        !self.asks_matches && !self.asks_ports && !self.by_family
    }

    /// What the kernel gets of it.
    pub fn direction_policy(&self, rows: &Rows) -> DirectionPolicy {
        DirectionPolicy {
            table: if self.is_flat() { 0 } else { self.number },
            default_row: rows.row(self.default_row),
        }
    }
}
