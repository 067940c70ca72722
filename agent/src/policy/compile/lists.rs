//! Rule lists: a policy's rules of one direction, made ready to be walked for any peer. Shared by all tables that walk
//! them.

use std::{ops::Index, sync::Arc};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use weir_common::Direction;

use super::{
    store::Listed,
    table::{asked_ports, rules_of},
    trace::{HitKey, Traces},
};
use crate::{
    identity::{ClassKey, Identities, slab::Slab},
    policy::model::{Action, Family, Hit, Policy, TrafficMatch},
};

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub const fn family_index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// For each rule with a condition on the endpoint's own end whether it holds, by family.
pub type Local = Box<[[bool; 2]]>;

/// A rule.
#[derive(Debug)]
pub struct Item {
    pub action: Action,
    pub hit: u32,
    /// Numbers of the peer matches; None: anybody.
    peers: Option<Box<[u32]>>,
    /// Whether the condition on the endpoint's own end holds, by family.
    local: [bool; 2],
    /// Whether it holds for addresses of nobody outside of all CIDRs, by family.
    pub world: [bool; 2],
}

impl Item {
    /// Whether it holds for a class of peers.
    pub fn holds(&self, class: &ClassKey, identities: &Identities) -> bool {
        let matches =
            |peer: &u32| identities.matches_world(*peer, class.family) != class.signature.binary_search(peer).is_ok();
        self.local[family_index(class.family)] && self.peers.as_deref().is_none_or(|peers| peers.iter().any(matches))
    }
}

#[derive(Debug)]
pub struct List {
    /// Of the rule list and of its policy, as the store numbers them.
    pub rules: u32,
    pub number: u32,
    pub policy: Arc<Policy>,
    direction: Direction,
    local: Local,
    pub items: Box<[Item]>,
    /// Peer matches that it asks, sorted.
    pub matchers: Box<[u32]>,
    /// Names of ports that it asks of peers.
    pub peer_names: Box<[Arc<str>]>,
    /// Some rule holds for the world of a family.
    pub worldly: bool,
    /// It asks nothing of the endpoint itself.
    pub plain: bool,
    references: usize,
    /// Tables in use that walk it.
    pub tables: Vec<u32>,
}

impl List {
    pub fn traffic(&self, item: u32) -> &[TrafficMatch] {
        let rules = rules_of(&self.policy, self.direction);
        let rule = rules.and_then(|rules| rules.get(item as usize));
        rule.map_or(&[][..], |rule| &rule.traffic)
    }
}

/// Rule lists by number, and by the peer matches they ask.
#[derive(Debug, Default)]
pub struct Lists {
    lists: Slab<List>,
    ids: FxHashMap<(u32, Local), u32>,
    by_matcher: FxHashMap<u32, SmallVec<[u32; 2]>>,
}

impl Index<u32> for Lists {
    type Output = List;

    fn index(&self, id: u32) -> &List {
        &self.lists[id]
    }
}

impl Lists {
    /// The list of these rules, if it is known.
    pub fn find(&self, rules: u32, local: Local) -> Option<u32> {
        self.ids.get(&(rules, local)).copied()
    }

    /// Lists that ask a peer match.
    pub fn asking(&self, matcher: u32) -> &[u32] {
        self.by_matcher.get(&matcher).map_or(&[], SmallVec::as_slice)
    }

    /// The list of these rules, which stays until as many [`Lists::release`]. It holds the peer matches, port names and
    /// hits that it needs.
    pub fn hold(
        &mut self,
        listed: &Listed,
        direction: Direction,
        local: Local,
        identities: &mut Identities,
        traces: &mut Traces,
    ) -> u32 {
        if let Some(id) = self.find(listed.rules, local.clone()) {
            self.retain(id);
            return id;
        }
        let policy = &listed.policy;
        let rules = rules_of(policy, direction).unwrap_or_default();
        let mut conditions = local.iter();
        let mut items = Vec::with_capacity(rules.len());
        let mut matchers = Vec::new();
        for rule in rules {
            let peers: Option<Box<[u32]>> = rule
                .peers
                .as_ref()
                .map(|peers| peers.iter().map(|wanted| identities.hold(wanted)).collect());
            matchers.extend(peers.iter().flatten().copied());
            let local = match &rule.local {
                Some(_) => conditions.next().copied().unwrap_or_default(),
                None => [true; 2],
            };
            let world = FAMILIES.map(|family| {
                let holds = |peers: &[u32]| peers.iter().any(|&peer| identities.matches_world(peer, family));
                local[family_index(family)] && peers.as_deref().is_none_or(holds)
            });
            let hit = traces.hold_hit(
                HitKey::Rule {
                    policy: listed.number,
                    direction,
                    index: rule.index,
                    action: rule.action,
                },
                || Hit::Rule {
                    direction,
                    tier: policy.tier.clone(),
                    policy: policy.key.clone(),
                    index: rule.index,
                    name: rule.name.clone(),
                    action: rule.action,
                },
            );
            items.push(Item {
                action: rule.action,
                hit,
                peers,
                local,
                world,
            });
        }
        matchers.sort_unstable();
        matchers.dedup();
        let (own_names, peer_names) = asked_ports(rules, direction);
        let peer_names: Box<[Arc<str>]> = peer_names.into();
        for name in &peer_names {
            identities.hold_port(name);
        }
        let id = self.lists.insert(List {
            rules: listed.rules,
            number: listed.number,
            policy: policy.clone(),
            direction,
            local: local.clone(),
            worldly: items.iter().any(|item| item.world != [false; 2]),
            plain: own_names.is_empty() && local.is_empty(),
            items: items.into(),
            matchers: matchers.into(),
            peer_names,
            references: 1,
            tables: Vec::new(),
        });
        for &matcher in &self.lists[id].matchers {
            self.by_matcher.entry(matcher).or_default().push(id);
        }
        self.ids.insert((listed.rules, local), id);
        id
    }

    /// Holds a list once more.
    pub fn retain(&mut self, id: u32) {
        self.lists[id].references += 1;
    }

    /// Gives a list back. When it is the last time, no table in the kernel may depend on it any more.
    pub fn release(&mut self, id: u32, identities: &mut Identities, traces: &mut Traces) {
        let list = &mut self.lists[id];
        list.references -= 1;
        if list.references > 0 {
            return;
        }
        let Some(list) = self.lists.remove(id) else {
            return;
        };
        self.ids.remove(&(list.rules, list.local));
        for matcher in &list.matchers {
            if let Some(asking) = self.by_matcher.get_mut(matcher) {
                asking.retain(|other| *other != id);
                if asking.is_empty() {
                    self.by_matcher.remove(matcher);
                }
            }
        }
        for item in &list.items {
            traces.release_hit(item.hit);
            for &matcher in item.peers.iter().flatten() {
                identities.release(matcher);
            }
        }
        for name in &list.peer_names {
            identities.release_port(name);
        }
    }

    /// A table walks a list, or does no longer.
    pub fn join(&mut self, id: u32, table: u32) {
        self.lists[id].tables.push(table);
    }

    pub fn leave(&mut self, id: u32, table: u32) {
        let tables = &mut self.lists[id].tables;
        if let Some(at) = tables.iter().rposition(|other| *other == table) {
            tables.swap_remove(at);
        }
    }
}
