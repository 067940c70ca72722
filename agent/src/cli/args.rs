//! Flags that several verbs share.

use std::{fmt, path::PathBuf, str::FromStr};

use clap::{Args, ValueEnum};

use crate::cni::install::Directories;

/// Where agent and verbs meet.
pub const DEFAULT_RUN_DIR: &str = "/run/weir";

/// Below the mount point of most systems' bpffs.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/weir";

/// How a verb prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, Args)]
pub struct RunDir {
    /// The agent's run directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR, env = "WEIR_RUN_DIR")]
    pub run_dir: PathBuf,
}

/// Where the CNI plugin is installed. Both or none.
#[derive(Clone, Debug, Default, Args)]
pub struct CniDirectories {
    /// The node's directory of network configurations (/etc/cni/net.d)
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The node's directory of CNI plugins (/opt/cni/bin)
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
}

impl CniDirectories {
    #[must_use]
    pub fn directories(self) -> Option<Directories> {
        Some(Directories {
            conf: self.cni_conf_dir?,
            bin: self.cni_bin_dir?,
        })
    }
}

#[derive(Clone, Debug, Args)]
pub struct Output {
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// A namespaced object, written `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub namespace: String,
    pub name: String,
}

impl FromStr for Object {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(format!(
                "{text:?} is no object: write NAMESPACE/NAME, as in kube-system/weir"
            )),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name } = self;
        write!(f, "{namespace}/{name}")
    }
}
