//! What `weir agent` was told: parsed and resolved, no flag of the command line left open.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::cni;
pub use crate::datapath::{AttachMode, Forward};
use crate::source::SourceOptions;

/// Where flow records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowLogTarget {
    Stdout,
    File(PathBuf),
}

/// The flow log, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowLogOptions {
    pub target: FlowLogTarget,
    /// A file that would grow beyond this is rotated, bytes.
    pub max_size: u64,
    /// Files kept, the one being written included. At least 1.
    pub max_files: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AgentOptions {
    /// The name of this node's Node object.
    pub node: String,
    /// Where objects come from.
    pub source: SourceOptions,
    pub run_dir: PathBuf,
    /// Directory below a mounted bpffs.
    pub bpffs: PathBuf,
    pub attach: AttachMode,
    pub forward: Forward,
    /// Judge and report, but drop nothing.
    pub audit: bool,
    pub flow_log: Option<FlowLogOptions>,
    /// How often a flow that lasts is told of.
    pub flow_period: Duration,
    pub health_addr: Option<SocketAddr>,
    /// Install the CNI plugin.
    pub cni: Option<cni::install::Options>,
}
