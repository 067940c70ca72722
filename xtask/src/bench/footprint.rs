//! `footprint`: what the agent takes when nothing happens, with 10,000 remote pods and 1,000 policies in the source.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    interrupt, load,
    node::Node,
    report::{self, Table},
    world::{self, World},
};

/// 40 MB.
const MEMORY_LIMIT_MIB: f64 = 40e6 / MIB;
const CPU_LIMIT_MILLICORES: f64 = 1.0;

/// After the first sync, before anything is measured: what follows a start is no idleness.
const SETTLE: Duration = Duration::from_secs(5);

const POLICIES: usize = 1_000;

pub fn run(weir: &Path, quick: bool) -> Result<()> {
    report::heading(
        "footprint",
        "the agent at rest: memory, CPU, and memory of its maps in the kernel",
    );
    let idle = Duration::from_secs(if quick { 10 } else { 30 });
    let mut table = Table::new([
        "remote pods",
        "policies",
        "resident MiB",
        "private MiB",
        "peak MiB",
        "idle millicores",
        "maps MiB",
        "",
        "",
    ]);
    let mut figures = Vec::new();
    let mut maps = Vec::new();
    for (pods, policies) in [(10, 10), (10_000, POLICIES)] {
        let node = Node::new(&load::LOCAL_PODS)?;
        let world = World::new(&node)?;
        world.remote_pods(&world::remote_pods(pods))?;
        world.policies(&load::policies(policies))?;
        let agent = node.start_agent(weir, &world, &[])?;
        let pid = agent.pid().context("the agent has ended")?;
        interrupt::sleep(SETTLE)?;
        let before = cpu_nanoseconds(pid)?;
        interrupt::sleep(idle)?;
        let used = cpu_nanoseconds(pid)?.saturating_sub(before);
        let millicores = used as f64 / idle.as_nanos() as f64 * 1e3;
        let memory = Memory::of(pid)?;
        maps = map_memory(pid)?;
        let kernel = maps.iter().map(|(_, bytes)| bytes).sum::<u64>() as f64 / MIB;
        table.row([
            pods.to_string(),
            policies.to_string(),
            format!("{:.1}", memory.resident),
            format!("{:.1}", memory.private),
            format!("{:.1}", memory.peak),
            format!("{millicores:.2}"),
            format!("{kernel:.1}"),
            format!(
                "resident ≤ {MEMORY_LIMIT_MIB:.1}: {}",
                report::at_most(memory.resident, MEMORY_LIMIT_MIB)
            ),
            format!(
                "idle ≤ {CPU_LIMIT_MILLICORES}: {}",
                report::at_most(millicores, CPU_LIMIT_MILLICORES)
            ),
        ]);
        figures.push(json!({
            "pods": pods, "policies": policies, "resident_mib": memory.resident, "private_mib": memory.private,
            "peak_mib": memory.peak, "idle_millicores": millicores, "maps_mib": kernel,
            "maps_bytes": maps.iter().cloned().collect::<BTreeMap<_, _>>(),
        }));
    }
    table.print();
    println!("\n  Maps under load, largest first:");
    maps.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let mut table = Table::new(["map", "MiB"]);
    for (name, bytes) in maps {
        table.row([name, format!("{:.2}", bytes as f64 / MIB)]);
    }
    table.print();
    report::json_line("footprint", json!(figures));
    Ok(())
}

pub const MIB: f64 = 1_048_576.0;

/// In MiB.
pub struct Memory {
    /// Resident, with what is shared with nobody else here: the binary's own pages.
    pub resident: f64,
    /// Of it what only this process has: heap and stacks.
    pub private: f64,
    pub peak: f64,
}

impl Memory {
    pub fn of(pid: u32) -> Result<Self> {
        let rollup = fields(&format!("/proc/{pid}/smaps_rollup"))?;
        let status = fields(&format!("/proc/{pid}/status"))?;
        let mib = |fields: &BTreeMap<String, u64>, name: &str| {
            let kilobytes = fields
                .get(name)
                .with_context(|| format!("the kernel does not tell {name}"))?;
            anyhow::Ok(*kilobytes as f64 / 1024.0)
        };
        Ok(Self {
            resident: mib(&rollup, "Rss")?,
            private: mib(&rollup, "Private_Clean")? + mib(&rollup, "Private_Dirty")?,
            peak: mib(&status, "VmHWM")?,
        })
    }
}

/// The numeric fields of a file of `name: number` lines.
fn fields(path: &str) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let number = value.split_whitespace().next()?.parse().ok()?;
        Some((name.trim().to_owned(), number))
    };
    Ok(text.lines().filter_map(field).collect())
}

/// CPU time of all threads: the scheduler's own clock, since the clock ticks of /proc/PID/stat are ten milliseconds, a
/// third of what a millicore is in half a minute.
pub fn cpu_nanoseconds(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let path = task?.path().join("schedstat");
        // A thread may end between the listing and this; what it used is then lost, as with any other counter.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let first = text
            .split_whitespace()
            .next()
            .and_then(|number| number.parse::<u64>().ok());
        sum += first.with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(sum)
}

/// What each map that the process holds occupies in the kernel, in bytes, by the map's name or type.
fn map_memory(pid: u32) -> Result<Vec<(String, u64)>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {dir}"))? {
        let path = entry?.path();
        let Ok(fields) = fields(&path.to_string_lossy()) else {
            continue;
        };
        // Several descriptors may be open of one map.
        if let (Some(id), Some(bytes)) = (fields.get("map_id"), fields.get("memlock")) {
            maps.insert(*id, *bytes);
        }
    }
    let mut named = BTreeMap::new();
    for (id, bytes) in maps {
        *named.entry(map_name(id)?).or_default() += bytes;
    }
    Ok(named.into_iter().collect())
}

fn map_name(id: u64) -> Result<String> {
    let output = std::process::Command::new("bpftool")
        .args(["--json", "map", "show", "id", &id.to_string()])
        .output()
        .context("starting bpftool")?;
    let map: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("reading what bpftool says of a map")?;
    let name = map
        .get("name")
        .or_else(|| map.get("type"))
        .and_then(|name| name.as_str());
    Ok(name.unwrap_or("unnamed").to_owned())
}
