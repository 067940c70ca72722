//! Names, shapes and versions of the pinned maps and programs.

use crate::pod;

/// Version of every shared shape. Pins of another layout are never opened as ours: the agent builds a generation of
/// its own beside them and carries connections over.
#[cfg(not(feature = "next-layout"))]
pub const LAYOUT: u32 = 2;
/// The upgrade test's second build.
#[cfg(feature = "next-layout")]
pub const LAYOUT: u32 = 1002;

/// What the agent can switch while the programs run: the only value of the config map (index 0).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Not 0: somebody reads events.
    pub events: u32,
    /// `Config::*` flags.
    pub flags: u32,
}

const _: () = assert!(size_of::<Config>() == 8);
pod!(Config);

/// Names of the programs in the object.
pub mod program {
    /// On TC ingress of a pod's interface: what the pod sends.
    pub const FROM_POD: &str = "weir_from_pod";
    /// On TC egress of a pod's interface: what the pod receives.
    pub const TO_POD: &str = "weir_to_pod";
}

/// Names of the maps in the object (at most 15 bytes), with key and value.
pub mod map {
    /// Hash: ifindex (u32) -> [`crate::endpoint::EndpointEntry`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Hash: [`crate::Addr`] -> [`crate::identity::AddressEntry`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// LPM trie: [`crate::Addr`] -> [`crate::identity::AddressEntry`].
    pub const CIDRS: &str = "CIDRS";
    /// Array: identity -> [`crate::identity::IdentityEntry`].
    pub const IDENTITIES: &str = "IDENTITIES";
    /// Hash: [`crate::policy::RowKey`] -> [`crate::policy::Row`].
    pub const ROWS: &str = "ROWS";
    /// Hash: [`crate::policy::DecisionKey`] -> [`crate::policy::Decision`].
    pub const DECISIONS: &str = "DECISIONS";
    /// LPM trie: [`crate::policy::SourcePortKey`] -> [`crate::policy::SourceClass`].
    pub const SOURCE_PORTS: &str = "SOURCE_PORTS";
    /// LPM trie: [`crate::identity::SourceKey`] -> u32 (1).
    pub const SOURCES: &str = "SOURCES";
    /// Per-CPU hash: trace (u32) -> new flows decided by it (u64). Elements are made by the agent.
    pub const TRACES: &str = "TRACES";
    /// Array of one u64: packets between local pods may be handed over directly until then (`CLOCK_MONOTONIC`, ns).
    pub const DIRECT_UNTIL: &str = "DIRECT_UNTIL";
    /// Array of one [`super::Config`].
    pub const CONFIG: &str = "CONFIG";
    /// LRU hash: [`crate::conntrack::CtKey`] -> [`crate::conntrack::CtEntry`], confirmed.
    pub const CONNECTIONS: &str = "CONNECTIONS";
    /// LRU hash, the same shape: unconfirmed.
    pub const UNCONFIRMED: &str = "UNCONFIRMED";
    /// LRU hash: [`crate::fragment::FragmentKey`] -> [`crate::fragment::FragmentEntry`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// LRU hash: [`crate::conntrack::CtKey`] -> [`crate::event::DenialEntry`].
    pub const DENIALS: &str = "DENIALS";
    /// Ring buffer of [`crate::event::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array of [`crate::counters::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU array of u64, by [`crate::counters::Tally`].
    pub const TALLIES: &str = "TALLIES";

    /// Maps of one generation: rebuilt by every agent, replaced as a whole.
    pub const POLICY: [&str; 10] = [
        ENDPOINTS,
        ADDRESSES,
        CIDRS,
        IDENTITIES,
        ROWS,
        DECISIONS,
        SOURCE_PORTS,
        SOURCES,
        TRACES,
        DIRECT_UNTIL,
    ];
    /// Maps that outlive generations.
    pub const STATE: [&str; 8] = [
        CONFIG,
        CONNECTIONS,
        UNCONFIRMED,
        FRAGMENTS,
        DENIALS,
        EVENTS,
        COUNTERS,
        TALLIES,
    ];
}
