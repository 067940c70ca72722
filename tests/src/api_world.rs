//! The lab's pods as objects of a real API server: agents read them there, as in a cluster, with the rights that the
//! chart gives them. The control plane is alone: no kubelet changes what a test has written.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use http::Request;
use serde_json::{Value, json};
use weir::{
    cli::{
        client::Client,
        protocol::{Response, Verb},
    },
    control::query::StatusReport,
    source::kubernetes::KindHealth,
};

use crate::{
    cluster::{
        self, Cluster, Options,
        api::{self, Api},
        place,
    },
    lab::{Agent, Lab, ip::Batch, netns::NetNs},
    world::{Plan, World},
};

/// What takes a busy API server a while.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where the chart, rendered with its defaults, is kept.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/weir.yaml");
/// The CRDs that come with it.
pub const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");

/// The lab, its agents, and the API server that tells them of it.
pub struct ApiWorld {
    pub world: World,
    pub cluster: Cluster,
}

impl ApiWorld {
    /// Makes the lab and the API server, writes every object of the lab to it, and starts the agents.
    ///
    /// # Errors
    /// The lab's and the cluster's; if an agent does not come up.
    pub fn new(plan: &Plan) -> Result<Self> {
        let mut world = Self::without_agents(plan)?;
        world.world.start_agents()?;
        Ok(world)
    }

    /// The same without starting agents.
    ///
    /// # Errors
    /// The lab's and the cluster's.
    pub fn without_agents(plan: &Plan) -> Result<Self> {
        Self::on(Cluster::up(&Options::default())?, plan)
    }

    /// The same on a control plane that is not the usual one.
    ///
    /// # Errors
    /// The lab's and the cluster's.
    pub fn on(cluster: Cluster, plan: &Plan) -> Result<Self> {
        let kubeconfig = cluster.directory().join("agent.conf");
        let mut plan = plan.clone();
        plan.options.kubeconfig = Some(kubeconfig.clone());
        let world = World::without_agents(&plan)?;
        let made = Self { world, cluster };
        admit(&made.cluster, &made.world.lab, &kubeconfig)?;
        for name in made.world.manifests.names()? {
            // Nodes and namespaces come before what is in them.
            if !name.starts_with("pod-") {
                made.push(&name)?;
            }
        }
        for name in made.world.manifests.names()? {
            if name.starts_with("pod-") {
                made.push(&name)?;
            }
        }
        Ok(made)
    }

    /// Runs a test. Where it fails the logs of all agents are shown.
    ///
    /// # Errors
    /// The test's own.
    pub fn check(mut self, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let result = test(&mut self);
        if result.is_err() {
            for (node, agent) in &self.world.agents {
                eprintln!("--- log of the agent of {node} ---\n{}\n---", agent.log_tail(80));
            }
        }
        result
    }

    /// Writes the objects of one of the lab's manifest files to the API server, with their status.
    ///
    /// # Errors
    /// The API server's.
    pub fn push(&self, name: &str) -> Result<()> {
        push(&self.world, self.cluster.api(), name)
    }

    /// Writes objects to the API server, with their status.
    ///
    /// # Errors
    /// The API server's.
    pub fn apply(&self, text: &str) -> Result<()> {
        apply(self.cluster.api(), text)
    }

    /// Writes an object to the API server, with its status.
    ///
    /// # Errors
    /// The API server's.
    pub fn put(&self, object: &Value) -> Result<()> {
        put(self.cluster.api(), object)
    }

    /// How the agent's watch of a kind does (`pods`, `networkpolicies.networking.k8s.io`). None: it is not watched.
    ///
    /// # Errors
    /// If the agent does not answer.
    pub fn watch(&self, node: &str, kind: &str) -> Result<Option<KindHealth>> {
        let watches = self.world.status(node)?.watches;
        Ok(watches.into_iter().find(|watch| watch.kind == kind))
    }

