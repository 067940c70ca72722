//! `cargo xtask soak`: agents on the control plane of the cluster of namespaces, while everything around them changes and
//! fails.
//!
//! What runs it is a program of its own (the other files of this directory), built with the `soak` feature, as for
//! `cluster`.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    process,
    setup::{self, Verb},
    workspace,
};

mod arguments;

pub use arguments::Arguments;

const PROGRAM: &str = "weir-soak";

pub fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Cluster)?;
    let weir = build::weir(Profile::Debug, &[])?;
    process::run(workspace::cargo().args([
        "build",
        "--locked",
        "--workspace",
        "--bin",
        PROGRAM,
        "--features",
        "xtask/soak",
    ]))?;
    let mut program = Command::new(workspace::target_dir()?.join("debug").join(PROGRAM));
    // The first two are this program and its verb. In this process's place: Ctrl-C then reaches the one that has something
    // to clean up.
    program.args(env::args_os().skip(2)).env("WEIR_BIN", weir);
    Err(program.exec()).context("starting the soak")
}
