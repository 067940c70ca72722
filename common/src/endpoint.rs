//! A local pod's interface as the programs see it.

use crate::{Addr, pod, policy::DirectionPolicy};

/// Value of the endpoint map; the key is the ifindex of the interface's host side.
///
/// Always written whole. Elements of a BPF hash map can be recycled while a program still reads them, so a reader
/// compares `stamp` (first) and `stamp_end` (last) and its ifindex, and reads again where they differ.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointEntry {
    /// `(id << 32) | epoch`: differs between any two writes that mean different things.
    pub stamp: u64,
    /// Mid-flow TCP packets without an entry are adopted until then (`CLOCK_MONOTONIC`, ns); 0: not at all.
    pub adopt_until: u64,
    pub ifindex: u32,
    /// `EndpointEntry::*` flags.
    pub flags: u32,
    /// Own IPv4 address (mapped), or unspecified.
    pub addr4: Addr,
    /// Own IPv6 address, or unspecified.
    pub addr6: Addr,
    /// What the pod may send.
    pub egress: DirectionPolicy,
    /// What the pod may receive.
    pub ingress: DirectionPolicy,
    /// Equal to `stamp`.
    pub stamp_end: u64,
}

impl EndpointEntry {
    /// Some policy selects the pod for ingress (unparsable packets are dropped, not passed).
    pub const INGRESS_ISOLATED: u32 = 1;
    /// Some policy selects the pod for egress.
    pub const EGRESS_ISOLATED: u32 = 2;
    /// Everything to the pod is dropped as [`crate::reason::Reason::EndpointClosed`]: its policy cannot be enforced (yet).
    pub const INGRESS_CLOSED: u32 = 4;
    /// Everything from the pod is dropped as [`crate::reason::Reason::EndpointClosed`].
    pub const EGRESS_CLOSED: u32 = 8;
    /// Do not check the source address of what the pod sends.
    pub const ANY_SOURCE: u32 = 16;
    /// The source map holds more prefixes that the pod may send from.
    pub const MORE_SOURCES: u32 = 32;
    /// Judge and report, but let everything pass (reason `Audit`).
    pub const AUDIT: u32 = 64;
    /// Packets start with the network header (no Ethernet header).
    pub const LAYER3: u32 = 128;
    /// Nothing on the interface or around it needs the kernel's forwarding: what a pod behind such an interface sends to
    /// another one may be handed over directly.
    pub const DIRECT: u32 = 256;
    /// The node routes by destination alone: answers go the way back that their questions came.
    pub const SYMMETRIC: u32 = 512;

    #[inline(always)]
    #[must_use]
    pub const fn make_stamp(id: u32, epoch: u32) -> u64 {
        (id as u64) << 32 | epoch as u64
    }

    /// Endpoint id: 24 bits, never reused while a connection entry can name it.
    #[inline(always)]
    #[must_use]
    pub const fn id(&self) -> u32 {
        (self.stamp >> 32) as u32
    }

    /// Grows with every change that may change a decision of this endpoint.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.stamp as u32
    }
}

/// Highest endpoint id ([`crate::conntrack::CtKey`] has 24 bits for it).
pub const MAX_ENDPOINT_ID: u32 = (1 << 24) - 1;

const _: () = assert!(size_of::<EndpointEntry>() == 128 && align_of::<EndpointEntry>() == 8);
pod!(EndpointEntry);
