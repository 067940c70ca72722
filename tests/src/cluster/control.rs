//! The control plane's programs: how each is called.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    binaries::{Binaries, Tool},
    certificates::{Authority, Subject, signing_keys, write_secret},
    place,
};

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
}

impl Component {
    pub const ALL: [Self; 4] = [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler];

    #[must_use]
    pub const fn tool(self) -> Tool {
        match self {
            Self::Etcd => Tool::Etcd,
            Self::ApiServer => Tool::ApiServer,
            Self::ControllerManager => Tool::ControllerManager,
            Self::Scheduler => Tool::Scheduler,
        }
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        self.tool().name()
    }
}

/// Where etcd serves, in the control plane's namespace.
pub const ETCD_PORT: u16 = 2379;

/// The directory of keys and kubeconfigs.
fn keys(directory: &Path) -> PathBuf {
    directory.join("keys")
}

/// The kubeconfig of a user of the control plane's network.
#[must_use]
pub fn kubeconfig(directory: &Path, user: &str) -> PathBuf {
    keys(directory).join(format!("{user}.conf"))
}

/// The API server's address on the cluster's network.
#[must_use]
pub fn server() -> String {
    format!("https://{}:{}", place::control()[0], place::API_PORT)
}

/// Makes the keys of everybody. Nodes and their names count from 1; `port` of the loopback leads to the API server.
///
/// # Errors
/// The file system's.
pub fn make_keys(directory: &Path, nodes: usize, port: u16) -> Result<()> {
    let keys = keys(directory);
    fs::create_dir_all(&keys).with_context(|| format!("make {}", keys.display()))?;
    let authority = Authority::new()?;
    write_secret(&keys.join("ca.crt"), authority.certificate())?;
    let (private, public) = signing_keys()?;
    write_secret(&keys.join("accounts.key"), &private)?;
    write_secret(&keys.join("accounts.pub"), &public)?;

    let [control_v4, control_v6] = place::control();
    let server = authority.issue(&Subject {
        common_name: "kube-apiserver",
        organization: None,
        hosts: &[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ],
        addresses: &[
            control_v4,
            control_v6,
            std::net::Ipv4Addr::LOCALHOST.into(),
            place::API_SERVICE.into(),
        ],
    })?;
    write_secret(&keys.join("server.crt"), &server.certificate)?;
    write_secret(&keys.join("server.key"), &server.key)?;

    let node_names: Vec<String> = (1..=nodes).map(|number| format!("system:node:node{number}")).collect();
    let mut users = vec![
        ("admin", "admin", Some("system:masters")),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("proxy", "system:kube-proxy", None),
    ];
    let files: Vec<String> = (1..=nodes).map(|number| format!("node{number}")).collect();
    users.extend(
        files
            .iter()
            .zip(&node_names)
            .map(|(file, name)| (file.as_str(), name.as_str(), Some("system:nodes"))),
    );
    for (file, common_name, organization) in users {
        let node = file.strip_prefix("node").and_then(|number| number.parse().ok());
        let addresses = node.map(|number| place::node(number).to_vec()).unwrap_or_default();
        let hosts: Vec<&str> = node.iter().map(|_| file).collect();
        let identity = authority.issue(&Subject {
            common_name,
            organization,
            hosts: &hosts,
            addresses: &addresses,
        })?;
        write_secret(&keys.join(format!("{file}.crt")), &identity.certificate)?;
        write_secret(&keys.join(format!("{file}.key")), &identity.key)?;
        write_secret(
            &kubeconfig(directory, file),
            &authority.kubeconfig(&self::server(), &identity),
        )?;
        if file == "admin" {
            let local = format!("https://127.0.0.1:{port}");
            write_secret(&directory.join("kubeconfig"), &authority.kubeconfig(&local, &identity))?;
        }
    }
    Ok(())
}

/// The command of a program, to be run in the control plane's namespace.
#[must_use]
pub fn command(component: Component, binaries: &Binaries, directory: &Path) -> Command {
    let mut command = Command::new(binaries.path(component.tool()));
    let keys = keys(directory);
    let key = |name: &str| keys.join(name).display().to_string();
    let config = |user: &str| format!("--kubeconfig={}", kubeconfig(directory, user).display());
    let etcd = format!("http://127.0.0.1:{ETCD_PORT}");
    match component {
        Component::Etcd => {
            command
                .arg("--data-dir")
                .arg(directory.join("etcd"))
                .args(["--listen-client-urls", &etcd, "--advertise-client-urls", &etcd])
                .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
                // Nothing here outlives the machine.
                .arg("--unsafe-no-fsync");
        }
        Component::ApiServer => {
            command.args([
                format!("--etcd-servers={etcd}"),
                format!("--secure-port={}", place::API_PORT),
                format!("--advertise-address={}", place::control()[0]),
                format!("--tls-cert-file={}", key("server.crt")),
                format!("--tls-private-key-file={}", key("server.key")),
                format!("--client-ca-file={}", key("ca.crt")),
                format!("--kubelet-client-certificate={}", key("admin.crt")),
                format!("--kubelet-client-key={}", key("admin.key")),
                format!("--kubelet-certificate-authority={}", key("ca.crt")),
                format!("--service-account-key-file={}", key("accounts.pub")),
                format!("--service-account-signing-key-file={}", key("accounts.key")),
                format!("--service-cluster-ip-range={}", place::SERVICES),
            ]);
            command.args([
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                // Names of nodes resolve nowhere.
                "--kubelet-preferred-address-types=InternalIP",
            ]);
        }
        Component::ControllerManager => {
            command.args([
                config("controller-manager"),
                format!("--service-account-private-key-file={}", key("accounts.key")),
                format!("--root-ca-file={}", key("ca.crt")),
                format!("--cluster-cidr={}", place::PODS),
                format!("--service-cluster-ip-range={}", place::SERVICES),
            ]);
            command.args([
                "--use-service-account-credentials",
                "--allocate-node-cidrs=false",
                "--leader-elect=false",
                "--kube-api-qps=200",
                "--kube-api-burst=400",
            ]);
        }
        Component::Scheduler => {
            command.arg(config("scheduler")).args([
                "--leader-elect=false",
                "--kube-api-qps=200",
                "--kube-api-burst=400",
            ]);
        }
    }
    command
}
