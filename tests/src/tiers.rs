//! A pod under many tiers of policies, compiled: what its packets meet must not depend on how many there are.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result, bail};
use weir::policy::{
    change::{Change, Peer, PeerKey},
    compile::Compiler,
    model::{
        Action, Order, PeerMatch, Policy, PolicyKey, PolicyKind, PortMatch, Rule, Tier, TierDefault, TrafficMatch,
    },
    plan::{Capacity, EndpointPolicy, Op},
    selector::{EntityKind, Field, Selector},
};
use weir_common::policy::IPPROTO_TCP;

use crate::{plan, testrun::Programs};

/// Of each tier.
pub const POLICIES: u32 = 100;

const ENDPOINT: u32 = 1;

fn key(name: &str) -> PeerKey {
    PeerKey {
        kind: EntityKind::Pod,
        namespace: Some("default".into()),
        name: name.into(),
    }
}

fn app(name: &str) -> Selector {
    Selector::equals(Field::Label("app".into()), name)
}

fn pod(name: &str, address: IpAddr, claimed: u32) -> Change {
    let peer = Peer {
        labels: Arc::new(BTreeMap::from([("app".to_owned(), name.to_owned())])),
        service_account: None,
        named_ports: Arc::new([]),
        addresses: vec![address],
        claimed: u64::from(claimed),
        local_node: false,
    };
    Change::Peer(key(name), Some(peer))
}

fn peer(number: u32) -> String {
    format!("peer-{number}")
}

/// The tier's policy for one peer: the last tier allows it to a port, all others pass it on.
fn policy(tier: &Arc<str>, number: u32, last: Option<u16>) -> Change {
    let traffic = match last {
        Some(port) => TrafficMatch {
            protocol: Some(IPPROTO_TCP),
            ports: Some(vec![PortMatch::Range(port..=port)]),
            ..TrafficMatch::ANY
        },
        None => TrafficMatch::ANY,
    };
    let key = PolicyKey {
        kind: PolicyKind::GlobalNetworkPolicy,
        namespace: None,
        name: format!("{tier}.policy-{number:03}").into(),
    };
    let rule = Rule {
        action: if last.is_some() { Action::Allow } else { Action::Pass },
        index: 0,
        name: None,
        peers: Some(vec![PeerMatch {
            selector: Some(app(&peer(number))),
            ..PeerMatch::default()
        }]),
        local: None,
        traffic: vec![traffic],
    };
    let policy = Policy {
        key: key.clone(),
        tier: tier.clone(),
        order: Order(f64::from(number)),
        subject: app("server"),
        ingress: Some(vec![rule]),
        egress: None,
        staged: false,
    };
    Change::Policy(key, Some(Arc::new(policy)))
}

/// Fills the maps with so many tiers of [`POLICIES`] policies each. Every peer (by number) passes all of them and may then
/// reach the pod on one port. Returns what the pod's endpoint obeys.
///
/// # Errors
/// The maps do not take it.
pub fn fill(
    programs: &mut Programs,
    tiers: u32,
    pod_address: IpAddr,
    peer_address: impl Fn(u32) -> IpAddr,
    port: u16,
) -> Result<EndpointPolicy> {
    const PLENTY: usize = 1 << 20;
    let mut changes = vec![
        pod("server", pod_address, 0),
        Change::Endpoint(ENDPOINT, Some(key("server"))),
    ];
    changes.extend((0..POLICIES).map(|number| pod(&peer(number), peer_address(number), number + 1)));
    for tier in 0..tiers {
        let name: Arc<str> = format!("tier-{tier:03}").into();
        let object = Tier {
            name: name.clone(),
            order: Order(f64::from(tier)),
            default_action: TierDefault::Deny,
        };
        changes.push(Change::Tier(name.clone(), Some(object)));
        let last = (tier + 1 == tiers).then_some(port);
        changes.extend((0..POLICIES).map(|number| policy(&name, number, last)));
    }
    let capacity = Capacity {
        addresses: PLENTY,
        cidrs: PLENTY,
        identities: PLENTY,
        rows: PLENTY,
        decisions: PLENTY,
        source_ports: PLENTY,
        traces: PLENTY,
    };
    let plan = Compiler::new(capacity, 1).apply(changes);
    if let Some(shortage) = plan.shortages.first() {
        bail!("no room in {}", shortage.map);
    }
    for op in plan.add.iter().chain(&plan.flip) {
        plan::execute(programs, op)?;
    }
    let mut policies = plan.flip.iter().rev().filter_map(|op| match op {
        Op::SetPolicy(policy) => Some(*policy),
        _ => None,
    });
    policies.next().context("the compiler told the endpoint nothing")
}
