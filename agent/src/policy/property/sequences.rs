//! Sequences of changes: after every operation of every plan each flow has its old or its new verdict, and after the plan
//! the new one with its whole trace.

use std::collections::BTreeMap;

use crate::policy::{
    change::Change,
    compile::{Compiler, MapUse},
    evaluate::{Flow, World},
    model::Judgement,
    plan::{Capacity, Plan},
    random::{self, Random},
    simulate::Simulation,
};

pub const PLENTY: Capacity = Capacity {
    addresses: 1 << 20,
    cidrs: 1 << 20,
    identities: 1 << 20,
    rows: 1 << 20,
    decisions: 1 << 20,
    source_ports: 1 << 20,
    traces: 1 << 20,
};

fn thorough() -> bool {
    std::env::var_os("WEIR_THOROUGH").is_some_and(|value| value == "1")
}

/// Everything that exists, so that it can be deleted.
fn deletion(change: &Change) -> Change {
    match change {
        Change::Tier(name, _) => Change::Tier(name.clone(), None),
        Change::Policy(key, _) => Change::Policy(key.clone(), None),
        Change::Namespace(name, _) => Change::Namespace(name.clone(), None),
        Change::ServiceAccount { namespace, name, .. } => Change::ServiceAccount {
            namespace: namespace.clone(),
            name: name.clone(),
            labels: None,
        },
        Change::Peer(key, _) => Change::Peer(key.clone(), None),
        Change::NetworkSet(key, _) => Change::NetworkSet(key.clone(), None),
        Change::Endpoint(id, _) => Change::Endpoint(*id, None),
    }
}

/// A node: evaluator, compiler and maps, told the same.
struct Bench {
    world: World,
    compiler: Compiler,
    maps: Simulation,
    endpoints: BTreeMap<u32, ()>,
    decisions: usize,
}

/// None: closed, or no such endpoint.
type Verdict = Option<(bool, bool)>;

impl Bench {
    fn new() -> Self {
        Self {
            world: World::new(),
            compiler: Compiler::new(PLENTY, 1),
            maps: Simulation::new(),
            endpoints: BTreeMap::new(),
            decisions: 0,
        }
    }

    fn endpoint(flow: &Flow) -> u32 {
        let number = flow.endpoint.name.trim_start_matches("pod");
        number.parse().unwrap_or(u32::MAX)
    }

    fn wanted(&self, flow: &Flow) -> Option<Judgement> {
        let known = self.endpoints.contains_key(&Self::endpoint(flow));
        let aimed = random::aim(&self.world, flow).filter(|_| known)?;
        Some(self.world.judge(&aimed))
    }

    fn decided(&mut self, flow: &Flow) -> Verdict {
        self.decisions += 1;
        let decision = self.maps.decide(Self::endpoint(flow), flow)?;
        Some((decision.allows(), decision.logs()))
    }

    /// Applies changes in one go and checks every step of the way.
    fn step(&mut self, changes: &[Change], flows: &[Flow], executed: bool) -> Result<Plan, String> {
        let before: Vec<_> = flows.iter().map(|flow| self.wanted(flow)).collect();
        for change in changes {
            self.world.apply(change.clone());
            if let Change::Endpoint(id, key) = change {
                match key {
                    Some(_) => drop(self.endpoints.insert(*id, ())),
                    None => drop(self.endpoints.remove(id)),
                }
            }
        }
        let after: Vec<_> = flows.iter().map(|flow| self.wanted(flow)).collect();
        let plan = self.compiler.apply(changes.to_vec());
        for change in changes {
            if let Change::Endpoint(id, None) = change {
                self.maps.remove_endpoint(*id);
            }
        }
        let epochs: Vec<_> = flows.iter().map(|flow| self.maps.epoch(Self::endpoint(flow))).collect();
        let verdict = |wanted: &Option<Judgement>| wanted.as_ref().map(|wanted| (wanted.allow, wanted.log));
        let phases = [("add", &plan.add), ("flip", &plan.flip), ("remove", &plan.remove)];
        for (phase, ops) in phases {
            for (number, op) in ops.iter().enumerate() {
                self.maps.execute(op);
                for ((flow, before), after) in flows.iter().zip(&before).zip(&after) {
                    if before.is_none() && after.is_none() {
                        continue;
                    }
                    let decided = self.decided(flow);
                    // A pod that gets or loses its address of the family has no such flows then.
                    let either = [verdict(before), verdict(after)];
                    let fits = either.contains(&decided) || either.contains(&None) || decided.is_none();
                    if !fits || decided.is_none() && before.is_some() && after.is_some() && !self.is_new(flow) {
                        return Err(format!(
                            "after {phase} {number} {op:?}: {flow:?} is {decided:?}, not {either:?}\nplan: {plan:#?}"
                        ));
                    }
                    let last = phase != "add" && (phase == "remove" || number + 1 == ops.len());
                    if last && after.is_some() && decided != verdict(after) {
                        return Err(format!("in the end ({phase}) {flow:?} is {decided:?}, not {after:?}"));
                    }
                }
            }
        }
        if let Some(fault) = self.maps.faults().first() {
            return Err(format!("refused operation: {fault}\nplan: {plan:#?}"));
        }
        for (((flow, before), after), epoch) in flows.iter().zip(&before).zip(&after).zip(epochs) {
            let Some(after) = after else {
                continue;
            };
            let Some(decision) = self.maps.decide(Self::endpoint(flow), flow) else {
                return Err(format!("{flow:?} is closed"));
            };
            let trace = self.compiler.trace(decision.trace());
            if trace.as_deref() != Some(after) {
                return Err(format!("{flow:?}: trace {trace:?}, not {after:?}"));
            }
            if !self.maps.has_trace(decision.trace()) {
                return Err(format!("{flow:?}: trace {} has no counter", decision.trace()));
            }
            let changed = before.as_ref().is_some_and(|before| before.allow != after.allow);
            if changed && self.maps.epoch(Self::endpoint(flow)) == epoch {
                return Err(format!("{flow:?} changed, and its endpoint's epoch did not"));
            }
        }
        if executed {
            self.compiler.executed(plan.serial);
        }
        Ok(plan)
    }

