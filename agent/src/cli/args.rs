//! Flags that several verbs share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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

#[derive(Clone, Debug, Args)]
pub struct Output {
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}
