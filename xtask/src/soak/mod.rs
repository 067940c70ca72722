//! `cargo xtask soak`: agents on the control plane of the cluster of namespaces, while everything around them changes and
//! fails.
//!
//! What runs it is a program of its own (the other files of this directory), built with the `soak` feature, as for
//! `cluster`.

use std::env;

use anyhow::Result;

use crate::{
    build::{self, Profile},
    process,
    setup::{self, Verb},
};

mod arguments;

pub use arguments::Arguments;

pub fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Cluster)?;
    let weir = build::weir(Profile::Debug, &[])?;
    let mut program = build::program(Profile::Debug, "soak", &[])?;
    // The first two are this program and its verb.
    program.args(env::args_os().skip(2)).env("WEIR_BIN", weir);
    process::become_program(&mut program)
}
