//! The chained CNI plugin: a pod's first packet is judged by its policies.
//!
//! The container runtime runs this binary as `weir-cni` after the plugin that makes a pod's interface, and before
//! any process of the pod. The plugin finds the host's side of that interface, asks the agent over its socket to
//! enforce the pod's policy there, and gives the result of the plugin before it through unchanged.
//!
//! | file | what |
//! |---|---|
//! | `attachment` | what the plugin tells the agent, and the agent's answers |
//! | `plugin` | the process that the runtime runs: the CNI protocol |
//! | `install` | the plugin's binary and its entry in the node's network configuration |
//! | `store` | attachments that outlive the agent, in its run directory |

pub mod attachment;
pub mod install;
pub mod plugin;
pub mod store;

/// The plugin's `type`, and the name of its binary.
pub const PLUGIN: &str = "weir-cni";
