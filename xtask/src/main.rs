//! `cargo xtask`: the project's front door. One file per verb; the doc comments of [`Verb`] are the help.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
#[expect(dead_code, reason = "what only the agent's build script asks")]
mod bpf;
mod build;
mod cargo_tool;
mod cluster;
mod crds;
mod demo;
mod e2e;
mod fuzz;
mod go;
mod go_search;
mod image;
mod kustomize;
mod lint;
mod machine;
mod packages;
mod process;
mod setup;
mod soak;
mod test;
mod workspace;

/// Build, try, test and measure Weir.
///
/// Every verb first checks the machine for what it needs, and installs what is missing.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Check this machine and install what is missing for all the other verbs
    ///
    /// Looks at the kernel, privileges, the bpf file system, Debian packages, the compiler and linker of the eBPF
    /// programs, and the lint tools. Says what it installs; what it cannot install it names, with the remedy.
    Setup(setup::Arguments),

    /// Build the `weir` binary, with the eBPF programs in it
    Build(build::Arguments),

    /// Show Weir enforcing policies in a small cluster of network namespaces
    ///
    /// Needs no Kubernetes. Applies policies step by step and shows after each who can reach whom, live flows, and why
    /// a connection was refused. Takes under a minute after the build, and leaves nothing behind.
    Demo(demo::Arguments),

    /// Write the container image as an OCI archive, without a container engine
    ///
    /// Builds a static binary with optimisations. Two builds of one commit by one compiler give one digest.
    Image(image::Arguments),

    /// Generate the CustomResourceDefinitions of Calico's kinds (deploy/crds, and the chart's)
    Crds(crds::Arguments),

    /// Generate the kustomize base (deploy/kustomize) from the chart
    Kustomize(kustomize::Arguments),

    /// Run all tests: those of each crate, and the suites with real packets
    Test(test::Arguments),

    /// Make a real Kubernetes cluster out of namespaces, and use it: kind without Docker
    ///
    /// Control plane and nodes are Kubernetes' own programs, built from source on first use (some minutes), and run in
    /// namespaces of this machine. `up` returns when all nodes are ready.
    Cluster(cluster::Arguments),

    /// Install Weir from its chart into a real cluster and test it there
    ///
    /// Makes the image and a cluster of namespaces (see `cluster`), which goes again at the end.
    E2e(e2e::Arguments),

    /// Run agents for minutes or hours while everything around them changes and fails
    ///
    /// Pods under traffic on two nodes; thousands of other pods, labels, namespaces and policies that change; agents that
    /// are killed, an API server and an etcd that go and come back. Says what did not hold: verdicts, connections, memory, logs.
    Soak(soak::Arguments),

    /// Feed random input to the parsers, for a minute each
    ///
    /// What is found lies in tests/fuzz/artifacts. The corpus that a run leaves behind makes the next one go further.
    Fuzz(fuzz::Arguments),

    /// Check formatting, lints (host and eBPF), spelling, licences and dependencies
    Lint(lint::Arguments),

    /// Measure Weir: nanoseconds per packet, connections per second beside its peers, latency of changes, memory
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Image(arguments) => image::run(&arguments),
        Verb::Crds(arguments) => crds::run(&arguments),
        Verb::Kustomize(arguments) => kustomize::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Lint(arguments) => lint::run(&arguments),
        Verb::Cluster(arguments) => cluster::run(&arguments),
        Verb::E2e(arguments) => e2e::run(&arguments),
        Verb::Soak(arguments) => soak::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
    }
}
