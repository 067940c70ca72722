//! Every type that crosses the border between the kernel programs and the agent, in one place.
//!
//! Rules of this crate: `no_std`; `repr(C)` without implicit padding; sizes asserted at compile time; numbers that
//! are stored in packets (ports) are kept in host order, addresses in network order. A changed size or meaning of
//! any map key or value asks for a new [`layout::LAYOUT`].
#![cfg_attr(not(feature = "user"), no_std)]

pub mod addr;
pub mod conntrack;
pub mod counters;
pub mod endpoint;
pub mod event;
pub mod fragment;
pub mod identity;
pub mod layout;
pub mod policy;
pub mod reason;

pub use addr::Addr;

/// Marks shared types as plain old data for aya (user space only).
///
/// # Safety
/// The listed types must be `repr(C)`, `Copy`, without padding, and valid for every bit pattern.
macro_rules! pod {
    ($($t:ty),+ $(,)?) => {$(
        // SAFETY: repr(C), Copy, integers and arrays of integers only, padding excluded by the size assertions.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $t {}
    )+};
}
pub(crate) use pod;

/// Which hook of a pod's interface, or which direction of a flow, as the pod sees it.
///
/// The discriminants index [`conntrack::CtEntry::sides`] and the counters.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sent by the pod: TC ingress of the interface's host side; egress policy.
    Egress = 0,
    /// Received by the pod: TC egress of the interface's host side; ingress policy.
    Ingress = 1,
}

impl Direction {
    /// The other direction.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Egress => Self::Ingress,
            Self::Ingress => Self::Egress,
        }
    }
}
