//! What the agent tells Prometheus: `/metrics` at the health address, in the OpenMetrics text format.
//!
//! | file | what |
//! |---|---|
//! | `register` | every metric: name, type, labels, meaning |
//! | `instruments` | what is counted and timed as it happens |
//! | `watches` | how fresh what the source's watches have told is |
//! | `observation` | what the control loop says when it is asked |
//! | `process` | what the kernel says of the agent's process |
//! | `exposition` | all of it as text |
//!
//! No scrape walks over what grows with the cluster: counters are read from the kernel, sizes from those who keep them.

pub mod exposition;
pub mod instruments;
pub mod observation;
pub mod process;
pub mod register;
pub mod watches;

#[cfg(test)]
mod tests;

pub use self::{
    instruments::{Arrivals, Instruments, Trigger},
    observation::Observation,
    watches::{WatchReport, Watches},
};
