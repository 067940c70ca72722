//! `api`: from a write to the Kubernetes API to the changed verdict on the wire, and what the agent takes of the node and
//! of the API server meanwhile.
//!
//! A real kube-apiserver with etcd, alone: no kubelet or controller changes what was written. The time that counts goes
//! from just before the request is sent to the sending of the first packet that meets the new verdict, so it holds the
//! API server's own time, etcd's, and TLS both ways.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weir_tests::{
    api_world,
    cluster::{Cluster, Component, Options, api::Api},
    lab::{
        Agent,
        agent::{AgentOptions, Attach},
    },
};

use crate::{
    footprint::{self, Memory},
    interrupt, load,
    node::{self, Node, Pod},
    priority::Precedence,
    probe::{Between, Probe},
    report::{self, Table},
    world,
};

const P50_LIMIT_MS: f64 = 3.0;
const P99_LIMIT_MS: f64 = 6.0;
const MEMORY_LIMIT_MB: f64 = 40.0;
const CPU_LIMIT_MILLICORES: f64 = 1.0;
const READY_LIMIT_S: f64 = 2.0;

/// The server's policy.
const PROBE_POLICY: &str = "probe";
/// The API server needs the CPU.
const BETWEEN: Between = Between::Sleep(Duration::from_micros(200));
/// Between two changes; not in step with any timer. The short one is still longer than whatever the agent does after a change;
/// in the long one everybody goes to sleep and the CPUs' caches are lost to others, on a virtual machine above all.
const PAUSES: [Duration; 2] = [Duration::from_millis(3), Duration::from_millis(37)];
const PATIENCE: Duration = Duration::from_secs(10);
const READY: Duration = Duration::from_secs(120);
/// After the first sync, before anything is measured at rest.
const SETTLE: Duration = Duration::from_secs(5);
/// Where the agent answers probes, in its node's namespace.
const HEALTH: &str = "127.0.0.1:9990";
/// Writers that fill the API server.
const WRITERS: usize = 8;

pub fn run(weir: &Path, quick: bool) -> Result<()> {
    report::heading(
        "api",
        "from a write to the Kubernetes API to the first packet that meets the new verdict",
    );
    let sizes: &[(usize, usize)] = if quick {
        &[(1_000, 100)]
    } else {
        &[(10_000, 1_000), (20_000, 1_000)]
    };
    let changes = if quick { 40 } else { 200 };
    let mut latencies = Table::new([
        "remote pods",
        "policies",
        "what changes",
        "pause ms",
        "changes",
        "write p50 ms",
        "bare watch p50 ms",
        "bare watch p99 ms",
        "p50 ms",
        "p99 ms",
        "max ms",
        "",
        "",
    ]);
    let mut costs = Table::new([
        "remote pods",
        "ready s",
        "resident MB",
        "peak MB",
        "idle millicores",
        "bytes per pod change",
        "",
        "",
        "",
    ]);
    let mut figures = Vec::new();
    for &(pods, policies) in sizes {
        let bench = Bench::new(weir, pods, policies)?;
        // Everything has been compiled once, and the API server has its caches: a node that starts again.
        let (agent, ready) = bench.start()?;
        let at_rest = bench.at_rest(&agent, quick)?;
        let bytes = bench.bytes_per_change(&agent, if quick { 50 } else { 200 })?;
        costs.row([
            pods.to_string(),
            format!("{ready:.2}"),
            format!("{:.1}", at_rest.resident),
            format!("{:.1}", at_rest.peak),
            format!("{:.2}", at_rest.millicores),
            format!("{bytes:.0}"),
            format!("ready ≤ {READY_LIMIT_S}: {}", report::at_most(ready, READY_LIMIT_S)),
            format!(
                "resident ≤ {MEMORY_LIMIT_MB}: {}",
                report::at_most(at_rest.resident, MEMORY_LIMIT_MB)
            ),
            format!(
                "idle ≤ {CPU_LIMIT_MILLICORES}: {}",
                report::at_most(at_rest.millicores, CPU_LIMIT_MILLICORES)
            ),
        ]);
        let mut measured_latencies = Vec::new();
        for (kind, pause) in Kind::ALL.into_iter().flat_map(|kind| PAUSES.map(|pause| (kind, pause))) {
            let measured = bench
                .latency(kind, changes, pause)
                .with_context(|| format!("{} with {pods} pods", kind.name()))?;
            let quantile = |samples: &[f64], q| report::quantile(samples, q).unwrap_or(f64::NAN);
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| quantile(&measured.wire, q));
            let [watch_p50, watch_p99] = [0.5, 0.99].map(|q| quantile(&measured.watch, q));
            let write = quantile(&measured.write, 0.5);
            latencies.row([
                pods.to_string(),
                policies.to_string(),
                kind.name().into(),
                pause.as_millis().to_string(),
                changes.to_string(),
                format!("{write:.2}"),
                format!("{watch_p50:.2}"),
                format!("{watch_p99:.2}"),
                format!("{p50:.2}"),
                format!("{p99:.2}"),
                format!("{max:.2}"),
                format!("p50 ≤ {P50_LIMIT_MS}: {}", report::at_most(p50, P50_LIMIT_MS)),
                format!("p99 ≤ {P99_LIMIT_MS}: {}", report::at_most(p99, P99_LIMIT_MS)),
            ]);
            measured_latencies.push(json!({
                "what": kind.name(), "pause_ms": pause.as_millis(), "changes": changes, "write_p50_ms": write,
                "watch_p50_ms": watch_p50, "watch_p99_ms": watch_p99, "p50_ms": p50, "p99_ms": p99, "max_ms": max,
            }));
        }
        figures.push(json!({
            "pods": pods, "policies": policies, "ready_s": ready, "resident_mb": at_rest.resident, "peak_mb": at_rest.peak,
            "idle_millicores": at_rest.millicores, "bytes_per_pod_change": bytes, "latency": measured_latencies,
        }));
    }
    latencies.print();
    println!();
    costs.print();
    report::json_line("api", json!(figures));
    Ok(())
}

