//! Plans into the kernel: add and flip now, remove after the grace period; a new generation where maps are too small or a
//! write failed.

use std::time::Instant;

use tracing::{error, info, warn};

use super::agent::{Agent, RETRY};
use crate::{
    datapath,
    policy::{
        change::PeerKey,
        plan::{Capacity, Plan, Shortage},
    },
};

/// No map grows beyond this many entries: kernel memory is not endless.
const LARGEST_MAP: usize = 1 << 24;

impl Agent {
    /// Add and flip now, remove after the grace period. Grows maps that are too small.
    pub(super) fn execute(&mut self, plan: Plan) {
        let short = !plan.shortages.is_empty();
        if plan.shortages != self.shortages {
            for shortage in &plan.shortages {
                warn!(
                    map = shortage.map,
                    needed = shortage.needed,
                    capacity = shortage.capacity,
                    "{}",
                    shortage.consequence
                );
            }
            self.shortages.clone_from(&plan.shortages);
        }
        self.run(plan);
        if short && let Some(capacity) = grown(self.capacity, &self.shortages) {
            self.rebuild(capacity);
        }
    }

    pub(super) fn run(&mut self, plan: Plan) {
        self.name_traces(&plan);
        let Plan {
            serial,
            add,
            flip,
            remove,
            ..
        } = plan;
        // What a failed write left half done must not be built upon, and what it was to replace must stay: endpoints that
        // have not flipped still ask for it. The next generation gets all of it.
        if self.broken.is_some() {
            self.removals.schedule(Instant::now(), serial, Vec::new());
            return;
        }
        if add.is_empty() && flip.is_empty() && remove.is_empty() {
            self.compiler.executed(serial);
            return;
        }
        self.removals.spare(&add);
        self.removals.spare(&flip);
        match self.datapath.execute(&add).and_then(|()| self.datapath.execute(&flip)) {
            // What is only removed changes no decision.
            Ok(()) => self.written += u64::from(!(add.is_empty() && flip.is_empty())),
            Err(error) => self.fail("write decisions", &error),
        }
        self.removals.schedule(Instant::now(), serial, remove);
    }

    /// Before the plan is executed, so that no event comes too early.
    pub(super) fn name_traces(&mut self, plan: &Plan) {
        self.hits.name(plan, &self.compiler);
        self.directory
            .write()
            .apply_plan(plan, |trace| self.compiler.trace(trace));
    }

    /// A new generation, filled with everything, to which every interface is flipped.
    pub(super) fn rebuild(&mut self, capacity: Capacity) {
        info!(?capacity, "building a new generation");
        self.hits.retire_all(&self.datapath);
        if let Err(error) = self.datapath.regenerate(capacity) {
            return self.fail("build a new generation", &error);
        }
        self.capacity = capacity;
        self.broken = None;
        self.compiler.set_capacity(capacity);
        // What was to be removed or changed concerns the old maps: the new ones get the whole state that follows.
        let plan = self.compiler.apply(Vec::new());
        self.shortages.clone_from(&plan.shortages);
        self.name_traces(&plan);
        for serial in self.removals.clear().into_iter().chain([plan.serial]) {
            self.compiler.executed(serial);
        }
        let full = self.compiler.full();
        if let Err(error) = self
            .datapath
            .execute(&full.add)
            .and_then(|()| self.datapath.execute(&full.flip))
        {
            return self.fail("fill a new generation", &error);
        }
        self.written += 1;
        let pods: Vec<(PeerKey, u32)> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.interface.is_some())
            .filter_map(|(pod, endpoint)| endpoint.id.map(|id| (pod.clone(), id)))
            .collect();
        for (pod, id) in pods {
            if let Err(error) = self.datapath.attach(id) {
                self.trouble(&pod, &error);
            }
        }
        self.close_departed();
        if self.settled
            && let Err(error) = self.datapath.finish_first_sync()
        {
            self.fail("remove the old generation", &error);
        }
    }

    /// The maps are not what the compiler takes them for: until they are built anew nothing is removed from them, and
    /// nothing is changed step by step.
    pub(super) fn fail(&mut self, what: &str, error: &datapath::Error) {
        error!("cannot {what}: {error}");
        self.instruments.kernel_failures.inc();
        self.broken = Some((format!("cannot {what}: {error}"), Instant::now() + RETRY));
    }
}

/// Sizes with room for what did not fit, and as much again. None: there is no more room to give.
fn grown(capacity: Capacity, shortages: &[Shortage]) -> Option<Capacity> {
    use weir_common::layout::map;
    let mut larger = capacity;
    for shortage in shortages {
        let size = match shortage.map {
            map::ADDRESSES => &mut larger.addresses,
            map::CIDRS => &mut larger.cidrs,
            map::IDENTITIES => &mut larger.identities,
            map::ROWS => &mut larger.rows,
            map::DECISIONS => &mut larger.decisions,
            map::SOURCE_PORTS => &mut larger.source_ports,
            map::TRACES => &mut larger.traces,
            _ => continue,
        };
        let wanted = shortage.needed.max(*size).saturating_mul(2).min(LARGEST_MAP);
        *size = wanted.max(*size);
    }
    (larger != capacity).then_some(larger)
}

#[cfg(test)]
mod tests {
    use weir_common::layout::map;

    use super::*;

    const CAPACITY: Capacity = Capacity {
        addresses: 10,
        cidrs: 10,
        identities: 10,
        rows: 10,
        decisions: LARGEST_MAP,
        source_ports: 10,
        traces: 10,
    };

    fn shortage(map: &'static str, needed: usize) -> Shortage {
        Shortage {
            map,
            needed,
            capacity: 10,
            consequence: String::new(),
        }
    }

    #[test]
    fn maps_grow_to_twice_what_is_needed_and_not_without_end() {
        let larger = grown(CAPACITY, &[shortage(map::ROWS, 40), shortage(map::CIDRS, 11)]).expect("there is room");
        assert_eq!(
            larger,
            Capacity {
                rows: 80,
                cidrs: 22,
                ..CAPACITY
            }
        );
        assert_eq!(grown(CAPACITY, &[shortage(map::DECISIONS, LARGEST_MAP + 1)]), None);
        assert_eq!(grown(CAPACITY, &[]), None);
    }
}
