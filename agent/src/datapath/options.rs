//! What an agent may choose of the datapath.

use std::path::PathBuf;

use weir_common::layout::map;

use super::forwarding::Forward;
use crate::policy::plan::Capacity;

/// How programs get onto interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact filters.
    #[default]
    Auto,
    /// TCX links; an error on kernels without them.
    Tcx,
    /// clsact filters.
    Tc,
}

/// Where things lie and how large they are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of our pins, below a mounted BPF file system. Made if missing.
    pub bpffs: PathBuf,
    /// Directory of the lock. Made if missing.
    pub run_dir: PathBuf,
    pub attach: AttachMode,
    /// Who carries packets between local pods.
    pub forward: Forward,
    /// Sizes of the maps that the policy compiler fills.
    pub capacity: Capacity,
    /// Local endpoints.
    pub endpoints: u32,
    /// Source prefixes that endpoints may use besides their own addresses.
    pub sources: u32,
    /// Confirmed connections; the least recently used give way.
    pub connections: u32,
    /// Connections of which only one side has spoken.
    pub unconfirmed: u32,
    /// Fragmented datagrams on their way.
    pub fragments: u32,
    /// Denied flows that are remembered, so that they are reported once.
    pub denials: u32,
}

impl Options {
    /// The usual sizes.
    #[must_use]
    pub fn new(bpffs: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            run_dir: run_dir.into(),
            attach: AttachMode::Auto,
            forward: Forward::Auto,
            capacity: Capacity {
                addresses: 131_072,
                cidrs: 65_536,
                identities: 131_072,
                rows: 262_144,
                decisions: 262_144,
                source_ports: 16_384,
                traces: 65_536,
            },
            endpoints: 1_024,
            sources: 1_024,
            connections: 262_144,
            unconfirmed: 65_536,
            fragments: 4_096,
            denials: 16_384,
        }
    }

    /// Number of entries of a map, where the agent decides it (else the object does).
    pub(super) fn entries(&self, name: &str) -> Option<u32> {
        let size = |size: usize| Some(u32::try_from(size).unwrap_or(u32::MAX).max(1));
        match name {
            map::ENDPOINTS => Some(self.endpoints.max(1)),
            map::SOURCES => Some(self.sources.max(1)),
            map::ADDRESSES => size(self.capacity.addresses),
            map::CIDRS => size(self.capacity.cidrs),
            map::IDENTITIES => size(self.capacity.identities),
            map::ROWS => size(self.capacity.rows),
            map::DECISIONS => size(self.capacity.decisions),
            map::SOURCE_PORTS => size(self.capacity.source_ports),
            map::TRACES => size(self.capacity.traces),
            map::CONNECTIONS => Some(self.connections.max(1)),
            map::UNCONFIRMED => Some(self.unconfirmed.max(1)),
            map::FRAGMENTS => Some(self.fragments.max(1)),
            map::DENIALS => Some(self.denials.max(1)),
            _ => None,
        }
    }
}
