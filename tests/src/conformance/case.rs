//! The format of cases; `tests/conformance/README.md` describes it.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};

use crate::lab::manifests::Labels;

#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    pub name: String,
    pub api: Vec<String>,
    #[serde(default)]
    pub requires: Vec<String>,
    cluster: ClusterReference,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum ClusterReference {
    Base(String),
    Inline(Box<InlineCluster>),
}

#[derive(Clone, Debug, Deserialize)]
struct InlineCluster {
    base: Option<String>,
    #[serde(flatten)]
    cluster: Cluster,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    #[serde(default)]
    pub pods: Vec<Pod>,
    #[serde(default)]
    pub service_accounts: Vec<ServiceAccount>,
    #[serde(default)]
    pub externals: Vec<External>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Namespace {
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct ServiceAccount {
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
    #[serde(default)]
    pub service_account: Option<String>,
    #[serde(default)]
    pub ports: Vec<Port>,
    pub ip: Option<Ipv4Addr>,
}

impl Pod {
    /// `namespace/name`
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct External {
    pub name: String,
    pub ip: Ipv4Addr,
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// A port that is served; without a name it is not declared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Port {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    #[serde(default)]
    pub cluster_changes: ClusterChanges,
    #[serde(default)]
    pub label_changes: Vec<LabelChange>,
    pub policies: String,
    #[serde(default)]
    pub probes: Vec<ProbeTable>,
    pub default: Expected,
    #[serde(default)]
    pub expect_deny: Vec<Line>,
    #[serde(default)]
    pub expect_allow: Vec<Line>,
    #[serde(default)]
    pub suite_asserts: Vec<Assertion>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct ClusterChanges {
    #[serde(default)]
    pub add_namespaces: Vec<Namespace>,
    #[serde(default)]
    pub add_pods: Vec<Pod>,
    #[serde(default)]
    pub remove_pods: Vec<String>,
    #[serde(default)]
    pub remove_namespaces: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LabelChange {
    pub kind: Labelled,
    /// Of pods and service accounts: `namespace/name`.
    pub name: String,
    pub labels: Labels,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub enum Labelled {
    Pod,
    Namespace,
    ServiceAccount,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ProbeTable {
    pub protocols: Vec<String>,
    #[serde(default)]
    pub ports: Vec<u16>,
    /// `type/code`
    #[serde(default)]
    pub icmp: Vec<String>,
    pub from: Option<Vec<String>>,
    pub to: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    Allow,
    Deny,
}

/// A line of the expectation table; None matches everything.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Line {
    pub from: Option<String>,
    pub to: Option<String>,
    pub port: Option<PortPattern>,
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Assertion {
    #[serde(flatten)]
    pub line: Line,
    pub verdict: Expected,
}

/// `80`, `8/0` or `*`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PortPattern {
    Number(u16),
    Text(String),
}

/// Cases by the cluster that they start from.
#[derive(Debug, Default)]
pub struct Suite {
    pub groups: BTreeMap<Cluster, Vec<Case>>,
    /// Cases that need what Weir or this runner does not have, and why.
    pub skipped: Vec<(String, String)>,
}

/// What the runner can do, of what cases may require.
const ABILITIES: [&str; 5] = ["sctp", "icmp", "externals", "ip-plan", "cluster-changes"];

/// The policy languages that are enforced.
const APIS: [&str; 3] = [
    "networking.k8s.io/v1",
    "crd.projectcalico.org/v1",
    "projectcalico.org/v3",
];

impl Suite {
    /// Reads every case below the folders of a directory, whose base clusters lie in the directory itself.
    ///
    /// # Errors
    /// The file system's, and for any case that does not parse.
    pub fn load(directory: &Path, folders: &[&str]) -> Result<Self> {
        let mut bases = BTreeMap::new();
        let mut suite = Self::default();
        for folder in folders {
            for path in yaml_files(&directory.join(folder))? {
                let case: Case = read(&path)?;
                let missing = case
                    .requires
                    .iter()
                    .find(|ability| !ABILITIES.contains(&ability.as_str()));
                let foreign = case.api.iter().find(|api| !APIS.contains(&api.as_str()));
                if let Some(reason) = missing.or(foreign) {
                    suite.skipped.push((case.name.clone(), reason.clone()));
                    continue;
                }
                let cluster = resolve(directory, &mut bases, &case.cluster)
                    .with_context(|| format!("cluster of {}", path.display()))?;
                suite.groups.entry(cluster).or_default().push(case);
            }
        }
        Ok(suite)
    }

    /// Takes the cases of another suite too.
    pub fn extend(&mut self, other: Self) {
        for (cluster, cases) in other.groups {
            self.groups.entry(cluster).or_default().extend(cases);
        }
        self.skipped.extend(other.skipped);
    }

    /// Keeps the cases whose names contain a text.
    #[must_use]
    pub fn named(mut self, part: &str) -> Self {
        for cases in self.groups.values_mut() {
            cases.retain(|case| case.name.contains(part));
        }
        self.groups.retain(|_, cases| !cases.is_empty());
        self
    }

    /// Keeps every n-th case.
    #[must_use]
    pub fn every(mut self, n: usize) -> Self {
        let mut number = 0;
        for cases in self.groups.values_mut() {
            cases.retain(|_| {
                number += 1;
                number % n == 1 % n
            });
        }
        self.groups.retain(|_, cases| !cases.is_empty());
        self
    }
}

fn resolve(directory: &Path, bases: &mut BTreeMap<String, Cluster>, reference: &ClusterReference) -> Result<Cluster> {
    let mut base = |name: &str| -> Result<Cluster> {
        if let Some(known) = bases.get(name) {
            return Ok(known.clone());
        }
        let cluster: Cluster = read(&directory.join(format!("{name}.yaml")))?;
        bases.insert(name.to_owned(), cluster.clone());
        Ok(cluster)
    };
    match reference {
        ClusterReference::Base(name) => base(name),
        ClusterReference::Inline(inline) => {
            let mut cluster = match &inline.base {
                Some(name) => base(name)?,
                None => Cluster::default(),
            };
            let own = inline.cluster.clone();
            cluster.namespaces.extend(own.namespaces);
            cluster.pods.extend(own.pods);
            cluster.service_accounts.extend(own.service_accounts);
            cluster.externals.extend(own.externals);
            Ok(cluster)
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("parse {}", path.display()))
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
