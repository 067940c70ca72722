//! `cargo xtask demo`: Weir at work in a small cluster of network namespaces.
//!
//! What shows it is a program of its own (the other files of this directory), built with the `demo` feature: it uses the
//! tests' lab and the agent's library, and xtask must build where nothing else can be built yet.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    image, process,
    setup::{self, Verb},
    workspace,
};

mod arguments;

pub use arguments::Arguments;

const PROGRAM: &str = "weir-demo";

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(if arguments.cluster { Verb::Cluster } else { Verb::Demo })?;
    let weir = build::weir(Profile::Debug, &[])?;
    process::run(workspace::cargo().args([
        "build",
        "--locked",
        "--workspace",
        "--bin",
        PROGRAM,
        "--features",
        "xtask/demo",
    ]))?;
    let mut program = Command::new(workspace::target_dir()?.join("debug").join(PROGRAM));
    program
        .arg("--weir")
        .arg(weir)
        .args(arguments.pause.then_some("--pause"));
    if arguments.cluster {
        program.arg("--cluster").arg("--image").arg(image::for_clusters()?);
    }
    // In this process's place: Ctrl-C then reaches the one that has something to clean up.
    Err(program.exec()).context("starting the demo")
}
