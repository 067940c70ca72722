//! What the programs count, how full the maps are, and the switch and the ring buffer of events.

use std::{os::fd::AsFd, sync::atomic::Ordering};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use weir_common::{
    Direction,
    counters::{Counter, Tally, index},
    layout::{Config, map},
    reason::Reason,
};

use super::{
    Datapath,
    error::{Error, Result},
    state,
    sweep::SWEPT,
    table::memory,
};

/// Packets and bytes by reason and direction, and tallies, since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reasons and directions that were counted at least once.
    pub packets: Vec<(Reason, Direction, Counter)>,
    /// Events that did not fit into the ring buffer.
    pub lost_events: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUsage {
    pub name: &'static str,
    /// Of the maps that programs fill: at the last sweep. None: the map has no entries that could be counted.
    pub entries: Option<u32>,
    /// Entries; of the ring buffer bytes.
    pub capacity: u32,
    /// Kernel memory in bytes, where the kernel tells.
    pub memory: Option<u64>,
}

impl Datapath {
    /// Reads all counters.
    pub fn counters(&self) -> Result<Counters> {
        let counters: PerCpuArray<MapData, Counter> =
            typed(map::COUNTERS, Map::PerCpuArray(self.state_map(map::COUNTERS)?))?;
        let mut packets = Vec::new();
        for reason in Reason::ALL {
            for direction in [Direction::Egress, Direction::Ingress] {
                let values = counters
                    .get(&index(*reason, direction), 0)
                    .map_err(failed(map::COUNTERS))?;
                let sum = values.iter().fold(Counter::default(), |sum, value| Counter {
                    packets: sum.packets.wrapping_add(value.packets),
                    bytes: sum.bytes.wrapping_add(value.bytes),
                });
                if sum != Counter::default() {
                    packets.push((*reason, direction, sum));
                }
            }
        }
        let tallies = tallies(self.state_map(map::TALLIES)?)?;
        Ok(Counters {
            packets,
            lost_events: tally(&tallies, Tally::LostEvents)?,
        })
    }

    /// New flows that were decided by each of these traces, in the current generation. Unknown traces have none.
    pub fn trace_hits(&self, traces: impl IntoIterator<Item = u32>) -> Result<Vec<(u32, u64)>> {
        let table = &self.generation.maps.traces;
        traces
            .into_iter()
            .map(|trace| match table.map.get(&trace, 0) {
                Ok(values) => Ok((trace, values.iter().copied().fold(0, u64::wrapping_add))),
                Err(MapError::KeyNotFound) => Ok((trace, 0)),
                Err(error) => Err(failed(map::TRACES)(error)),
            })
            .collect()
    }

    /// How full every map is.
    pub fn map_usage(&self) -> Result<Vec<MapUsage>> {
        let maps = &self.generation.maps;
        let [policy_dir, _] = self.pinned();
        let mut usage = Vec::new();
        for (name, entries) in [
            (map::ENDPOINTS, maps.endpoints.entries),
            (map::ADDRESSES, maps.addresses.entries),
            (map::CIDRS, maps.cidrs.entries),
            (map::IDENTITIES, maps.identities_used),
            (map::ROWS, maps.rows.entries),
            (map::DECISIONS, maps.decisions.entries),
            (map::SOURCE_PORTS, maps.source_ports.entries),
            (map::SOURCES, maps.sources.entries),
            (map::TRACES, maps.traces.entries),
        ] {
            let map = MapData::from_pin(policy_dir.join(name)).map_err(failed(name))?;
            usage.push(measure(name, &map, Some(entries))?);
        }
        for name in map::STATE {
            let entries = SWEPT.iter().position(|swept| *swept == name);
            let entries = entries.map(|at| self.shared.live[at].load(Ordering::Relaxed));
            usage.push(measure(name, &self.state_map(name)?, entries)?);
        }
        Ok(usage)
    }

    /// Says whether somebody reads events. While nobody does, none leaves the kernel.
    pub fn set_events(&mut self, wanted: bool) -> Result<()> {
        let mut config: Array<MapData, Config> = typed(map::CONFIG, Map::Array(self.state_map(map::CONFIG)?))?;
        let old = config.get(&0, 0).map_err(failed(map::CONFIG))?;
        let new = Config {
            events: u32::from(wanted),
            ..old
        };
        config.set(0, new, 0).map_err(failed(map::CONFIG))
    }

    /// The ring buffer of [`weir_common::event::Event`]s; its descriptor is readable when there are some. Take it
    /// once: two readers would share the events.
    pub fn events(&self) -> Result<RingBuf<MapData>> {
        RingBuf::try_from(Map::RingBuf(self.state_map(map::EVENTS)?)).map_err(failed(map::EVENTS))
    }

    fn state_map(&self, name: &'static str) -> Result<MapData> {
        state::open(&self.state.current, &self.pins, &self.shapes, name)
    }
}

pub(super) fn tallies(map: MapData) -> Result<PerCpuArray<MapData, u64>> {
    typed(map::TALLIES, Map::PerCpuArray(map))
}

/// The sum of all CPUs.
pub(super) fn tally(tallies: &PerCpuArray<MapData, u64>, tally: Tally) -> Result<u64> {
    let values = tallies.get(&(tally as u32), 0).map_err(failed(map::TALLIES))?;
    Ok(values.iter().copied().fold(0, u64::wrapping_add))
}

fn measure(name: &'static str, map: &MapData, entries: Option<u32>) -> Result<MapUsage> {
    let info = map.info().map_err(failed(name))?;
    Ok(MapUsage {
        name,
        entries,
        capacity: info.max_entries(),
        memory: memory(map.fd().as_fd()),
    })
}

fn typed<M: TryFrom<Map, Error = MapError>>(name: &'static str, map: Map) -> Result<M> {
    M::try_from(map).map_err(failed(name))
}

fn failed(name: &'static str) -> impl Fn(MapError) -> Error {
    move |error| Error::map(name, "read the map", 0, error)
}
