//! What a change of one of many policies costs: as much as it changes.

use weir_common::Direction;

use super::{
    cluster::{address, allow, app, endpoint, from, pod, pod_key, policy, put},
    sequences::PLENTY,
};
use crate::policy::{
    change::Change,
    compile::Compiler,
    evaluate::{Flow, World},
    model::{Policy, PolicyKey, PortMatch},
    plan::{Op, Plan},
    selector::Selector,
    simulate::Simulation,
};

const POLICIES: usize = 200;
const LOCAL: usize = 3;
/// Remote pod `n` has this number.
const REMOTE: usize = 1000;

/// Lets every pod be reached by those of one app, on one port.
fn rule(name: &str, from_app: usize, port: u16) -> Policy {
    let ports = Some(vec![PortMatch::Range(port..=port)]);
    let rules = vec![allow(0, from(app(format!("app{from_app}"))), ports)];
    policy(name, 1.0, Selector::All, rules)
}

fn name(number: usize) -> String {
    format!("policy{number:03}")
}

struct Bench {
    world: World,
    compiler: Compiler,
    maps: Simulation,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            world: World::new(),
            compiler: Compiler::new(PLENTY, 1),
            maps: Simulation::new(),
        };
        let mut changes: Vec<Change> = (0..POLICIES)
            .map(|number| put(rule(&name(number), number, 80)))
            .collect();
        changes.extend((0..LOCAL).flat_map(|number| [pod(number, "local"), endpoint(number)]));
        changes.extend((0..2 * POLICIES).map(|number| pod(REMOTE + number, &format!("app{number}"))));
        bench.apply(changes);
        bench
    }

    /// Applies changes and checks everybody's verdicts; returns the plan.
    fn apply(&mut self, changes: Vec<Change>) -> Plan {
        for change in &changes {
            self.world.apply(change.clone());
        }
        let plan = self.compiler.apply(changes);
        self.maps.run(&plan);
        assert_eq!(self.maps.faults(), [""; 0]);
        if self.compiler.executed(plan.serial) {
            let tidy = self.compiler.apply(Vec::new());
            self.maps.run(&tidy);
            self.compiler.executed(tidy.serial);
        }
        self.check();
        plan
    }

    fn check(&self) {
        for local in 0..LOCAL {
            for remote in (0..2 * POLICIES).step_by(7).chain([POLICIES + 1, POLICIES + 2]) {
                for port in [80, 81] {
                    let flow = Flow {
                        endpoint: pod_key(local),
                        direction: Direction::Ingress,
                        local_addr: address(local),
                        peer_addr: address(REMOTE + remote),
                        protocol: 6,
                        source_port: 4000,
                        destination_port: port,
                        icmp: None,
                    };
                    let wanted = self.world.judge(&flow);
                    let decision = self.maps.decide(local as u32, &flow).expect("an open endpoint");
                    let named = self.compiler.trace(decision.trace());
                    assert_eq!(named.as_deref(), Some(&wanted), "{flow:?}");
                }
            }
        }
    }
}

fn operations(plan: &Plan) -> usize {
    plan.add.len() + plan.flip.len() + plan.remove.len()
}

fn count(ops: &[Op], wanted: impl Fn(&Op) -> bool) -> usize {
    ops.iter().filter(|op| wanted(op)).count()
}

fn flips(plan: &Plan) -> usize {
    count(&plan.flip, |op| matches!(op, Op::SetPolicy(_)))
}

fn bumps(plan: &Plan) -> usize {
    count(&plan.flip, |op| matches!(op, Op::BumpEpoch { .. }))
}

fn rows(plan: &Plan) -> usize {
    count(&plan.add, |op| matches!(op, Op::PutRow(..)))
}

#[test]
fn a_changed_rule_writes_the_rows_that_it_changes() {
    let mut bench = Bench::new();
    for round in 0..30 {
        // Another peer, another port, and back.
        let number = round * 13 % POLICIES;
        for changed in [
            rule(&name(number), POLICIES + round, 80),
            rule(&name(number), POLICIES + round, 81),
            rule(&name(number), number, 80),
        ] {
            let plan = bench.apply(vec![put(changed)]);
            assert_eq!((flips(&plan), bumps(&plan)), (0, LOCAL), "{plan:#?}");
            assert!(rows(&plan) <= 2 && operations(&plan) <= 20, "{plan:#?}");
        }
    }
    let used = bench.compiler.stats();
    assert_eq!((used.maps.rows, used.tables), (POLICIES, 2), "{used:?}");
}

#[test]
fn a_policy_among_others_comes_and_goes_for_the_rows_that_it_changes() {
    let mut bench = Bench::new();
    let new = rule("policy100-and-a-half", POLICIES + 1, 80);
    let gone = Change::Policy(new.key.clone(), None);
    for change in [put(new), gone] {
        let plan = bench.apply(vec![change]);
        assert_eq!((flips(&plan), bumps(&plan)), (0, LOCAL), "{plan:#?}");
        assert!(operations(&plan) <= 12, "{plan:#?}");
    }
}

#[test]
fn several_policies_in_one_change_are_one_table() {
    let mut bench = Bench::new();
    let key = PolicyKey::clone(&rule(&name(50), 0, 80).key);
    let plan = bench.apply(vec![
        put(rule(&name(10), POLICIES + 2, 80)),
        put(rule(&name(150), 150, 81)),
        Change::Policy(key, None),
    ]);
    assert_eq!((flips(&plan), bumps(&plan)), (0, LOCAL), "{plan:#?}");
    assert!(operations(&plan) <= 30, "{plan:#?}");
}

#[test]
fn a_policy_that_parts_pods_makes_a_table_beside_the_old_one() {
    let mut bench = Bench::new();
    bench.apply(vec![pod(2, "other")]);
    let mut own = rule("policy100-and-a-half", POLICIES + 1, 80);
    own.subject = app("other");
    let plan = bench.apply(vec![put(own.clone())]);
    assert_eq!((flips(&plan), bumps(&plan)), (1, 0), "{plan:#?}");
    assert_eq!(rows(&plan), POLICIES + 1, "a table of its own for that pod");
    // From then on both tables change, each for itself.
    let plan = bench.apply(vec![put(rule(&name(10), POLICIES + 2, 80))]);
    assert_eq!((flips(&plan), bumps(&plan)), (0, LOCAL), "{plan:#?}");
    assert!(operations(&plan) <= 30, "{plan:#?}");
    // Back to where the others are.
    let plan = bench.apply(vec![Change::Policy(own.key, None)]);
    assert_eq!((flips(&plan), rows(&plan)), (1, 0), "{plan:#?}");
}

#[test]
fn what_changes_for_everybody_is_a_new_table() {
    let mut bench = Bench::new();
    // The last policy of a tier is named by whatever no rule decides.
    let plan = bench.apply(vec![put(rule("z", POLICIES + 1, 80))]);
    assert_eq!((flips(&plan), bumps(&plan)), (LOCAL, 0), "{plan:#?}");
    assert_eq!(rows(&plan), POLICIES + 1);
}

#[test]
fn a_local_pods_label_that_selects_no_other_policy_makes_no_table() {
    let mut bench = Bench::new();
    let plan = bench.apply(vec![pod(1, "other")]);
    assert_eq!((flips(&plan), rows(&plan)), (0, 0), "{plan:#?}");
}
