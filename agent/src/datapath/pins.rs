//! Names below the bpffs directory. Whatever is not named like this is not ours and is left alone.
//!
//! ```text
//! state-<layout>-<n>/<MAP>          maps that outlive generations (weir_common::layout::map::STATE)
//! gen-<layout>-<n>/<MAP>            maps of one generation (weir_common::layout::map::POLICY)
//! gen-<layout>-<n>/weir_from_pod    its programs
//! gen-<layout>-<n>/weir_to_pod
//! links/<ifindex>-from              TCX links of a pod's interface: what the pod sends,
//! links/<ifindex>-to                what it receives
//! qdiscs/<ifindex>/                 an empty directory: the clsact qdisc there was added by us
//! ```
//!
//! Several state directories exist only while maps of another layout or size are carried over, several generations
//! only until every link runs the newest.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use weir_common::Direction;

use super::error::{Error, Result};

#[derive(Clone, Debug)]
pub(super) struct Pins {
    pub root: PathBuf,
}

/// A numbered directory of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Numbered {
    pub number: u32,
    pub layout: u32,
    pub path: PathBuf,
}

/// What lies in the bpffs directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// By number, oldest first.
    pub states: Vec<Numbered>,
    /// By number, oldest first.
    pub generations: Vec<Numbered>,
    /// Not ours.
    pub unknown: Vec<PathBuf>,
}

/// A pinned link, as its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkPin {
    pub ifindex: u32,
    pub direction: Direction,
    pub path: PathBuf,
}

const LINKS: &str = "links";
const QDISCS: &str = "qdiscs";

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn state(&self, layout: u32, number: u32) -> PathBuf {
        self.root.join(format!("state-{layout}-{number}"))
    }

    pub(super) fn generation(&self, layout: u32, number: u32) -> PathBuf {
        self.root.join(format!("gen-{layout}-{number}"))
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    pub(super) fn link(&self, ifindex: u32, direction: Direction) -> PathBuf {
        let side = match direction {
            Direction::Egress => "from",
            Direction::Ingress => "to",
        };
        self.links().join(format!("{ifindex}-{side}"))
    }

    pub(super) fn qdiscs(&self) -> PathBuf {
        self.root.join(QDISCS)
    }

    pub(super) fn qdisc(&self, ifindex: u32) -> PathBuf {
        self.qdiscs().join(ifindex.to_string())
    }

    /// Sorts what is there into ours and not ours. A directory that does not exist is empty.
    pub(super) fn scan(&self) -> Result<Found> {
        let mut found = Found::default();
        for path in entries(&self.root)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let numbered = |prefix: &str| {
                let (layout, number) = name.strip_prefix(prefix)?.split_once('-')?;
                Some(Numbered {
                    number: number.parse().ok()?,
                    layout: layout.parse().ok()?,
                    path: path.clone(),
                })
            };
            if let Some(state) = numbered("state-") {
                found.states.push(state);
            } else if let Some(generation) = numbered("gen-") {
                found.generations.push(generation);
            } else if name != LINKS && name != QDISCS {
                found.unknown.push(path);
            }
        }
        found.states.sort();
        found.generations.sort();
        found.unknown.sort();
        Ok(found)
    }

    /// Pinned links by name. Names that are no link's are skipped.
    pub(super) fn link_pins(&self) -> Result<Vec<LinkPin>> {
        let parse = |path: PathBuf| {
            let (ifindex, side) = path.file_name()?.to_str()?.split_once('-')?;
            Some(LinkPin {
                ifindex: ifindex.parse().ok()?,
                direction: match side {
                    "from" => Direction::Egress,
                    "to" => Direction::Ingress,
                    _ => return None,
                },
                path,
            })
        };
        Ok(entries(&self.links())?.into_iter().filter_map(parse).collect())
    }

    /// Interfaces whose clsact qdisc was added by us.
    pub(super) fn qdisc_marks(&self) -> Result<Vec<u32>> {
        let parse = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
        Ok(entries(&self.qdiscs())?.into_iter().filter_map(parse).collect())
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::path(dir, "list the directory")(error)),
    };
    listing
        .map(|entry| Ok(entry.map_err(Error::path(dir, "list the directory"))?.path()))
        .collect()
}

/// Removes a file. True: it was there.
pub(super) fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::path(path, "remove the file")(error)),
    }
}

/// Removes a directory with the pins in it (bpffs directories of ours have no directories in them).
pub(super) fn remove_pins(dir: &Path) -> Result<()> {
    for path in entries(dir)? {
        remove_file(&path)?;
    }
    remove_empty(dir).map(drop)
}

/// Removes a directory if it is empty. True: it is gone.
pub(super) fn remove_empty(dir: &Path) -> Result<bool> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => Ok(false),
        Err(error) => Err(Error::path(dir, "remove the directory")(error)),
    }
}

/// Makes a directory and those above it.
pub(super) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::path(dir, "make the directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised_and_others_are_not_ours() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pins = Pins::new(dir.path());
        for path in [
            pins.state(1, 2),
            pins.generation(1, 10),
            pins.generation(7, 9),
            pins.links(),
            dir.path().join("gen-1"),
            dir.path().join("other"),
        ] {
            make_dir(&path).expect("a directory");
        }
        fs::write(pins.link(12, Direction::Egress), "").expect("a file");
        fs::write(pins.links().join("readme"), "").expect("a file");
        let found = pins.scan().expect("a listing");
        assert_eq!(
            found
                .generations
                .iter()
                .map(|g| (g.layout, g.number))
                .collect::<Vec<_>>(),
            [(7, 9), (1, 10)]
        );
        assert_eq!(found.states.len(), 1);
        assert_eq!(found.unknown, [dir.path().join("gen-1"), dir.path().join("other")]);
        let links = pins.link_pins().expect("links");
        assert_eq!(links.len(), 1);
        assert_eq!((links[0].ifindex, links[0].direction), (12, Direction::Egress));
    }
}
