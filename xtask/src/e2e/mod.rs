//! `cargo xtask e2e`: Weir in a real cluster, installed from its chart.
//!
//! What runs the cases is a program of its own (the other files of this directory), built with the `e2e` feature, as for
//! `cluster`.

use std::{env, fs, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    image, process,
    setup::{self, Verb},
    workspace,
};

mod arguments;

pub use arguments::Arguments;

const PROGRAM: &str = "weir-e2e";

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Cluster)?;
    let mut build = workspace::cargo();
    build.args([
        "build",
        "--locked",
        "--workspace",
        "--bin",
        PROGRAM,
        "--features",
        "xtask/e2e",
    ]);
    process::run(&mut build)?;
    let target = workspace::target_dir()?;
    let archive = target.join("weir-image.tar");
    if arguments.kubeconfig.is_none() {
        fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
        image::default(&archive)?;
    }
    let mut program = Command::new(target.join("debug").join(PROGRAM));
    // The first two are this program and its verb.
    program.arg("--image").arg(archive).args(env::args_os().skip(2));
    Err(program.exec()).context("starting the end-to-end tests")
}
