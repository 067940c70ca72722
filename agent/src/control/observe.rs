//! The answer to a scrape.

use std::collections::{BTreeMap, BTreeSet};

use super::{agent::Agent, query::EndpointState};
use crate::{
    api::{ObjectKind, Severity},
    datapath,
    metrics::{Observation, observation::EndpointCounts},
    policy::model::PolicyKind,
};

impl Agent {
    /// What the loop knows of itself.
    ///
    /// # Errors
    /// The kernel does not tell what its maps hold.
    pub fn observe(&self) -> Result<Observation, datapath::Error> {
        let mut endpoints = EndpointCounts::default();
        for (_, endpoint) in self.endpoints.iter() {
            let count = match self.endpoint_state(endpoint) {
                EndpointState::Enforced => &mut endpoints.enforced,
                EndpointState::Closed => &mut endpoints.closed,
                EndpointState::Waiting => &mut endpoints.waiting,
            };
            *count += 1;
        }
        for gone in self.departed.iter() {
            let count = if gone.endpoint.is_attached() {
                &mut endpoints.closed
            } else {
                &mut endpoints.waiting
            };
            *count += 1;
        }
        let [errors, warnings] = [Severity::Error, Severity::Warning].map(|severity| {
            let problems = self.all_problems().filter(|problem| problem.severity == severity);
            problems.count() as u64
        });
        Ok(Observation {
            ready: self.unready().is_none(),
            audit: self.options.audit,
            attach: self.datapath.mode(),
            generation: self.datapath.generation(),
            policies: self.policies_by_kind(),
            invalid_objects: self.invalid_by_kind(),
            errors,
            warnings,
            sizes: self.compiler.sizes(),
            endpoints,
            counters: self.datapath.counters()?,
            maps: self.datapath.map_usage()?,
            shortages: self.shortages.len() as u64,
            sweep: self.flows.last_sweep(),
        })
    }

    fn policies_by_kind(&self) -> Vec<(&'static str, u64)> {
        let mut counts = PolicyKind::ALL.map(|kind| (ObjectKind::Policy(kind).name(), 0));
        for policy in self.index.policies() {
            counts[policy.key.kind as usize].1 += 1;
        }
        counts.to_vec()
    }

    /// Problems name their object by kind and name, as [`crate::api::ObjectKey`] shows itself.
    fn invalid_by_kind(&self) -> Vec<(String, u64)> {
        let errors = self
            .all_problems()
            .filter(|problem| problem.severity == Severity::Error);
        let objects: BTreeSet<&str> = errors.filter_map(|problem| problem.object.as_deref()).collect();
        let mut counts = BTreeMap::<&str, u64>::new();
        for (kind, _) in objects.into_iter().filter_map(|object| object.rsplit_once(' ')) {
            *counts.entry(kind).or_default() += 1;
        }
        counts
            .into_iter()
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect()
    }
}
