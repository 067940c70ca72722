//! Runs reachability cases (`tests/conformance`) on real packets.

mod case;
mod expectation;

mod objects;
pub mod offline;
mod runner;
mod state;
mod verify;

pub use case::{Case, Cluster, Pod, Suite};
pub use expectation::Question;
pub use runner::{Failure, Runner, Setting, Tally};
