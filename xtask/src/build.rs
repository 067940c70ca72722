//! `cargo xtask build`: the one binary.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    process,
    setup::{self, Verb},
    workspace,
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Optimise; the binary is left in target/release instead of target/debug
    #[arg(long)]
    release: bool,
}

/// What to build of `weir`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Debug,
    Release,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Build)?;
    let profile = if arguments.release {
        Profile::Release
    } else {
        Profile::Debug
    };
    println!("{}", weir(profile, &[])?.display());
    Ok(())
}

/// Builds `weir` and returns where it lies.
pub fn weir(profile: Profile, features: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--locked", "--bin", "weir"]);
    let dir = match profile {
        // With the features that the dependencies have in the whole workspace, as the tests have them, so that a
        // dependency is not compiled once for the binary and once more for the tests.
        Profile::Debug => {
            cargo.arg("--workspace");
            "debug"
        }
        Profile::Release => {
            cargo.args(["--package", "weir", "--release"]);
            "release"
        }
    };
    cargo.args(features.iter().map(|feature| format!("--features=weir/{feature}")));
    process::run(&mut cargo)?;
    Ok(workspace::target_dir()?.join(dir).join("weir"))
}

/// Builds a program that xtask does part of its work with, `weir-NAME`, with the feature of that name; what it is to do has yet
/// to be said. It uses the tests' library, and xtask must build where nothing else can be built yet.
pub fn program(profile: Profile, name: &str, flags: &[&str]) -> Result<Command> {
    let bin = format!("weir-{name}");
    let mut cargo = workspace::cargo();
    cargo.arg("build").args(flags).args(["--locked", "--bin", &bin]);
    let dir = match profile {
        Profile::Debug => {
            cargo.args(["--workspace", &format!("--features=xtask/{name}")]);
            "debug"
        }
        Profile::Release => {
            cargo.args(["--package=xtask", &format!("--features={name}"), "--release"]);
            "release"
        }
    };
    process::run(&mut cargo)?;
    Ok(Command::new(workspace::target_dir()?.join(dir).join(bin)))
}