/// What is changed in turns.
#[derive(Clone, Copy)]
enum Kind {
    /// The rule of the server's policy.
    Policy,
    /// The label of the client's pod that the policy asks for.
    Label,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Policy, Self::Label];

    const fn name(self) -> &'static str {
        match self {
            Self::Policy => "a policy's rule",
            Self::Label => "a pod's label",
        }
    }

    /// A watch of what is changed, and of nothing else.
    fn watch(self, client: &Pod) -> String {
        let (collection, name) = match self {
            Self::Policy => (
                "apis/networking.k8s.io/v1",
                format!("networkpolicies?fieldSelector=metadata.name%3D{PROBE_POLICY}"),
            ),
            Self::Label => ("api/v1", format!("pods?fieldSelector=metadata.name%3D{}", client.name)),
        };
        format!("/{collection}/namespaces/{}/{name}&watch=1", world::NAMESPACE)
    }

    /// The path and the merge patch that allow, or forbid.
    fn patch(self, client: &Pod, allow: bool) -> (String, Value) {
        match self {
            Self::Policy => (
                format!(
                    "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies/{PROBE_POLICY}",
                    world::NAMESPACE
                ),
                json!({"spec": policy(if allow { "client" } else { "nobody" })["spec"]}),
            ),
            Self::Label => (
                format!("/api/v1/namespaces/{}/pods/{}", world::NAMESPACE, client.name),
                json!({"metadata": {"labels": {"app": if allow { "client" } else { "stranger" }}}}),
            ),
        }
    }
}

fn policy(app: &str) -> Value {
    let from = json!([{ "podSelector": { "matchLabels": { "app": app } } }]);
    world::policy(PROBE_POLICY, "server", &[json!({ "from": from })])
}

/// Whether the agent of this namespace answers its readiness probe with yes.
fn probe_ready() -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(HEALTH)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    answer().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}

/// Milliseconds of each change, from just before its request was sent.
struct Latencies {
    /// To the first packet that met the new verdict.
    wire: Vec<f64>,
    /// To the API server's answer.
    write: Vec<f64>,
    /// To its event on a watch that does nothing else: what no agent can be faster than.
    watch: Vec<f64>,
}

struct AtRest {
    resident: f64,
    peak: f64,
    millicores: f64,
}

/// A node whose agent reads a filled API server.
struct Bench {
    options: AgentOptions,
    cluster: Cluster,
    node: Node,
}

impl Bench {
    fn new(weir: &Path, pods: usize, policies: usize) -> Result<Self> {
        let cluster = Cluster::up(&Options::default())?;
        let node = Node::new(&load::LOCAL_PODS)?;
        let kubeconfig = cluster.directory().join("agent.conf");
        api_world::admit(&cluster, node.lab(), &kubeconfig)?;
        let bench = Self {
            options: AgentOptions {
                attach: Attach::Tcx,
                flows: false,
                kubeconfig: Some(kubeconfig),
                binary: Some(weir.to_owned()),
                arguments: vec![format!("--health-addr={HEALTH}")],
            },
            cluster,
            node,
        };
        for object in world::cluster(bench.node.address()?) {
            api_world::put(bench.cluster.api(), &object)?;
        }
        let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", world::NAMESPACE);
        bench.cluster.api().wait(&account, PATIENCE, |found| found.is_some())?;
        // From here on they would only evict pods of nodes without a kubelet.
        bench.cluster.kill(Component::ControllerManager)?;
        bench.cluster.kill(Component::Scheduler)?;
        let local = bench.node.pods.iter();
        let mut objects: Vec<Value> = local
            .map(|pod| world::pod(&pod.name, &pod.name, pod.address, node::NAME))
            .collect();
        objects.push(policy("client"));
        objects.extend(load::policies(policies));
        objects.extend(world::remote_pods(pods));
        bench.fill(&objects)?;
        Ok(bench)
    }

