//! How often each rule decided, or was passed: the kernel counts traces, here they become rules.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use rustc_hash::FxHashMap;
use serde_json::{Map, Value, json};
use tracing::warn;
use weir_common::Direction;

use super::{
    agent::Agent,
    query::{Dump, QueryError},
};
use crate::{
    datapath::Datapath,
    policy::{
        compile::Compiler,
        model::{Action, Hit, Judgement, Policy, PolicyKey, TierDefault},
        plan::{Op, Plan},
    },
};

/// Traces with counters, and what those counted that are gone.
#[derive(Debug, Default)]
pub(super) struct Hits {
    traces: FxHashMap<u32, Arc<Judgement>>,
    past: HashMap<Hit, u64>,
}

impl Hits {
    /// Remembers what new traces mean.
    pub(super) fn name(&mut self, plan: &Plan, compiler: &Compiler) {
        let made = plan.add.iter().filter_map(|op| match op {
            Op::PutTrace(id) => Some(id),
            _ => None,
        });
        for id in made.chain(&plan.renamed) {
            if let Some(judgement) = compiler.trace(*id) {
                self.traces.insert(*id, judgement);
            }
        }
    }

    /// Takes over the counters of traces that these operations are about to delete.
    pub(super) fn retire(&mut self, ops: &[Op], datapath: &Datapath) {
        let gone: Vec<u32> = ops
            .iter()
            .filter_map(|op| match op {
                Op::DeleteTrace(id) => Some(*id),
                _ => None,
            })
            .collect();
        self.take_over(gone, datapath);
    }

    /// Takes over all counters: their map is about to be replaced.
    pub(super) fn retire_all(&mut self, datapath: &Datapath) {
        let all: Vec<u32> = self.traces.keys().copied().collect();
        let known = self.traces.clone();
        self.take_over(all, datapath);
        self.traces = known;
    }

    fn take_over(&mut self, ids: Vec<u32>, datapath: &Datapath) {
        if ids.is_empty() {
            return;
        }
        match datapath.trace_hits(ids.iter().copied()) {
            Ok(counted) => {
                for (id, count) in counted {
                    if let Some(judgement) = self.traces.get(&id) {
                        add(&mut self.past, judgement, count);
                    }
                }
            }
            Err(error) => warn!("hits of rules are lost: {error}"),
        }
        for id in ids {
            self.traces.remove(&id);
        }
    }

    fn totals(&self, datapath: &Datapath) -> Result<HashMap<Hit, u64>, QueryError> {
        let mut totals = self.past.clone();
        let counted = datapath
            .trace_hits(self.traces.keys().copied())
            .map_err(|error| QueryError::new(format!("cannot read the counters of rules: {error}")))?;
        for (id, count) in counted {
            if let Some(judgement) = self.traces.get(&id) {
                add(&mut totals, judgement, count);
            }
        }
        Ok(totals)
    }
}

/// Counts for every rule that the walk passed. A rule is the same under another name.
fn add(totals: &mut HashMap<Hit, u64>, judgement: &Judgement, count: u64) {
    if count == 0 {
        return;
    }
    for hit in &judgement.hits {
        let total = totals.entry(unnamed(hit)).or_default();
        *total = total.saturating_add(count);
    }
}

fn unnamed(hit: &Hit) -> Hit {
    match hit.clone() {
        Hit::Rule {
            direction,
            tier,
            policy,
            index,
            action,
            ..
        } => Hit::Rule {
            direction,
            tier,
            policy,
            index,
            name: None,
            action,
        },
        other => other,
    }
}

/// One line of the answer.
struct Line<'a> {
    tier: &'a str,
    policy: Option<&'a PolicyKey>,
    direction: Option<Direction>,
    rule: Option<u32>,
    action: &'static str,
    hits: u64,
}

