//! `cargo xtask image --verify`: two builds of one commit are one image, wherever they are made.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use weir_oci::Platform;

use super::binary;
use crate::{bpf, process, setup, workspace};

/// A part of every path that the builds use, by which such a path would be found in what they make.
const MARK: &str = "weir-image-verify";

/// One of the builds: where each thing is.
struct Build {
    checkout: PathBuf,
    /// None: cargo's default, in the checkout.
    target_dir: Option<PathBuf>,
    /// None: as around this program.
    cargo_home: Option<PathBuf>,
    archive: PathBuf,
}

/// Builds what is committed twice, in directories that have nothing in common, and compares. What was built stays if it
/// differs.
///
/// # Errors
/// If the images differ, or show where they were built.
pub fn run(platform: Platform) -> Result<()> {
    let commit = git(&["rev-parse", "HEAD"])?;
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        eprintln!("image: changes that are not committed are left out");
    }
    let scratch = workspace::target_dir()?.join(MARK);
    discard(&scratch)?;
    let cargo_home = scratch.join("of/cargo");
    borrow_cargo_home(&cargo_home)?;
    let builds = [
        Build {
            checkout: scratch.join("one"),
            target_dir: None,
            cargo_home: None,
            archive: scratch.join("one.tar"),
        },
        Build {
            checkout: scratch.join("in/quite/another/place"),
            target_dir: Some(scratch.join("elsewhere")),
            cargo_home: Some(cargo_home),
            archive: scratch.join("another.tar"),
        },
    ];
    let library = setup::bpf_toolchain()?.library();
    let mut digests = Vec::new();
    for build in &builds {
        let digest = build.make(&commit, platform)?;
        println!("{}: {digest}", build.checkout.display());
        digests.push(digest);
        let binary = read(&build.binary(platform))?;
        for place in [Path::new(MARK), &library] {
            ensure!(
                !contains(&binary, place.as_os_str().as_encoded_bytes()),
                "{} shows where it was built: it has the text {}",
                build.binary(platform).display(),
                place.display()
            );
        }
    }
    let [one, other] = &builds;
    if digests[0] != digests[1] || read(&one.archive)? != read(&other.archive)? {
        let (first, second) = (read(&one.binary(platform))?, read(&other.binary(platform))?);
        let at = first.iter().zip(&second).position(|(a, b)| a != b);
        bail!(
            "two builds of {commit} are not the same image. Of {} and {} ({} and {} bytes) the first difference is at {at:?}",
            one.binary(platform).display(),
            other.binary(platform).display(),
            first.len(),
            second.len()
        );
    }
    println!("two builds of {commit} are one image: {platform} {}", digests[0]);
    discard(&scratch)
}

impl Build {
    /// Checks the commit out, builds its image with its own xtask, and returns the digest.
    fn make(&self, commit: &str, platform: Platform) -> Result<String> {
        let Self {
            checkout,
            target_dir,
            cargo_home,
            archive,
        } = self;
        fs::create_dir_all(checkout).with_context(|| format!("making {}", checkout.display()))?;
        let mut sources = Command::new("git")
            .args(["archive", "--format=tar", commit])
            .current_dir(workspace::root())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting git")?;
        let pipe = sources.stdout.take().context("git has no output")?;
        process::run(Command::new("tar").arg("-x").arg("-C").arg(checkout).stdin(pipe))?;
        ensure!(sources.wait()?.success(), "git cannot give out the sources of {commit}");

        let mut cargo = workspace::cargo();
        cargo
            .current_dir(checkout)
            .args(["xtask", "image", "--platform", &platform.to_string(), "--output"])
            .arg(archive)
            .env_remove("CARGO_TARGET_DIR")
            .stderr(Stdio::inherit());
        if let Some(directory) = target_dir {
            cargo.env("CARGO_TARGET_DIR", directory);
        }
        if let Some(directory) = cargo_home {
            cargo.env("CARGO_HOME", directory);
        }
        let output = cargo.output().context("starting cargo")?;
        ensure!(output.status.success(), "the image of {commit} cannot be built");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let digest = said.split_whitespace().find(|word| word.starts_with("sha256:"));
        Ok(digest.context("`cargo xtask image` names no digest")?.to_owned())
    }

    fn binary(&self, platform: Platform) -> PathBuf {
        let target_dir = self.target_dir.clone().unwrap_or_else(|| self.checkout.join("target"));
        target_dir.join(binary::triple(platform)).join("release/weir")
    }
}

/// A copy of what cargo has downloaded already.
fn borrow_cargo_home(place: &Path) -> Result<()> {
    let own = bpf::cargo_home().context("HOME is not set, so cargo keeps nothing")?;
    let own = env::current_dir().context("the working directory")?.join(own);
    let registry = place.join("registry");
    fs::create_dir_all(&registry).with_context(|| format!("making {}", registry.display()))?;
    let copy = |options: &str, name: &str, to: &Path| {
        let mut cp = Command::new("cp");
        process::output(cp.arg(options).arg(own.join(name)).arg(to)).map(drop)
    };
    // Files that nobody writes to again: their names alone are needed twice.
    for name in ["registry/src", "registry/cache"] {
        if own.join(name).exists() && copy("-al", name, &registry).is_err() {
            copy("-a", name, &registry)?;
        }
    }
    for (name, to) in [
        ("registry/index", registry.as_path()),
        ("config.toml", place),
        ("config", place),
    ] {
        if own.join(name).exists() {
            copy("-a", name, to)?;
        }
    }
    Ok(())
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = process::output(Command::new("git").args(arguments).current_dir(workspace::root()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn contains(content: &[u8], text: &[u8]) -> bool {
    content.windows(text.len()).any(|window| window == text)
}

fn discard(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
}
