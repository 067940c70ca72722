//! Policies and tiers as they are now, and which of them select which endpoint.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use weir_common::Direction;

use super::{
    table::{TableKey, TierKey, asked_ports, rules_of},
    tables::Tables,
};
use crate::{
    identity::{
        Identities,
        index::Index,
        region::number,
        slab::Slab,
        view::{Subject, View, relevant_ports},
    },
    policy::{
        change::PeerKey,
        model::{Family, NamedPort, PeerMatch, Policy, PolicyKey, Rule, Tier},
        selector::Selector,
    },
};

pub const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// What the compiler must know of a policy's rules in a direction.
#[derive(Clone, Debug)]
struct Side {
    /// Number of the rule list: another one with every change but of names.
    rules: u32,
    /// Names of ports asked of the endpoint.
    local_names: Vec<Arc<str>>,
    /// Some rule has a condition on the endpoint's own end.
    local: bool,
}

#[derive(Debug)]
struct Known {
    policy: Arc<Policy>,
    /// Another one in another tier.
    number: u32,
    sides: [Option<Side>; 2],
    /// In `Store::subjects`; None: staged, so never enforced.
    subject: Option<u32>,
}

#[derive(Debug, Default)]
pub struct Store {
    policies: Slab<Known>,
    ids: FxHashMap<PolicyKey, u32>,
    tiers: FxHashMap<Arc<str>, Tier>,
    /// Subject selectors and the endpoints (as views of all that they are).
    subjects: Index,
    by_subject: FxHashMap<u32, Vec<u32>>,
    last_rules: u32,
    last_number: u32,
    /// Policies by their numbers.
    numbers: FxHashMap<u32, u32>,
    /// Policies with a selector on the endpoint's own end: they depend on network sets.
    local_selectors: usize,
}

/// The policies of an endpoint's direction as a table would have them.
#[derive(Debug)]
pub struct Wanted {
    pub key: TableKey,
    /// In the order of the key's rules.
    pub lists: Vec<Listed>,
}

/// A rule list by its numbers.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Another one with every change of the rules but of names.
    pub rules: u32,
    /// Of the policy in its tier.
    pub number: u32,
    pub policy: Arc<Policy>,
}

impl Listed {
    /// How many rules have a condition on the endpoint's own end.
    pub fn local_conditions(&self, direction: Direction) -> usize {
        let rules = rules_of(&self.policy, direction).unwrap_or_default();
        rules.iter().filter(|rule| rule.local.is_some()).count()
    }
}

/// In what the policies of an endpoint's direction differ from a table.
#[derive(Debug, Default)]
pub struct Delta {
    /// Lists of the table.
    pub removed: Vec<u32>,
    pub inserted: Vec<Listed>,
}

/// A policy as it was when tables were made last.
#[derive(Debug)]
pub struct Before {
    policy: Arc<Policy>,
    sides: [Option<Side>; 2],
}

/// What a policy's change means.
#[derive(Debug, Default)]
pub struct PolicyChange {
    /// Views of endpoints whose tables may be others.
    pub views: FxHashSet<u32>,
    /// What it was, if it was.
    pub before: Option<Before>,
    /// What keeps its number, whose rules may have other names.
    pub renamed: Option<(u32, Arc<Policy>)>,
}

impl Side {
    /// Whether tables with it depend on nothing of the endpoint.
    fn is_plain(&self) -> bool {
        !self.local && self.local_names.is_empty()
    }
}

impl Store {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn depends_on_sets(&self) -> bool {
        self.local_selectors > 0
    }

    pub fn set_tier(&mut self, name: Arc<str>, tier: Option<Tier>) -> bool {
        match tier {
            Some(tier) if self.tiers.get(&name) == Some(&tier) => false,
            Some(tier) => {
                self.tiers.insert(name, tier);
                true
            }
            None => self.tiers.remove(&name).is_some(),
        }
    }

