//! Thousands of pods that come, change and go while nobody waits for anybody: labels before status, status before
//! labels, an address given on before its last owner is gone. What is enforced in the end is what the objects say in the
//! end, and what an agent that knows nothing of the way there makes of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weir::{
    cli::{
        client::Client,
        protocol::{Response, Verb},
    },
    control::query::DumpKind,
};
use weir_tests::{
    api_world::{ApiWorld, put},
    cluster::{Component, api::Api},
    world::{ENFORCED, Plan},
};

use super::{NODE, signal};

const WRITERS: u32 = 4;
const PODS_EACH: u32 = 500;
const CHANGES_EACH: u32 = 500;
/// Values of the label that the policy asks for; it allows the first two.
const APPS: u32 = 6;
const ALLOWED: u32 = 2;

/// The pods of one writer as they should be in the end, by name.
#[derive(Default)]
struct Model(BTreeMap<String, Pod>);

#[derive(Clone)]
struct Pod {
    app: u32,
    address: Ipv4Addr,
    has_status: bool,
    over: bool,
}

/// Numbers without rhyme, the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }
}

struct Writer<'a> {
    api: &'a Api,
    number: u32,
    made: u32,
    random: Random,
    model: Model,
}

impl Writer<'_> {
    fn path(name: &str) -> String {
        format!("/api/v1/namespaces/x/pods/{name}")
    }

    fn create(&mut self, app: u32, address: Ipv4Addr) -> Result<String> {
        let name = format!("peer-{}-{}", self.number, self.made);
        self.made += 1;
        put(
            self.api,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "x", "name": name, "labels": {"app": format!("app-{app}")}},
                "spec": {"nodeName": "elsewhere", "containers": [{"name": "main", "image": "example.org/main:1"}]},
            }),
        )?;
        let pod = Pod {
            app,
            address,
            has_status: false,
            over: false,
        };
        self.model.0.insert(name.clone(), pod);
        Ok(name)
    }

    fn run_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.model.0.get_mut(name).context("a pod of the model")?;
        pod.has_status = true;
        let status = json!({"status": {"phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}]}});
        self.api
            .patch(&format!("{}/status", Self::path(name)), &status)
            .map(drop)
    }

    fn some_pod(&mut self, wanted: impl Fn(&Pod) -> bool) -> Option<String> {
        let names: Vec<&String> = self
            .model
            .0
            .iter()
            .filter(|(_, pod)| wanted(pod))
            .map(|(name, _)| name)
            .collect();
        let chosen = self.random.below(names.len());
        names.get(chosen).map(|name| (*name).clone())
    }

    fn app(&mut self) -> u32 {
        u32::try_from(self.random.below(APPS as usize)).unwrap_or(0)
    }

    fn change(&mut self) -> Result<()> {
        let app = self.app();
        match self.random.below(4) {
            0 => {
                let Some(name) = self.some_pod(|pod| !pod.over) else {
                    return Ok(());
                };
                let labels = json!({"metadata": {"labels": {"app": format!("app-{app}")}}});
                self.api.patch(&Self::path(&name), &labels)?;
                self.model.0.entry(name).and_modify(|pod| pod.app = app);
            }
            1 => {
                let Some(name) = self.some_pod(|pod| !pod.has_status) else {
                    return Ok(());
                };
                self.run_pod(&name)?;
            }
            2 => {
                // The address is given on before its owner is gone.
                let Some(old) = self.some_pod(|pod| pod.has_status && !pod.over) else {
                    return Ok(());
                };
                let new = self.create(app, self.model.0[&old].address)?;
                self.run_pod(&new)?;
                self.api.delete(&Self::path(&old))?;
                self.model.0.remove(&old);
            }
            _ => {
                // A pod that has ended keeps its address in its status, but has it no more.
                let Some(old) = self.some_pod(|pod| pod.has_status && !pod.over) else {
                    return Ok(());
                };
                let path = format!("{}/status", Self::path(&old));
                self.api.patch(&path, &json!({"status": {"phase": "Succeeded"}}))?;
                let pod = self.model.0.get_mut(&old).context("a pod of the model")?;
                pod.over = true;
                let address = pod.address;
                let new = self.create(app, address)?;
                self.run_pod(&new)?;
            }
        }
        Ok(())
    }

    fn write(mut self) -> Result<Model> {
        for host in 0..PODS_EACH {
            let app = self.app();
            let base = Ipv4Addr::new(10, 90, 0, 1).to_bits() + (self.number << 12);
            let name = self.create(app, Ipv4Addr::from_bits(base + host))?;
            // The others get theirs later, in another order.
            if self.random.below(3) == 0 {
                self.run_pod(&name)?;
            }
        }
        for _ in 0..CHANGES_EACH {
            self.change()?;
        }
        while let Some(name) = self.some_pod(|pod| !pod.has_status) {
            self.run_pod(&name)?;
        }
        Ok(self.model)
    }
}

fn dump(world: &ApiWorld, what: DumpKind) -> Result<Vec<Value>> {
    let agent = world.world.agents.get(NODE).context("the node has an agent")?;
    match Client::connect(agent.run_dir())?.ask(Verb::Dump { what })? {
        Response::Dump(dump) => Ok(dump.rows.into_iter().map(Value::Object).collect()),
        other => anyhow::bail!("dump was answered by {other:?}"),
    }
}

/// What x/server's table says of each address: without the numbers that one agent gives otherwise than the next.
fn decisions(world: &ApiWorld) -> Result<BTreeMap<IpAddr, String>> {
    let endpoints = dump(world, DumpKind::Endpoints)?;
    let server = endpoints
        .iter()
        .find(|endpoint| endpoint["pod"].as_str().is_some_and(|pod| pod.ends_with("x/server")))
        .with_context(|| format!("x/server is no endpoint: {endpoints:?}"))?;
    let table = &server["ingress_table"];
    let mut rows: BTreeMap<String, String> = BTreeMap::new();
    for row in dump(world, DumpKind::Tables)?
        .iter()
        .filter(|row| row["table"] == *table)
    {
        let text = format!("{} {}", row["base"], row["decisions"]);
        let without_traces = text.split(' ').filter(|word| !word.starts_with('#'));
        // What is left of `allow #3",` has no number any more.
        let text: Vec<&str> = without_traces.collect();
        rows.insert(row["class"].to_string(), text.join(" "));
    }
    let default = rows.get("\"default\"").context("a table has a default row")?;
    let mut out = BTreeMap::new();
    for identity in dump(world, DumpKind::Identities)? {
        let decision = rows.get(&identity["class"].to_string()).unwrap_or(default);
        for address in identity["addresses"].as_array().into_iter().flatten() {
            let address: IpAddr = address.as_str().context("an address")?.parse()?;
            out.insert(address.to_canonical(), decision.clone());
        }
    }
    Ok(out)
}

#[test]
fn thousands_of_pods_whose_status_comes_late_end_as_their_objects_say() -> Result<()> {
    ApiWorld::new(&Plan::one_node(&["x/server", "x/a"]))?.check(|world| {
        world.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "elsewhere"}}))?;
        let allowed: Vec<String> = (0..ALLOWED).map(|app| format!("app-{app}")).collect();
        world.put(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "server"},
            "spec": {
                "podSelector": {"matchLabels": {"pod": "server"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {
                    "matchExpressions": [{"key": "app", "operator": "In", "values": allowed}],
                }}]}],
            },
        }))?;
        world.world.enforced()?;
        // They would only clean up after a node without a kubelet.
        world.cluster.kill(Component::ControllerManager)?;
        world.cluster.kill(Component::Scheduler)?;

        let api = world.cluster.api();
        let pid = world
            .world
            .agents
            .get(NODE)
            .and_then(|agent| agent.pid())
            .context("the agent runs")?;
        let models = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| {
                    let writer = Writer {
                        api,
                        number,
                        made: 0,
                        random: Random(u64::from(number) + 1),
                        model: Model::default(),
                    };
                    scope.spawn(move || writer.write())
                })
                .collect();
            // A slow consumer, again and again.
            while writers.iter().any(|writer| !writer.is_finished()) {
                signal(pid, Signal::SIGSTOP)?;
                thread::sleep(Duration::from_millis(700));
                signal(pid, Signal::SIGCONT)?;
                thread::sleep(Duration::from_millis(700));
            }
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<Model>>>()
        })?;
        world.world.enforced()?;

        let found = decisions(world)?;
        let mut wrong = Vec::new();
        let mut count = 0;
        for pod in models.iter().flat_map(|model| model.0.values()).filter(|pod| !pod.over) {
            count += 1;
            let expected = if pod.app < ALLOWED { "allow" } else { "deny" };
            match found.get(&pod.address.into()) {
                Some(decision) if decision.contains(expected) => {}
                other => wrong.push(format!("{}: {other:?}, not {expected}", pod.address)),
            }
        }
        ensure!(count >= WRITERS * PODS_EACH, "only {count} pods are left");
        ensure!(
            wrong.is_empty(),
            "{} of {count} are wrong: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );

        let agent = world.world.agent(NODE)?;
        agent.terminate()?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        let fresh = decisions(world)?;
        let differ: Vec<_> = found
            .iter()
            .filter(|(address, decision)| fresh.get(address) != Some(decision))
            .take(5)
            .collect();
        ensure!(
            differ.is_empty() && fresh.len() == found.len(),
            "a fresh agent knows {} addresses, not {}, and decides otherwise of {differ:?}",
            fresh.len(),
            found.len()
        );
        Ok(())
    })
}
