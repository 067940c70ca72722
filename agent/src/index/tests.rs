//! What each event changes.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Index, IndexOutput};
use crate::{
    api::{Object, Outcome, Parser, Pod, PodUid},
    policy::{
        change::{Change, Peer, PeerKey},
        selector::{EntityKind, Labels},
    },
    source::SourceEvent,
};

fn object(value: &Value) -> Object {
    match Parser::new().parse(value, None).outcome {
        Outcome::Valid(object) => object,
        other => panic!("{other:?}"),
    }
}

fn pod(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "ns", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "here"}, "status": {"phase": "Running", "podIP": address},
    })
}

fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap()[key] = new;
    value
}

/// An index and the world as its output tells it.
struct World {
    index: Index,
    peers: BTreeMap<PeerKey, Peer>,
    namespaces: BTreeMap<String, Labels>,
    locals: BTreeMap<String, Vec<IpAddr>>,
    names: BTreeMap<IpAddr, Arc<Pod>>,
}

impl World {
    fn new() -> Self {
        Self {
            index: Index::new("here"),
            peers: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            locals: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    fn put(&mut self, value: &Value) -> IndexOutput {
        self.event(SourceEvent::Apply(object(value)))
    }

    fn delete(&mut self, value: &Value) -> IndexOutput {
        self.event(SourceEvent::Delete(object(value).key()))
    }

    fn event(&mut self, event: SourceEvent) -> IndexOutput {
        let out = self.index.apply(event);
        self.follow(&out);
        out
    }

    fn follow(&mut self, out: &IndexOutput) {
        for change in &out.changes {
            match change {
                Change::Peer(key, Some(peer)) => {
                    assert_ne!(
                        self.peers.insert(key.clone(), peer.clone()).as_ref(),
                        Some(peer),
                        "nothing changed"
                    );
                }
                Change::Peer(key, None) => assert!(self.peers.remove(key).is_some()),
                Change::Namespace(name, Some(labels)) => {
                    self.namespaces.insert(name.to_string(), labels.clone());
                }
                Change::Namespace(name, None) => assert!(self.namespaces.remove(&**name).is_some()),
                _ => {}
            }
        }
        for change in &out.local_pods {
            match &change.pod {
                Some(pod) => self.locals.insert(change.key.to_string(), pod.addresses.clone()),
                None => self.locals.remove(&change.key.to_string()),
            };
        }
        for change in &out.names {
            match &change.pod {
                Some(pod) => self.names.insert(change.address, pod.clone()),
                None => self.names.remove(&change.address),
            };
        }
    }

    /// The peer whose seniority gives it the address, as the compiler will see it.
    fn winner(&self, address: &str) -> Option<String> {
        let address: IpAddr = address.parse().unwrap();
        let claimants = self.peers.iter().filter(|(_, peer)| peer.addresses.contains(&address));
        claimants
            .max_by_key(|(_, peer)| peer.claimed)
            .map(|(key, _)| key.to_string())
    }

    fn name(&self, address: &str) -> Option<String> {
        let pod = self.names.get(&address.parse().unwrap())?;
        Some(format!("{}/{}", pod.namespace, pod.name))
    }
}

const IP: &str = "10.0.0.1";

#[test]
fn of_two_pods_with_one_address_the_newest_has_it() {
    let mut world = World::new();
    world.put(&pod("old", IP));
    world.put(&pod("new", IP));
    assert_eq!(
        (world.winner(IP), world.name(IP)),
        (Some("ns/new".into()), Some("ns/new".into()))
    );
    // The late delete of the older one does not remove it.
    world.delete(&pod("old", IP));
    assert_eq!(
        (world.winner(IP), world.name(IP)),
        (Some("ns/new".into()), Some("ns/new".into()))
    );
    // An update that gains no address keeps its place; one that does claims it anew.
    world.put(&pod("third", IP));
    world.put(&with(pod("new", IP), "/metadata/labels", json!({"x": "y"})));
    assert_eq!(world.winner(IP), Some("ns/third".into()));
    world.put(&pod("new", "10.0.0.2"));
    world.put(&pod("new", IP));
    assert_eq!(
        (world.winner(IP), world.name(IP)),
        (Some("ns/new".into()), Some("ns/new".into()))
    );
}

#[test]
fn creation_counts_before_arrival() {
    let mut world = World::new();
    let created = |name, time: &str| with(pod(name, IP), "/metadata/creationTimestamp", json!(time));
    world.put(&created("new", "2026-01-01T00:00:01Z"));
    world.put(&created("old", "2026-01-01T00:00:00Z"));
    assert_eq!(
        (world.winner(IP), world.name(IP)),
        (Some("ns/new".into()), Some("ns/new".into()))
    );
    world.put(&created("same", "2026-01-01T00:00:01Z"));
    assert_eq!(world.winner(IP), Some("ns/same".into()));
}

#[test]
fn pods_that_end_or_are_on_the_host_network_have_no_address() {
    let mut world = World::new();
    for value in [
        with(pod("p", IP), "/status/phase", json!("Succeeded")),
        with(pod("p", IP), "/status/phase", json!("Failed")),
        with(pod("p", IP), "/spec/hostNetwork", json!(true)),
    ] {
        world.put(&pod("p", IP));
        assert_eq!((world.peers.len(), world.locals.len(), world.names.len()), (1, 1, 1));
        world.put(&value);
        assert_eq!((world.peers.len(), world.locals.len(), world.names.len()), (0, 0, 0));
    }
    world.put(&with(pod("p", IP), "/spec/nodeName", json!("there")));
    assert_eq!((world.peers.len(), world.locals.len()), (1, 0));
    // Without an address it is no local pod yet, but policies select it.
    world.put(&with(pod("q", IP), "/status", json!({})));
    assert_eq!((world.peers.len(), world.locals.len()), (2, 0));
}

#[test]
fn nodes_are_peers_and_keep_their_addresses() {
    let mut world = World::new();
    let node = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    };
    let out = world.index.set_node_addresses(vec!["192.168.0.1".parse().unwrap()]);
    world.follow(&out);
    world.put(&node("here", "192.168.0.2"));
    world.put(&node("there", "192.168.0.3"));
    let local: Vec<_> = world
        .peers
        .iter()
        .map(|(key, peer)| (key.to_string(), peer.local_node))
        .collect();
    assert_eq!(local, [("here".to_owned(), true), ("there".to_owned(), false)]);
    let here = world.peers.values().find(|peer| peer.local_node).unwrap();
    assert_eq!(here.addresses.len(), 2);
    world.put(&with(
        pod("thief", "192.168.0.3"),
        "/metadata/creationTimestamp",
        json!("2200-01-01T00:00:00Z"),
    ));
    assert_eq!(
        (world.winner("192.168.0.3"), world.name("192.168.0.3")),
        (Some("there".into()), None)
    );
    world.delete(&node("there", "192.168.0.3"));
    assert_eq!(world.name("192.168.0.3"), Some("ns/thief".into()));
    world.delete(&node("here", "192.168.0.2"));
    assert_eq!(
        world
            .peers
            .values()
            .find(|peer| peer.local_node)
            .unwrap()
            .addresses
            .len(),
        1
    );
}

#[test]
fn a_namespace_is_there_while_pods_are_in_it() {
    let mut world = World::new();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns", "labels": {"a": "b"}}});
    let labels = |world: &World| world.namespaces.get("ns").map(|labels| labels.len());
    world.put(&pod("p", IP));
    assert_eq!(labels(&world), Some(1));
    world.put(&namespace);
    assert_eq!(labels(&world), Some(2));
    world.delete(&namespace);
    assert_eq!(labels(&world), Some(1));
    assert_eq!(
        world.namespaces["ns"]
            .get(super::NAMESPACE_NAME_LABEL)
            .map(String::as_str),
        Some("ns")
    );
    world.delete(&pod("p", IP));
    assert_eq!(labels(&world), None);
}

#[test]
fn the_same_again_changes_nothing() {
    let mut world = World::new();
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
        "spec": {"podSelector": {}}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}});
    let all = [pod("p", IP), policy, account];
    for value in &all {
        assert!(!world.put(value).is_empty());
        assert!(world.put(value).is_empty());
    }
    let objects: Vec<Object> = all.iter().map(object).collect();
    assert!(world.event(SourceEvent::Reset(objects.clone())).is_empty());
    let out = world.event(SourceEvent::Reset(objects[..1].to_vec()));
    assert_eq!(out.changes.len(), 2);
    assert!(world.event(SourceEvent::Refreshed(1)).is_empty());
    world.event(SourceEvent::Reset(Vec::new()));
    assert!(world.peers.is_empty() && world.namespaces.is_empty() && world.index.snapshot().is_empty());
}