    pub fn set_policy(
        &mut self,
        key: PolicyKey,
        policy: Option<Arc<Policy>>,
        identities: &mut Identities,
    ) -> PolicyChange {
        let mut change = PolicyChange::default();
        let old = self.ids.get(&key).copied();
        if let (Some(old), Some(new)) = (old, &policy)
            && *self.policies[old].policy == **new
        {
            return change;
        }
        if let Some(new) = &policy {
            ask(new, identities, true);
            self.local_selectors += usize::from(selects_local(new));
        }
        let old = old.and_then(|id| Some((id, self.policies.remove(id)?)));
        if let Some((id, old)) = &old {
            self.ids.remove(&key);
            self.numbers.remove(&old.number);
            ask(&old.policy, identities, false);
            self.local_selectors -= usize::from(selects_local(&old.policy));
            if let Some(subject) = old.subject
                && let Some(list) = self.by_subject.get_mut(&subject)
            {
                change.views.extend(self.subjects.views_of(subject));
                list.retain(|other| other != id);
                if list.is_empty() {
                    self.by_subject.remove(&subject);
                }
            }
        }
        if let Some(policy) = policy {
            let subject = (!policy.staged).then(|| self.subjects.hold_selector(&policy.subject).0);
            let before = old.as_ref().map(|(_, known)| known);
            let sides = DIRECTIONS.map(|direction| self.side(&policy, direction, before));
            let number = match before.filter(|before| before.policy.tier == policy.tier) {
                Some(before) => {
                    change.renamed = Some((before.number, policy.clone()));
                    before.number
                }
                None => {
                    self.last_number += 1;
                    self.last_number
                }
            };
            let id = self.policies.insert(Known {
                policy,
                number,
                sides,
                subject,
            });
            self.numbers.insert(number, id);
            if let Some(subject) = subject {
                change.views.extend(self.subjects.views_of(subject));
                self.by_subject.entry(subject).or_default().push(id);
            }
            self.ids.insert(key, id);
        }
        if let Some((_, old)) = old {
            if let Some(subject) = old.subject {
                self.subjects.release_selector(subject);
            }
            change.before = Some(Before {
                policy: old.policy,
                sides: old.sides,
            });
        }
        change
    }

    /// A tier, also without an object.
    pub fn tier(&self, name: &str) -> Tier {
        self.tiers.get(name).cloned().unwrap_or_else(|| Tier::implied(name))
    }

    /// Whether one policy is walked before another of its tier, both by number.
    pub fn is_before(&self, one: u32, other: u32) -> bool {
        let place = |number: u32| {
            let policy = &self.policies.get(*self.numbers.get(&number)?)?.policy;
            Some((policy.order, &policy.key))
        };
        place(one) < place(other)
    }

