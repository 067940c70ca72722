//! The Weir agent: policies in, decision tables out, flows back. See ARCHITECTURE.md for the rooms and the arrows.

pub mod api;
pub mod cli;
pub mod cni;
pub mod control;
pub mod datapath;
pub mod endpoint;
pub mod flow;
pub mod identity;
pub mod index;
pub mod memory;
pub mod metrics;
pub mod object;
pub mod policy;
pub mod source;
