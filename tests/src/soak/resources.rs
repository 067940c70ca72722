//! What agents hold: memory, descriptors, and entries of their maps. In a world that is what it was, that is what it was.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use weir_common::layout::map;

use crate::world::World;

/// Maps whose entries follow from the objects alone. Others hold connections, or count.
const OF_OBJECTS: [&str; 8] = [
    map::ENDPOINTS,
    map::ADDRESSES,
    map::CIDRS,
    map::ROWS,
    map::DECISIONS,
    map::SOURCE_PORTS,
    map::SOURCES,
    map::TRACES,
];

/// How much more memory an agent may have than after the first round, kB: what is free comes back in pieces.
const MEMORY: u64 = 6 * 1_024;
/// How many more descriptors: a question may be under way.
const DESCRIPTORS: usize = 4;

/// What is not used any more goes within this time.
const PATIENCE: Duration = Duration::from_secs(20);

/// What every agent holds, by node.
#[derive(Clone, Debug, Default)]
pub struct Resources(BTreeMap<String, Held>);

#[derive(Clone, Debug, Default)]
struct Held {
    pid: u32,
    resident: u64,
    descriptors: usize,
    maps: BTreeMap<String, u64>,
}

impl Resources {
    pub fn read(world: &World) -> Result<Self> {
        let mut held = BTreeMap::new();
        for (node, agent) in &world.agents {
            let pid = agent.pid().context("the agent runs")?;
            let process = Path::new("/proc").join(pid.to_string());
            let status = fs::read_to_string(process.join("status")).context("read the agent's status")?;
            let resident = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
                .context("the agent's resident memory")?;
            let maps = world.status(node)?.maps.into_iter();
            let now = Held {
                pid,
                resident,
                descriptors: fs::read_dir(process.join("fd"))
                    .context("list the agent's descriptors")?
                    .count(),
                maps: maps
                    .filter(|map| OF_OBJECTS.contains(&map.name.as_str()))
                    .filter_map(|map| Some((map.name, map.entries?)))
                    .collect(),
            };
            held.insert(node.clone(), now);
        }
        Ok(Self(held))
    }

    /// Takes memory and descriptors from a world that has run a while.
    pub fn warm(&mut self, now: &Self) {
        for (node, held) in &mut self.0 {
            if let Some(now) = now.0.get(node) {
                held.resident = now.resident;
                held.descriptors = now.descriptors;
                held.pid = now.pid;
            }
        }
    }

    /// What has grown. `warm`: memory and descriptors too, where it is the same process still.
    pub fn differences(&self, now: &Self, warm: bool) -> Vec<String> {
        let mut found = Vec::new();
        for (node, then) in &self.0 {
            let Some(now) = now.0.get(node) else { continue };
            if now.maps != then.maps {
                found.push(format!(
                    "entries of maps on {node}: {:?}, not {:?}",
                    now.maps, then.maps
                ));
            }
            if !warm || now.pid != then.pid {
                continue;
            }
            if now.resident > then.resident + MEMORY {
                found.push(format!(
                    "resident on {node}: {} kB, not {}",
                    now.resident, then.resident
                ));
            }
            if now.descriptors > then.descriptors + DESCRIPTORS {
                found.push(format!(
                    "descriptors on {node}: {}, not {}",
                    now.descriptors, then.descriptors
                ));
            }
        }
        found
    }
}

/// Waits until maps are what they were, and memory has been given back; returns what is held then.
pub fn back_to(world: &World, then: &Resources) -> Result<Resources> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = Resources::read(world)?;
        if then.differences(&now, true).is_empty() || Instant::now() > deadline {
            return Ok(now);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (node, held)) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            let entries: u64 = held.maps.values().sum();
            write!(
                f,
                "{separator}{node}: {:.1} MiB, {} descriptors, {entries} entries of maps",
                held.resident as f64 / 1_024.0,
                held.descriptors
            )?;
        }
        Ok(())
    }
}
