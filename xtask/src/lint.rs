//! `cargo xtask lint`: everything that can be checked without running the code.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    cargo_tool, image, process,
    setup::{self, Verb},
    workspace,
};

#[derive(clap::Args)]
pub struct Arguments {}

/// How long fetching the advisory database may take before it counts as out of reach, in seconds.
const ADVISORIES_SECONDS: &str = "30";

pub fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Lint)?;
    // All of them run, so that one run shows everything that is to be done.
    let mut failed = Vec::new();
    let mut check = |name, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("lint: {name}: {error:#}");
            failed.push(name);
        }
    };
    check("formatting", formatting());
    check("spelling", spelling());
    check("dependencies", dependencies());
    check("advisories", advisories());
    check("clippy", clippy());
    check("clippy for eBPF", clippy_bpf());
    check("other platforms", image::check_others());
    if !failed.is_empty() {
        bail!("lint: {} failed", failed.join(", "));
    }
    println!("lint: ok");
    Ok(())
}

fn formatting() -> Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--check"]))
}

fn spelling() -> Result<()> {
    process::run(Command::new(cargo_tool::TYPOS.ensure()?).current_dir(workspace::root()))
}

fn dependencies() -> Result<()> {
    process::run(deny()?.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

/// Known vulnerabilities. Their database is a git repository that not every machine can reach.
fn advisories() -> Result<()> {
    let deny = cargo_tool::DENY.ensure()?;
    let mut fetch = Command::new("timeout");
    fetch
        .arg(ADVISORIES_SECONDS)
        .arg(deny)
        .args(["fetch", "db"])
        .current_dir(workspace::root());
    if process::output(&mut fetch).is_err() {
        eprintln!("lint: advisories: skipped, their database cannot be reached from here");
        return Ok(());
    }
    process::run(self::deny()?.args(["check", "--disable-fetch", "advisories"]))
}

fn deny() -> Result<Command> {
    let mut deny = Command::new(cargo_tool::DENY.ensure()?);
    deny.current_dir(workspace::root());
    Ok(deny)
}

fn clippy() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--features",
        "xtask/bench,xtask/cluster,xtask/demo,xtask/e2e,xtask/soak",
    ]);
    process::run(cargo.args(["--", "-Dwarnings"]))
}

fn clippy_bpf() -> Result<()> {
    let toolchain = setup::bpf_toolchain()?;
    let target_dir = workspace::target_dir()?.join("bpf");
    let mut clippy = toolchain.command("clippy", workspace::root(), &target_dir, std::env::consts::ARCH, &[]);
    process::run(clippy.args(["--", "-Dwarnings"]))
}
