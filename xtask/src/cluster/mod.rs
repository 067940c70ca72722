//! `cargo xtask cluster`: a real Kubernetes cluster out of namespaces.
//!
//! What makes it is a program of its own (the other files of this directory), built with the `cluster` feature: it uses the
//! tests' library, and xtask must build where nothing else can be built yet.

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
    let mut program = build::program(Profile::Debug, "cluster", &["--quiet"])?;
    // They have been understood; it reads them again. The first two are this program and its verb.
    program.args(env::args_os().skip(2));
    process::become_program(&mut program)
}
