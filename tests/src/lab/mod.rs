//! A cluster of network namespaces.
//!
//! A [`Lab`] has nodes (a namespace each, with an agent of its own), pods (a namespace each, linked to their node as a
//! CNI plugin of the chosen [`Layout`] would) and externals (hosts outside of the cluster), all joined by a fabric. One
//! process drives all their traffic ([`probe`]) and all agents ([`agent`]).
//!
//! Namespaces have no name: they live as long as the file descriptors that hold them, so nothing of them can be left
//! behind, however the process ends. What has a name on the machine (pins in bpffs, temporary directories) carries the
//! process id, goes on drop and on a signal, and the next lab removes what a killed process left ([`cleanup`]).

pub mod address;
pub mod agent;
pub mod cleanup;
mod cluster;
pub mod cni;
pub mod hosts;
pub mod ip;
mod layout;
pub mod manifests;
pub mod netns;
pub mod probe;

pub use address::{Addresses, Families, Family};
pub use agent::Agent;
pub use cluster::{Lab, Node, PodLink, PodPlan};
pub use hosts::Hosts;
pub use layout::Layout;
pub use netns::NetNs;
