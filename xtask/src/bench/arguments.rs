//! What `cargo xtask bench` is told, and passes on to the optimised program that measures.

/// Besides a table each benchmark prints one JSON line, for machines to keep and compare.
#[derive(clap::Args)]
pub struct Arguments {
    /// Fewer and shorter rounds: some four minutes for all, with more noise
    #[arg(long)]
    pub quick: bool,

    /// What to measure [default: everything]
    #[arg(value_enum)]
    pub names: Vec<Name>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// Nanoseconds per packet in the eBPF programs, by number of rules
    Packets,
    /// New connections and round trips per second, beside no policy, iptables with ipset, and nftables
    Connections,
    /// From a changed manifest to the changed verdict on the wire
    Latency,
    /// Memory and idle CPU of the agent, and memory of its maps
    Footprint,
    /// Time to compile policies to decision tables
    Compile,
    /// From a write to a real Kubernetes API to the changed verdict on the wire; memory, CPU and start at 20,000 pods
    Api,
    /// What the CNI plugin adds to the start of a pod
    Cni,
}
