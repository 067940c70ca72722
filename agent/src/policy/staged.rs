//! What would happen if staged policies were enforced: a second compilation, of which nothing reaches the kernel.
//!
//! It exists only where there are staged policies. A flow's verdict costs the same few lookups as in the kernel, so that
//! every flow event can have one.

use std::sync::Arc;

use super::{
    change::Change,
    compile::Compiler,
    evaluate::Flow,
    model::{Judgement, Policy},
    plan::Capacity,
    simulate::Simulation,
};

/// Nothing here has a fixed size.
const ENDLESS: Capacity = Capacity {
    addresses: usize::MAX,
    cidrs: usize::MAX,
    identities: usize::MAX,
    rows: usize::MAX,
    decisions: usize::MAX,
    source_ports: usize::MAX,
    traces: usize::MAX,
};

/// Every policy enforced, the staged ones too.
#[derive(Debug)]
pub struct StagedWorld {
    compiler: Compiler,
    maps: Simulation,
}

impl Default for StagedWorld {
    fn default() -> Self {
        Self {
            compiler: Compiler::new(ENDLESS, 1),
            maps: Simulation::new(),
        }
    }
}

impl StagedWorld {
    /// Takes over changes, as the compiler of what is enforced gets them.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let changes: Vec<Change> = changes.into_iter().map(enforced).collect();
        for change in &changes {
            if let Change::Endpoint(id, None) = change {
                self.maps.remove_endpoint(*id);
            }
        }
        let mut plan = self.compiler.apply(changes);
        self.maps.run(&plan);
        // Nobody reads the maps while they are written, so what is to be removed need not wait.
        while self.compiler.executed(plan.serial) {
            plan = self.compiler.apply(Vec::new());
            self.maps.run(&plan);
        }
    }

    /// What would become of a flow of this endpoint. None: nothing is known of the endpoint.
    #[must_use]
    pub fn judge(&self, endpoint: u32, flow: &Flow) -> Option<Arc<Judgement>> {
        let decision = self.maps.decide(endpoint, flow)?;
        self.compiler.trace(decision.trace())
    }
}

/// The change as if nothing were staged.
fn enforced(change: Change) -> Change {
    match change {
        Change::Policy(key, Some(policy)) if policy.staged => Change::Policy(
            key,
            Some(Arc::new(Policy {
                staged: false,
                ..(*policy).clone()
            })),
        ),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_common::Direction;

    use super::StagedWorld;
    use crate::policy::{
        change::{Change, Peer, PeerKey},
        evaluate::{Flow, World},
        model::{Action, Order, Policy, PolicyKey, PolicyKind, Rule, Tier, TrafficMatch},
        selector::{EntityKind, Selector},
    };

    fn pod(name: &str) -> PeerKey {
        PeerKey {
            kind: EntityKind::Pod,
            namespace: Some("x".into()),
            name: name.into(),
        }
    }

    fn peer(address: &str, claimed: u64) -> Peer {
        Peer {
            labels: Arc::default(),
            service_account: None,
            named_ports: Vec::new().into(),
            addresses: vec![address.parse().expect("a literal address")],
            claimed,
            local_node: false,
        }
    }

    fn policy(kind: PolicyKind, name: &str, staged: bool, action: Action) -> Change {
        let key = PolicyKey {
            kind,
            namespace: None,
            name: name.into(),
        };
        let policy = Policy {
            key: key.clone(),
            tier: Tier::DEFAULT.into(),
            order: Order(if staged { 1.0 } else { 2.0 }),
            subject: Selector::All,
            ingress: Some(vec![Rule {
                action,
                index: 0,
                name: None,
                peers: None,
                local: None,
                traffic: vec![TrafficMatch::ANY],
            }]),
            egress: None,
            staged,
        };
        Change::Policy(key, Some(Arc::new(policy)))
    }

    #[test]
    fn staged_policies_count_and_go() {
        let flow = Flow {
            endpoint: pod("a"),
            direction: Direction::Ingress,
            local_addr: "10.0.0.1".parse().expect("a literal address"),
            peer_addr: "10.0.0.2".parse().expect("a literal address"),
            protocol: 6,
            source_port: 40_000,
            destination_port: 80,
            icmp: None,
        };
        let staged = policy(PolicyKind::StagedGlobalNetworkPolicy, "s", true, Action::Deny);
        let Change::Policy(staged_key, _) = &staged else {
            panic!("{staged:?}")
        };
        let changes = vec![
            Change::Peer(pod("a"), Some(peer("10.0.0.1", 1))),
            Change::Peer(pod("b"), Some(peer("10.0.0.2", 2))),
            Change::Endpoint(7, Some(pod("a"))),
            policy(PolicyKind::GlobalNetworkPolicy, "p", false, Action::Allow),
            staged.clone(),
        ];
        let mut world = World::new();
        changes.iter().cloned().for_each(|change| world.apply(change));
        let mut view = StagedWorld::default();
        view.apply(changes);
        assert_eq!(view.judge(7, &flow).as_deref(), Some(&world.judge_staged(&flow)));
        assert!(!world.judge_staged(&flow).allow && world.judge(&flow).allow);
        assert_eq!(view.judge(8, &flow), None);

        view.apply([Change::Policy(staged_key.clone(), None)]);
        assert_eq!(view.judge(7, &flow).as_deref(), Some(&world.judge(&flow)));
        view.apply([Change::Endpoint(7, None)]);
        assert_eq!(view.judge(7, &flow), None);
        assert!(view.maps.faults().is_empty(), "{:?}", view.maps.faults());
    }
}
