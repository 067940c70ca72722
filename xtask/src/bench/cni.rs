//! `cni`: what the CNI plugin adds to the start of a pod.
//!
//! The plugin runs as a process, and the time goes from its start to its end, which is what the container runtime waits
//! for. In it the agent reads its index, compiles the pod's policy into the maps and hooks both programs to an interface
//! that it has never seen. The agent is warm, and knows the pod from its source; the pod has no status yet.
//!
//! Pods start one after the other, with time enough between them for all that the agent puts off; twenty at once; and at
//! the end of a whole chain (`ptp`, with addresses of `host-local`), beside the same chain without Weir.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weir_tests::lab::{
    NetNs,
    cni::{Answer, Call, Chain, PLUGIN},
    ip::Batch,
};

use crate::{
    interrupt, load,
    node::{self, Node},
    priority::Precedence,
    report::{self, Table},
    world::{self, NAMESPACE, World},
};

const P99_LIMIT_MS: f64 = 20.0;

/// So many pods start at once.
const BURST: usize = 20;

/// After an ADD that is alone: longer than the agent puts anything off.
const PAUSE: Duration = Duration::from_millis(200);

/// Where Debian's package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";

pub fn run(weir: &Path, quick: bool) -> Result<()> {
    report::heading(
        "cni",
        "what the CNI plugin adds to the start of a pod, from the start of its process to its end",
    );
    let pods = if quick { 40 } else { 200 };
    let mut results = Results::new();
    for (others, policies) in [(10, 10), (10_000, 1_000)] {
        let node = Node::new(&load::LOCAL_PODS)?;
        let world = World::new(&node)?;
        let starting: Vec<Value> = (0..BURST).map(pending).collect();
        world.write("starting", &starting)?;
        world.remote_pods(&world::remote_pods(others))?;
        world.policies(&load::policies(policies))?;
        let agent = node.start_agent(weir, &world, &[])?;
        let runtime = Runtime::new(&node, weir, agent.run_dir())?;
        let _precedence = Precedence::take();
        results.world = (others, policies);
        one_by_one(&runtime, pods, &mut results)?;
        at_once(&runtime, pods / BURST, &mut results)?;
        chained(&runtime, pods / 2, &mut results)?;
        drop(agent);
    }
    results.table.print();
    report::json_line("cni", json!(results.figures));
    Ok(())
}

/// A pod of the node that policies select and that has no address yet.
fn pending(number: usize) -> Value {
    let subject = load::LOCAL_PODS[1 + number % (load::LOCAL_PODS.len() - 1)];
    let mut pod = world::pod(&name(number), subject, Ipv4Addr::UNSPECIFIED, node::NAME);
    pod["status"] = json!({ "phase": "Pending" });
    pod
}

fn name(number: usize) -> String {
    format!("starting-{number}")
}

fn one_by_one(runtime: &Runtime<'_>, pods: usize, results: &mut Results) -> Result<()> {
    let mut samples: [(&str, Vec<f64>); 3] = [("ADD", Vec::new()), ("DEL", Vec::new()), ("VERSION", Vec::new())];
    for number in 0..pods {
        interrupt::check()?;
        let sandbox = runtime.sandbox(number % BURST, number)?;
        for (command, samples) in &mut samples {
            samples.push(milliseconds(&runtime.call(command, &sandbox)?.run()?)?);
            if *command == "ADD" {
                thread::sleep(PAUSE);
            }
        }
        runtime.remove(&sandbox)?;
    }
    for (command, samples) in &samples {
        let limit = (*command == "ADD").then_some(P99_LIMIT_MS);
        results.add(command, samples, limit);
    }
    Ok(())
}

fn at_once(runtime: &Runtime<'_>, rounds: usize, results: &mut Results) -> Result<()> {
    let mut samples: [(&str, Vec<f64>); 2] = [("ADD", Vec::new()), ("VERSION", Vec::new())];
    let mut all = Vec::new();
    for round in 0..rounds {
        interrupt::check()?;
        let sandboxes = (0..BURST)
            .map(|pod| runtime.sandbox(pod, round * BURST + pod))
            .collect::<Result<Vec<_>>>()?;
        thread::sleep(PAUSE);
        for (command, samples) in &mut samples {
            let calls = sandboxes
                .iter()
                .map(|sandbox| runtime.call(command, sandbox))
                .collect::<Result<Vec<_>>>()?;
            let began = Instant::now();
            let answers: Vec<Result<Answer>> = thread::scope(|scope| {
                let threads: Vec<_> = calls.iter().map(|call| scope.spawn(|| call.run())).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            });
            if *command == "ADD" {
                all.push(began.elapsed().as_secs_f64() * 1e3);
            }
            for answer in answers {
                samples.push(milliseconds(&answer?)?);
            }
        }
        for sandbox in &sandboxes {
            runtime.call("DEL", sandbox)?.run()?.succeeded()?;
            runtime.remove(sandbox)?;
        }
    }
    for (command, samples) in &samples {
        results.add(&format!("{command}, one of {BURST} at once"), samples, None);
    }
    results.add(&format!("ADD, all {BURST}"), &all, None);
    Ok(())
}