    /// Waits for something to become so.
    ///
    /// # Errors
    /// If it does not.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self)? {
            if Instant::now() > deadline {
                bail!("after {PATIENCE:?} still not so: {what}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Gives agents on a lab's nodes a way to an API server and the rights of the chart. `kubeconfig` is written: it leads
/// from every node to the API server, as the chart's service account.
///
/// # Errors
/// The API server's, and the system's.
pub fn admit(cluster: &Cluster, lab: &Lab, kubeconfig: &Path) -> Result<()> {
    for object in rights()? {
        put(cluster.api(), &object)?;
    }
    let control = cluster.control_network()?;
    for (number, node) in lab.nodes().enumerate() {
        connect(&node.netns, &control, u8::try_from(number)?).context("connect a node to the API server")?;
    }
    write_kubeconfig(cluster, kubeconfig)
}

/// A link between a node's network and the control plane's; it goes with the node's.
fn connect(node: &NetNs, control: &NetNs, number: u8) -> Result<()> {
    let [server, _] = place::control();
    let (own, theirs) = (Ipv4Addr::new(192, 168, 254, number), format!("lab{number}"));
    let mut batch = Batch::default();
    batch.add(format!(
        "link add api type veth peer name {theirs} netns {}",
        control.path()
    ));
    batch.add(format!("addr add {own} peer {server} dev api"));
    batch.add("link set api up");
    batch.run(node)?;
    let mut batch = Batch::default();
    batch.add(format!("link set {theirs} up"));
    batch.add(format!("route add {own} dev {theirs} src {server}"));
    batch.run(control)?;
    node.await_links(&["api"])
}

/// The objects of the chart that give the agent its rights.
///
/// # Errors
/// If they cannot be read.
pub fn rights() -> Result<Vec<Value>> {
    let text = fs::read_to_string(CHART).with_context(|| format!("read {CHART}"))?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).with_context(|| format!("parse {CHART}"))?;
    let of_rights = |object: &Value| {
        matches!(
            object["kind"].as_str(),
            Some("ServiceAccount" | "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding")
        )
    };
    Ok(objects.into_iter().filter(of_rights).collect())
}

/// Writes the objects of one of a lab's manifest files to an API server, with their status.
///
/// # Errors
/// If there is no such file; the API server's.
pub fn push(world: &World, api: &Api, name: &str) -> Result<()> {
    let path = world.manifests.path(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    apply(api, &text)
}

fn apply(api: &Api, text: &str) -> Result<()> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).context("parse objects")?;
    objects.iter().try_for_each(|object| put(api, object))
}

/// Writes an object to the API server, with its status.
///
/// # Errors
/// The API server's.
pub fn put(api: &Api, object: &Value) -> Result<()> {
    let mut bare = object.clone();
    let status = bare.as_object_mut().and_then(|object| object.remove("status"));
    // A namespace's service account is made by a controller, and pods are refused before.
    retry(|| api.apply(&bare))?;
    if let Some(status) = status {
        let path = format!("{}/status", api::path(object)?);
        retry(|| api.patch(&path, &json!({"status": status})))?;
    }
    Ok(())
}

/// How an agent's watches do.
///
/// # Errors
/// If it does not answer.
pub fn watches(agent: &Agent) -> Result<Vec<KindHealth>> {
    Ok(status(agent)?.watches)
}

fn status(agent: &Agent) -> Result<StatusReport> {
    match Client::connect(agent.run_dir())?.ask(Verb::Status)? {
        Response::Status(report) => Ok(*report),
        other => bail!("status was answered by {other:?}"),
    }
}

/// As the chart's service account.
fn write_kubeconfig(cluster: &Cluster, path: &Path) -> Result<()> {
    let api = cluster.api();
    let body =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}});
    let request = Request::post("/api/v1/namespaces/kube-system/serviceaccounts/weir/token")
        .header("Content-Type", "application/json")
        .body(body.to_string().into_bytes())
        .context("a request")?;
    let token: Value = api
        .block_on(api.client().request(request))
        .context("a token for the agent")?;
    let text = fs::read_to_string(cluster.inner_kubeconfig()).context("read the administrator's kubeconfig")?;
    let admin: Value = serde_saphyr::from_str(&text).context("parse the administrator's kubeconfig")?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "agent",
        "contexts": [{"name": "agent", "context": {"cluster": "lab", "user": "agent"}}],
        "clusters": [{"name": "lab", "cluster": admin["clusters"][0]["cluster"]}],
        "users": [{"name": "agent", "user": {"token": token["status"]["token"]}}],
    });
    fs::write(path, config.to_string()).with_context(|| format!("write {}", path.display()))
}

/// What fails because something else is not there (yet) is done again.
///
/// # Errors
/// The last attempt's, once patience ends.
pub fn retry<T>(mut action: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match action() {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
            done => return done,
        }
    }
}

/// Starts a program of the control plane again.
///
/// # Errors
/// If it does not come up.
pub fn restart(cluster: &Cluster, component: cluster::Component) -> Result<()> {
    cluster.kill(component)?;
    cluster.start(component)
}
