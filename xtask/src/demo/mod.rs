//! `cargo xtask demo`: Weir at work in a small cluster of network namespaces.
//!
//! What shows it is a program of its own (the other files of this directory), built with the `demo` feature: it uses the
//! tests' lab and the agent's library, and xtask must build where nothing else can be built yet.

use anyhow::Result;

use crate::{
    build::{self, Profile},
    image, process,
    setup::{self, Verb},
};

mod arguments;

pub use arguments::Arguments;

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(if arguments.cluster { Verb::Cluster } else { Verb::Demo })?;
    let weir = build::weir(Profile::Debug, &[])?;
    let mut program = build::program(Profile::Debug, "demo", &[])?;
    program
        .arg("--weir")
        .arg(weir)
        .args(arguments.pause.then_some("--pause"));
    if arguments.cluster {
        program.arg("--cluster").arg("--image").arg(image::for_clusters()?);
    }
    process::become_program(&mut program)
}
