//! The programs under test.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, ensure};

/// The `weir` binary: the one that `cargo xtask` has just built (`WEIR_BIN`), else the one in the target directory.
///
/// # Errors
/// If there is none, with what builds it.
pub fn weir() -> Result<PathBuf> {
    find("WEIR_BIN", "weir")
}

/// The same with another layout of its pinned maps, for upgrades from one version to the next.
///
/// # Errors
/// If there is none, with what builds it.
pub fn weir_next_layout() -> Result<PathBuf> {
    find("WEIR_NEXT_LAYOUT_BIN", "weir-next-layout")
}

fn find(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{variable} names {}, which is no file", path.display());
        return Ok(path);
    }
    // Test programs lie in target/debug/deps, xtask in target/debug.
    let program = env::current_exe().context("find the running program")?;
    let found = program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside {}: `cargo xtask test` builds it", program.display()))
}
