//! Where things are, whatever directory and target directory cargo was told to use.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// The root of the workspace that this xtask belongs to.
pub fn root() -> &'static Path {
    const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");
    Path::new(MANIFEST).parent().unwrap_or(Path::new(MANIFEST))
}

/// Where cargo builds: `target`, or what CARGO_TARGET_DIR or a configuration file says. Cargo put this program into
/// `<target>/debug`.
pub fn target_dir() -> Result<PathBuf> {
    let xtask = env::current_exe().context("finding out where this program lies")?;
    let target = xtask
        .ancestors()
        .nth(2)
        .context("xtask does not lie in a cargo target directory")?;
    Ok(target.to_owned())
}

/// The cargo that runs this xtask, in the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(root());
    cargo
}
