//! What the tests of this room share.

use std::{net::IpAddr, sync::Arc};

use weir_common::{
    Direction,
    conntrack::CtKey,
    event::{Event, EventKind},
    policy::{Decision, IPPROTO_TCP},
    reason::Reason,
};

use super::{
    clock::Clock,
    directory::{Names, PodInfo},
    record::{Context, FlowRecord},
};
use crate::{
    api::{PodPhase, Workload},
    index::{IndexOutput, NameChange},
    policy::{
        change::{Change, Peer, PeerKey},
        model::{Action, Hit, Judgement, PolicyKey, PolicyKind, TierDefault},
        selector::EntityKind,
    },
};

/// A running pod.
pub fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Arc<PodInfo> {
    Arc::new(PodInfo {
        namespace: namespace.into(),
        name: name.into(),
        labels: Arc::new(
            labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        ),
        node_name: Some("n1".into()),
        host_network: false,
        service_account: "default".into(),
        named_ports: Vec::new().into(),
        addresses: Default::default(),
        phase: PodPhase::Running,
        created: None,
        uid: None,
        allowed_sources: Box::default(),
        workload: None,
    })
}

/// A literal address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Endpoint 7 is the pod `prod/api-0`; `prod/web-1` is another pod; n1 (ours) and n2 are nodes. Trace 1 is allowed by
/// `prod/allow-web`, 2 denied at the end of a tier, 3 allowed by the profile.
pub fn names() -> Names {
    let mut names = Names::default();
    let api = pod("prod", "api-0", &[("app", "api"), ("tier", "backend")]);
    let mut web = PodInfo::clone(&pod("prod", "web-1", &[("app", "web")]));
    web.workload = Some(Arc::new(Workload {
        kind: "Deployment".into(),
        name: "web".into(),
    }));
    let web = Arc::new(web);
    let node = |name: &str, address: &str, local_node| {
        Change::Peer(
            PeerKey {
                kind: EntityKind::Node,
                namespace: None,
                name: name.into(),
            },
            Some(Peer {
                labels: Arc::default(),
                service_account: None,
                named_ports: Vec::new().into(),
                addresses: vec![ip(address)],
                claimed: 1,
                local_node,
            }),
        )
    };
    let name = |address: &str, pod: &Arc<PodInfo>| NameChange {
        address: ip(address),
        pod: Some(pod.clone()),
    };
    names.apply_index(&IndexOutput {
        changes: vec![node("n1", "10.0.0.1", true), node("n2", "10.0.1.1", false)],
        names: vec![
            name("10.0.0.10", &api),
            name("2001:db8::10", &api),
            name("10.0.0.21", &web),
            name("2001:db8::21", &web),
        ],
        ..IndexOutput::default()
    });
    names.set_endpoint(7, Some(api));

    let policy = |name: &str| PolicyKey {
        kind: PolicyKind::KubernetesNetworkPolicy,
        namespace: Some("prod".into()),
        name: name.into(),
    };
    let traces = [
        (
            1,
            true,
            Hit::Rule {
                direction: weir_common::Direction::Ingress,
                tier: "default".into(),
                policy: policy("allow-web"),
                index: 0,
                name: None,
                action: Action::Allow,
            },
        ),
        (
            2,
            false,
            Hit::EndOfTier {
                direction: weir_common::Direction::Ingress,
                tier: "default".into(),
                policy: policy("deny-all"),
                action: TierDefault::Deny,
            },
        ),
        (3, true, Hit::Profile),
    ];
    for (trace, allow, hit) in traces {
        let judgement = Judgement {
            allow,
            log: false,
            hits: vec![hit],
        };
        names.set_trace(trace, Some(Arc::new(judgement)));
    }
    names
}

/// A flow from `prod/web-1` to this port of `prod/api-0`, denied at the end of a tier.
pub fn denied(port: u16) -> FlowRecord {
    let event = Event {
        time: 1_000_000_000,
        key: CtKey {
            endpoint_protocol: 7 << 8 | u32::from(IPPROTO_TCP),
            local_port: port,
            peer_port: 40_000,
            local: ip("10.0.0.10").into(),
            peer: ip("10.0.0.21").into(),
        },
        decision: Decision::new(false, false, 2),
        kind: EventKind::Denied as u8,
        reason: Reason::PolicyDenied as u8,
        direction: Direction::Ingress as u8,
        packets: [0, 1],
        bytes: [0, 60],
        ..Event::default()
    };
    let context = Context {
        names: &names(),
        clock: Clock::with_offset(1_795_366_800_000_000_000),
        node: &Arc::from("n1"),
        audit: false,
    };
    context.event(&event, None).expect("a record")
}
