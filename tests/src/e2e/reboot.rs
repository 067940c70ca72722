//! A node loses its power and comes up again, while clients on another node never stop calling a server that ran there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::{
    pods::{PodPlan, Pods, STARTED, addresses_of, eventually, namespace, remove_namespace},
    stage::{NAMESPACE, Stage},
};
use crate::{
    cluster::is_ready,
    lab::{Addresses, Hosts as _, NetNs, manifests::labels},
};

const OWN: &str = "weir-e2e-reboot";
const NODE: usize = 1;

/// A node that has just come up gives its first addresses to its first pods. So many are called: attempts to start a pod
/// that fail take one, too.
const FIRST: u8 = 24;

/// Between two rounds of calls to all of them.
const PAUSE: Duration = Duration::from_millis(5);

/// Nothing of a client that policy forbids is ever answered, from before the node goes until its server is back, which a
/// client that policy allows reaches again. Everything of the node comes up, also pods whose namespace waits for no agent.
///
/// # Errors
/// Who was answered that must not be, or the other way round; what does not come up.
pub fn run(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster().context("nobody here can reboot this cluster's nodes")?;
    let api = stage.api();
    let node = format!("node{NODE}");
    let nodes = stage.nodes()?;
    let elsewhere = nodes
        .iter()
        .find(|name| **name != node)
        .context("the cluster has one node alone, and nobody to see what becomes of it")?;
    namespace(api, OWN, &labels(&[]))?;
    let [server, friend, stranger] = ["server", "friend", "stranger"].map(|role| format!("{OWN}/{role}"));
    let exempt = format!("{NAMESPACE}/weir-e2e-exempt");
    let mut pods = Pods::default();
    pods.add(
        api,
        &[
            PodPlan {
                // In the pod itself: it answers from the first moment that one of its processes can.
                arguments: ["netexec", "--http-port=8080", "--udp-port=80"]
                    .map(str::to_owned)
                    .to_vec(),
                restarts: true,
                ..PodPlan::idle(&server, &node, &labels(&[("role", "server")]))
            },
            PodPlan {
                restarts: true,
                ..PodPlan::idle(&exempt, &node, &labels(&[]))
            },
            PodPlan::idle(&friend, elsewhere, &labels(&[("role", "friend")])),
            PodPlan::idle(&stranger, elsewhere, &labels(&[("role", "stranger")])),
        ],
    )?;
    admit(stage, &["friend"])?;

    let old = pods.host(&server)?.1;
    let called = called(old);
    let friends = Calls::start(pods.host(&friend)?.0, &called)?;
    eventually("the server answers", STARTED, || Ok(friends.answered_by(old)))?;
    let strangers = Calls::start(pods.host(&stranger)?.0, &called)?;
    strangers.another_round()?;
    strangers.unheard()?;

    let before = containers(stage, &node)?;
    cluster.reboot(NODE)?;
    let back = Instant::now();
    eventually("every pod of the node runs anew", STARTED, || {
        let now = containers(stage, &node)?;
        Ok(before
            .iter()
            .all(|(pod, old)| now.get(pod).is_some_and(|new| new.ready && new.ids != old.ids)))
    })
    .with_context(|| {
        let now = containers(stage, &node);
        format!("before the reboot {before:?}, now {now:?}")
    })?;
    stage.await_agents()?;
    let object = api.get(&pod_path(&server))?.context("the server's pod is gone")?;
    let new = addresses_of(&object);
    let missed = new.iter().find(|address| !called.contains(address));
    ensure!(
        missed.is_none(),
        "the server has the address {missed:?}, which nobody called: this proves nothing"
    );
    eventually("the server answers again", STARTED, || {
        Ok(friends.answered_by_since(new, back))
    })?;
    strangers.another_round()?;
    strangers.unheard()?;

    // It was the policy that kept them out, not the way.
    admit(stage, &["friend", "stranger"])?;
    eventually("the server answers those that it is told to", STARTED, || {
        Ok(strangers.answered_by(new))
    })?;
    friends.end()?;
    strangers.end()?;
    pods.remove(api, &[exempt])?;
    remove_namespace(api, OWN)
}

/// Lets clients of these roles reach the server, and no others; returns when it is so.
fn admit(stage: &Stage, roles: &[&str]) -> Result<()> {
    stage.api().apply(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": OWN, "name": "server"},
        "spec": {
            "podSelector": {"matchLabels": {"role": "server"}},
            "ingress": [{"from": [{"podSelector": {"matchExpressions": [
                {"key": "role", "operator": "In", "values": roles}]}}]}],
        },
    }))?;
    for agent in stage.agents()?.values() {
        ensure!(
            agent.caught_up(STARTED)?,
            "the agent of {} does not enforce everything",
            agent.node
        );
    }
    Ok(())
}

