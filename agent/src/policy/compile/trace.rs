//! Traces: interned lists of what a policy walk passed. Decisions name them.

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};
use weir_common::Direction;

use super::{store::DIRECTIONS, table::rules_of};
use crate::{
    identity::slab::Slab,
    policy::model::{Action, Hit, Judgement, Policy, TierDefault},
};

/// How many traces are remembered after their last decision is gone: events on their way may still name them.
const REMEMBERED: usize = 4096;

/// What makes two hits the same. `policy`: the number of a policy in its tier. Not what a rule matches: when that
/// changes, the decisions of everybody whom it does not concern stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HitKey {
    Rule {
        policy: u32,
        direction: Direction,
        index: u32,
        action: Action,
    },
    EndOfTier {
        policy: u32,
        direction: Direction,
        action: TierDefault,
    },
    Profile,
}

#[derive(Debug)]
struct Known {
    key: HitKey,
    hit: Hit,
    references: usize,
}

#[derive(Debug)]
struct Trace {
    hits: Arc<[u32]>,
    judgement: Arc<Judgement>,
    references: usize,
}

/// What a trace says in two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub allow: bool,
    pub log: bool,
}

#[derive(Debug)]
pub struct Traces {
    hits: Slab<Known>,
    hit_ids: FxHashMap<HitKey, u32>,
    traces: FxHashMap<u32, Trace>,
    ids: FxHashMap<Arc<[u32]>, u32>,
    next: u32,
    /// Without counters so far.
    fresh: Vec<u32>,
    loose: Vec<u32>,
    dead: Vec<u32>,
    renamed: Vec<u32>,
    remembered: VecDeque<(u32, Arc<Judgement>)>,
}

impl Traces {
    pub fn new(first: u32) -> Self {
        Self {
            hits: Slab::default(),
            hit_ids: FxHashMap::default(),
            traces: FxHashMap::default(),
            ids: FxHashMap::default(),
            next: first.max(1),
            fresh: Vec::new(),
            loose: Vec::new(),
            dead: Vec::new(),
            renamed: Vec::new(),
            remembered: VecDeque::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.traces.len()
    }

    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.traces.keys().copied()
    }

    pub fn judgement(&self, id: u32) -> Option<Arc<Judgement>> {
        let remembered = || self.remembered.iter().find(|(old, _)| *old == id).map(|(_, it)| it);
        let live = self.traces.get(&id).map(|trace| &trace.judgement);
        live.or_else(remembered).cloned()
    }

    /// The number of a hit, until as many [`Traces::release_hit`].
    pub fn hold_hit(&mut self, key: HitKey, hit: impl FnOnce() -> Hit) -> u32 {
        if let Some(&id) = self.hit_ids.get(&key) {
            self.hits[id].references += 1;
            return id;
        }
        let id = self.hits.insert(Known {
            key: key.clone(),
            hit: hit(),
            references: 1,
        });
        self.hit_ids.insert(key, id);
        id
    }

    /// No trace with it may be left.
    pub fn release_hit(&mut self, id: u32) {
        let known = &mut self.hits[id];
        known.references -= 1;
        if known.references == 0
            && let Some(known) = self.hits.remove(id)
        {
            self.hit_ids.remove(&known.key);
        }
    }

    /// Rules of a policy may have other names. Traces that pass them say so from now on.
    pub fn rename(&mut self, number: u32, policy: &Policy) {
        let mut changed: FxHashSet<u32> = FxHashSet::default();
        for direction in DIRECTIONS {
            // Of rules that are one to people the first one's name holds.
            for rule in rules_of(policy, direction).unwrap_or_default().iter().rev() {
                let key = HitKey::Rule {
                    policy: number,
                    direction,
                    index: rule.index,
                    action: rule.action,
                };
                if let Some(&id) = self.hit_ids.get(&key)
                    && let Hit::Rule { name, .. } = &mut self.hits[id].hit
                    && *name != rule.name
                {
                    name.clone_from(&rule.name);
                    changed.insert(id);
                }
            }
        }
        if changed.is_empty() {
            return;
        }
        for (&id, trace) in &mut self.traces {
            if trace.hits.iter().any(|hit| changed.contains(hit)) {
                let hits = trace.hits.iter().map(|&hit| self.hits[hit].hit.clone()).collect();
                trace.judgement = Arc::new(Judgement {
                    hits,
                    ..(*trace.judgement).clone()
                });
                self.renamed.push(id);
            }
        }
    }

    /// Traces that say something else since the last time, in order.
    pub fn take_renamed(&mut self) -> Vec<u32> {
        let mut renamed = std::mem::take(&mut self.renamed);
        renamed.sort_unstable();
        renamed.dedup();
        renamed.retain(|id| self.traces.contains_key(id));
        renamed
    }

    /// The trace of a list of hits, and what it says. It must be held before the next [`Traces::sweep`].
    pub fn intern(&mut self, hits: &[u32]) -> (u32, Outcome) {
        if let Some(&id) = self.ids.get(hits) {
            let judgement = &self.traces[&id].judgement;
            let outcome = Outcome {
                allow: judgement.allow,
                log: judgement.log,
            };
            return (id, outcome);
        }
        let list: Vec<Hit> = hits.iter().map(|&hit| self.hits[hit].hit.clone()).collect();
        let allow = matches!(
            list.last(),
            Some(
                Hit::Rule {
                    action: Action::Allow,
                    ..
                } | Hit::Profile
            )
        );
        let log = list.iter().any(|hit| {
            matches!(
                hit,
                Hit::Rule {
                    action: Action::Log,
                    ..
                }
            )
        });
        let id = self.next;
        self.next += 1;
        let hits: Arc<[u32]> = hits.into();
        self.ids.insert(hits.clone(), id);
        self.traces.insert(
            id,
            Trace {
                hits,
                judgement: Arc::new(Judgement { allow, log, hits: list }),
                references: 0,
            },
        );
        self.fresh.push(id);
        self.loose.push(id);
        (id, Outcome { allow, log })
    }

    pub fn hold(&mut self, id: u32) {
        if let Some(trace) = self.traces.get_mut(&id) {
            trace.references += 1;
        }
    }

    pub fn release(&mut self, id: u32) {
        if let Some(trace) = self.traces.get_mut(&id) {
            trace.references -= 1;
            if trace.references == 0 {
                self.loose.push(id);
            }
        }
    }

    /// Forgets traces that no row holds.
    pub fn collect(&mut self) {
        let mut gone: FxHashSet<u32> = FxHashSet::default();
        for id in std::mem::take(&mut self.loose) {
            if self.traces.get(&id).is_some_and(|trace| trace.references == 0)
                && let Some(trace) = self.traces.remove(&id)
            {
                self.ids.remove(&trace.hits);
                if self.remembered.len() == REMEMBERED {
                    self.remembered.pop_front();
                }
                self.remembered.push_back((id, trace.judgement));
                gone.insert(id);
            }
        }
        if !gone.is_empty() {
            // What came and went since the last sweep never gets a counter.
            self.fresh.retain(|id| !gone.remove(id));
            let mut gone: Vec<u32> = gone.into_iter().collect();
            gone.sort_unstable();
            self.dead.append(&mut gone);
        }
    }

    /// Traces that wait for [`Traces::sweep`] to tell of their end.
    pub fn dying(&self) -> usize {
        self.dead.len()
    }

    /// Traces that need a counter, and those that need it no more, after [`Traces::collect`].
    pub fn sweep(&mut self) -> (Vec<u32>, Vec<u32>) {
        (std::mem::take(&mut self.fresh), std::mem::take(&mut self.dead))
    }
}
