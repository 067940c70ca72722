//! CoreDNS in the cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::api::Api;

const OBJECTS: &str = include_str!("../../cluster/coredns.yaml");

/// Installs it and waits until it answers.
///
/// # Errors
/// The API server's; if it does not become available.
pub fn install(api: &Api) -> Result<()> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(OBJECTS).context("parse coredns.yaml")?;
    for object in &objects {
        api.apply(object)?;
    }
    api.wait(
        "/apis/apps/v1/namespaces/kube-system/deployments/coredns",
        Duration::from_secs(180),
        |found| found.is_some_and(|deployment| deployment["status"]["availableReplicas"] == 1),
    )
}
