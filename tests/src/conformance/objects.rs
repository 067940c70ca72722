//! From a case's cluster and its policies' text to the objects that an agent reads.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::case::{Cluster, Pod};
use crate::lab::{
    address::Addresses,
    manifests::{self, ContainerPort},
};

/// The objects of a cluster, by a name for each. `place` says on which node a pod is, and which addresses it has.
///
/// # Errors
/// Those of `place`.
pub fn objects(
    cluster: &Cluster,
    place: impl Fn(&Pod) -> Result<(String, Addresses)>,
) -> Result<BTreeMap<String, Value>> {
    let mut objects = BTreeMap::new();
    for namespace in &cluster.namespaces {
        let object = manifests::namespace(&namespace.name, &namespace.labels);
        objects.insert(format!("namespace-{}", namespace.name), object);
    }
    for account in &cluster.service_accounts {
        let object = manifests::service_account(&account.namespace, &account.name, &account.labels);
        objects.insert(format!("serviceaccount-{}-{}", account.namespace, account.name), object);
    }
    for pod in &cluster.pods {
        let (node, addresses) = place(pod)?;
        let ports: Vec<ContainerPort> = pod
            .ports
            .iter()
            .map(|port| (port.name.clone(), port.port, port.protocol.clone()))
            .collect();
        let object = manifests::Pod {
            namespace: &pod.namespace,
            name: &pod.name,
            labels: &pod.labels,
            service_account: pod.service_account.as_deref().unwrap_or("default"),
            node: &node,
            ports: &ports,
            addresses,
            host_network: false,
        }
        .object();
        objects.insert(format!("pod-{}-{}", pod.namespace, pod.name), object);
    }
    Ok(objects)
}
