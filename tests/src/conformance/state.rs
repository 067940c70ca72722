//! The cluster of a case: in the lab, and in the manifests that the agents read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use super::{
    case::{Cluster, ClusterChanges, LabelChange, Labelled, Pod, Port, ServiceAccount},
    objects::objects,
    policies::addressed,
};
use crate::lab::{
    Families, Family, Lab, PodPlan,
    manifests::{self, Manifests},
    probe::{Protocol, Servers},
};

impl Cluster {
    /// Takes the changes of a step.
    pub fn change(&mut self, changes: &ClusterChanges) {
        self.namespaces.extend(changes.add_namespaces.iter().cloned());
        self.pods.extend(changes.add_pods.iter().cloned());
        self.pods.retain(|pod| !changes.remove_pods.contains(&pod.key()));
        let gone = |namespace: &String| changes.remove_namespaces.contains(namespace);
        self.pods.retain(|pod| !gone(&pod.namespace));
        self.service_accounts.retain(|account| !gone(&account.namespace));
        self.namespaces.retain(|namespace| !gone(&namespace.name));
    }

    /// Takes a change of labels.
    ///
    /// # Errors
    /// If there is no such object.
    pub fn relabel(&mut self, change: &LabelChange) -> Result<()> {
        // Every namespace has a service account `default`, which cases need not list.
        if let (Labelled::ServiceAccount, Some((namespace, "default"))) = (change.kind, change.name.split_once('/'))
            && !self
                .service_accounts
                .iter()
                .any(|account| account.namespace == namespace && account.name == "default")
        {
            self.service_accounts.push(ServiceAccount {
                namespace: namespace.to_owned(),
                name: "default".to_owned(),
                labels: BTreeMap::new(),
            });
        }
        let labels = match change.kind {
            Labelled::Namespace => self
                .namespaces
                .iter_mut()
                .find(|namespace| namespace.name == change.name)
                .map(|namespace| &mut namespace.labels),
            Labelled::Pod => self
                .pods
                .iter_mut()
                .find(|pod| pod.key() == change.name)
                .map(|pod| &mut pod.labels),
            Labelled::ServiceAccount => self
                .service_accounts
                .iter_mut()
                .find(|account| format!("{}/{}", account.namespace, account.name) == change.name)
                .map(|account| &mut account.labels),
        };
        match labels {
            Some(labels) => {
                labels.clone_from(&change.labels);
                Ok(())
            }
            None => bail!(
                "label change of {:?} {}, which does not exist",
                change.kind,
                change.name
            ),
        }
    }
}

/// The file with a case's policies.
const POLICIES: &str = "policies";

/// What is real at the moment, and how to make something else real.
pub struct State {
    pub lab: Lab,
    pub manifests: Manifests,
    pub servers: Servers,
    pub cluster: Cluster,
    nodes: Vec<String>,
    /// Contents of the manifest files, by name.
    written: BTreeMap<String, String>,
}

impl State {
    /// A lab whose nodes are there and nothing else. Their objects are written.
    ///
    /// # Errors
    /// The lab's and the file system's.
    pub fn new(lab: Lab, nodes: Vec<String>) -> Result<Self> {
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        for name in &nodes {
            let labels = manifests::labels(&[("kubernetes.io/hostname", name)]);
            manifests.object(
                &format!("node-{name}"),
                &manifests::node(name, &labels, lab.node(name)?.addresses),
            )?;
        }
        Ok(Self {
            lab,
            manifests,
            servers: Servers::start()?,
            cluster: Cluster::default(),
            nodes,
            written: BTreeMap::new(),
        })
    }

    /// Makes a cluster real: pods come and go in the lab, objects in the manifests.
    ///
    /// # Errors
    /// The lab's and the file system's.
    pub fn realise(&mut self, target: &Cluster) -> Result<()> {
        let wanted: BTreeSet<String> = target.pods.iter().map(Pod::key).collect();
        let there: BTreeSet<String> = self.cluster.pods.iter().map(Pod::key).collect();
        for gone in there.difference(&wanted) {
            self.servers.stop(gone);
            self.lab.remove_pod(gone)?;
        }
        let fresh: Vec<&Pod> = target.pods.iter().filter(|pod| !there.contains(&pod.key())).collect();
        let plans: Vec<PodPlan> = fresh
            .iter()
            .enumerate()
            .map(|(number, pod)| PodPlan {
                name: pod.key(),
                node: self.nodes[number % self.nodes.len()].clone(),
                address: pod.ip,
            })
            .collect();
        self.lab.add_pods(&plans)?;
        for pod in fresh {
            let key = pod.key();
            self.servers.serve(&key, self.lab.host(&key)?.0, &served(&pod.ports)?)?;
        }
        for external in &target.externals {
            if !self.cluster.externals.contains(external) {
                self.lab.add_external(&external.name, external.ip)?;
                let key = format!("ext/{}", external.name);
                self.servers
                    .serve(&key, self.lab.host(&key)?.0, &served(&external.ports)?)?;
            }
        }
        self.write(target)?;
        self.cluster = target.clone();
        Ok(())
    }

    /// Puts policies in force, in place of all others.
    ///
    /// # Errors
    /// The file system's.
    pub fn policies(&self, text: &str) -> Result<()> {
        if text.trim().is_empty() {
            self.manifests.remove(POLICIES)
        } else {
            self.manifests.text(POLICIES, &self.addressed(text)?)
        }
    }

    /// Fills in placeholders, and takes the addresses over to the lab's family.
    fn addressed(&self, text: &str) -> Result<String> {
        let family = match self.lab.families() {
            Families::V6 => Family::V6,
            Families::V4 | Families::Dual => Family::V4,
        };
        addressed(text, family, |host| self.lab.address(host, family))
    }

    /// Writes what has changed and removes what is gone.
    fn write(&mut self, cluster: &Cluster) -> Result<()> {
        let files = objects(cluster, |pod| {
            let link = self.lab.pod(&pod.key())?;
            Ok((link.node.clone(), link.addresses))
        })?;
        for gone in self.written.keys().filter(|name| !files.contains_key(*name)) {
            self.manifests.remove(gone)?;
        }
        let mut written = BTreeMap::new();
        for (name, object) in files {
            let text = object.to_string();
            if self.written.get(&name) != Some(&text) {
                self.manifests.object(&name, &object)?;
            }
            written.insert(name, text);
        }
        self.written = written;
        Ok(())
    }
}

/// What a pod's or external's servers listen on.
///
/// # Errors
/// If a protocol is not known.
pub fn served(ports: &[Port]) -> Result<Vec<(Protocol, u16)>> {
    ports
        .iter()
        .map(|port| {
            let protocol = Protocol::from_name(&port.protocol);
            Ok((
                protocol.with_context(|| format!("protocol {}", port.protocol))?,
                port.port,
            ))
        })
        .collect()
}
