//! `cargo xtask fuzz`: whatever comes from outside, in ways that nobody thought of.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo_tool, process,
    setup::{self, Verb},
    workspace,
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Fuzz only this target: a file of tests/fuzz/fuzz_targets
    target: Option<String>,
    /// How long each target runs, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

/// What a run may take: an input that needs more is a finding too.
const MEMORY_MB: &str = "2048";

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Build)?;
    let tool = cargo_tool::FUZZ.ensure()?;
    let targets = targets(&workspace::root().join("tests/fuzz/fuzz_targets"))?;
    if let Some(target) = &arguments.target {
        ensure!(
            targets.contains(target),
            "there is no target {target}; there are {}",
            targets.join(", ")
        );
    }
    let wanted = |name: &&String| arguments.target.as_ref().is_none_or(|target| target == *name);
    for target in targets.iter().filter(wanted) {
        let mut fuzz = Command::new(&tool);
        fuzz.current_dir(workspace::root())
            // Nothing here is unsafe code, and without a sanitizer the stable compiler will do.
            .args([
                "fuzz",
                "run",
                "--fuzz-dir",
                "tests/fuzz",
                "--sanitizer",
                "none",
                target,
                "--",
            ])
            .arg(format!("-max_total_time={}", arguments.seconds))
            .arg(format!("-rss_limit_mb={MEMORY_MB}"));
        process::run(&mut fuzz).with_context(|| {
            format!("{target}: the input lies in tests/fuzz/artifacts/{target}; it belongs into a unit test")
        })?;
    }
    Ok(())
}

/// Every file of a directory is a target.
fn targets(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(name) = path
            .file_stem()
            .filter(|_| path.extension().is_some_and(|end| end == "rs"))
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
