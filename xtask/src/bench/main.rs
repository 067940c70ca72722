//! `weir-bench`: what `cargo xtask bench` builds, optimised, and runs.
//!
//! Everything happens in network namespaces that a benchmark makes for itself, and that go with this process.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, ValueEnum as _};

use self::arguments::Name;

mod api;
mod arguments;
mod cni;
mod compile;
mod connections;
mod footprint;
mod interrupt;
mod latency;
mod load;
mod node;
mod packets;
mod priority;
mod probe;
mod report;
mod world;

#[derive(Parser)]
struct CommandLine {
    /// The `weir` binary to measure
    #[arg(long)]
    weir: PathBuf,

    #[command(flatten)]
    bench: arguments::Arguments,
}

fn main() -> ExitCode {
    match run(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(CommandLine { weir, bench }: &CommandLine) -> Result<()> {
    interrupt::catch()?;
    let names = if bench.names.is_empty() {
        Name::value_variants()
    } else {
        &bench.names
    };
    println!(
        "kernel {}, {} CPUs, load {:.2}",
        report::kernel(),
        std::thread::available_parallelism()?,
        report::load().unwrap_or(f64::NAN)
    );
    for name in names {
        interrupt::check()?;
        match name {
            Name::Connections => connections::run(weir, bench.quick),
            Name::Latency => latency::run(weir, bench.quick),
            Name::Footprint => footprint::run(weir, bench.quick),
            Name::Compile => compile::run(bench.quick),
            Name::Cni => cni::run(weir, bench.quick),
            Name::Packets => packets::run(bench.quick),
            Name::Api => api::run(weir, bench.quick),
        }?;
    }
    Ok(())
}
