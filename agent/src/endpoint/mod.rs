//! Local pods and their interfaces: finds the host's side of a pod's interface, whatever the CNI plugin.
//!
//! [`Discovery`] holds what netlink tells ([`tables`]), asks it where an address leads ([`locate`]), and looks again
//! whenever something changes: routed veths, ptp, bridges, routes behind `ip rule`. It never touches an interface.

mod discovery;
mod locate;
mod netlink;
mod tables;
#[cfg(test)]
mod tests;

pub use discovery::{Discovery, Event};
