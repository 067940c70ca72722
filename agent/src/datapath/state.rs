//! The maps that outlive generations: which directory of pins holds them, and what older directories there are to
//! carry entries over from.

use std::{collections::BTreeMap, os::fd::AsFd, path::PathBuf};

use aya::maps::MapData;
use tracing::info;
use weir_common::layout::{LAYOUT, map};

use super::{
    error::{Error, Result},
    options::Options,
    pins::{self, Found, Numbered, Pins},
    shape::{self, Shape},
    sys,
};

/// Where the state maps of the new generation are (or are to be made) and which older ones there are.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub current: Numbered,
    /// Oldest first.
    pub older: Vec<Numbered>,
}

/// Finds the state directory to use. Every map in it has been checked.
///
/// Maps of our layout and of the wanted sizes are used as they are. Where a size differs, a new directory is made in
/// which the fitting maps are pinned again, and the others will be made anew and filled from the old ones.
///
/// # Errors
/// [`Error::ForeignShape`] where a map of our layout number has another meaning.
pub(super) fn choose(
    pins: &Pins,
    found: &Found,
    shapes: &BTreeMap<String, Shape>,
    options: &Options,
) -> Result<Chosen> {
    let fresh = found.states.last().map_or(1, |state| state.number + 1);
    let fresh = Numbered {
        number: fresh,
        layout: LAYOUT,
        path: pins.state(LAYOUT, fresh),
    };
    let newest = found.states.iter().rfind(|state| state.layout == LAYOUT);
    let Some(newest) = newest.cloned() else {
        pins::make_dir(&fresh.path)?;
        return Ok(Chosen {
            current: fresh,
            older: found.states.clone(),
        });
    };
    let mut fitting = Vec::new();
    let mut resized = Vec::new();
    for name in map::STATE {
        let Some(expected) = shapes.get(name) else { continue };
        let path = newest.path.join(name);
        // A crash in the middle of making them leaves some out.
        if !path.exists() {
            continue;
        }
        let (map, shape) = shape::open(&path, &pins.root, expected)?;
        let wanted = options.entries(name).unwrap_or(expected.max_entries);
        // A ring buffer is read by the size that the kernel tells; an array of counters begins anew.
        if shape.max_entries == wanted || shape.is_ring_buffer() {
            fitting.push((name, map));
        } else {
            info!(
                map = name,
                from = shape.max_entries,
                to = wanted,
                "the map gets another size"
            );
            resized.push(name);
        }
    }
    if resized.is_empty() {
        let older = found.states.iter().filter(|state| **state != newest).cloned().collect();
        return Ok(Chosen { current: newest, older });
    }
    pins::make_dir(&fresh.path)?;
    for (name, map) in fitting {
        let path = fresh.path.join(name);
        sys::pin(map.fd().as_fd(), &path).map_err(Error::path(path, "pin the map again"))?;
    }
    Ok(Chosen {
        current: fresh,
        older: found.states.clone(),
    })
}

/// Opens one state map by name, its shape checked.
pub(super) fn open(dir: &Numbered, pins: &Pins, shapes: &BTreeMap<String, Shape>, name: &str) -> Result<MapData> {
    let path: PathBuf = dir.path.join(name);
    let expected = shapes.get(name).ok_or_else(|| Error::Object {
        detail: format!("it declares no map {name}"),
    })?;
    shape::open(&path, &pins.root, expected).map(|(map, _)| map)
}