    /// Told of it in the plan at hand, so closed until it flips.
    fn is_new(&self, flow: &Flow) -> bool {
        self.maps
            .policy(Self::endpoint(flow))
            .is_none_or(|told| told.egress_closed)
    }

    fn tidy(&mut self) {
        loop {
            let plan = self.compiler.apply(Vec::new());
            self.maps.run(&plan);
            if !self.compiler.executed(plan.serial) {
                break;
            }
        }
    }
}

/// Runs steps of changes; returns the number of decisions asked.
fn run(steps: &[Vec<Change>], seed: u64, flows_per_step: usize) -> Result<usize, String> {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut bench = Bench::new();
    for (number, changes) in steps.iter().enumerate() {
        let flows: Vec<Flow> = (0..flows_per_step).map(|_| random::flow(&mut random)).collect();
        let executed = !random.once_in(4);
        bench
            .step(changes, &flows, executed)
            .map_err(|error| format!("step {number}: {error}"))?;
    }
    let flows: Vec<Flow> = (0..4 * flows_per_step).map(|_| random::flow(&mut random)).collect();
    // The same world from nothing, and the dump of this one, decide the same.
    let mut afresh = Compiler::new(PLENTY, 1);
    let mut fresh_maps = Simulation::new();
    fresh_maps.run(&afresh.apply(steps.concat()));
    let mut full_maps = Simulation::new();
    full_maps.run(&bench.compiler.full());
    for flow in &flows {
        let Some(wanted) = bench.wanted(flow) else {
            continue;
        };
        for (maps, compiler, what) in [
            (&bench.maps, &bench.compiler, "step by step"),
            (&fresh_maps, &afresh, "afresh"),
            (&full_maps, &bench.compiler, "refilled"),
        ] {
            let decision = maps.decide(Bench::endpoint(flow), flow);
            let trace = decision.and_then(|decision| compiler.trace(decision.trace()));
            if trace.as_deref() != Some(&wanted) {
                return Err(format!("{what}: {flow:?} is {trace:?}, not {wanted:?}"));
            }
            bench.decisions += 1;
        }
    }
    bench.tidy();
    let again = bench.compiler.apply(Vec::new());
    if !(again.add.is_empty() && again.flip.is_empty() && again.remove.is_empty()) {
        return Err(format!("an unchanged world made a plan: {again:?}"));
    }
    // Everything goes: the maps are back to the roots.
    let all: Vec<Change> = steps.iter().flatten().map(deletion).collect();
    bench.step(&all, &[], true)?;
    bench.tidy();
    let left = MapUse {
        identities: 0,
        ..bench.maps.map_use()
    };
    let roots = MapUse {
        cidrs: 2,
        ..MapUse::default()
    };
    if left != roots {
        return Err(format!("left over: {left:?}"));
    }
    Ok(bench.decisions)
}

fn steps(seed: u64) -> Vec<Vec<Change>> {
    let mut random = Random::new(seed);
    let mut claimed = 0;
    let mut change = |random: &mut Random| {
        claimed += 1;
        random::change(random, claimed)
    };
    let mut steps = vec![(0..30).map(|_| change(&mut random)).collect()];
    for _ in 0..12 {
        let count = if random.once_in(3) { 1 + random.below(4) } else { 1 };
        steps.push((0..count).map(|_| change(&mut random)).collect());
    }
    steps
}

/// Takes out what the failure does not need.
fn shrink(mut steps: Vec<Vec<Change>>, fails: impl Fn(&[Vec<Change>]) -> bool) -> Vec<Vec<Change>> {
    loop {
        let mut smaller = false;
        for step in (0..steps.len()).rev() {
            for change in (0..steps[step].len()).rev() {
                let mut candidate = steps.clone();
                candidate[step].remove(change);
                if fails(&candidate) {
                    steps = candidate;
                    smaller = true;
                }
            }
        }
        if !smaller {
            return steps;
        }
    }
}

#[test]
fn every_operation_leaves_the_old_or_the_new_verdict() {
    let wanted = if thorough() { 1_000_000 } else { 100_000 };
    let (mut decisions, mut seed) = (0, 1);
    while decisions < wanted {
        let sequence = steps(seed);
        match run(&sequence, seed, 12) {
            Ok(count) => decisions += count,
            Err(error) => {
                let small = shrink(sequence, |steps| run(steps, seed, 12).is_err());
                let small_error = run(&small, seed, 12).err();
                panic!("seed {seed}: {error}\nsmallest: {small:#?}\n{small_error:?}");
            }
        }
        seed += 1;
    }
}
