//! What must cost nothing.

use weir_common::Direction;

use super::{
    cluster::{address, allow, app, endpoint, from, pod, pod_key, policy, put},
    sequences::PLENTY,
};
use crate::policy::{
    change::Change,
    compile::{Compiler, MapUse},
    evaluate::{Flow, World},
    model::Hit,
    plan::{Op, Plan},
    selector::Selector,
    simulate::Simulation,
};
fn is_empty(plan: &Plan) -> bool {
    plan.add.is_empty() && plan.flip.is_empty() && plan.remove.is_empty()
}

fn world(pods: usize) -> Vec<Change> {
    let rules = vec![allow(
        0,
        from(app("web")),
        Some(vec![crate::policy::model::PortMatch::Range(80..=80)]),
    )];
    let mut changes = vec![put(policy("web", 100.0, Selector::All, rules))];
    changes.extend((0..pods).flat_map(|number| [pod(number, "db"), endpoint(number)]));
    changes.push(pod(5000, "web"));
    changes
}

#[test]
fn five_hundred_pods_under_one_policy_cost_as_much_as_one() {
    let used = |pods| {
        let mut compiler = Compiler::new(PLENTY, 1);
        compiler.apply(world(pods));
        compiler.stats()
    };
    let (one, many) = (used(1), used(500));
    assert_eq!((one.tables, one.classes), (many.tables, many.classes));
    let addresses_apart = |maps: MapUse| MapUse { addresses: 0, ..maps };
    assert_eq!(addresses_apart(one.maps), addresses_apart(many.maps));
    assert_eq!(many.maps.addresses, 501);
}

#[test]
fn telling_the_same_again_changes_nothing() {
    let mut compiler = Compiler::new(PLENTY, 1);
    let plan = compiler.apply(world(3));
    assert!(!is_empty(&plan));
    compiler.executed(plan.serial);
    assert!(is_empty(&compiler.apply(world(3))));
    assert!(is_empty(&compiler.apply(Vec::new())));
}

#[test]
fn a_rules_new_name_is_told_without_touching_a_map() {
    let mut compiler = Compiler::new(PLENTY, 1);
    let mut maps = Simulation::new();
    let mut rule = allow(0, from(app("web")), None);
    let mut changes = world(1);
    changes[0] = put(policy("web", 100.0, Selector::All, vec![rule.clone()]));
    maps.run(&compiler.apply(changes));
    rule.name = Some("front".into());
    assert!(is_empty(&compiler.apply(vec![put(policy(
        "web",
        100.0,
        Selector::All,
        vec![rule]
    ))])));
    let flow = Flow {
        endpoint: pod_key(0),
        direction: Direction::Ingress,
        local_addr: address(0),
        peer_addr: address(5000),
        protocol: 6,
        source_port: 4000,
        destination_port: 80,
        icmp: None,
    };
    let decision = maps.decide(0, &flow).expect("an open endpoint");
    let judgement = compiler.trace(decision.trace()).expect("a trace in use");
    let Some(Hit::Rule { name, .. }) = judgement.hits.last() else {
        panic!("not decided by a rule: {judgement:?}");
    };
    assert_eq!(name.as_deref(), Some("front"));
}

#[test]
fn staged_policies_are_not_enforced() {
    let mut compiler = Compiler::new(PLENTY, 1);
    compiler.apply(world(2));
    let mut staged = policy("staged", 1.0, Selector::All, Vec::new());
    staged.staged = true;
    assert!(is_empty(&compiler.apply(vec![put(staged)])));
}

#[test]
fn a_remote_label_change_is_one_move_and_only_those_concerned_judge_again() {
    let mut compiler = Compiler::new(PLENTY, 1);
    let mut changes = world(2);
    // Pod 1 is under another policy, which does not ask for anybody's labels.
    let anybody = policy("open", 1.0, app("other"), vec![allow(0, None, None)]);
    changes.extend([put(anybody), pod(1, "other")]);
    let plan = compiler.apply(changes);
    compiler.executed(plan.serial);
    let plan = compiler.apply(vec![pod(5000, "db")]);
    let moves = plan
        .flip
        .iter()
        .filter(|op| matches!(op, Op::PutAddress(..) | Op::PutIdentity { .. }));
    assert_eq!(moves.count(), 1, "{plan:?}");
    let bumped: Vec<_> = plan
        .flip
        .iter()
        .filter(|op| matches!(op, Op::BumpEpoch { .. }))
        .collect();
    assert_eq!(bumped, [&Op::BumpEpoch { endpoint: 0 }]);
    assert!(!plan.flip.iter().any(|op| matches!(op, Op::SetPolicy(_))));
}

#[test]
fn late_delete_of_an_older_claim_changes_nothing() {
    let mut compiler = Compiler::new(PLENTY, 1);
    let mut maps = Simulation::new();
    let mut world = World::new();
    let Change::Peer(_, Some(mut newer)) = pod(6000, "db") else {
        panic!("a pod");
    };
    newer.addresses = vec![address(5000)];
    let mut tell = |change: Vec<Change>| {
        change.iter().cloned().for_each(|change| world.apply(change));
        let plan = compiler.apply(change);
        maps.run(&plan);
        (is_empty(&plan), maps.class(address(5000)))
    };
    let (_, web) = tell(self::world(1));
    let (_, db) = tell(vec![Change::Peer(pod_key(6000), Some(newer.clone()))]);
    assert_ne!(web, db);
    assert_eq!(tell(vec![Change::Peer(pod_key(5000), None)]), (true, db));
    tell(vec![pod(5000, "web")]);
    let (_, given_back) = tell(vec![Change::Peer(pod_key(6000), None)]);
    // Class ids are never given out again, so it may be another one of the same kind.
    assert_ne!(given_back, db);
}
