//! The Go compiler, which builds Kubernetes' own programs for the clusters that tests make.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{packages, process};

/// From this version on, Go fetches by itself the newer one that a module asks for.
const OLDEST: (u32, u32) = (1, 21);

const REMEDY: &str = "Kubernetes' programs are built with Go 1.21 or later (which fetches a newer one by itself where needed): install \
                      it from https://go.dev/dl/ to /usr/local/go, or the package golang-go of your distribution's \
                      backports";

/// Go's version, after it has been installed if it is missing and the distribution's is new enough.
pub fn ensure() -> Result<String> {
    let go = match find() {
        Some(go) => go,
        None => install()?,
    };
    let output = process::output(Command::new(&go).args(["env", "GOVERSION"]))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match parse(version.trim_start_matches("go")) {
        Some(found) if found >= OLDEST => Ok(format!("{version} ({})", go.display())),
        _ => bail!("{} is {version}, which is too old. {REMEDY}", go.display()),
    }
}

/// In PATH, or where Go's own archive is unpacked to.
fn find() -> Option<PathBuf> {
    process::find("go").or_else(|| {
        let home = env::var_os("GOROOT").map(PathBuf::from);
        [home, Some("/usr/local/go".into()), Some("/usr/lib/go".into())]
            .into_iter()
            .flatten()
            .map(|root| root.join("bin/go"))
            .find(|file| file.is_file())
    })
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
    if parse(version).is_none_or(|found| found < OLDEST) {
        bail!("there is no Go here, and the distribution's is {candidate}. {REMEDY}");
    }
    packages::install(&["golang-go"])?;
    find().context("golang-go is installed, but has no program go")
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn versions_of_go_and_of_its_packages_are_read() {
        assert_eq!(parse("1.26.8"), Some((1, 26)));
        assert_eq!(parse("1.21rc2"), Some((1, 21)));
        assert_eq!(parse("1.19~1"), Some((1, 19)));
        assert_eq!(parse("(none)"), None);
    }
}
