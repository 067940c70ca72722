//! `cargo xtask test`: the tests of every crate, and the suites that need root and a kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _, pipe},
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

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Test)?;

    // The upgrade test goes from one of these to the other. Both builds leave the same file name, hence the copy.
    let other = build::weir(Profile::Debug, &["next-layout"])?;
    let next_layout = other.with_file_name("weir-next-layout");
    fs::copy(&other, &next_layout)
        .with_context(|| format!("copying {} to {}", other.display(), next_layout.display()))?;
    let weir = build::weir(Profile::Debug, &[])?;

    let mut cargo = workspace::cargo();
    cargo
        .args(["test", "--locked", "--workspace", "--features", "xtask/bench"])
        .args(["--no-fail-fast", "--"])
        .args(&arguments.filters);
    cargo.env("WEIR_BIN", weir).env("WEIR_NEXT_LAYOUT_BIN", next_layout);
    if arguments.thorough {
        cargo.env("WEIR_THOROUGH", "1");
    }
    // The lines that name each test program and its result, to be read together at the end.
    let mut closing = Vec::new();
    let passed = follow(cargo, |line| {
        let line = line.trim();
        let closes = ["Running ", "Doc-tests ", "test result: "]
            .iter()
            .any(|start| line.starts_with(start));
        if closes || (line.starts_with("test ") && line.ends_with(" FAILED")) {
            closing.push(line.to_owned());
        }
    })?;
    println!("\n{}", closing.join("\n"));
    if !passed {
        bail!("some tests failed");
    }
    Ok(())
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
