//! Carries connections over from state maps of another layout or size.
//!
//! The shapes of older layouts are frozen here, one module each, and converted field by field: what a field of the
//! current layout has no source for gets its default. A layout that is not known here is left alone: its connections
//! are adopted mid-flow instead (the adoption period covers the gap).

use std::{io, os::fd::AsFd, path::Path};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use tracing::{debug, warn};
use weir_common::{
    Addr,
    conntrack::{CtEntry, CtKey, CtSide},
    endpoint::EndpointEntry,
    layout::{LAYOUT, map},
    policy::Decision,
};

use super::{
    error::{Error, Result},
    inherit::OldEndpoint,
    pins::Numbered,
    sys::{self, Batches},
    table::errno,
};

const BPF_NOEXIST: u64 = 1;

/// How to read the maps of one layout.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    key_size: usize,
    connection_size: usize,
    connection: ReadConnection,
    endpoint_size: usize,
    endpoint: fn(&[u8]) -> Option<OldEndpoint>,
}

/// Key and value in, connection out. None: too short.
type ReadConnection = fn(&[u8], &[u8]) -> Option<(CtKey, CtEntry)>;

/// The reader of a layout. None: we do not know it.
pub(super) fn layout(number: u32) -> Option<Layout> {
    if number == LAYOUT {
        return Some(Layout {
            key_size: size_of::<CtKey>(),
            connection_size: size_of::<CtEntry>(),
            connection: |key, value| Some((sys::read(key)?, sys::read(value)?)),
            endpoint_size: size_of::<EndpointEntry>(),
            endpoint: |value| {
                let value: EndpointEntry = sys::read(value)?;
                Some(OldEndpoint {
                    id: value.id(),
                    epoch: value.epoch(),
                    ifindex: value.ifindex,
                    addr4: value.addr4,
                    addr6: value.addr6,
                    layer3: value.flags & EndpointEntry::LAYER3 != 0,
                })
            },
        });
    }
    (number == 1).then_some(v1::LAYOUT)
}

/// Reads the endpoint map of an old generation. None: its layout or its shape is not known.
pub(super) fn endpoints(generation: &Numbered) -> Result<Option<Vec<OldEndpoint>>> {
    let path = generation.path.join(map::ENDPOINTS);
    let Some(layout) = layout(generation.layout) else {
        return Ok(None);
    };
    let Some(map) = open(&path, size_of::<u32>(), layout.endpoint_size)? else {
        return Ok(None);
    };
    let mut found = Vec::new();
    let mut batches = Batches::new(map.fd().as_fd(), size_of::<u32>(), layout.endpoint_size);
    while let Some((_, values)) = batches.next().map_err(Error::path(&path, "read the map"))? {
        found.extend(values.chunks_exact(layout.endpoint_size).filter_map(layout.endpoint));
    }
    Ok(Some(found))
}

/// Number of entries that were carried over: confirmed, unconfirmed.
pub(super) type Carried = [u64; 2];

/// Copies what `old` knows of connections, and `current` does not, to `current`. Expired entries are left behind.
pub(super) fn carry_over(old: &Numbered, current: &Path) -> Result<Carried> {
    let Some(layout) = layout(old.layout) else {
        warn!(
            layout = old.layout,
            "connections of an unknown layout cannot be carried over; they are adopted mid-flow"
        );
        return Ok([0, 0]);
    };
    let mut carried = [0, 0];
    for (count, name) in carried.iter_mut().zip([map::CONNECTIONS, map::UNCONFIRMED]) {
        *count = carry_map(old, layout, current, name)?;
    }
    debug!(from = %old.path.display(), confirmed = carried[0], unconfirmed = carried[1], "carried connections over");
    Ok(carried)
}