    /// In what the policies of an endpoint's direction differ from a table that was right for its first view before some
    /// policies changed. None: that has to be found out from the beginning.
    pub fn delta(
        &self,
        table: u32,
        (was, view): (u32, u32),
        direction: Direction,
        changed: &FxHashMap<PolicyKey, Option<Before>>,
        tables: &Tables,
    ) -> Option<Delta> {
        let side = direction as usize;
        let selectors = self.subjects.selectors_of(view);
        let mut delta = Delta::default();
        for (key, before) in changed {
            let old = before
                .as_ref()
                .and_then(|before| Some((before, before.sides[side].as_ref()?)));
            let known = self.ids.get(key).map(|&id| &self.policies[id]);
            let new = known.filter(|known| {
                known
                    .subject
                    .is_some_and(|subject| selectors.binary_search(&subject).is_ok())
            });
            let new = new.and_then(|known| Some((known, known.sides[side].as_ref()?)));
            let plain = |side: Option<&Side>| side.is_none_or(Side::is_plain);
            if !plain(old.map(|(_, side)| side)) || !plain(new.map(|(_, side)| side)) {
                return None;
            }
            let old = old.and_then(|(before, side)| Some((before, side, tables.walked(table, side.rules)?)));
            if let (Some((before, was, _)), Some((known, is))) = (&old, &new)
                && was.rules == is.rules
                && before.policy.order == known.policy.order
            {
                continue;
            }
            delta.removed.extend(old.map(|(.., list)| list));
            delta.inserted.extend(new.map(|(known, side)| known.listed(side)));
        }
        if was == view {
            return Some(delta);
        }
        let earlier = self.subjects.selectors_of(was);
        let lost = earlier.iter().filter(|it| selectors.binary_search(it).is_err());
        let gained = selectors.iter().filter(|it| earlier.binary_search(it).is_err());
        for (subjects, is_gained) in [(lost.collect::<Vec<_>>(), false), (gained.collect(), true)] {
            let policies = subjects.into_iter().filter_map(|subject| self.by_subject.get(subject));
            for known in policies.flatten().map(|&id| &self.policies[id]) {
                let Some(own) = known.sides[side].as_ref() else {
                    continue;
                };
                if changed.contains_key(&known.policy.key) {
                    continue;
                }
                if !own.is_plain() {
                    return None;
                }
                if is_gained {
                    delta.inserted.push(known.listed(own));
                } else {
                    delta.removed.extend(tables.walked(table, own.rules));
                }
            }
        }
        Some(delta)
    }

    fn side(&mut self, policy: &Policy, direction: Direction, before: Option<&Known>) -> Option<Side> {
        let rules = rules_of(policy, direction)?;
        if let Some(before) = before
            && let Some(side) = &before.sides[direction as usize]
            && let Some(old) = rules_of(&before.policy, direction)
            && before.policy.tier == policy.tier
            && same_but_names(old, rules)
        {
            return Some(side.clone());
        }
        self.last_rules += 1;
        Some(Side {
            rules: self.last_rules,
            local_names: asked_ports(rules, direction).0,
            local: rules.iter().any(|rule| rule.local.is_some()),
        })
    }

    /// The view of an endpoint, held until [`Store::release_endpoint`].
    pub fn hold_endpoint(&mut self, subject: &Subject<'_>) -> u32 {
        self.subjects.hold_view(full_view(subject))
    }

    pub fn release_endpoint(&mut self, view: u32) {
        self.subjects.release_view(view);
    }

    /// What is enforced on an endpoint in a direction. Without tiers: nothing selects it.
    pub fn wanted(&self, view: u32, endpoint: &PeerKey, direction: Direction, identities: &Identities) -> Wanted {
        let mut selected: Vec<(&Known, &Side)> = Vec::new();
        for subject in self.subjects.selectors_of(view) {
            for &id in self.by_subject.get(subject).into_iter().flatten() {
                let known = &self.policies[id];
                if let Some(side) = &known.sides[direction as usize] {
                    selected.push((known, side));
                }
            }
        }
        let mut tiers: FxHashMap<&Arc<str>, Vec<(&Known, &Side)>> = FxHashMap::default();
        for (known, side) in selected {
            tiers.entry(&known.policy.tier).or_default().push((known, side));
        }
        let mut tiers: Vec<(Tier, Vec<(&Known, &Side)>)> = tiers
            .into_iter()
            .map(|(name, policies)| (self.tier(name), policies))
            .collect();
        tiers.sort_by(|(a, _), (b, _)| (a.order, &a.name).cmp(&(b.order, &b.name)));
        for (_, policies) in &mut tiers {
            policies.sort_by(|(a, _), (b, _)| {
                let (a, b) = (&a.policy, &b.policy);
                (a.order, &a.key).cmp(&(b.order, &b.key))
            });
        }
        let all = || tiers.iter().flat_map(|(_, policies)| policies);
        let mut names: Vec<&Arc<str>> = all().flat_map(|(_, side)| &side.local_names).collect();
        names.sort_unstable();
        let ports: Box<[NamedPort]> = identities
            .entities()
            .subject(endpoint)
            .filter(|_| !names.is_empty())
            .map_or_else(Box::default, |subject| {
                relevant_ports(subject.named_ports, |name| names.iter().any(|own| ***own == *name))
            });
        let local = all()
            .filter(|(_, side)| side.local)
            .flat_map(|(known, _)| rules_of(&known.policy, direction).unwrap_or_default())
            .filter_map(|rule| rule.local.as_ref())
            .map(|wanted| [Family::V4, Family::V6].map(|family| local_holds(wanted, endpoint, family, identities)))
            .collect();
        let lists = all().map(|(known, side)| known.listed(side)).collect();
        let tiers = tiers
            .into_iter()
            .map(|(tier, policies)| TierKey {
                name: tier.name,
                default_action: tier.default_action,
                rules: policies.iter().map(|(_, side)| side.rules).collect(),
            })
            .collect();
        Wanted {
            key: TableKey {
                direction,
                tiers,
                ports,
                local,
            },
            lists,
        }
    }
}

