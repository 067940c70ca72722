//! Later fragments carry no ports: a bounded, timed entry remembers those of the first fragment.

use crate::{Addr, pod};

/// A fragmented datagram on its way through one endpoint (RFC 791 section 3.2; RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// `endpoint id << 8 | protocol`; IPv6: the next header that all fragments name (the transport protocol may stand
    /// behind more extension headers, in the first fragment only).
    pub endpoint_protocol: u32,
    /// Identification field.
    pub id: u32,
    pub source: Addr,
    pub destination: Addr,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentEntry {
    /// `CLOCK_MONOTONIC`, ns.
    pub expires: u64,
    pub source_port: u16,
    pub destination_port: u16,
    /// Bytes of the datagram up to the end of the transport header: a later fragment must start behind it.
    pub header: u16,
    /// ICMP: type << 8 | code.
    pub icmp: u16,
    /// The transport protocol.
    pub protocol: u8,
    pub pad: [u8; 7],
}

/// How long fragments may follow the first, ns (Linux: `ipfrag_time`, 30 s).
pub const FRAGMENT_LIFETIME: u64 = 30_000_000_000;

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<FragmentEntry>() == 24);
pod!(FragmentKey, FragmentEntry);
