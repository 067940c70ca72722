//! `cargo xtask cluster`: a real Kubernetes cluster out of namespaces.
//!
//! What makes it is a program of its own (the other files of this directory), built with the `cluster` feature: it uses the
//! tests' library, and xtask must build where nothing else can be built yet.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    process,
    setup::{self, Verb},
    workspace,
};

mod arguments;

pub use arguments::Arguments;

const PROGRAM: &str = "weir-cluster";

pub fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Cluster)?;
    process::run(workspace::cargo().args([
        "build",
        "--quiet",
        "--locked",
        "--workspace",
        "--bin",
        PROGRAM,
        "--features",
        "xtask/cluster",
    ]))?;
    let mut program = Command::new(workspace::target_dir()?.join("debug").join(PROGRAM));
    // They have been understood; it reads them again. The first two are this program and its verb.
    program.args(env::args_os().skip(2));
    Err(program.exec()).context("starting the cluster's program")
}