impl Known {
    fn listed(&self, side: &Side) -> Listed {
        Listed {
            rules: side.rules,
            number: self.number,
            policy: self.policy.clone(),
        }
    }
}

/// Every field, whoever asks for it.
fn full_view(subject: &Subject<'_>) -> View {
    let mut fields = Vec::new();
    subject.each_field(&mut |field, value| fields.push((Arc::new(field), Box::from(value))));
    fields.sort_unstable();
    View {
        fields: fields.into(),
        ports: Box::default(),
        local_node: false,
    }
}

/// Whether a condition on the pod's own end holds: the end is the pod, at its first address of the family.
fn local_holds(wanted: &PeerMatch, endpoint: &PeerKey, family: Family, identities: &Identities) -> bool {
    let entities = identities.entities();
    let address = identities
        .addresses_of(endpoint)
        .into_iter()
        .find(|address| match family {
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        });
    let any = |selector: &Selector| {
        let own = entities.subject(endpoint).into_iter();
        let sets = address
            .into_iter()
            .flat_map(|address| entities.sets_of(number(address)));
        own.chain(sets).any(|entity| selector.matches(&entity))
    };
    let within = |nets: &[ipnet::IpNet]| address.is_some_and(|address| nets.iter().any(|net| net.contains(&address)));
    wanted.family.is_none_or(|own| own == family)
        && wanted.selector.as_ref().is_none_or(any)
        && !wanted.not_selector.as_ref().is_some_and(any)
        && wanted.nets.as_deref().is_none_or(within)
        && !within(&wanted.not_nets)
}

fn all_rules(policy: &Policy) -> impl Iterator<Item = &Rule> {
    policy.ingress.iter().chain(&policy.egress).flatten()
}

fn selects_local(policy: &Policy) -> bool {
    let mut locals = all_rules(policy).filter_map(|rule| rule.local.as_ref());
    locals.any(|wanted| wanted.selector.is_some() || wanted.not_selector.is_some())
}

fn ask(policy: &Policy, identities: &mut Identities, more: bool) {
    if policy.staged {
        return;
    }
    for wanted in all_rules(policy).filter_map(|rule| rule.peers.as_ref()).flatten() {
        if more {
            identities.ask(wanted);
        } else {
            identities.unask(wanted);
        }
    }
    for direction in DIRECTIONS {
        for name in asked_ports(rules_of(policy, direction).unwrap_or_default(), direction).1 {
            if more {
                identities.ask_port(&name);
            } else {
                identities.unask_port(&name);
            }
        }
    }
}

fn same_but_names(old: &[Rule], new: &[Rule]) -> bool {
    let same = |(old, new): (&Rule, &Rule)| {
        old.action == new.action
            && old.index == new.index
            && old.peers == new.peers
            && old.local == new.local
            && old.traffic == new.traffic
    };
    old.len() == new.len() && old.iter().zip(new).all(same)
}
