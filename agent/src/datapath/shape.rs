//! Shapes of maps: what the object declares against what is pinned. aya opens whatever has the right name.

use std::{collections::BTreeMap, path::Path};

use aya::maps::{MapData, MapInfo};
use aya_obj::{Object, generated::bpf_map_type};

use super::error::{Error, Result};

/// What decides how a map's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub flags: u32,
    /// Not part of the meaning: a map of another size is replaced, not refused.
    pub max_entries: u32,
}

impl Shape {
    /// The bytes mean the same, whatever the number of entries.
    pub(super) fn reads_like(&self, other: &Self) -> bool {
        Self {
            max_entries: 0,
            ..*self
        } == Self {
            max_entries: 0,
            ..*other
        }
    }

    pub(super) fn is_ring_buffer(&self) -> bool {
        self.kind() == bpf_map_type::BPF_MAP_TYPE_RINGBUF
    }

    fn kind(&self) -> bpf_map_type {
        bpf_map_type::try_from(self.map_type).unwrap_or(bpf_map_type::BPF_MAP_TYPE_UNSPEC)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = format!("{:?}", self.kind());
        write!(
            f,
            "type {}, keys of {} bytes, values of {} bytes, flags {:#x}",
            kind.trim_start_matches("BPF_MAP_TYPE_").to_ascii_lowercase(),
            self.key_size,
            self.value_size,
            self.flags
        )
    }
}

impl From<&MapInfo> for Shape {
    fn from(info: &MapInfo) -> Self {
        Self {
            map_type: info.map_type().map_or(0, |map_type| map_type as u32),
            key_size: info.key_size(),
            value_size: info.value_size(),
            flags: info.map_flags(),
            max_entries: info.max_entries(),
        }
    }
}

/// Shapes of all maps of an object, as it declares them.
pub(super) fn declared(object: &[u8]) -> Result<BTreeMap<String, Shape>> {
    let object = Object::parse(object).map_err(|error| Error::Object {
        detail: error.to_string(),
    })?;
    let shape = |map: &aya_obj::Map| Shape {
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        flags: map.map_flags(),
        max_entries: map.max_entries(),
    };
    Ok(object
        .maps
        .iter()
        .map(|(name, map)| (name.clone(), shape(map)))
        .collect())
}

/// Opens a pinned map if its bytes read as `expected` says; the shape that is returned has its true size.
pub(super) fn open(path: &Path, root: &Path, expected: &Shape) -> Result<(MapData, Shape)> {
    let map = MapData::from_pin(path).map_err(|error| Error::Path {
        path: path.to_owned(),
        action: "open the pinned map",
        source: std::io::Error::other(error),
    })?;
    let info = map.info().map_err(|error| Error::Path {
        path: path.to_owned(),
        action: "ask for the map's shape",
        source: std::io::Error::other(error),
    })?;
    let found = Shape::from(&info);
    if found.reads_like(expected) {
        Ok((map, found))
    } else {
        Err(Error::ForeignShape {
            path: path.to_owned(),
            root: root.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        })
    }
}
