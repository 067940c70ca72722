//! The cluster that the agent is told of: manifests in a directory, as `kubectl get -o json` would write them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::node;

/// The namespace of all pods and policies.
pub const NAMESPACE: &str = "bench";

/// Objects in one file. Only changed files are read again, so this is also what one change costs.
const PER_FILE: usize = 100;

/// Remote pods carry one of so many values of the label `app`.
pub const GROUPS: usize = 1_000;

const REMOTE_NODE: &str = "remote-node";

/// A directory of manifests, removed when dropped.
pub struct World {
    dir: TempDir,
}

impl World {
    /// The nodes, the namespace and, in files of their own, the pods of `node`, each with its name as the label `app`.
    pub fn new(node: &node::Node) -> Result<Self> {
        let world = Self {
            dir: TempDir::new_in(node.directory())?,
        };
        world.write("cluster", &cluster(node.address()?))?;
        for pod in &node.pods {
            let (from, to) = world.prepare_local_pod(pod, &pod.name)?;
            fs::rename(from, to)?;
        }
        Ok(world)
    }

    /// Prepares the manifest of a pod of the node, with another label `app`.
    pub fn prepare_local_pod(&self, pod: &node::Pod, app: &str) -> Result<(PathBuf, PathBuf)> {
        let object = self::pod(&pod.name, app, pod.address, node::NAME);
        self.prepare(&format!("pod-{}", pod.name), &[object])
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn remote_pods(&self, pods: &[Value]) -> Result<()> {
        self.write_all("pods", pods)
    }

    pub fn policies(&self, policies: &[Value]) -> Result<()> {
        self.write_all("policies", policies)
    }

    fn write_all(&self, stem: &str, objects: &[Value]) -> Result<()> {
        for (number, objects) in objects.chunks(PER_FILE).enumerate() {
            self.write(&format!("{stem}-{number:04}"), objects)?;
        }
        Ok(())
    }

    /// Writes one file and puts it in its place by rename.
    pub fn write(&self, stem: &str, objects: &[Value]) -> Result<()> {
        let (from, to) = self.prepare(stem, objects)?;
        fs::rename(&from, &to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))
    }

    /// Writes the next version of a file beside it, under a name that is no manifest's. Returns both names.
    pub fn prepare(&self, stem: &str, objects: &[Value]) -> Result<(PathBuf, PathBuf)> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let to = self.path().join(format!("{stem}.json"));
        let from = self.path().join(format!(".{stem}.next"));
        fs::write(&from, serde_json::to_vec_pretty(&list)?).with_context(|| format!("writing {}", from.display()))?;
        Ok((from, to))
    }
}

/// The nodes and the namespace.
pub fn cluster(node: IpAddr) -> [Value; 3] {
    [
        node_object(node::NAME, node),
        node_object(REMOTE_NODE, Ipv4Addr::new(10, 78, 0, 2).into()),
        namespace("shop"),
    ]
}

pub fn namespace(team: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": { "kubernetes.io/metadata.name": NAMESPACE, "team": team },
        },
    })
}

/// Pods of another node, spread evenly over [`GROUPS`] values of `app`: `peer-0`, `peer-1`, …
pub fn remote_pods(count: usize) -> Vec<Value> {
    (0..count).map(|number| remote_pod(number, &group(number))).collect()
}

pub fn remote_pod(number: usize, app: &str) -> Value {
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 80, 0, 0).to_bits() + number as u32 + 1);
    pod(&format!("peer-{number}"), app, address, REMOTE_NODE)
}

/// The `app` label of a remote pod.
pub fn group(number: usize) -> String {
    format!("peer-{}", number % GROUPS)
}

/// A NetworkPolicy for the pods whose `app` is `subject`, with these ingress rules.
pub fn policy(name: &str, subject: &str, ingress: &[Value]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "podSelector": { "matchLabels": { "app": subject } },
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    })
}

fn node_object(name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    })
}

/// A pod of the size that a Deployment's usually is.
pub fn pod(name: &str, app: &str, address: Ipv4Addr, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": { "app": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": "5d4f8c7b9d" },
            "creationTimestamp": "2025-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "default",
            "containers": [{
                "name": "main", "image": "example.com/shop/app:1.27.3",
                "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
            }],
        },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
    })
}
