//! Runs reachability cases (`tests/conformance`) on real packets.

mod case;
mod expectation;
mod objects;
pub mod offline;
mod policies;
mod runner;
mod state;
mod verify;

pub use case::{Case, Cluster, Pod, Step, Suite};
pub use expectation::{Question, expected};
pub use policies::{addressed, policies_in};
pub use runner::{Failure, Runner, Setting, Tally, questions, wire};
pub use state::served;
