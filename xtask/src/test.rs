//! `cargo xtask test`: the tests of every crate, then the suites that need root and a kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _, pipe},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    setup::{self, Verb},
    workspace,
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Let the property tests take ten times as many cases
    #[arg(long)]
    thorough: bool,

    /// Run only the tests whose names contain one of these
    filters: Vec<String>,
}

/// The package of the suites that need root.
const SUITES: &str = "weir-tests";

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Test)?;

    // The upgrade test goes from one of these to the other. The same file name serves both builds, hence the copy.
    let other = build::weir(Profile::Debug, &["next-layout"])?;
    let next = other.with_file_name("weir-next-layout");
    fs::copy(&other, &next).with_context(|| format!("copying {} to {}", other.display(), next.display()))?;
    let weir = build::weir(Profile::Debug, &[])?;

    let mut closing = Vec::new();
    let crates = suite(
        &["--workspace", "--exclude", SUITES],
        arguments,
        &weir,
        &next,
        &mut closing,
    )?;
    let suites = suite(&["--package", SUITES], arguments, &weir, &next, &mut closing)?;

    println!("\n{}", closing.join("\n"));
    if !(crates && suites) {
        bail!("some tests failed");
    }
    Ok(())
}

/// Runs `cargo test` for some packages, shows what it prints, and keeps of it the lines that name each test program
/// and its result. Returns whether all of them passed.
fn suite(
    packages: &[&str],
    arguments: &Arguments,
    weir: &Path,
    next: &Path,
    closing: &mut Vec<String>,
) -> Result<bool> {
    let mut cargo = workspace::cargo();
    cargo
        .args(["test", "--locked", "--no-fail-fast"])
        .args(packages)
        .arg("--")
        .args(&arguments.filters);
    cargo.env("WEIR_BIN", weir).env("WEIR_NEXT_LAYOUT_BIN", next);
    if arguments.thorough {
        cargo.env("WEIR_THOROUGH", "1");
    }
    follow(cargo, |line| {
        let line = line.trim();
        if ["Running ", "Doc-tests ", "test result: "]
            .iter()
            .any(|start| line.starts_with(start))
        {
            closing.push(line.to_owned());
        }
    })
}

/// Runs a command, passing on what it writes, and shows each line to `look`. Both its streams share one pipe, so the
/// lines keep their order.
fn follow(mut command: Command, mut look: impl FnMut(&str)) -> Result<bool> {
    let (reader, writer) = pipe().context("making a pipe")?;
    command
        .stdout(writer.try_clone().context("making a pipe")?)
        .stderr(writer);
    let mut child = command.spawn().context("starting cargo test")?;
    // It holds the writing end too: the lines would never end.
    drop(command);

    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .context("reading the output of cargo test")?
        > 0
    {
        std::io::stdout().write_all(&line)?;
        look(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(child.wait().context("waiting for cargo test")?.success())
}
