//! From a case's cluster and its policies' text to the objects that an agent reads.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
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

/// Fills in a text's placeholders: `${IP:host}` is the host's address, `${CIDR24:host}` the network of that length around
/// it.
///
/// # Errors
/// Those of `address`; a placeholder that is none of these.
pub fn filled_in(text: &str, address: impl Fn(&str) -> Result<Ipv4Addr>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once("${") {
        let (placeholder, after) = from.split_once('}').context("a placeholder without an end")?;
        let (kind, host) = placeholder.split_once(':').context("a placeholder without a host")?;
        let address = address(host)?;
        out.push_str(before);
        out.push_str(&match kind.strip_prefix("CIDR") {
            Some(bits) => Ipv4Net::new(address, bits.parse()?)?.trunc().to_string(),
            None if kind == "IP" => address.to_string(),
            None => bail!("placeholder ${{{placeholder}}} is not known"),
        });
        rest = after;
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_addresses_and_networks() {
        let address = |host: &str| {
            ensure_known(host)?;
            Ok(Ipv4Addr::new(10, 1, 2, 3))
        };
        let text = filled_in("a: ${IP:x/a}, b: ${CIDR24:x/a}", address).expect("known");
        assert_eq!(text, "a: 10.1.2.3, b: 10.1.2.0/24");
        for text in ["${IP:x/a", "${IP}", "${NAME:x/a}", "${CIDR33:x/a}", "${IP:x/b}"] {
            assert!(filled_in(text, address).is_err(), "{text}");
        }
    }

    fn ensure_known(host: &str) -> Result<()> {
        anyhow::ensure!(host == "x/a", "no host {host}");
        Ok(())
    }
}
