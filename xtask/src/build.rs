//! `cargo xtask build`: the one binary.

use std::path::PathBuf;

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
    cargo.args(["build", "--locked", "--package", "weir", "--bin", "weir"]);
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    let dir = match profile {
        Profile::Debug => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    process::run(&mut cargo)?;
    Ok(workspace::target_dir()?.join(dir).join("weir"))
}
