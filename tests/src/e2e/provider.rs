//! Clusters that other tools make: only made here, filled with images, and taken away. What runs on them is the same.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{cluster::api::Api, lab::cleanup::Undo};

const NAME: &str = "weir-e2e";

/// A cluster that goes with this value.
#[derive(Debug)]
pub struct Made {
    scratch: tempfile::TempDir,
    delete: fn(),
    _undo: Undo,
}

impl Made {
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.scratch.path().join("kubeconfig")
    }

    fn new(delete: fn()) -> Result<Self> {
        // A run that was killed has left its own, and the name can be given only once.
        delete();
        Ok(Self {
            scratch: tempfile::tempdir().context("make a temporary directory")?,
            delete,
            _undo: Undo::new(delete),
        })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        (self.delete)();
    }
}

/// A cluster of kind, as `deploy/kind` configures it.
///
/// # Errors
/// Without kind or Docker; what kind says.
pub fn kind(root: &Path, archives: &[PathBuf]) -> Result<Made> {
    let made = Made::new(|| quietly("kind", &["delete", "cluster", "--name", NAME]))?;
    let config = root.join("deploy/kind/kind.yaml");
    let kubeconfig = made.kubeconfig();
    run(
        "kind",
        None,
        &[
            OsStr::new("create"),
            OsStr::new("cluster"),
            OsStr::new("--name"),
            OsStr::new(NAME),
            OsStr::new("--config"),
            config.as_os_str(),
            OsStr::new("--kubeconfig"),
            kubeconfig.as_os_str(),
            OsStr::new("--wait=300s"),
        ],
    )?;
    let nodes = Command::new("kind")
        .args(["get", "nodes", "--name", NAME])
        .output()
        .context("ask kind for its nodes")?;
    for node in String::from_utf8_lossy(&nodes.stdout).split_whitespace() {
        // A node is a container, in which nobody mounts it.
        let mount = ["exec", node, "mount", "-t", "bpf", "bpf", "/sys/fs/bpf"];
        run("docker", None, &mount.map(OsStr::new))?;
    }
    for archive in archives {
        run(
            "kind",
            None,
            &[
                OsStr::new("load"),
                OsStr::new("image-archive"),
                archive.as_os_str(),
                OsStr::new("--name"),
                OsStr::new(NAME),
            ],
        )?;
    }
    // Since 0.24 kind's own network enforces NetworkPolicies, too, and a connection must pass both: what is open without
    // Weir would not be seen. As `docs/install.md` has it, while it has read no policy yet.
    Api::new(&kubeconfig)?
        .delete("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kindnet")
        .context("keep kind's own network from enforcing policies")?;
    Ok(made)
}

/// A cluster of minikube: two nodes, in Docker, with containerd.
///
/// # Errors
/// Without minikube or Docker; what minikube says.
pub fn minikube(archives: &[PathBuf]) -> Result<Made> {
    let made = Made::new(|| quietly("minikube", &["delete", "--profile", NAME]))?;
    let kubeconfig = made.kubeconfig();
    run(
        "minikube",
        Some(&kubeconfig),
        &[
            "start",
            "--profile",
            NAME,
            "--nodes=2",
            "--driver=docker",
            "--container-runtime=containerd",
            // Its own bridge is for one node only. This one enforces no policies.
            "--cni=flannel",
        ]
        .map(OsStr::new),
    )?;
    for node in [NAME.to_owned(), format!("{NAME}-m02")] {
        let mount = [
            "exec",
            &node,
            "sh",
            "-c",
            "mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf",
        ];
        run("docker", None, &mount.map(OsStr::new))?;
    }
    for archive in archives {
        run(
            "minikube",
            Some(&kubeconfig),
            &[
                OsStr::new("image"),
                OsStr::new("load"),
                OsStr::new("--profile"),
                OsStr::new(NAME),
                archive.as_os_str(),
            ],
        )?;
    }
    Ok(made)
}

fn run(program: &str, kubeconfig: Option<&Path>, arguments: &[&OsStr]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    let status = command
        .status()
        .with_context(|| format!("start {program}, which must be installed for this"))?;
    if !status.success() {
        bail!("{command:?} fails ({status})");
    }
    Ok(())
}

fn quietly(program: &str, arguments: &[&str]) {
    // Nothing is left to be done where it fails.
    let _ = Command::new(program).args(arguments).stdin(Stdio::null()).output();
}
