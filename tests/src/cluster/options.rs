//! What a cluster is made of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What makes the pods' interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cni {
    /// A routed veth per pod, as kind has it.
    #[default]
    Ptp,
    /// A bridge per node.
    Bridge,
}

/// What makes Services work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proxy {
    #[default]
    None,
    Nftables,
    Iptables,
}

impl Proxy {
    pub(super) const fn mode(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Nftables => Some("nftables"),
            Self::Iptables => Some("iptables"),
        }
    }
}

/// Who ends a cluster.
#[derive(Clone, Debug, Default)]
pub enum Lifetime {
    /// This process, with the value.
    #[default]
    Process,
    /// [`Cluster::down`](super::Cluster::down) of any process. The command is one that calls [`forward_from_standard_input`](super::forward_from_standard_input) with the
    /// cluster's name, which it finds behind its other arguments.
    Machine { forward: Vec<String> },
}

/// What a cluster is made of.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// None: named after this process.
    pub name: Option<String>,
    /// 0: a control plane alone.
    pub nodes: usize,
    pub cni: Cni,
    pub proxy: Proxy,
    /// Archives that every node gets beside [`images::archives`](super::images::archives).
    pub images: Vec<PathBuf>,
    /// Run CoreDNS ([`DNS_IMAGE`](super::DNS_IMAGE)). Pods reach it through its Service, so it takes a [`Proxy`].
    pub dns: bool,
    /// Further arguments of the API server, such as `--feature-gates=WatchList=false`.
    pub api_server: Vec<String>,
    pub lifetime: Lifetime,
}
