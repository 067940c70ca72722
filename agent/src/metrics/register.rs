//! The register of metrics. Names are interface: dashboards and alerts of others ask for them.
//!
//! Readers: the exposition (agent/src/metrics), docs/metrics.md, the dashboard's test.

use prometheus_client::metrics::MetricType;

/// A metric in all of its series.
#[derive(Debug)]
pub struct Family {
    /// As queries have it, but for what a histogram appends.
    pub name: &'static str,
    pub kind: MetricType,
    pub labels: &'static [&'static str],
    /// Lines of the meaning.
    help: &'static [&'static str],
}

macro_rules! families {
    ($($(#[doc = $help:literal])+ $family:ident = $kind:ident $name:literal $([$($label:literal),+])?;)+) => {
        $($(#[doc = $help])+ pub static $family: Family = Family {
            name: $name,
            kind: MetricType::$kind,
            labels: &[$($($label),+)?],
            help: &[$($help),+],
        };)+

        /// Every metric, in the order in which they are served.
        pub static ALL: &[&Family] = &[$(&$family),+];
    };
}

families! {
    /// Always 1; version of the agent, and of the layout of its pinned maps.
    BUILD = Gauge "weir_build_info" ["version", "layout"];
    /// Always 1; how programs are attached to interfaces: `tcx` or `tc`.
    ATTACH = Gauge "weir_attach_info" ["mode"];
    /// 1 while all pods of the node are enforced with what the source holds (what `/readyz` says; invalid objects count by their last valid version).
    READY = Gauge "weir_ready";
    /// 1 while the agent judges and reports but drops nothing (`--audit`).
    AUDIT_MODE = Gauge "weir_audit_mode";
    /// Number of the generation of programs and maps in use. It grows with every start of the agent, and whenever maps
    /// are built anew because they must be larger or a write to them failed.
    GENERATION = Gauge "weir_generation";

    /// Policies known, staged ones included. A policy that is invalid is counted if a version of it is in force.
    POLICIES = Gauge "weir_policies" ["kind"];
    /// Objects with an error: not enforced as written. Which, and what to do: `weir status`.
    INVALID_OBJECTS = Gauge "weir_invalid_objects" ["kind"];
    /// Problems of the source. An `error` is not enforced as written, a `warning` may be meant otherwise.
    PROBLEMS = Gauge "weir_problems" ["severity"];
    /// Pods, nodes and host endpoints known, of all nodes.
    PEERS = Gauge "weir_peers";
    /// Sets of addresses that no selector can tell apart.
    IDENTITIES = Gauge "weir_identities";
    /// Sets of identities that the policies in force on this node cannot tell apart.
    CLASSES = Gauge "weir_classes";
    /// Decision tables in use. Directions of pods that obey the same decisions share one.
    TABLES = Gauge "weir_tables";
    /// Pods of this node: `enforced`; `closed` (nothing passes, in the directions concerned); `waiting` for their interface.
    ENDPOINTS = Gauge "weir_endpoints" ["state"];
    /// From the cause's arrival at the agent to the last write to the kernel. `objects`: changed objects, from the source's
    /// notice of the oldest of those taken together; `sync`: a whole list of objects; `endpoint`: a pod of this node, from the
    /// object with its address to programs on its interface. What changes nothing in the kernel is not counted.
    PROGRAMMING = Histogram "weir_programming_duration_seconds" ["trigger"];
    /// Writes to the kernel that failed. They are tried again, with new maps where need be.
    KERNEL_FAILURES = Counter "weir_kernel_failures_total";
    /// Hooks of pods' interfaces that somebody else has taken the programs from. They are put back at once; until they are, nothing
    /// is enforced there. Which: the agent's log.
    HOOKS_LOST = Counter "weir_hooks_lost_total";

    /// Packets by what became of them: verdict `FORWARDED`, `DROPPED`, or `AUDIT` (would have been dropped, but the agent only
    /// audits); why (see operations.md); direction as the pod sees it. Counted by the kernel, also while no agent runs.
    PACKETS = Counter "weir_packets_total" ["verdict", "reason", "direction"];
    /// The bytes of these packets, with their IP headers.
    BYTES = Counter "weir_bytes_total" ["verdict", "reason", "direction"];
    /// Entries of the connection table at the last sweep (every 5 to 30 s): `confirmed` once both sides have spoken.
    CONNECTIONS = Gauge "weir_connections" ["state"];
    /// Entries that gave way to others because their table was full.
    EVICTIONS = Counter "weir_connections_evicted_total" ["state"];
    /// Entries of a map; of those that the programs fill, at the last sweep.
    MAP_ENTRIES = Gauge "weir_map_entries" ["map"];
    /// Entries that a map can hold.
    MAP_CAPACITY = Gauge "weir_map_capacity_entries" ["map"];
    /// Kernel memory of a map.
    MAP_MEMORY = Gauge "weir_map_memory_bytes" ["map"];
    /// Maps that are too small for what the source asks for, and cannot grow further.
    SHORTAGES = Gauge "weir_map_shortages";

    /// Readers of flow records at the agent's socket.
    FLOW_READERS = Gauge "weir_flow_readers";
    /// Flow records made. With no reader and no log, none are.
    FLOW_RECORDS = Counter "weir_flow_records_total";
    /// Flow records that somebody should have seen and nobody did: lost in the `kernel`'s ring buffer, by the `log`, by a `reader`.
    FLOW_LOST = Counter "weir_flow_records_lost_total" ["stage"];
    /// 1 while the flow log cannot be written.
    FLOW_LOG_FAILING = Gauge "weir_flow_log_failing";

    /// Since the API server was last heard of by the watch of a kind. There are no watches of manifests.
    WATCH_STALENESS = Gauge "weir_watch_staleness_seconds" ["kind"];
    /// 1 once the objects of a kind were told whole.
    WATCH_SYNCED = Gauge "weir_watch_synced" ["kind"];
    /// How often a watch failed.
    WATCH_FAILURES = Counter "weir_watch_failures_total" ["kind"];

    /// Processor time of the agent.
    PROCESS_CPU = Counter "process_cpu_seconds_total";
    /// Memory of the agent; the kernel's for its maps comes on top.
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes";
    /// Address space of the agent.
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes";
    /// Open file descriptors.
    PROCESS_FDS = Gauge "process_open_fds";
    /// Open file descriptors at most.
    PROCESS_MAX_FDS = Gauge "process_max_fds";
    /// When the agent started, Unix time.
    PROCESS_START = Gauge "process_start_time_seconds";
}

impl Family {
    /// The meaning, in one line.
    #[must_use]
    pub fn help(&self) -> String {
        let lines: Vec<&str> = self.help.iter().map(|line| line.trim()).collect();
        lines.join(" ")
    }

    /// The name as OpenMetrics declares it: that of a counter without its suffix.
    #[must_use]
    pub fn declared_name(&self) -> &'static str {
        match self.kind {
            MetricType::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            _ => self.name,
        }
    }

    /// Names of the series, as queries ask for them.
    #[must_use]
    pub fn series(&self) -> Vec<String> {
        match self.kind {
            MetricType::Histogram => ["_bucket", "_sum", "_count"]
                .map(|suffix| format!("{}{suffix}", self.name))
                .to_vec(),
            _ => vec![self.name.to_owned()],
        }
    }
}

/// The table of all metrics, for docs/metrics.md.
#[must_use]
pub fn table() -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in ALL {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        table += &format!(
            "| `{}` | {} | {} | {} |\n",
            family.name,
            family.kind.as_str(),
            labels.join(", "),
            family.help()
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_prometheus_conventions() {
        let mut names = BTreeSet::new();
        for family in ALL {
            let name = family.name;
            assert!(names.insert(name), "{name} twice");
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
            assert!(name.starts_with("weir_") || name.starts_with("process_"), "{name}");
            assert_eq!(
                matches!(family.kind, MetricType::Counter),
                name.ends_with("_total"),
                "{name}"
            );
            if matches!(family.kind, MetricType::Histogram) {
                assert!(name.ends_with("_seconds"), "{name}");
            }
            assert!(!family.help().contains('\n'), "{name}");
        }
    }
}
