//! What an earlier agent has left running: endpoints, epochs and traces, read from its pins.

use std::{collections::BTreeMap, os::fd::AsFd};

use tracing::{debug, warn};
use weir_common::{Addr, layout::map};

use super::{
    error::{Error, Result},
    links::Links,
    pins::{Found, Numbered},
    sys::{self, Batches},
    tc, upgrade,
};

/// An endpoint of an earlier agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldEndpoint {
    pub id: u32,
    pub epoch: u32,
    pub ifindex: u32,
    /// Or unspecified.
    pub addr4: Addr,
    /// Or unspecified.
    pub addr6: Addr,
    /// Packets on its interface have no Ethernet header.
    pub layer3: bool,
}

/// What an earlier agent has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Endpoints whose interface still exists and still carries our programs. Whether the addresses are still those
    /// of a local pod is for the caller to see.
    pub endpoints: Vec<OldEndpoint>,
    /// First trace id that no old connection names.
    pub next_trace: u32,
    /// Files in our directory that are not ours: left alone.
    pub unknown: Vec<std::path::PathBuf>,
}

/// Reads all old generations. Of an endpoint that several know, the value of the newest that runs on its interface
/// counts, and the highest epoch.
pub(super) fn read(found: &Found, links: &Links) -> Result<Inherited> {
    let mut inherited = Inherited {
        next_trace: 1,
        unknown: found.unknown.clone(),
        ..Inherited::default()
    };
    for path in &found.unknown {
        warn!(path = %path.display(), "not ours: left alone");
    }
    let mut by_interface: BTreeMap<u32, OldEndpoint> = BTreeMap::new();
    let mut epochs: BTreeMap<u32, u32> = BTreeMap::new();
    for generation in &found.generations {
        let Some(endpoints) = upgrade::endpoints(generation)? else {
            warn!(path = %generation.path.display(), "a generation of an unknown layout: its endpoints start anew");
            continue;
        };
        inherited.next_trace = inherited.next_trace.max(last_trace(generation)?.saturating_add(1));
        let programs = program_ids(generation);
        for endpoint in endpoints {
            let epoch = epochs.entry(endpoint.id).or_default();
            *epoch = (*epoch).max(endpoint.epoch);
            if links.programs(endpoint.ifindex)?.iter().any(|id| programs.contains(id)) {
                by_interface.insert(endpoint.ifindex, endpoint);
            }
        }
    }
    for (ifindex, mut endpoint) in by_interface {
        if sys::interface_name(ifindex).is_none() {
            debug!(ifindex, "the interface of an old endpoint is gone");
            continue;
        }
        endpoint.epoch = epochs.get(&endpoint.id).copied().unwrap_or(endpoint.epoch);
        inherited.endpoints.push(endpoint);
    }
    Ok(inherited)
}

/// Ids of the programs that a generation has pinned.
pub(super) fn program_ids(generation: &Numbered) -> Vec<u32> {
    super::links::DIRECTIONS
        .into_iter()
        .filter_map(|direction| {
            let program = sys::open_pin(&generation.path.join(tc::program_name(direction))).ok()?;
            sys::program_info(program.as_fd()).ok().map(|(id, _)| id)
        })
        .collect()
}

/// Highest trace id that a generation counts; traces are per-CPU values, of which only the keys matter here.
fn last_trace(generation: &Numbered) -> Result<u32> {
    let path = generation.path.join(map::TRACES);
    if !path.exists() {
        return Ok(0);
    }
    let failed = |source| Error::Path {
        path: path.clone(),
        action: "read the map",
        source,
    };
    let map = aya::maps::MapData::from_pin(&path).map_err(|error| failed(std::io::Error::other(error)))?;
    let info = map.info().map_err(|error| failed(std::io::Error::other(error)))?;
    if (info.key_size(), info.value_size()) != (4, 8) {
        return Ok(0);
    }
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(error))?;
    let mut batches = Batches::new(map.fd().as_fd(), 4, 8 * cpus);
    let mut last = 0;
    while let Some((keys, _)) = batches.next().map_err(failed)? {
        last = keys.chunks_exact(4).filter_map(sys::read::<u32>).fold(last, u32::max);
    }
    Ok(last)
}
