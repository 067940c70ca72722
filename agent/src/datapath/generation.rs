//! A generation: the maps that a compiler fills, and the programs that read them. Built whole, replaced whole.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap},
    programs::{Program, ProgramError, SchedClassifier},
};
use weir_common::{
    Addr, Direction,
    endpoint::EndpointEntry,
    identity::{AddressEntry, IdentityEntry, SourceKey},
    layout::map,
    policy::{Decision, DecisionKey, Row, RowKey, SourceClass, SourcePortKey},
};

use super::{
    error::{Error, Result},
    links::DIRECTIONS,
    options::Options,
    pins::{self, Numbered},
    shape::Shape,
    sys,
    table::{Batched, Table},
    tc,
};

pub(super) struct Generation {
    pub pin: Numbered,
    pub maps: Maps,
    programs: [OwnedFd; 2],
    direct_until: Array<MapData, u64>,
}

/// The maps of one generation (`layout::map::POLICY`).
pub(super) struct Maps {
    pub endpoints: Table<HashMap<MapData, u32, EndpointEntry>>,
    pub addresses: Table<HashMap<MapData, Addr, AddressEntry>>,
    pub cidrs: Table<LpmTrie<MapData, Addr, AddressEntry>>,
    pub identities: Array<MapData, IdentityEntry>,
    pub identity_batches: Batched,
    /// One more than the highest identity that was written.
    pub identities_used: u32,
    pub rows: Table<HashMap<MapData, RowKey, Row>>,
    pub decisions: Table<HashMap<MapData, DecisionKey, Decision>>,
    pub source_ports: Table<LpmTrie<MapData, SourcePortKey, SourceClass>>,
    pub sources: Table<LpmTrie<MapData, SourceKey, u32>>,
    pub traces: Table<PerCpuHashMap<MapData, u32, u64>>,
}

impl Generation {
    /// Loads the object: new policy maps and programs, pinned under `pin`, that share the state maps pinned in
    /// `state` (which aya makes where they are missing; those that exist must have been checked). Nothing runs yet.
    ///
    /// On failure nothing of the new generation is left.
    pub(super) fn load(
        object: &[u8],
        options: &Options,
        shapes: &BTreeMap<String, Shape>,
        state: &Path,
        pin: Numbered,
    ) -> Result<Self> {
        pins::make_dir(&pin.path)?;
        let dir = pin.path.clone();
        Self::load_into(object, options, shapes, state, pin).inspect_err(|_| {
            // The error that made us give up says more than one of tidying up.
            let _ = pins::remove_pins(&dir);
        })
    }

    fn load_into(
        object: &[u8],
        options: &Options,
        shapes: &BTreeMap<String, Shape>,
        state: &Path,
        pin: Numbered,
    ) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for name in map::POLICY.into_iter().chain(map::STATE) {
            if !shapes.contains_key(name) {
                return Err(Error::Object {
                    detail: format!("it declares no map {name}"),
                });
            }
            let dir = if map::STATE.contains(&name) { state } else { &pin.path };
            loader.map_pin_path(name, dir.join(name));
            if let Some(entries) = options.entries(name) {
                loader.map_max_entries(name, entries);
            }
        }
        let mut ebpf = loader
            .load(object)
            .map_err(|error| Error::Load { detail: chain(&error) })?;
        let programs = programs(&mut ebpf, &pin.path)?;
        let maps = Maps::take(&mut ebpf, options)?;
        let (direct_until, _) = typed(&mut ebpf, map::DIRECT_UNTIL)?;
        Ok(Self {
            pin,
            maps,
            programs,
            direct_until,
        })
    }

    pub(super) fn program(&self, direction: Direction) -> BorrowedFd<'_> {
        self.programs[direction as usize].as_fd()
    }

    /// Says until when packets may be handed over directly (`CLOCK_MONOTONIC`, ns).
    pub(super) fn set_direct_until(&mut self, until: u64) -> Result<()> {
        self.direct_until
            .set(0, until, 0)
            .map_err(|error| Error::map(map::DIRECT_UNTIL, "write an entry", 1, error))
    }

    /// Where the generation is pinned.
    pub(super) fn dir(&self) -> &PathBuf {
        &self.pin.path
    }
}

