//! Runs reachability cases (`tests/conformance`) on real packets.

mod case;
mod expectation;
pub mod offline;
mod runner;
mod state;
mod verify;

pub use case::{Case, Cluster, Suite};
pub use runner::{Failure, Runner, Setting, Tally};