fn carry_map(old: &Numbered, layout: Layout, current: &Path, name: &'static str) -> Result<u64> {
    let path = old.path.join(name);
    let Some(from) = open(&path, layout.key_size, layout.connection_size)? else {
        return Ok(0);
    };
    let path = current.join(name);
    let to = MapData::from_pin(&path).map_err(|error| Error::Path {
        path: path.clone(),
        action: "open the pinned map",
        source: io::Error::other(error),
    })?;
    let id = |map: &MapData| map.info().ok().map(|info| info.id());
    if id(&from) == id(&to) {
        return Ok(0);
    }
    let failed = |action, error| Error::map(name, action, 0, error);
    let mut to: HashMap<MapData, CtKey, CtEntry> = Map::LruHashMap(to)
        .try_into()
        .map_err(|error| failed("open the map", error))?;
    let now = sys::clock();
    let mut carried = 0;
    let mut batches = Batches::new(from.fd().as_fd(), layout.key_size, layout.connection_size);
    while let Some((keys, values)) = batches
        .next()
        .map_err(Error::path(old.path.join(name), "read the map"))?
    {
        let elements = keys
            .chunks_exact(layout.key_size)
            .zip(values.chunks_exact(layout.connection_size));
        for (key, entry) in elements.filter_map(|(key, value)| (layout.connection)(key, value)) {
            if entry.expired(key.protocol(), now) {
                continue;
            }
            match to.insert(key, entry, BPF_NOEXIST) {
                Ok(()) => carried += 1,
                Err(error) if errno(&error) == Some(libc::EEXIST) => {}
                Err(error) => return Err(failed("carry an entry over", error)),
            }
        }
    }
    Ok(carried)
}

/// Opens a pinned map whose key and value have these sizes. None: there is none, or it has other sizes.
fn open(path: &Path, key_size: usize, value_size: usize) -> Result<Option<MapData>> {
    if !path.exists() {
        return Ok(None);
    }
    let opened = MapData::from_pin(path).and_then(|map| map.info().map(|info| (map, info)));
    let (map, info) = opened.map_err(|error| Error::Path {
        path: path.to_owned(),
        action: "open the pinned map",
        source: io::Error::other(error),
    })?;
    if (info.key_size() as usize, info.value_size() as usize) == (key_size, value_size) {
        return Ok(Some(map));
    }
    warn!(path = %path.display(), "a pinned map of an unexpected shape is not read");
    Ok(None)
}

/// Layout 1.
mod v1 {
    use super::{Addr, CtEntry, CtKey, CtSide, Decision, Layout, OldEndpoint, Pod, sys};

    pub(super) const LAYOUT: Layout = Layout {
        key_size: size_of::<Key>(),
        connection_size: size_of::<Entry>(),
        connection,
        endpoint_size: size_of::<Endpoint>(),
        endpoint,
    };

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Key {
        endpoint_protocol: u32,
        local_port: u16,
        peer_port: u16,
        local: [u32; 4],
        peer: [u32; 4],
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Side {
        last_seen: u64,
        packets: u64,
        bytes: u64,
        flags: u32,
        pad: u32,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Entry {
        epoch: u32,
        decision: u32,
        created: u64,
        nat_addr: [u32; 4],
        nat_port: u16,
        flags: u16,
        opener_icmp: u16,
        pad: u16,
        sides: [Side; 2],
    }

    /// Of an endpoint's flags.
    const LAYER3: u32 = 128;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Endpoint {
        stamp: u64,
        adopt_until: u64,
        ifindex: u32,
        flags: u32,
        addr4: [u32; 4],
        addr6: [u32; 4],
        policies: [u32; 16],
        stamp_end: u64,
    }

    const _: () = assert!(size_of::<Key>() == 40 && size_of::<Entry>() == 104 && size_of::<Endpoint>() == 128);

    // SAFETY: repr(C), Copy, integers and arrays of integers only, without padding (the sizes are asserted).
    unsafe impl Pod for Key {}
    // SAFETY: as above.
    unsafe impl Pod for Entry {}
    // SAFETY: as above.
    unsafe impl Pod for Endpoint {}

    #[allow(
        clippy::needless_update,
        reason = "a later layout may have fields that this one lacks"
    )]
    fn connection(key: &[u8], value: &[u8]) -> Option<(CtKey, CtEntry)> {
        let key: Key = sys::read(key)?;
        let entry: Entry = sys::read(value)?;
        let side = |side: Side| CtSide {
            last_seen: side.last_seen,
            packets: side.packets,
            bytes: side.bytes,
            flags: side.flags,
            ..CtSide::default()
        };
        let key = CtKey {
            endpoint_protocol: key.endpoint_protocol,
            local_port: key.local_port,
            peer_port: key.peer_port,
            local: Addr(key.local),
            peer: Addr(key.peer),
            ..CtKey::default()
        };
        let entry = CtEntry {
            epoch: entry.epoch,
            decision: Decision(entry.decision),
            created: entry.created,
            nat_addr: Addr(entry.nat_addr),
            nat_port: entry.nat_port,
            flags: entry.flags,
            opener_icmp: entry.opener_icmp,
            sides: entry.sides.map(side),
            ..CtEntry::default()
        };
        Some((key, entry))
    }

