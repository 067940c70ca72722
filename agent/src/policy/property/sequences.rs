//! Sequences of changes: after every operation of every plan each flow has its old or its new verdict, and after the plan
//! the new one with its whole trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weir_common::policy::{IPPROTO_ICMP, IPPROTO_ICMPV6};

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

pub fn thorough() -> bool {
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

fn verdict(wanted: Option<&Judgement>) -> Verdict {
    wanted.map(|wanted| (wanted.allow, wanted.log))
}

/// A flow across a plan. Before or after is None where there is no such flow: no endpoint, or without an address.
struct Case<'a> {
    flow: &'a Flow,
    endpoint: u32,
    before: Option<&'a Judgement>,
    after: Option<&'a Judgement>,
    /// Before.
    epoch: u64,
    /// There is the endpoint, but before or after without an address of the flow's family.
    no_address: bool,
}

impl Case<'_> {
    fn either(&self) -> [Verdict; 2] {
        [verdict(self.before), verdict(self.after)]
    }
}

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

    fn decided(&mut self, endpoint: u32, flow: &Flow) -> Verdict {
        self.decisions += 1;
        let decision = self.maps.decide(endpoint, flow)?;
        Some((decision.allows(), decision.logs()))
    }

    /// Flows of every local pod with those whom the changes are about, with some others, and with the outside.
    fn flows(&self, changes: &[Change], random: &mut Random) -> Vec<Flow> {
        let mut peers: BTreeSet<IpAddr> = BTreeSet::new();
        for change in changes {
            if let Change::Peer(key, peer) = change {
                let old = self.world.peer(key).into_iter().chain(peer);
                peers.extend(old.flat_map(|peer| &peer.addresses));
            }
        }
        let outside = random::outside();
        while peers.len() < 8 {
            peers.insert(random::flow(random).peer_addr);
            peers.insert(*random.pick(&outside));
        }
        let mut locals: BTreeSet<u32> = self.endpoints.keys().copied().collect();
        locals.extend(changes.iter().filter_map(|change| match change {
            Change::Endpoint(id, _) => Some(*id),
            _ => None,
        }));
        let mut flows = Vec::new();
        for (&local, &peer_addr) in locals
            .iter()
            .flat_map(|local| peers.iter().map(move |peer| (local, peer)))
        {
            let mut flow = random::flow(random);
            flow.endpoint = random::pod(local as usize);
            let own_icmp = if peer_addr.is_ipv4() {
                IPPROTO_ICMP
            } else {
                IPPROTO_ICMPV6
            };
            flow.icmp = (flow.protocol == own_icmp).then(|| flow.icmp.unwrap_or((8, 0)));
            (flow.local_addr, flow.peer_addr) = (peer_addr, peer_addr);
            flows.push(flow);
        }
        flows
    }

    /// Applies changes in one go and checks every step of the way.
    fn step(&mut self, changes: &[Change], random: &mut Random) -> Result<Plan, String> {
        let flows = self.flows(changes, random);
        let before: Vec<_> = flows.iter().map(|flow| self.wanted(flow)).collect();
        let known_before = self.endpoints.clone();
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
            if let Change::Endpoint(id, _) = change
                && !(known_before.contains_key(id) && self.endpoints.contains_key(id))
            {
                self.maps.remove_endpoint(*id);
            }
        }
        let cases: Vec<Case<'_>> = flows
            .iter()
            .zip(before.iter().zip(&after))
            .filter(|(_, (before, after))| before.is_some() || after.is_some())
            .map(|(flow, (before, after))| Case {
                flow,
                endpoint: Self::endpoint(flow),
                before: before.as_ref(),
                after: after.as_ref(),
                epoch: self.maps.epoch(Self::endpoint(flow)),
                no_address: before.is_none() && known_before.contains_key(&Self::endpoint(flow))
                    || after.is_none() && self.endpoints.contains_key(&Self::endpoint(flow)),
            })
            .collect();
        self.execute(&plan, &cases)
            .map_err(|error| format!("{error}\nplan: {plan:#?}"))?;
        cases.iter().try_for_each(|case| self.check(case))?;
        if !random.once_in(4) {
            self.compiler.executed(plan.serial);
        }
        Ok(plan)
    }

    fn execute(&mut self, plan: &Plan, cases: &[Case<'_>]) -> Result<(), String> {
        let phases = [("add", &plan.add), ("flip", &plan.flip), ("remove", &plan.remove)];
        for (phase, ops) in phases {
            for (number, op) in ops.iter().enumerate() {
                self.maps.execute(op);
                if let Some(fault) = self.maps.faults().first() {
                    return Err(format!("{phase} {number}: refused {fault}"));
                }
                // Before and after the flips nothing may change at all: there some of the flows will do.
                let some = if phase == "flip" || number + 1 == ops.len() {
                    1
                } else {
                    5
                };
                for case in cases.iter().skip(number % some).step_by(some) {
                    let decided = self.decided(case.endpoint, case.flow);
                    let right = match phase {
                        _ if case.no_address => true,
                        "add" => {
                            case.either().contains(&decided)
                                && (case.after.is_none() || decided == verdict(case.before))
                        }
                        "flip" => case.either().contains(&decided),
                        _ => case.after.is_none() || decided == verdict(case.after),
                    };
                    if !right {
                        let (before, after) = (case.before, case.after);
                        return Err(format!(
                            "{phase} {number} {op:?}: {:?} is {decided:?}\nbefore: {before:?}\nafter: {after:?}",
                            case.flow
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// After the plan.
    fn check(&self, case: &Case<'_>) -> Result<(), String> {
        let (flow, endpoint) = (case.flow, case.endpoint);
        let Some(after) = case.after else {
            return Ok(());
        };
        let Some(decision) = self.maps.decide(endpoint, flow) else {
            return Err(format!("{flow:?} is closed"));
        };
        let trace = self.compiler.trace(decision.trace());
        if trace.as_deref() != Some(after) {
            return Err(format!("{flow:?}: trace {trace:?}, not {after:?}"));
        }
        if !self.maps.has_trace(decision.trace()) {
            return Err(format!("{flow:?}: trace {} has no counter", decision.trace()));
        }
        let changed = case.before.is_some_and(|before| before.allow != after.allow);
        if changed && self.maps.epoch(endpoint) == case.epoch {
            return Err(format!("{flow:?} changed, and its endpoint's epoch did not"));
        }
        Ok(())
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
fn run(steps: &[Vec<Change>], seed: u64) -> Result<usize, String> {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut bench = Bench::new();
    for (number, changes) in steps.iter().enumerate() {
        bench
            .step(changes, &mut random)
            .map_err(|error| format!("step {number}: {error}"))?;
    }
    let flows: Vec<Flow> = (0..100).map(|_| random::flow(&mut random)).collect();
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
    bench.step(&all, &mut random)?;
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
    let wanted = if thorough() { 10_000_000 } else { 600_000 };
    let first = std::env::var("WEIR_SEED").ok().and_then(|seed| seed.parse().ok());
    let (mut decisions, mut seed) = (0, first.unwrap_or(1));
    while decisions < wanted {
        let sequence = steps(seed);
        match run(&sequence, seed) {
            Ok(count) => decisions += count,
            Err(error) => {
                let small = shrink(sequence, |steps| run(steps, seed).is_err());
                let small_error = run(&small, seed).err();
                panic!("seed {seed}: {error}\nsmallest: {small:#?}\n{small_error:?}");
            }
        }
        seed += 1;
    }
}
