//! `cargo xtask bench`: what Weir costs, beside what it replaces.
//!
//! What measures is a program of its own, built with optimisations (the other files of this directory): generators that
//! are slower than the kernel would measure themselves, and xtask must build where nothing else can be built yet.

use anyhow::Result;
use clap::ValueEnum as _;

use crate::{
    build::{self, Profile},
    process,
    setup::{self, Verb},
};

mod arguments;

pub use arguments::Arguments;

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Bench)?;
    if arguments.names.is_empty() || arguments.names.contains(&arguments::Name::Api) {
        setup::ensure(Verb::Cluster)?;
    }
    let weir = build::weir(Profile::Release, &[])?;
    let mut program = build::program(Profile::Release, "bench", &[])?;
    program.arg("--weir").arg(weir);
    if arguments.quick {
        program.arg("--quick");
    }
    let names = arguments.names.iter().filter_map(arguments::Name::to_possible_value);
    program.args(names.map(|name| name.get_name().to_owned()));
    process::become_program(&mut program)
}
