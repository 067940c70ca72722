//! Maps that are too small: nothing passes that policies deny, nothing is put beyond the maps' size, and all is well as
//! soon as there is room.

use std::collections::BTreeSet;

use super::sequences::PLENTY;
use crate::policy::{
    change::Change,
    compile::{Compiler, MapUse},
    evaluate::{Flow, World},
    plan::{Capacity, Plan},
    random::{self, Random},
    simulate::Simulation,
};

fn small(random: &mut Random) -> Capacity {
    let mut size = |small: usize, large: usize| {
        if random.once_in(3) {
            1 << 20
        } else {
            small + random.below(large)
        }
    };
    Capacity {
        addresses: size(2, 10),
        cidrs: size(2, 10),
        identities: size(8, 20),
        rows: size(0, 20),
        decisions: size(0, 200),
        source_ports: size(0, 60),
        traces: size(4, 40),
    }
}

fn within(used: &MapUse, capacity: &Capacity) -> bool {
    used.addresses <= capacity.addresses
        && used.cidrs <= capacity.cidrs
        && used.identities <= capacity.identities
        && used.rows <= capacity.rows
        && used.decisions <= capacity.decisions
        && used.source_ports <= capacity.source_ports
        && used.traces <= capacity.traces
}

struct Bench {
    world: World,
    compiler: Compiler,
    maps: Simulation,
    capacity: Capacity,
    endpoints: BTreeSet<u32>,
}

impl Bench {
    fn execute(&mut self, plan: &Plan) -> Result<(), String> {
        for op in plan.add.iter().chain(&plan.flip).chain(&plan.remove) {
            self.maps.execute(op);
            if !within(&self.maps.map_use(), &self.capacity) {
                let used = self.maps.map_use();
                return Err(format!("{op:?} does not fit: {used:?} in {:?}", self.capacity));
            }
            if let Some(fault) = self.maps.faults().first() {
                return Err(format!("refused: {fault}"));
            }
        }
        Ok(())
    }

    /// Returns how many flows are closed or held back.
    fn check(&self, flows: &[Flow], all_well: bool) -> Result<usize, String> {
        let mut held = 0;
        for flow in flows {
            let id = flow.endpoint.name.trim_start_matches("pod").parse().unwrap_or(u32::MAX);
            let Some(aimed) = random::aim(&self.world, flow).filter(|_| self.endpoints.contains(&id)) else {
                continue;
            };
            let wanted = self.world.judge(&aimed);
            let decided = self.maps.decide(id, flow).is_some_and(|decision| decision.allows());
            if decided && !wanted.allow {
                return Err(format!("{flow:?} passes, but {wanted:?}"));
            }
            if decided != wanted.allow {
                held += 1;
            }
        }
        if all_well && held > 0 {
            return Err(format!("{held} flows held back, though all fits"));
        }
        Ok(held)
    }
}

fn run(seed: u64) -> Result<(usize, usize), String> {
    let mut random = Random::new(seed);
    let capacity = small(&mut random);
    let mut bench = Bench {
        world: World::new(),
        compiler: Compiler::new(capacity, 1),
        maps: Simulation::new(),
        capacity,
        endpoints: BTreeSet::new(),
    };
    let (mut held, mut reported, mut all) = (0, 0, Vec::new());
    for step in 0..16_u64 {
        let count = if step == 0 { 25 } else { 2 };
        let changes: Vec<Change> = (0..count)
            .map(|n| random::change(&mut random, step * 100 + n))
            .collect();
        all.extend(changes.clone());
        for change in &changes {
            bench.world.apply(change.clone());
            if let Change::Endpoint(id, key) = change {
                if key.is_some() {
                    bench.endpoints.insert(*id);
                } else {
                    bench.endpoints.remove(id);
                    bench.maps.remove_endpoint(*id);
                }
            }
        }
        let plan = bench.compiler.apply(changes);
        bench
            .execute(&plan)
            .map_err(|error| format!("step {step}: {error}\n{plan:#?}"))?;
        let mut more = random.once_in(2) && bench.compiler.executed(plan.serial);
        let mut shortages = plan.shortages.len();
        while more {
            let plan = bench.compiler.apply(Vec::new());
            bench
                .execute(&plan)
                .map_err(|error| format!("step {step}, again: {error}\n{plan:#?}"))?;
            shortages = plan.shortages.len();
            more = bench.compiler.executed(plan.serial) && !random.once_in(3);
        }
        let flows: Vec<Flow> = (0..60).map(|_| random::flow(&mut random)).collect();
        let now = bench
            .check(&flows, shortages == 0)
            .map_err(|error| format!("step {step}: {error}"))?;
        held += now;
        reported += shortages;
    }
    // Larger maps, as a new generation has them.
    bench.capacity = PLENTY;
    bench.compiler.set_capacity(PLENTY);
    bench.maps = Simulation::new();
    let full = bench.compiler.full();
    bench.execute(&full)?;
    let plan = bench.compiler.apply(Vec::new());
    bench
        .execute(&plan)
        .map_err(|error| format!("with room: {error}\n{plan:#?}"))?;
    if !plan.shortages.is_empty() {
        return Err(format!("still short: {:?}", plan.shortages));
    }
    let flows: Vec<Flow> = (0..200).map(|_| random::flow(&mut random)).collect();
    bench
        .check(&flows, true)
        .map_err(|error| format!("with room: {error}"))?;
    Ok((held, reported))
}

#[test]
fn nothing_is_cut_silently() {
    let (mut held, mut reported) = (0, 0);
    for seed in 1..=250 {
        match run(seed) {
            Ok((more_held, more_reported)) => {
                held += more_held;
                reported += more_reported;
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(
        held > 100 && reported > 100,
        "the maps were never too small: {held} {reported}"
    );
}