    fn endpoint(value: &[u8]) -> Option<OldEndpoint> {
        let value: Endpoint = sys::read(value)?;
        Some(OldEndpoint {
            id: (value.stamp >> 32) as u32,
            epoch: value.stamp as u32,
            ifindex: value.ifindex,
            addr4: Addr(value.addr4),
            addr6: Addr(value.addr6),
            layer3: value.flags & LAYER3 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Little-endian bytes of a layout 1 element, written out by hand: this test must not share the frozen structs.
    #[cfg(target_endian = "little")]
    #[test]
    fn layout_1_is_read_field_by_field() {
        let layout = v1::LAYOUT;
        assert!(super::layout(1).is_some());
        let mut key = Vec::new();
        key.extend((7_u32 << 8 | 6).to_le_bytes());
        key.extend(80_u16.to_le_bytes());
        key.extend(40_000_u16.to_le_bytes());
        key.extend(std::net::Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped().octets());
        key.extend(std::net::Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped().octets());
        let mut value = Vec::new();
        value.extend(5_u32.to_le_bytes());
        value.extend(Decision::new(true, false, 3).0.to_le_bytes());
        value.extend(111_u64.to_le_bytes());
        value.extend([0; 16]);
        value.extend(0_u16.to_le_bytes());
        value.extend((CtEntry::OPENED_BY_PEER | CtEntry::REPORTED).to_le_bytes());
        value.extend(0_u32.to_le_bytes());
        for n in [1_u64, 2] {
            value.extend((100 * n).to_le_bytes());
            value.extend((10 * n).to_le_bytes());
            value.extend((1000 * n).to_le_bytes());
            value.extend((18_u32).to_le_bytes());
            value.extend(0_u32.to_le_bytes());
        }
        assert_eq!((key.len(), value.len()), (layout.key_size, layout.connection_size));
        let (key, entry) = (layout.connection)(&key, &value).expect("long enough");
        assert_eq!(
            (key.endpoint(), key.protocol(), key.local_port, key.peer_port),
            (7, 6, 80, 40_000)
        );
        assert_eq!(key.local.to_string(), "10.0.0.7");
        assert_eq!(key.peer.to_string(), "10.0.0.9");
        assert_eq!(
            (entry.epoch, entry.decision, entry.created),
            (5, Decision::new(true, false, 3), 111)
        );
        assert_eq!(entry.opener(), weir_common::Direction::Ingress);
        assert_eq!(
            (entry.sides[1].packets, entry.sides[1].bytes, entry.last_seen()),
            (20, 2000, 200)
        );
        assert_eq!(entry.sides[0].flags, 18);
    }

    #[test]
    fn a_layout_of_the_future_is_not_guessed_at() {
        assert!(layout(LAYOUT + 1).is_none());
    }
}
