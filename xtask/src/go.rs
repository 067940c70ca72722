//! The Go compiler, which builds Kubernetes' own programs for the clusters that tests make.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{go_search, machine, packages, process};

/// From this version on, Go fetches by itself the newer one that a module asks for.
const OLDEST: (u32, u32) = (1, 21);

const REMEDY: &str = "Kubernetes' programs are built with Go 1.21 or later (which fetches a newer one by itself where needed): install \
                      it from https://go.dev/dl/ to /usr/local/go, or the package golang-go of your distribution's \
                      backports";

/// Go's version, after it has been installed if it is missing and the distribution's is new enough.
pub fn ensure() -> Result<String> {
    let go = match go_search::find() {
        Some(go) => go,
        None => install()?,
    };
    let output = process::output(Command::new(&go).args(["env", "GOVERSION"]))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match machine::version(version.trim_start_matches("go")) {
        Some(found) if found >= OLDEST => Ok(format!("{version} ({})", go.display())),
        _ => bail!("{} is {version}, which is too old. {REMEDY}", go.display()),
    }
}

fn install() -> Result<PathBuf> {
    let policy = process::output(Command::new("apt-cache").args(["policy", "golang-go"])).context(REMEDY)?;
    let policy = String::from_utf8_lossy(&policy.stdout).into_owned();
    let candidate = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .unwrap_or("(none)");
    // Debian's have an epoch: 2:1.19~1
    let version = candidate.rsplit(':').next().unwrap_or_default();
    if machine::version(version).is_none_or(|found| found < OLDEST) {
        bail!("there is no Go here, and the distribution's is {candidate}. {REMEDY}");
    }
    packages::install(&["golang-go"])?;
    go_search::find().context("golang-go is installed, but has no program go")
}
