//! Weir is taken away from a cluster, and put back.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    stage::{DAEMON_SET, Stage},
    world::{OWN, World},
};
use crate::{cluster::api, traffic::Traffic};

/// Weir is taken away, with all that it had put on the nodes, and put back. The nodes are looked at only in a cluster of
/// namespaces.
///
/// # Errors
/// What the traffic met; what is left.
pub fn run(stage: &Stage) -> Result<()> {
    let mut world = World::new(stage)?;
    // It concerns nobody: that it stays is what matters.
    let policy = json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": OWN, "name": "stays"},
        "spec": {"selector": "role == 'nobody'", "types": ["Ingress"]},
    });
    stage.api().create(&policy)?;
    let kept = kept(stage, &policy)?;
    let traced = traces(stage)?;
    ensure!(
        traced.values().all(|traces| !traces.is_empty()),
        "an installed Weir leaves no traces on nodes, so their absence would prove nothing"
    );
    let mut friends = Vec::new();
    for family in &world.families {
        for (friend, _) in &world.clients {
            friends.push(Traffic::between(&world.pods, *family, (friend, &world.server), None)?);
        }
    }
    stage.uninstall()?;
    let left = traces(stage)?;
    ensure!(stage.api().get(DAEMON_SET)?.is_none(), "the DaemonSet is left");
    for (node, traces) in left {
        ensure!(traces.is_empty(), "left on {node}: {}", traces.join(", "));
    }
    let still = self::kept(stage, &policy)?;
    ensure!(
        still == kept,
        "of Calico's kinds there were {kept:?}, and are {still:?}"
    );
    for running in friends {
        running.finish(&world.servers)?.unharmed().context("uninstall")?;
    }
    // Nobody enforces any more.
    world.await_verdicts(true, true)?;
    stage.install(&[])?;
    world.await_verdicts(true, false)?;
    world.end()
}

/// What an uninstallation leaves in the API, by name, each with its unique id: the CRDs, and what people have written.
fn kept(stage: &Stage, policy: &Value) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for crd in stage
        .api()
        .list("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")?
    {
        if crd["spec"]["group"] == "crd.projectcalico.org" {
            let name = crd["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            found.insert(name, crd["metadata"]["uid"].clone());
        }
    }
    ensure!(!found.is_empty(), "the chart's CRDs are not there");
    let path = api::path(policy)?;
    let policy = stage.api().get(&path)?.with_context(|| format!("{path} is gone"))?;
    found.insert(path, policy["metadata"]["uid"].clone());
    Ok(found)
}

/// What of Weir is on each node of a cluster of namespaces.
fn traces(stage: &Stage) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    let Some(cluster) = stage.cluster() else {
        return Ok(found);
    };
    for number in cluster.numbers() {
        let root = cluster.node_root(number)?;
        let mut traces = Vec::new();
        for path in ["sys/fs/bpf/weir", "opt/cni/bin/weir-cni", "run/weir"] {
            let path = root.join(path);
            let empty = path.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            if path.exists() && !empty {
                traces.push(format!("/{}", path.strip_prefix(&root).unwrap_or(&path).display()));
            }
        }
        traces.extend(conflists(&root.join("etc/cni/net.d"))?);
        let links = cluster.run_on(number, "bpftool", &["--json", "net", "show"])?;
        let links: Value = serde_json::from_str(&links).context("understand bpftool")?;
        if links.to_string().contains("weir") {
            traces.push(format!("programs on interfaces: {links}"));
        }
        found.insert(format!("node{number}"), traces);
    }
    Ok(found)
}

/// The network configurations in a directory that have the plugin in them.
pub fn conflists(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        if fs::read_to_string(&path).is_ok_and(|text| text.contains("weir-cni")) {
            found.push(format!("weir-cni in {}", path.display()));
        }
    }
    Ok(found)
}
