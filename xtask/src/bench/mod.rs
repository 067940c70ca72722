//! `cargo xtask bench`: what Weir costs, beside what it replaces.
//!
//! What measures is a program of its own, built with optimisations (the other files of this directory): generators that
//! are slower than the kernel would measure themselves, and xtask must build where nothing else can be built yet.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use crate::{
    build::{self, Profile},
    process,
    setup::{self, Verb},
    workspace,
};

mod arguments;

pub use arguments::Arguments;

const PROGRAM: &str = "weir-bench";

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Bench)?;
    if arguments.names.is_empty() || arguments.names.contains(&arguments::Name::Api) {
        setup::ensure(Verb::Cluster)?;
    }
    let weir = build::weir(Profile::Release, &[])?;
    process::run(workspace::cargo().args([
        "build",
        "--locked",
        "--release",
        "--package",
        "xtask",
        "--bin",
        PROGRAM,
        "--features",
        "bench",
    ]))?;
    let mut program = Command::new(workspace::target_dir()?.join("release").join(PROGRAM));
    program.arg("--weir").arg(weir);
    if arguments.quick {
        program.arg("--quick");
    }
    let names = arguments.names.iter().filter_map(arguments::Name::to_possible_value);
    program.args(names.map(|name| name.get_name().to_owned()));
    // In this process's place: Ctrl-C then reaches the one that has something to clean up.
    Err(program.exec()).context("starting the benchmarks")
}
