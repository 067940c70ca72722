//! What the agent tells Prometheus.
//!
//! | file | what |
//! |---|---|
//! | `watches` | how fresh what the source's watches have told is |

pub mod watches;

pub use self::watches::{WatchReport, Watches};
