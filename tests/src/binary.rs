//! The programs under test.

use std::{env, path::PathBuf};

/// The `weir` binary: the one that `cargo xtask test` has just built, else the one beside the test programs.
pub fn weir() -> PathBuf {
    find("WEIR_BIN", "weir")
}

/// The same with another layout of its pinned maps, for upgrades from one version to the next.
pub fn weir_next_layout() -> PathBuf {
    find("WEIR_NEXT_LAYOUT_BIN", "weir-next-layout")
}

fn find(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        return path.into();
    }
    // A test program lies in target/debug/deps.
    let test = env::current_exe().expect("a running program has a path");
    let path = test
        .ancestors()
        .nth(2)
        .expect("cargo puts test programs two levels down")
        .join(name);
    assert!(
        path.exists(),
        "{} does not exist; `cargo xtask test` builds it",
        path.display()
    );
    path
}