    /// Writes objects to the API server, several at once.
    fn fill(&self, objects: &[Value]) -> Result<()> {
        let share = objects.len().div_ceil(WRITERS).max(1);
        thread::scope(|scope| {
            let writers: Vec<_> = objects
                .chunks(share)
                .map(|objects| {
                    scope.spawn(move || {
                        objects.iter().try_for_each(|object| {
                            interrupt::check()?;
                            api_world::put(self.cluster.api(), object)
                        })
                    })
                })
                .collect();
            writers
                .into_iter()
                .try_for_each(|writer| writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// Starts the agent; returns it with the seconds until everything was enforced.
    fn start(&self) -> Result<(Agent, f64)> {
        let start = Instant::now();
        let mut agent = Agent::start(self.node.lab(), node::NAME, self.node.directory(), self.options.clone())?;
        // As the kubelet asks: `weir status` would have the agent count what is in its maps.
        while !self.node.lab().node(node::NAME)?.netns.run(|| Ok(probe_ready()))? {
            ensure!(
                start.elapsed() < READY,
                "the agent is not ready:\n{}",
                agent.log_tail(40)
            );
            thread::sleep(Duration::from_millis(5));
        }
        let ready = start.elapsed().as_secs_f64();
        agent.wait(READY)?;
        Ok((agent, ready))
    }

    fn at_rest(&self, agent: &Agent, quick: bool) -> Result<AtRest> {
        let pid = agent.pid().context("the agent has ended")?;
        interrupt::sleep(SETTLE)?;
        let before = footprint::cpu_nanoseconds(pid)?;
        let idle = Duration::from_secs(if quick { 10 } else { 30 });
        interrupt::sleep(idle)?;
        let used = footprint::cpu_nanoseconds(pid)?.saturating_sub(before);
        let memory = Memory::of(pid)?;
        Ok(AtRest {
            resident: memory.resident * footprint::MIB / 1e6,
            peak: memory.peak * footprint::MIB / 1e6,
            millicores: used as f64 / idle.as_nanos() as f64 * 1e3,
        })
    }

    /// What the API server sends the agent for one change of a remote pod's label, bytes.
    fn bytes_per_change(&self, agent: &Agent, changes: usize) -> Result<f64> {
        let received = || -> Result<(u64, u64)> {
            let watches = api_world::watches(agent)?;
            let pods = watches.into_iter().find(|watch| watch.kind == "pods");
            pods.map(|watch| (watch.bytes, watch.events))
                .context("pods are not watched")
        };
        let (bytes, events) = received()?;
        for number in 0..changes {
            let path = format!("/api/v1/namespaces/{}/pods/peer-{number}", world::NAMESPACE);
            let patch = json!({"metadata": {"labels": {"app": world::group(number + 1)}}});
            self.cluster.api().patch(&path, &patch)?;
        }
        let start = Instant::now();
        loop {
            let (now, told) = received()?;
            if told >= events + changes as u64 {
                return Ok((now - bytes) as f64 / (told - events) as f64);
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "the agent was told {} of {changes} changes",
                told - events
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// An agent must run.
    fn latency(&self, kind: Kind, changes: usize, pause: Duration) -> Result<Latencies> {
        let (client, server) = self.node.client_and_server()?;
        let mut probe = Probe::new(client, server, BETWEEN)?;
        probe.expect(true).context("before the first change")?;
        let _precedence = Precedence::take();
        let control = self.cluster.control_network()?;
        // Beside the API server: no relay, and no thread but theirs, is part of what they take.
        let api = || -> Result<Api> {
            control.enter()?;
            Api::on_the_callers_thread(&self.cluster.inner_kubeconfig())
        };
        let watch = kind.watch(client);
        let (seen, stop) = (Mutex::new(Vec::<Instant>::new()), AtomicBool::new(false));
        let milliseconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        thread::scope(|scope| {
            let follower = scope.spawn(|| {
                api()?.follow(&watch, &stop, |at| {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(at);
                })
            });
            let (requests, asked) = mpsc::channel::<(String, Value)>();
            let writer = scope.spawn(move || {
                let api = api()?;
                let write = |(path, patch): (String, Value)| {
                    let start = Instant::now();
                    api.patch(&path, &patch)?;
                    Ok(milliseconds(start, Instant::now()))
                };
                asked.into_iter().map(write).collect::<Result<Vec<f64>>>()
            });
            let samples = (0..changes).map(|number| {
                interrupt::check()?;
                let allow = number % 2 == 1;
                probe.pause(!allow, pause)?;
                let request = kind.patch(client, allow);
                let start = Instant::now();
                requests.send(request).context("the writer has ended")?;
                let first = probe.expect(allow)?;
                Ok((start, first))
            });
            let samples: Result<Vec<(Instant, Instant)>> = samples.collect();
            drop(requests);
            stop.store(true, Ordering::Relaxed);
            let write = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let followed = follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let samples = samples?;
            followed?;
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let watched = samples.iter().filter_map(|(start, _)| {
                let first = seen.partition_point(|at| at < start);
                Some(milliseconds(*start, *seen.get(first)?))
            });
            Ok(Latencies {
                watch: watched.collect(),
                wire: samples
                    .iter()
                    .map(|(start, first)| milliseconds(*start, *first))
                    .collect(),
                write,
            })
        })
    }
}
