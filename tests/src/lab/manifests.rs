//! The objects of a cluster, written as a user would: YAML files in a directory.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::address::Addresses;

pub type Labels = BTreeMap<String, String>;

/// Labels from pairs.
#[must_use]
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A directory of manifests, as `weir agent --manifests` reads it.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// Makes the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Path of a file of the directory; `name` is without its extension.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.yaml"))
    }

    /// Writes an object to a file of its own, replacing it in one step.
    ///
    /// # Errors
    /// The file system's.
    pub fn object(&self, name: &str, object: &Value) -> Result<()> {
        let text = serde_saphyr::to_string(object).with_context(|| format!("write {name} as YAML"))?;
        self.text(name, &text)
    }

    /// Writes text to a file, replacing it in one step.
    ///
    /// # Errors
    /// The file system's.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let half = self.directory.join(format!(".{name}.new"));
        fs::write(&half, text)
            .and_then(|()| fs::rename(&half, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Removes a file; none is fine.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The names of all files.
    ///
    /// # Errors
    /// The file system's.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.directory).with_context(|| format!("list {}", self.directory.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.strip_suffix(".yaml"))
                    .map(str::to_owned),
            );
        }
        Ok(names)
    }
}

/// A v1 Namespace.
#[must_use]
pub fn namespace(name: &str, labels: &Labels) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A v1 ServiceAccount.
#[must_use]
pub fn service_account(namespace: &str, name: &str, labels: &Labels) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
    })
}

/// A v1 Node with its addresses.
#[must_use]
pub fn node(name: &str, labels: &Labels, addresses: Addresses) -> Value {
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": addresses},
    })
}

/// A container port: name (may be empty), number, protocol.
pub type ContainerPort = (String, u16, String);

/// A running v1 Pod.
#[derive(Clone, Debug)]
pub struct Pod<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub labels: &'a Labels,
    pub service_account: &'a str,
    pub node: &'a str,
    pub ports: &'a [ContainerPort],
    pub addresses: Addresses,
    pub host_network: bool,
}

impl Pod<'_> {
    #[must_use]
    pub fn object(&self) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .filter(|(name, ..)| !name.is_empty())
            .map(|(name, port, protocol)| json!({"name": name, "containerPort": port, "protocol": protocol}))
            .collect();
        let addresses: Vec<String> = self.addresses.iter().map(|address| address.to_string()).collect();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": self.name, "labels": self.labels},
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.service_account,
                "containers": [{"name": "main", "image": "example.org/main:1", "ports": ports}],
            },
            "status": {
                "phase": "Running",
                "podIP": addresses.first(),
                "podIPs": addresses.iter().map(|address| json!({"ip": address})).collect::<Vec<_>>(),
            },
        });
        if self.host_network {
            object["spec"]["hostNetwork"] = json!(true);
        }
        object
    }
}
