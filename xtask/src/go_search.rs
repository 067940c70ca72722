//! Where Go is. The tests' crate has this file as well: what setup finds there must be what builds Kubernetes' programs,
//! and xtask must build without that crate.

use std::{env, path::PathBuf};

/// The program `go`: in PATH, in GOROOT, or where Go's own archive and distributions put it.
pub fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let homes = [
        env::var_os("GOROOT").map(PathBuf::from),
        Some("/usr/local/go".into()),
        Some("/usr/lib/go".into()),
    ];
    env::split_paths(&path)
        .chain(homes.into_iter().flatten().map(|home| home.join("bin")))
        .map(|directory| directory.join("go"))
        .find(|file| file.is_file())
}
