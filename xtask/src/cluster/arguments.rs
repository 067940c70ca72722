//! What the verb can be told; shared by the verb and the program behind it.

use std::{ffi::OsString, path::PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    pub verb: Verb,

    /// Which cluster; any number of them can run side by side
    #[arg(long, global = true, default_value = "weir")]
    pub name: String,
}

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make a cluster and print the path of its kubeconfig; it runs on until `down`
    Up(Up),

    /// End a cluster and take everything of it away, also after a crash
    Down,

    /// Import image archives (OCI, or `docker save`) into every node
    Load {
        #[arg(required = true, value_name = "FILE.tar")]
        archives: Vec<PathBuf>,
    },

    /// Run kubectl with all rights
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },

    /// Run a command on a node, as root
    Node {
        /// From 1
        number: usize,

        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },

    /// Carry connections to the API server (what `up` starts)
    #[command(hide = true)]
    Forward { cluster: String },
}

#[derive(clap::Args)]
pub struct Up {
    /// How many nodes beside the control plane
    #[arg(long, default_value_t = 2)]
    pub nodes: usize,

    /// What makes the pods' interfaces: a routed veth per pod (as kind), or a bridge per node
    #[arg(long, value_enum, default_value_t = Cni::Ptp)]
    pub cni: Cni,

    /// What makes Services work
    #[arg(long, value_enum, default_value_t = Proxy::Nftables)]
    pub proxy: Proxy,

    /// Leave out CoreDNS (there is none without a kube-proxy)
    #[arg(long)]
    pub no_dns: bool,

    /// A further argument of the API server, such as `--api-server=--feature-gates=WatchList=false`; any number of times
    #[arg(long, value_name = "ARGUMENT")]
    pub api_server: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cni {
    Ptp,
    Bridge,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Proxy {
    None,
    Nftables,
    Iptables,
}
