//! Pods that kubelet runs, with what the tests need of them: namespaces to send from, addresses to send to.
//!
//! A pod's namespaces are found by its unique id in the control groups of its processes. So the nodes must run on this
//! machine: in namespaces, or in the containers of kind or minikube.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    cluster::{PAUSE_IMAGE, api::Api},
    lab::{Addresses, Hosts, NetNs, manifests::Labels},
};

/// Everything that tests make has this label, so that it can be found.
pub const OURS: &str = "weir-e2e";

/// Pods start within seconds, a busy machine in tens of them.
pub const STARTED: Duration = Duration::from_secs(240);

/// A pod to be made.
#[derive(Clone, Debug, Default)]
pub struct PodPlan {
    pub namespace: String,
    pub name: String,
    /// None: where the scheduler puts it.
    pub node: Option<String>,
    pub labels: Labels,
    pub service_account: Option<String>,
    /// Declared ports: name (may be empty), number, protocol.
    pub ports: Vec<(String, u16, String)>,
    /// What agnhost does; nothing: it waits.
    pub arguments: Vec<String>,
    /// What of it ends is started again.
    pub restarts: bool,
}

impl PodPlan {
    /// A pod of `namespace/name` that does nothing.
    #[must_use]
    pub fn idle(name: &str, node: &str, labels: &Labels) -> Self {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: Some(node.to_owned()),
            labels: labels.clone(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The path of the pod in the API.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> Value {
        let mut labels = self.labels.clone();
        labels.insert(OURS.to_owned(), "pod".to_owned());
        let ports: Vec<Value> = self
            .ports
            .iter()
            .filter(|(name, ..)| !name.is_empty())
            .map(|(name, port, protocol)| json!({"name": name, "containerPort": port, "protocol": protocol}))
            .collect();
        let mut container = json!({"name": "main", "image": PAUSE_IMAGE, "imagePullPolicy": "Never", "ports": ports});
        if !self.arguments.is_empty() {
            container["args"] = json!(self.arguments);
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": self.name, "labels": labels},
            "spec": {
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "restartPolicy": if self.restarts { "Always" } else { "Never" },
                "serviceAccountName": self.service_account.as_deref().unwrap_or("default"),
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
            },
        });
        if let Some(node) = &self.node {
            object["spec"]["nodeName"] = json!(node);
        }
        object
    }
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct RunningPod {
    pub plan: PodPlan,
    pub netns: Arc<NetNs>,
    pub addresses: Addresses,
}

/// The pods of a test, by `namespace/name`, and hosts outside of the cluster.
#[derive(Debug, Default)]
pub struct Pods {
    running: BTreeMap<String, RunningPod>,
    pub others: BTreeMap<String, (Arc<NetNs>, Addresses)>,
}

impl Hosts for Pods {
    fn host(&self, name: &str) -> Result<(&Arc<NetNs>, Addresses)> {
        if let Some(pod) = self.running.get(name) {
            return Ok((&pod.netns, pod.addresses));
        }
        self.others
            .get(name)
            .map(|(netns, addresses)| (netns, *addresses))
            .with_context(|| format!("no pod or host {name}"))
    }
}

impl Pods {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.running.keys().map(String::as_str)
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&RunningPod> {
        self.running.get(name)
    }

    /// Makes pods and waits until all run.
    ///
    /// # Errors
    /// The API server's; if they do not run in time, with what their status says.
    pub fn add(&mut self, api: &Api, plans: &[PodPlan]) -> Result<()> {
        for plan in plans {
            api.create(&plan.object())?;
        }
        let mut found = Vec::new();
        for plan in plans {
            let mut uid = String::new();
            let mut addresses = Addresses::default();
            api.wait(&plan.path(), STARTED, |pod| {
                let Some(pod) = pod.filter(|pod| pod["status"]["phase"] == "Running") else {
                    return false;
                };
                pod["metadata"]["uid"].as_str().unwrap_or_default().clone_into(&mut uid);
                addresses = addresses_of(pod);
                addresses != Addresses::default()
            })
            .with_context(|| format!("start {}", plan.key()))?;
            found.push((plan, uid, addresses));
        }
        let uids: Vec<&str> = found.iter().map(|(_, uid, _)| uid.as_str()).collect();
        let processes = processes(&uids)?;
        for (plan, uid, addresses) in &found {
            let pid = processes
                .get(uid.as_str())
                .with_context(|| format!("{} has no process on this machine: where do its nodes run?", plan.key()))?;
            let netns = Arc::new(NetNs::open(&Path::new("/proc").join(pid.to_string()).join("ns/net"))?);
            self.running.insert(
                plan.key(),
                RunningPod {
                    plan: (*plan).clone(),
                    netns,
                    addresses: *addresses,
                },
            );
        }
        Ok(())
    }

    /// Takes pods away and waits until they are gone.
    ///
    /// # Errors
    /// The API server's; if they do not go.
    pub fn remove(&mut self, api: &Api, names: &[String]) -> Result<()> {
        let mut gone = Vec::new();
        for name in names {
            if let Some(pod) = self.running.remove(name) {
                api.delete_within(&pod.plan.path(), 1)?;
                gone.push(pod.plan.path());
            }
        }
        for path in gone {
            api.wait(&path, STARTED, |pod| pod.is_none())?;
        }
        Ok(())
    }

    /// Gives a pod other labels.
    ///
    /// # Errors
    /// The API server's; if there is no such pod.
    pub fn relabel(&mut self, api: &Api, name: &str, labels: &Labels) -> Result<()> {
        let pod = self.running.get_mut(name).with_context(|| format!("no pod {name}"))?;
        let mut patch: BTreeMap<&str, Value> = pod.plan.labels.keys().map(|key| (key.as_str(), Value::Null)).collect();
        patch.extend(labels.iter().map(|(key, value)| (key.as_str(), json!(value))));
        api.patch(&pod.plan.path(), &json!({"metadata": {"labels": patch}}))?;
        pod.plan.labels.clone_from(labels);
        Ok(())
    }
}

/// The addresses that a pod's status names.
#[must_use]
pub fn addresses_of(pod: &Value) -> Addresses {
    let mut addresses = Addresses::default();
    let listed = pod["status"]["podIPs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for address in listed
        .iter()
        .filter_map(|entry| entry["ip"].as_str()?.parse::<IpAddr>().ok())
    {
        let other = Addresses::from(address);
        addresses.v4 = addresses.v4.or(other.v4);
        addresses.v6 = addresses.v6.or(other.v6);
    }
    addresses
}

/// One process of each pod that has any on this machine, by the pod's unique id.
///
/// # Errors
/// If `/proc` cannot be listed.
pub fn processes<'a>(uids: &[&'a str]) -> Result<HashMap<&'a str, i32>> {
    // kubelet names control groups after pods, with underscores where systemd makes them.
    let written: Vec<(&str, String)> = uids.iter().map(|uid| (*uid, uid.replace('-', "_"))).collect();
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(groups) = fs::read_to_string(entry.path().join("cgroup")) else {
            continue;
        };
        if !groups.contains("pod") {
            continue;
        }
        for (uid, underscored) in &written {
            if groups.contains(uid) || groups.contains(underscored.as_str()) {
                found.entry(*uid).or_insert(pid);
            }
        }
    }
    Ok(found)
}

/// Makes a namespace of the API, with what the service account controller puts in it.
///
/// # Errors
/// The API server's; if it gets no default service account.
pub fn namespace(api: &Api, name: &str, labels: &Labels) -> Result<()> {
    let mut labels = labels.clone();
    labels.insert(OURS.to_owned(), "namespace".to_owned());
    api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))?;
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    api.wait(&account, STARTED, |found| found.is_some())
}

/// Deletes a namespace of the API with all that is in it, and waits until it is gone.
///
/// # Errors
/// The API server's; if it does not go.
pub fn remove_namespace(api: &Api, name: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{name}");
    api.delete_within(&path, 1)?;
    api.wait(&path, STARTED, |found| found.is_none())
}

/// Waits for something that no single object tells.
///
/// # Errors
/// If it does not come, with what it is.
pub fn eventually(what: &str, patience: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let result = done();
        if matches!(result, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            result.with_context(|| what.to_owned())?;
        }
        ensure!(Instant::now() < deadline, "{what}: not so after {patience:?}");
        thread::sleep(Duration::from_millis(100));
    }
}