/// The addresses that the server may have after the reboot, and the one that it has before.
fn called(server: Addresses) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = server.iter().collect();
    for host in 2..2 + FIRST {
        for address in server.iter() {
            let other: IpAddr = match address {
                IpAddr::V4(address) => {
                    let [a, b, c, _] = address.octets();
                    Ipv4Addr::new(a, b, c, host).into()
                }
                IpAddr::V6(address) => {
                    let mut segments = address.segments();
                    segments[7] = host.into();
                    Ipv6Addr::from(segments).into()
                }
            };
            if !found.contains(&other) {
                found.push(other);
            }
        }
    }
    found
}

fn pod_path(pod: &str) -> String {
    let (namespace, name) = pod.split_once('/').unwrap_or_default();
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

/// The containers of a pod.
#[derive(Debug)]
struct Containers {
    ids: Vec<Value>,
    ready: bool,
}

/// Those of every pod of a node. A container never comes back: after a reboot each has another id, in another sandbox.
fn containers(stage: &Stage, node: &str) -> Result<BTreeMap<String, Containers>> {
    let pods = stage
        .api()
        .list(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"))?;
    let containers = |pod: &Value| {
        let statuses = pod["status"]["containerStatuses"].as_array();
        Containers {
            ids: statuses
                .into_iter()
                .flatten()
                .map(|status| status["containerID"].clone())
                .collect(),
            ready: is_ready(pod),
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |pod: &Value| {
        format!(
            "{}/{}",
            text(&pod["metadata"]["namespace"]),
            text(&pod["metadata"]["name"])
        )
    };
    Ok(pods.iter().map(|pod| (name(pod), containers(pod))).collect())
}

/// When an address has answered.
#[derive(Clone, Copy, Debug)]
struct Answers {
    first: Instant,
    last: Instant,
}

/// Datagrams to every address, round after round, that a server which receives one answers. Ends with this value.
struct Calls {
    began: Instant,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    heard: Arc<Mutex<BTreeMap<IpAddr, Answers>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Calls {
    fn start(from: &NetNs, to: &[IpAddr]) -> Result<Self> {
        let sockets = from.run(|| {
            let bind = |any: IpAddr| -> Result<UdpSocket> {
                let socket = UdpSocket::bind((any, 0)).context("bind a UDP socket")?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            Ok([bind(Ipv4Addr::UNSPECIFIED.into())?, bind(Ipv6Addr::UNSPECIFIED.into())?])
        })?;
        let mut calls = Self {
            began: Instant::now(),
            stop: Arc::default(),
            rounds: Arc::default(),
            heard: Arc::default(),
            thread: None,
        };
        let (stop, rounds, heard) = (calls.stop.clone(), calls.rounds.clone(), calls.heard.clone());
        let to = to.to_vec();
        calls.thread = Some(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for address in &to {
                    let [v4, v6] = &sockets;
                    let socket = if address.is_ipv4() { v4 } else { v6 };
                    // That a call before could not be delivered is said here: nobody has heard it.
                    let _ = socket.send_to(b"echo heard", SocketAddr::new(*address, 80));
                }
                thread::sleep(PAUSE);
                for socket in &sockets {
                    listen(socket, &heard);
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }));
        Ok(calls)
    }

    fn heard(&self) -> BTreeMap<IpAddr, Answers> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn answered_by(&self, server: Addresses) -> bool {
        self.answered_by_since(server, self.began)
    }

    fn answered_by_since(&self, server: Addresses, since: Instant) -> bool {
        let heard = self.heard();
        server
            .iter()
            .all(|address| heard.get(&address).is_some_and(|answers| answers.last > since))
    }

    /// Waits until all addresses have been called once more.
    fn another_round(&self) -> Result<()> {
        let rounds = || self.rounds.load(Ordering::Relaxed);
        let before = rounds();
        // The one under way has begun earlier.
        eventually("every address is called", STARTED, || Ok(rounds() > before + 1))
    }

    /// Nobody has answered.
    fn unheard(&self) -> Result<()> {
        let heard = self.heard();
        let told: Vec<String> = heard
            .iter()
            .map(|(address, answers)| {
                let [first, last] = [answers.first, answers.last].map(|time| time - self.began);
                format!("{address} from {first:.3?} to {last:.3?} after the first call")
            })
            .collect();
        ensure!(
            told.is_empty(),
            "a client that policy forbids was answered by {}",
            told.join(", ")
        );
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow!("the thread that calls panicked"))?
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Takes what has come back.
fn listen(socket: &UdpSocket, heard: &Mutex<BTreeMap<IpAddr, Answers>>) {
    let mut buffer = [0; 16];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) => {
                let now = Instant::now();
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                let answers = heard.entry(from.ip()).or_insert(Answers { first: now, last: now });
                answers.last = now;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            // An ICMP error, which is told once.
            Err(_) => {}
        }
    }
}