impl Line<'_> {
    fn row(&self) -> Map<String, Value> {
        let value = json!({
            "tier": self.tier,
            "kind": self.policy.map(|key| key.kind.name()),
            "namespace": self.policy.and_then(|key| key.namespace.as_deref()),
            "policy": self.policy.map(|key| &*key.name),
            "direction": self.direction.map(direction_name),
            "rule": self.rule,
            "action": self.action,
            "hits": self.hits,
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

const COLUMNS: [&str; 8] = [
    "tier",
    "kind",
    "namespace",
    "policy",
    "direction",
    "rule",
    "action",
    "hits",
];

impl Agent {
    /// Every rule that applies to a pod of this node, with the number of flows that it decided or let pass on to the
    /// next one since the agent started; then what was decided at the end of tiers, by the profile, and by rules that no
    /// longer are.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub(super) fn dump_rules(&self) -> Result<Dump, QueryError> {
        let mut totals = self.hits.totals(&self.datapath)?;
        let applied = self.applied();
        let mut policies: Vec<_> = self.index.policies().filter(|policy| !policy.staged).collect();
        policies.sort_by(|a, b| (&a.tier, a.order, &a.key).cmp(&(&b.tier, b.order, &b.key)));
        let mut rows = Vec::new();
        for policy in policies {
            for (direction, list) in [
                (Direction::Ingress, &policy.ingress),
                (Direction::Egress, &policy.egress),
            ] {
                let name = (
                    policy.key.kind.name(),
                    policy.key.namespace.as_deref(),
                    &*policy.key.name,
                );
                if !applied.contains(&(
                    direction,
                    name.0.to_owned(),
                    name.1.map(str::to_owned),
                    name.2.to_owned(),
                )) {
                    continue;
                }
                for hit in rules(policy, direction, list.as_deref().unwrap_or_default()) {
                    let hits = totals.remove(&hit).unwrap_or_default();
                    rows.push(line(&hit, hits).row());
                }
            }
        }
        let mut rest: Vec<_> = totals.iter().map(|(hit, hits)| (line(hit, *hits), hit)).collect();
        rest.sort_by_key(|(line, hit)| (line.tier.to_owned(), line.policy.cloned(), format!("{hit:?}")));
        rows.extend(rest.iter().map(|(line, _)| line.row()));
        Ok(Dump {
            columns: COLUMNS.map(str::to_owned).to_vec(),
            rows,
            omitted: 0,
        })
    }

    /// Direction, kind, namespace and name of the policies that apply to some local pod.
    fn applied(&self) -> HashSet<(Direction, String, Option<String>, String)> {
        let mut applied = HashSet::new();
        for id in self.endpoints.iter().filter_map(|(_, endpoint)| endpoint.id) {
            let Some(dump) = self.compiler.endpoint(id) else {
                continue;
            };
            for (direction, side) in [(Direction::Ingress, &dump.ingress), (Direction::Egress, &dump.egress)] {
                applied.extend(side.policies.iter().map(|policy| {
                    let namespace = policy.namespace.as_deref().map(str::to_owned);
                    (direction, policy.kind.to_owned(), namespace, policy.name.to_string())
                }));
            }
        }
        applied
    }
}

/// The rules of a list as hits; those that share a place and an action are one.
fn rules(policy: &Policy, direction: Direction, list: &[crate::policy::model::Rule]) -> Vec<Hit> {
    let mut seen = BTreeMap::new();
    for rule in list {
        seen.entry((rule.index, rule.action as u8)).or_insert(Hit::Rule {
            direction,
            tier: policy.tier.clone(),
            policy: policy.key.clone(),
            index: rule.index,
            name: None,
            action: rule.action,
        });
    }
    seen.into_values().collect()
}

fn line(hit: &Hit, hits: u64) -> Line<'_> {
    match hit {
        Hit::Rule {
            direction,
            tier,
            policy,
            index,
            action,
            ..
        } => Line {
            tier,
            policy: Some(policy),
            direction: Some(*direction),
            rule: Some(*index),
            action: match action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
                Action::Pass => "Pass",
                Action::Log => "Log",
            },
            hits,
        },
        Hit::EndOfTier {
            direction,
            tier,
            policy,
            action,
        } => Line {
            tier,
            policy: Some(policy),
            direction: Some(*direction),
            rule: None,
            action: match action {
                TierDefault::Deny => "end of tier: Deny",
                TierDefault::Pass => "end of tier: Pass",
            },
            hits,
        },
        Hit::Profile => Line {
            tier: "",
            policy: None,
            direction: None,
            rule: None,
            action: "profile: Allow",
            hits,
        },
    }
}

const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::PolicyKind;

    fn rule(index: u32, name: Option<&str>, action: Action) -> Hit {
        Hit::Rule {
            direction: Direction::Ingress,
            tier: "default".into(),
            policy: PolicyKey {
                kind: PolicyKind::GlobalNetworkPolicy,
                namespace: None,
                name: "p".into(),
            },
            index,
            name: name.map(Into::into),
            action,
        }
    }

    #[test]
    fn every_rule_on_the_way_is_counted_whatever_its_name() {
        let mut totals = HashMap::new();
        let judgement = |hits| Judgement {
            allow: true,
            log: true,
            hits,
        };
        add(
            &mut totals,
            &judgement(vec![rule(0, None, Action::Log), rule(1, Some("a"), Action::Allow)]),
            3,
        );
        add(&mut totals, &judgement(vec![rule(1, Some("b"), Action::Allow)]), 4);
        add(&mut totals, &judgement(vec![Hit::Profile]), 0);
        assert_eq!(totals.len(), 2);
        assert_eq!(totals[&rule(0, None, Action::Log)], 3);
        assert_eq!(totals[&rule(1, None, Action::Allow)], 7);
        let row = line(&rule(1, None, Action::Allow), 7).row();
        assert_eq!(
            Value::Object(row),
            json!({"tier": "default", "kind": "GlobalNetworkPolicy", "namespace": null, "policy": "p",
                "direction": "ingress", "rule": 1, "action": "Allow", "hits": 7})
        );
    }
}
