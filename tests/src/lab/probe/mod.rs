//! Who reaches whom: any number of probes at once, from one event loop.
//!
//! Sockets are made inside the namespaces and then driven from here. Every probe has a source port (or ICMP identifier)
//! of its own, so its flow can be found in the agents' records. A probe passes when an answer comes back, or, for ICMP
//! types that nobody answers, when it arrives. It is denied when nothing comes: a first silence is confirmed by a second
//! attempt from another source port, because a busy machine may be late.

mod attempt;
pub mod packet;
mod prober;
mod serve;
pub mod socket;

use std::{fmt, net::IpAddr};

pub use prober::{Patience, Prober};
pub use serve::{Arrival, Servers};

/// Transport of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// ICMP or ICMPv6, as the destination's family has it.
    Icmp,
}

impl Protocol {
    /// Name as in Kubernetes' objects.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        }
    }

    /// The protocol of a name as in Kubernetes' objects.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp]
            .into_iter()
            .find(|protocol| protocol.name() == name)
    }

    /// IP protocol number (IANA).
    #[must_use]
    pub const fn number(self, destination: IpAddr) -> u8 {
        match (self, destination) {
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Sctp, _) => 132,
            (Self::Icmp, IpAddr::V4(_)) => 1,
            (Self::Icmp, IpAddr::V6(_)) => 58,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One question: does this host reach that address?
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Host of the lab (`namespace/pod`, `ext/NAME`, `node/NAME`).
    pub from: String,
    pub to: IpAddr,
    pub protocol: Protocol,
    /// ICMP: type × 256 + code.
    pub port: u16,
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Answered, or (one-way ICMP) arrived.
    Allow,
    /// Silence.
    Deny,
    /// Answered by a refusal: it got there, and nobody listens. No verdict on policy to rely on.
    Refused,
    /// The source's own kernel has no way to send it.
    Unsent,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Refused => "refused",
            Self::Unsent => "unsent",
        })
    }
}

/// The verdict of a probe, and how to find its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// Of the attempt that was answered, else of the last one. ICMP: the identifier.
    pub source_port: u16,
}
