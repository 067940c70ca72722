//! Small pieces to build worlds of.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::policy::{
    change::{Change, Peer, PeerKey},
    model::{Action, Order, PeerMatch, Policy, PolicyKey, PolicyKind, PortMatch, Rule, TrafficMatch},
    selector::{EntityKind, Field, Selector},
};

pub fn pod_key(number: usize) -> PeerKey {
    PeerKey {
        kind: EntityKind::Pod,
        namespace: Some("ns".into()),
        name: format!("pod{number}").into(),
    }
}

pub fn address(number: usize) -> IpAddr {
    IpAddr::from((0x0a00_0001 + number as u32).to_be_bytes())
}

/// A pod with one label.
pub fn pod(number: usize, app: &str) -> Change {
    let peer = Peer {
        labels: Arc::new(BTreeMap::from([("app".to_owned(), app.to_owned())])),
        service_account: None,
        named_ports: Arc::new([]),
        addresses: vec![address(number)],
        claimed: number as u64,
        local_node: false,
    };
    Change::Peer(pod_key(number), Some(peer))
}

pub fn endpoint(number: usize) -> Change {
    Change::Endpoint(number as u32, Some(pod_key(number)))
}

pub fn app(value: impl Into<String>) -> Selector {
    Selector::equals(Field::Label("app".into()), value)
}

/// From those that match, or from anybody.
pub fn allow(index: u32, from: Option<PeerMatch>, ports: Option<Vec<PortMatch>>) -> Rule {
    Rule {
        action: Action::Allow,
        index,
        name: None,
        peers: from.map(|from| vec![from]),
        local: None,
        traffic: vec![TrafficMatch {
            protocol: ports.as_ref().map(|_| 6),
            ports,
            ..TrafficMatch::ANY
        }],
    }
}

pub fn from(selector: Selector) -> Option<PeerMatch> {
    Some(PeerMatch {
        selector: Some(selector),
        ..PeerMatch::default()
    })
}

/// An ingress policy.
pub fn policy(name: &str, order: f64, subject: Selector, rules: Vec<Rule>) -> Policy {
    Policy {
        key: PolicyKey {
            kind: PolicyKind::GlobalNetworkPolicy,
            namespace: None,
            name: name.into(),
        },
        tier: "default".into(),
        order: Order(order),
        subject,
        ingress: Some(rules),
        egress: None,
        staged: false,
    }
}

pub fn put(policy: Policy) -> Change {
    Change::Policy(policy.key.clone(), Some(Arc::new(policy)))
}