/// By turns, so that what else the machine does meets both alike.
fn chained(runtime: &Runtime<'_>, pods: usize, results: &mut Results) -> Result<()> {
    let ours = json!({ "type": PLUGIN, "runDir": runtime.run_dir });
    let mut chains = Vec::new();
    for (name, ours) in [("ptp", None), ("ptp and Weir", Some(ours))] {
        chains.push((name, runtime.chain(name, ours)?, Vec::new()));
    }
    for number in 0..pods {
        for (_, chain, samples) in &mut chains {
            interrupt::check()?;
            let netns = NetNs::new()?;
            let call = Call::new("ADD", &Value::Null).pod(
                &format!("{NAMESPACE}/{}", name(number % BURST)),
                &format!("chained-{number}"),
                &netns.path(),
            );
            let began = Instant::now();
            let answer = chain.add(&call)?;
            samples.push(began.elapsed().as_secs_f64() * 1e3);
            answer.succeeded()?;
            thread::sleep(PAUSE);
            chain.del(&call, &answer.output)?;
        }
    }
    for (name, _, samples) in chains {
        results.add(&format!("ADD, chain of {name}"), &samples, None);
    }
    Ok(())
}

fn milliseconds(answer: &Answer) -> Result<f64> {
    answer.succeeded()?;
    Ok(answer.took.as_secs_f64() * 1e3)
}

/// What a container runtime does on the node.
struct Runtime<'a> {
    node: &'a Node,
    /// Under the plugin's name, as on a node.
    plugin: PathBuf,
    run_dir: PathBuf,
}

/// A pod's network namespace with an interface that nobody has used.
struct Sandbox {
    pod: usize,
    number: usize,
    interface: String,
    netns: NetNs,
}

impl<'a> Runtime<'a> {
    fn new(node: &'a Node, weir: &Path, run_dir: &Path) -> Result<Self> {
        let directory = node.directory().join("plugins");
        fs::create_dir(&directory).context("making a directory for plugins")?;
        let plugin = directory.join(PLUGIN);
        fs::copy(weir, &plugin).context("copying the plugin")?;
        Ok(Self {
            node,
            plugin,
            run_dir: run_dir.to_owned(),
        })
    }

    /// What the plugins before ours make.
    fn sandbox(&self, pod: usize, number: usize) -> Result<Sandbox> {
        let netns = NetNs::new()?;
        let interface = format!("new{number}");
        let mut outside = Batch::default();
        outside.add(format!(
            "link add {interface} type veth peer name eth0 netns {}",
            netns.path()
        ));
        outside.add(format!("link set {interface} up"));
        outside.run(self.node.netns()?)?;
        let mut inside = Batch::default();
        inside.add("link set eth0 up");
        inside.run(&netns)?;
        Ok(Sandbox {
            pod,
            number,
            interface,
            netns,
        })
    }

    fn remove(&self, sandbox: &Sandbox) -> Result<()> {
        let mut batch = Batch::default();
        batch.add(format!("link del {}", sandbox.interface));
        batch.run(self.node.netns()?)
    }

    fn call(&self, command: &str, sandbox: &Sandbox) -> Result<Call> {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 99, 8, 1).to_bits() + u32::try_from(sandbox.pod)?);
        let configuration = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": PLUGIN, "runDir": self.run_dir,
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    { "name": sandbox.interface },
                    { "name": "eth0", "sandbox": sandbox.netns.path() },
                ],
                "ips": [{ "address": format!("{address}/32"), "interface": 1 }],
            },
        });
        Ok(Call::new(command, &configuration)
            .pod(
                &format!("{NAMESPACE}/{}", name(sandbox.pod)),
                &format!("sandbox-{}", sandbox.number),
                &sandbox.netns.path(),
            )
            .of(&self.plugin)
            .on(self.node.netns()?))
    }

    /// A chain of `ptp` and what follows it.
    fn chain(&self, name: &str, next: Option<Value>) -> Result<Chain> {
        let ptp = json!({
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": self.node.directory().join("ipam"),
                "ranges": [[{ "subnet": "10.99.9.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        let plugins: Vec<Value> = [Some(ptp), next].into_iter().flatten().collect();
        let list = json!({ "cniVersion": "1.0.0", "name": "bench", "plugins": plugins });
        let file = self.node.directory().join(format!("{name}.conflist"));
        fs::write(&file, list.to_string()).with_context(|| format!("writing {}", file.display()))?;
        let ours = self.plugin.parent().context("the plugin is in a directory")?;
        Chain::read(&file, &[ours, Path::new(PLUGINS)], self.node.netns()?)
    }
}

struct Results {
    /// Other pods, and policies.
    world: (usize, usize),
    table: Table,
    figures: Vec<Value>,
}

impl Results {
    fn new() -> Self {
        Self {
            world: (0, 0),
            table: Table::new([
                "other pods",
                "policies",
                "command",
                "calls",
                "p50 ms",
                "p99 ms",
                "max ms",
                "",
            ]),
            figures: Vec::new(),
        }
    }

    fn add(&mut self, what: &str, samples: &[f64], limit: Option<f64>) {
        let (pods, policies) = self.world;
        let quantile = |q| report::quantile(samples, q).unwrap_or(f64::NAN);
        let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
        let verdict = limit.map(|limit| format!("p99 ≤ {limit}: {}", report::at_most(p99, limit)));
        self.table.row([
            pods.to_string(),
            policies.to_string(),
            what.to_owned(),
            samples.len().to_string(),
            format!("{p50:.2}"),
            format!("{p99:.2}"),
            format!("{max:.2}"),
            verdict.unwrap_or_default(),
        ]);
        self.figures.push(json!({
            "pods": pods, "policies": policies, "command": what, "calls": samples.len(),
            "p50_ms": p50, "p99_ms": p99, "max_ms": max,
        }));
    }
}