/// Loads both programs, by direction, and pins them. Side by side: verifying one takes up to a second.
fn programs(ebpf: &mut Ebpf, dir: &Path) -> Result<[OwnedFd; 2]> {
    let mut found: BTreeMap<String, &mut Program> = ebpf
        .programs_mut()
        .map(|(name, program)| (name.to_owned(), program))
        .collect();
    let mut take = |direction| {
        let name = tc::program_name(direction);
        let program = found.remove(name).ok_or_else(|| Error::Object {
            detail: format!("it has no program {name}"),
        })?;
        <&mut SchedClassifier>::try_from(program).map_err(|error| Error::Object {
            detail: format!("{name}: {error}"),
        })
    };
    let [egress, ingress] = DIRECTIONS;
    let (from_pod, to_pod) = (take(egress)?, take(ingress)?);
    let (from_pod, to_pod) = thread::scope(|scope| {
        let from_pod = scope.spawn(|| load(from_pod, egress));
        let to_pod = load(to_pod, ingress);
        let from_pod = from_pod.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (from_pod, to_pod)
    });
    let programs = [from_pod?, to_pod?];
    for (direction, program) in DIRECTIONS.into_iter().zip(&programs) {
        let path = dir.join(tc::program_name(direction));
        sys::pin(program.as_fd(), &path).map_err(Error::path(path, "pin the program"))?;
    }
    Ok(programs)
}

fn load(program: &mut SchedClassifier, direction: Direction) -> Result<OwnedFd> {
    let name = tc::program_name(direction);
    let refused = |error: ProgramError| Error::Load {
        detail: format!("{name}: {}", chain(&error)),
    };
    program.load().map_err(refused)?;
    let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
    fd.map_err(|error| Error::Load {
        detail: format!("{name}: {error}"),
    })
}

/// An error with its causes; of a verifier's log (which may be megabytes) the end, where the reason stands.
fn chain(error: &dyn std::error::Error) -> String {
    const LONGEST: usize = 4096;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    match text.char_indices().rev().nth(LONGEST) {
        Some((start, _)) => format!("…{}", &text[start..]),
        None => text,
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf, options: &Options) -> Result<Self> {
        let (identities, identity_batches) = typed(ebpf, map::IDENTITIES)?;
        Ok(Self {
            endpoints: table(ebpf, options, map::ENDPOINTS)?,
            addresses: table(ebpf, options, map::ADDRESSES)?,
            cidrs: table(ebpf, options, map::CIDRS)?,
            identities,
            identity_batches,
            identities_used: 0,
            rows: table(ebpf, options, map::ROWS)?,
            decisions: table(ebpf, options, map::DECISIONS)?,
            source_ports: table(ebpf, options, map::SOURCE_PORTS)?,
            sources: table(ebpf, options, map::SOURCES)?,
            traces: table(ebpf, options, map::TRACES)?,
        })
    }
}

fn table<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    options: &Options,
    name: &'static str,
) -> Result<Table<M>> {
    let (map, batches) = typed(ebpf, name)?;
    Ok(Table {
        map,
        name,
        capacity: options.entries(name).unwrap_or_default(),
        entries: 0,
        batches,
    })
}

/// Takes a map out of the loaded object, its key and value sizes checked against the Rust types; with a descriptor of its
/// own for what aya does not offer.
fn typed<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<(M, Batched)> {
    let refused = |error: String| Error::Object {
        detail: format!("map {name}: {error}"),
    };
    let map = ebpf.take_map(name).ok_or_else(|| Error::Object {
        detail: format!("it declares no map {name}"),
    })?;
    let (Map::Array(data) | Map::HashMap(data) | Map::PerCpuHashMap(data) | Map::LpmTrie(data)) = &map else {
        return Err(refused("it is of a type that no policy map has".to_owned()));
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|error| refused(format!("its descriptor cannot be copied: {error}")))?;
    let map = M::try_from(map).map_err(|error| refused(error.to_string()))?;
    Ok((map, Batched::new(fd)))
}
