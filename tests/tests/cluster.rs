//! The cluster that other tests run in: it is real, survives what is done to it, and leaves nothing behind.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;
use weir_tests::cluster::{Cluster, Component, Options};

#[test]
fn a_control_plane_survives_kills_and_forgets_on_demand() -> Result<()> {
    let cluster = Cluster::up(&Options::default())?;
    let api = cluster.api();
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let first = api.create(&namespace("first"))?;
    let version = first["metadata"]["resourceVersion"]
        .as_str()
        .context("a resource version")?;

    cluster.kill(Component::Etcd)?;
    cluster.start(Component::Etcd)?;
    // The API server has to notice first.
    let patience = std::time::Duration::from_secs(60);
    api.wait("/api/v1/namespaces/first", patience, |found| found.is_some())?;
    api.apply(&namespace("second"))?;

    cluster.compact()?;
    cluster.kill(Component::ApiServer)?;
    assert!(api.text("/readyz").is_err(), "the API server answers after its death");
    cluster.start(Component::ApiServer)?;
    assert!(api.get("/api/v1/namespaces/second")?.is_some());
    let watch = format!("/api/v1/namespaces?watch=1&timeoutSeconds=5&resourceVersion={version}");
    let told = match api.text(&watch) {
        Ok(text) => text,
        Err(error) => format!("{error:#} {error:?}"),
    };
    assert!(told.contains("410"), "watching from before the compaction: {told}");

    let directory = cluster.directory();
    let group = directory.file_name().context("a name")?.to_owned();
    assert!(
        !groups(&group)?.is_empty(),
        "a running cluster has no control group, so its absence would prove nothing"
    );
    drop(cluster);
    assert!(!directory.exists(), "{} is left", directory.display());
    let left = groups(&group)?;
    assert!(left.is_empty(), "left: {left:?}");
    Ok(())
}

/// Where there are control groups of a name: in the one hierarchy of the second version, which is mounted here itself, or
/// in those of the first, each with a directory of its own.
fn groups(name: &OsStr) -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let mut found = vec![root.join(name)];
    for hierarchy in root.read_dir()? {
        found.push(hierarchy?.path().join(name));
    }
    found.retain(|path| path.exists());
    Ok(found)
}
