//! Pods of other nodes that come, change and go while nobody waits for anybody: labels before status, status before
//! labels, an address given on before its last owner is gone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weir::{
    cli::{
        client::Client,
        protocol::{Response, Verb},
    },
    control::query::DumpKind,
};

use crate::{
    api_world::{put, retry},
    cluster::api::Api,
    lab::Agent,
};

/// The node that the pods are on, which nobody has.
pub const ELSEWHERE: &str = "elsewhere";
/// Values of the label `app`: `app-0`, `app-1`, …
pub const APPS: u32 = 6;

/// A pod as it should be.
#[derive(Clone, Debug)]
pub struct Pod {
    pub app: u32,
    pub address: Ipv4Addr,
    has_status: bool,
    /// It has ended, and with it its claim to the address.
    pub over: bool,
}

impl Pod {
    /// It has an address, and has it to itself.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.has_status && !self.over
    }
}

/// Numbers without rhyme, the same every time.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 on and below the limit; 0 where that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }
}

/// One who writes pods of namespace `x` to the API server, each the number's own.
pub struct Writer<'a> {
    api: &'a Api,
    number: u32,
    made: u32,
    written: u64,
    random: Random,
    /// The pods as they should be in the end, by name.
    pods: BTreeMap<String, Pod>,
}

impl<'a> Writer<'a> {
    /// Writers of different numbers share nothing.
    #[must_use]
    pub fn new(api: &'a Api, number: u32) -> Self {
        Self {
            api,
            number,
            made: 0,
            written: 0,
            random: Random::new(u64::from(number) + 1),
            pods: BTreeMap::new(),
        }
    }

    /// The pods as they should be.
    #[must_use]
    pub const fn pods(&self) -> &BTreeMap<String, Pod> {
        &self.pods
    }

    /// Things that were done.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    fn path(name: &str) -> String {
        format!("/api/v1/namespaces/x/pods/{name}")
    }

    fn create(&mut self, app: u32, address: Ipv4Addr) -> Result<String> {
        let name = format!("peer-{}-{}", self.number, self.made);
        self.made += 1;
        self.written += 1;
        put(
            self.api,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "x", "name": name, "labels": {"app": format!("app-{app}")}},
                "spec": {"nodeName": ELSEWHERE, "containers": [{"name": "main", "image": "example.org/main:1"}]},
            }),
        )?;
        let pod = Pod {
            app,
            address,
            has_status: false,
            over: false,
        };
        self.pods.insert(name.clone(), pod);
        Ok(name)
    }

    fn run_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.get_mut(name).context("a pod of the model")?;
        pod.has_status = true;
        let status = json!({"status": {"phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}]}});
        self.patch(&format!("{}/status", Self::path(name)), &status)
    }

    fn some_pod(&mut self, wanted: impl Fn(&Pod) -> bool) -> Option<String> {
        let names: Vec<&String> = self
            .pods
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

    /// Does one thing to one of them: other labels, a status at last, another pod in its place, or its end.
    ///
    /// # Errors
    /// The API server's, once it has been away for long.
    pub fn change(&mut self) -> Result<()> {
        let app = self.app();
        match self.random.below(4) {
            0 => {
                let Some(name) = self.some_pod(|pod| !pod.over) else {
                    return Ok(());
                };
                let labels = json!({"metadata": {"labels": {"app": format!("app-{app}")}}});
                self.patch(&Self::path(&name), &labels)?;
                self.pods.entry(name).and_modify(|pod| pod.app = app);
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
                let new = self.create(app, self.pods[&old].address)?;
                self.run_pod(&new)?;
                self.delete(&old)?;
                self.pods.remove(&old);
            }
            _ => {
                // A pod that has ended keeps its address in its status, but has it no more.
                let Some(old) = self.some_pod(|pod| pod.has_status && !pod.over) else {
                    return Ok(());
                };
                let path = format!("{}/status", Self::path(&old));
                self.patch(&path, &json!({"status": {"phase": "Succeeded"}}))?;
                let pod = self.pods.get_mut(&old).context("a pod of the model")?;
                pod.over = true;
                let address = pod.address;
                let new = self.create(app, address)?;
                self.run_pod(&new)?;
            }
        }
        Ok(())
    }

    /// Makes one more, with an address of its own. One in three has a status at once; the others get theirs later, in
    /// another order.
    ///
    /// # Errors
    /// The API server's, once it has been away for long.
    pub fn add(&mut self) -> Result<()> {
        let app = self.app();
        let base = Ipv4Addr::new(10, 90, 0, 0).to_bits() + (self.number << 12);
        let free = (1..1 << 12)
            .map(|host| Ipv4Addr::from_bits(base + host))
            .find(|address| !self.pods.values().any(|pod| pod.address == *address))
            .context("no address is free")?;
        let name = self.create(app, free)?;
        if self.random.below(3) == 0 {
            self.run_pod(&name)?;
        }
        Ok(())
    }

    /// Gives one of those without a status theirs. False: all have one.
    ///
    /// # Errors
    /// The API server's, once it has been away for long.
    pub fn catch_up(&mut self) -> Result<bool> {
        let Some(name) = self.some_pod(|pod| !pod.has_status) else {
            return Ok(false);
        };
        self.run_pod(&name)?;
        Ok(true)
    }

    /// Removes one. False: none is left.
    ///
    /// # Errors
    /// The API server's, once it has been away for long.
    pub fn remove(&mut self) -> Result<bool> {
        let Some(name) = self.some_pod(|_| true) else {
            return Ok(false);
        };
        self.delete(&name)?;
        self.pods.remove(&name);
        Ok(true)
    }

    fn patch(&mut self, path: &str, patch: &Value) -> Result<()> {
        self.written += 1;
        retry(|| self.api.patch(path, patch)).map(drop)
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        self.written += 1;
        retry(|| self.api.delete(&Self::path(name)))
    }
}

fn dump(agent: &Agent, what: DumpKind) -> Result<Vec<Value>> {
    match Client::connect(agent.run_dir())?.ask(Verb::Dump { what })? {
        Response::Dump(dump) => Ok(dump.rows.into_iter().map(Value::Object).collect()),
        other => bail!("dump was answered by {other:?}"),
    }
}

/// What the table for what a pod receives says of each address that the agent knows: without the numbers that one agent
/// gives otherwise than the next.
///
/// # Errors
/// If the agent does not answer, or the pod is none of its own.
pub fn decisions(agent: &Agent, pod: &str) -> Result<BTreeMap<IpAddr, String>> {
    let endpoints = dump(agent, DumpKind::Endpoints)?;
    let server = endpoints
        .iter()
        .find(|endpoint| endpoint["pod"].as_str().is_some_and(|name| name.ends_with(pod)))
        .with_context(|| format!("{pod} is no endpoint: {endpoints:?}"))?;
    let table = &server["ingress_table"];
    let mut rows: BTreeMap<String, String> = BTreeMap::new();
    for row in dump(agent, DumpKind::Tables)?
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
    for identity in dump(agent, DumpKind::Identities)? {
        let decision = rows.get(&identity["class"].to_string()).unwrap_or(default);
        for address in identity["addresses"].as_array().into_iter().flatten() {
            let address: IpAddr = address.as_str().context("an address")?.parse()?;
            out.insert(address.to_canonical(), decision.clone());
        }
    }
    Ok(out)
}