/// A pod with a few names and addresses, so that they meet.
fn any_pod() -> impl Strategy<Value = Value> {
    let phases = prop::sample::select(vec!["Pending", "Running", "Succeeded"]);
    let nodes = prop::sample::select(vec!["here", "there"]);
    (0..4u8, 0..3u8, phases, nodes, 0..4u8, any::<bool>()).prop_map(|(name, address, phase, node, created, host)| {
        let mut value = pod(&format!("p{name}"), &format!("10.0.0.{address}"));
        value["status"]["phase"] = json!(phase);
        value["spec"]["nodeName"] = json!(node);
        value["spec"]["hostNetwork"] = json!(host && created == 0);
        if created > 0 {
            value["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:0{created}Z"));
        }
        value
    })
}

proptest! {
    /// Told one by one or all at once: the same world. Names and seniority say the same.
    #[test]
    fn changes_add_up_to_the_snapshot(steps in prop::collection::vec((any_pod(), any::<bool>()), 1..24)) {
        let mut world = World::new();
        for (value, delete) in &steps {
            if *delete { world.delete(value) } else { world.put(value) };
            for address in ["10.0.0.0", "10.0.0.1", "10.0.0.2"] {
                prop_assert_eq!(world.winner(address), world.name(address));
                let owner = world.index.pod_by_address(address.parse().unwrap());
                prop_assert_eq!(owner.map(|pod| format!("{}/{}", pod.namespace, pod.name)), world.name(address));
            }
        }
        let mut peers = BTreeMap::new();
        let mut namespaces = BTreeMap::new();
        for change in world.index.snapshot() {
            match change {
                Change::Peer(key, Some(peer)) => {
                    prop_assert_eq!(key.kind, EntityKind::Pod);
                    peers.insert(key, peer);
                }
                Change::Namespace(name, Some(labels)) => {
                    namespaces.insert(name.to_string(), labels);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(&peers, &world.peers);
        prop_assert_eq!(namespaces, world.namespaces);
        let unique: std::collections::BTreeSet<u64> = peers.values().map(|peer| peer.claimed).collect();
        prop_assert_eq!(unique.len(), peers.len());
    }
}

/// A pod that has no status yet, created at a second of 2026, with a uid made of one digit.
fn fresh(name: &str, second: u8, digit: char) -> Value {
    let mut value = with(pod(name, IP), "/status", json!({"phase": "Pending"}));
    value["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{second:02}Z"));
    value["metadata"]["uid"] = json!(uid_text(digit));
    value
}

fn uid_text(digit: char) -> String {
    let text = digit.to_string();
    let part = |length| text.repeat(length);
    [part(8), part(4), part(4), part(4), part(12)].join("-")
}

impl World {
    fn attach(&mut self, name: &str, digit: char, address: &str) -> IndexOutput {
        let uid = PodUid::parse(&uid_text(digit));
        assert!(uid.is_some());
        let out = self.index.attach_pod("ns", name, uid, vec![address.parse().unwrap()]);
        self.follow(&out);
        out
    }

    fn local(&self, name: &str) -> Option<String> {
        let addresses = self.locals.get(&format!("ns/{name}"))?;
        Some(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }
}

#[test]
fn an_attached_pod_has_its_addresses_before_its_status_says_so() {
    let mut world = World::new();
    world.put(&fresh("p", 1, 'a'));
    assert_eq!(world.local("p"), None);
    world.attach("p", 'a', IP);
    assert_eq!(
        (world.local("p"), world.name(IP)),
        (Some(IP.into()), Some("ns/p".into()))
    );
    // The status says the same: nothing changes. Nor does news from before the pod had an address, or a node.
    let mut running = fresh("p", 1, 'a');
    running["status"] = json!({"phase": "Running", "podIP": IP});
    let mut unscheduled = fresh("p", 1, 'a');
    unscheduled["spec"] = json!({});
    for news in [&running, &fresh("p", 1, 'a'), &unscheduled, &running] {
        let out = world.put(news);
        assert!(out.changes.is_empty() && out.local_pods.is_empty(), "{news}: {out:?}");
    }
    // The address of the sandbox before is no news either.
    running["status"]["podIP"] = json!("10.0.0.9");
    assert!(world.put(&running).is_empty());
    // Without the attachment the status counts.
    let out = world.index.detach_pod("ns", "p");
    world.follow(&out);
    assert_eq!(world.local("p"), Some("10.0.0.9".into()));
    world.attach("p", 'a', IP);
    world.delete(&running);
    assert_eq!((world.local("p"), world.name(IP)), (None, None));
}

#[test]
fn an_attachment_is_that_of_one_pod_of_its_name() {
    let mut world = World::new();
    // Told before the pod is known.
    world.attach("p", 'b', IP);
    world.put(&fresh("p", 1, 'a'));
    assert_eq!(world.local("p"), None, "the pod before of that name");
    world.put(&fresh("p", 2, 'b'));
    assert_eq!(world.local("p"), Some(IP.into()));
    // What is told late of the one before changes nothing; a later one of that name is another pod.
    let mut late = fresh("p", 1, 'a');
    late["metadata"]["labels"] = json!({"app": "other"});
    assert!(world.put(&late).is_empty());
    world.put(&fresh("p", 3, 'c'));
    assert_eq!(world.local("p"), None);
    let known = |digit| {
        world
            .index
            .pod_of_uid("ns", "p", PodUid::parse(&uid_text(digit)))
            .is_some()
    };
    assert!(known('c') && !known('b'));
    assert!(world.index.pod_of_uid("ns", "p", None).is_some());
}

#[test]
fn an_address_is_that_of_the_pod_which_the_runtime_gave_it_to() {
    let mut world = World::new();
    world.put(&fresh("new", 1, 'a'));
    // Younger, and its status still names the address that is no longer its own.
    let mut stale = fresh("stale", 9, 'b');
    stale["status"] = json!({"phase": "Running", "podIP": IP});
    world.put(&stale);
    assert_eq!(world.winner(IP), Some("ns/stale".into()));
    world.attach("new", 'a', IP);
    assert_eq!(
        (world.winner(IP), world.name(IP)),
        (Some("ns/new".into()), Some("ns/new".into()))
    );
    stale["metadata"]["labels"] = json!({"app": "other"});
    world.put(&stale);
    assert_eq!(world.winner(IP), Some("ns/new".into()));
}

#[test]
fn a_static_pod_is_known_by_the_hash_of_its_manifest() {
    let mut world = World::new();
    let mut mirror = fresh("p", 1, 'a');
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": "b".repeat(32)});
    world.put(&mirror);
    world.attach("p", 'b', IP);
    assert_eq!(world.local("p"), Some(IP.into()));
}
