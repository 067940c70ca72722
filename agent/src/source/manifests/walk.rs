//! The manifest files below a directory.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// How deep directories may nest. (Symlinks that lead back into the tree are found before.)
const DEEPEST: usize = 32;

/// What lies below a directory, in the order in which objects override one another: by path.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) files: Vec<PathBuf>,
    /// Directories that could not be read, and why.
    pub(super) unreadable: Vec<(PathBuf, String)>,
    /// Some file or directory is a link: what it leads to may change without a trace here.
    pub(super) has_links: bool,
}

/// All manifest files below the directory, sorted. Hidden files and directories are left out.
#[must_use]
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    walk(directory, &mut |_| {}).files
}

/// Calls `enter` with each directory before its entries are read (so that a watch on it misses nothing).
pub(super) fn walk(root: &Path, enter: &mut dyn FnMut(&Path)) -> Tree {
    let mut tree = Tree::default();
    let mut ancestors = HashSet::new();
    descend(root, enter, &mut ancestors, &mut tree);
    tree.files.sort_unstable();
    tree
}

fn descend(directory: &Path, enter: &mut dyn FnMut(&Path), ancestors: &mut HashSet<(u64, u64)>, tree: &mut Tree) {
    let fail = |error: &io::Error, tree: &mut Tree| {
        tree.unreadable.push((directory.to_owned(), error.to_string()));
    };
    let identity = match fs::metadata(directory) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) => return fail(&error, tree),
    };
    // A symlink to a directory above.
    if ancestors.contains(&identity) {
        return;
    }
    if ancestors.len() >= DEEPEST {
        return fail(&io::Error::other(format!("more than {DEEPEST} directories deep")), tree);
    }
    enter(directory);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return fail(&error, tree),
    };
    ancestors.insert(identity);
    for entry in entries.flatten() {
        let name = entry.file_name();
        if is_hidden(&name) {
            continue;
        }
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        tree.has_links |= kind.is_symlink();
        let is_directory = kind.is_dir() || (kind.is_symlink() && path.is_dir());
        if is_directory {
            descend(&path, enter, ancestors, tree);
        } else if is_manifest(&name) {
            tree.files.push(path);
        }
    }
    ancestors.remove(&identity);
}

/// Editors' swap files and the like, and the directories behind a ConfigMap volume's links.
pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

pub(super) fn is_manifest(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !is_hidden(name) && matches!(extension, Some("yaml" | "yml" | "json"))
}
