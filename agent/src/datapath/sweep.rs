//! The sweep of the connection table: expired entries are ended, live ones shown to whoever writes flow records, and
//! evictions found by counting.
//!
//! A [`Sweeper`] owns its maps' descriptors, so it can run in a thread of its own beside the control loop.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
};
use weir_common::{
    conntrack::{CtEntry, CtKey},
    counters::Tally,
    event::DenialEntry,
    fragment::{FragmentEntry, FragmentKey},
    layout::map,
};

use super::{
    Datapath, counters,
    error::{Error, Result},
    map_error,
    pins::{Numbered, Pins},
    shape::Shape,
    state, sys,
    sys::Batches,
    upgrade::Carried,
};

/// What sweeps and the executor tell each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Endpoints that are gone: their entries end with the next sweep, and their ids are free after it.
    retired: Mutex<HashSet<u32>>,
    /// Entries that came from other maps, not from programs: confirmed, unconfirmed.
    carried: [AtomicU64; 2],
    /// Live entries found by the last sweep: see [`SWEPT`].
    pub live: [AtomicU32; 4],
}

/// The maps that are swept, in the order of [`Shared::live`].
pub(super) const SWEPT: [&str; 4] = [map::CONNECTIONS, map::UNCONFIRMED, map::DENIALS, map::FRAGMENTS];

impl Shared {
    pub(super) fn retire(&self, ids: impl IntoIterator<Item = u32>) {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    pub(super) fn is_retired(&self, id: u32) -> bool {
        self.retired
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&id)
    }

    pub(super) fn carried(&self, counts: Carried) {
        for (sum, count) in self.carried.iter().zip(counts) {
            sum.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// What a sweep came across.
#[derive(Clone, Copy, Debug)]
pub enum Swept<'a> {
    Connection {
        key: &'a CtKey,
        entry: &'a CtEntry,
        /// Both sides have spoken.
        confirmed: bool,
        /// It timed out, or its endpoint is gone: it has been deleted.
        ended: bool,
    },
    Denial {
        key: &'a CtKey,
        entry: &'a DenialEntry,
        ended: bool,
    },
}

/// Totals of one sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Live entries.
    pub connections: u32,
    pub unconfirmed: u32,
    pub denials: u32,
    pub fragments: u32,
    /// Connections, confirmed or not, that this sweep ended.
    pub ended: u32,
    /// Since the sweeper was made: live entries that gave way to others because their map was full. Never too high; entries
    /// that are made or deleted during a sweep are counted by the next one.
    pub evicted_connections: u64,
    pub evicted_unconfirmed: u64,
}

pub struct Sweeper {
    connections: [Elements<CtKey, CtEntry>; 2],
    denials: Elements<CtKey, DenialEntry>,
    fragments: Elements<FragmentKey, FragmentEntry>,
    tallies: PerCpuArray<MapData, u64>,
    shared: Arc<Shared>,
    books: [Book; 2],
}

/// What went into one connection map and came out again, but for evictions.
#[derive(Clone, Copy, Debug, Default)]
struct Book {
    /// Entries in the map when the sweeper was made, minus the tallies then.
    opening: i64,
    deleted_by_sweeps: i64,
    evicted: u64,
}

const CONFIRMED: [bool; 2] = [true, false];
const INSERTED: [Tally; 2] = [Tally::Confirmed, Tally::Unconfirmed];
const DELETED: [Tally; 2] = [Tally::ConfirmedDeleted, Tally::UnconfirmedDeleted];

impl Datapath {
    /// A sweeper of the state maps in use. Make one, soon after the start: evictions are counted from then on.
    pub fn sweeper(&self) -> Result<Sweeper> {
        let open = |name| state::open(&self.state.current, &self.pins, &self.shapes, name);
        let mut sweeper = Sweeper {
            connections: [
                Elements::new(map::CONNECTIONS, open(map::CONNECTIONS)?)?,
                Elements::new(map::UNCONFIRMED, open(map::UNCONFIRMED)?)?,
            ],
            denials: Elements::new(map::DENIALS, open(map::DENIALS)?)?,
            fragments: Elements::new(map::FRAGMENTS, open(map::FRAGMENTS)?)?,
            tallies: counters::tallies(open(map::TALLIES)?)?,
            shared: Arc::clone(&self.shared),
            books: [Book::default(); 2],
        };
        sweeper.open_books()?;
        Ok(sweeper)
    }

    /// Shows every entry of the connection table, and whether it is confirmed, without changing it.
    pub fn connections(&self, mut visit: impl FnMut(&CtKey, &CtEntry, bool)) -> Result<()> {
        for (name, confirmed) in [(map::CONNECTIONS, true), (map::UNCONFIRMED, false)] {
            let map = state::open(&self.state.current, &self.pins, &self.shapes, name)?;
            each::<CtKey, CtEntry>(name, map.fd().as_fd(), |key, entry| {
                visit(&key, &entry, confirmed);
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Sweeper {
    fn open_books(&mut self) -> Result<()> {
        for which in 0..2 {
            let mut live = 0;
            self.connections[which].each(|_, _| {
                live += 1;
                Ok(())
            })?;
            let carried = self.shared.carried[which].load(Ordering::Relaxed) as i64;
            let balance = self.tally(INSERTED[which])? - self.tally(DELETED[which])? + carried;
            self.books[which].opening = live - balance;
            self.shared.live[which].store(u32::try_from(live).unwrap_or(0), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Events that did not fit into the ring buffer, since the maps were made.
    pub fn lost_events(&self) -> Result<u64> {
        counters::tally(&self.tallies, Tally::LostEvents)
    }

    fn tally(&self, tally: Tally) -> Result<i64> {
        counters::tally(&self.tallies, tally).map(|count| count as i64)
    }

    /// Ends what has expired at `now` ([`super::clock`]) and everything of endpoints that are gone; shows every entry
    /// to `visit`, those that it ends for the last time.
    ///
    /// An entry that a program renews in the moment of its deletion is put back.
    pub fn sweep(&mut self, now: u64, mut visit: impl FnMut(Swept<'_>)) -> Result<SweepReport> {
        let retired = self
            .shared
            .retired
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut report = SweepReport::default();
        for which in 0..2 {
            let (live, ended) = self.sweep_connections(which, now, &retired, &mut visit)?;
            report.ended += ended;
            match which {
                0 => report.connections = live,
                _ => report.unconfirmed = live,
            }
        }
        report.evicted_connections = self.books[0].evicted;
        report.evicted_unconfirmed = self.books[1].evicted;
        report.denials = self.sweep_denials(now, &retired, &mut visit)?;
        report.fragments = self.sweep_fragments(now, &retired)?;
        let counts = [report.connections, report.unconfirmed, report.denials, report.fragments];
        for (shared, count) in self.shared.live.iter().zip(counts) {
            shared.store(count, Ordering::Relaxed);
        }
        // Whatever these ids named is deleted, and nothing runs that could name them again.
        self.shared
            .retired
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|id| !retired.contains(id));
        Ok(report)
    }

    fn sweep_connections(
        &mut self,
        which: usize,
        now: u64,
        retired: &HashSet<u32>,
        visit: &mut impl FnMut(Swept<'_>),
    ) -> Result<(u32, u32)> {
        let confirmed = CONFIRMED[which];
        let (mut live, mut ended) = (0_u32, 0_u32);
        // Read before the run what raises the balance, and after it what lowers it: so evictions are never made up.
        let inserted = self.tally(INSERTED[which])?;
        let carried = self.shared.carried[which].load(Ordering::Relaxed) as i64;
        let gone =
            |key: &CtKey, entry: &CtEntry| entry.expired(key.protocol(), now) || retired.contains(&key.endpoint());
        let mut dead = Vec::new();
        self.connections[which].each(|key, entry| {
            if gone(&key, &entry) {
                dead.push(key);
            } else {
                live += 1;
                visit(Swept::Connection {
                    key: &key,
                    entry: &entry,
                    confirmed,
                    ended: false,
                });
            }
            Ok(())
        })?;
        let map = &mut self.connections[which];
        for key in &dead {
            let Some(entry) = map.take(key)? else { continue };
            let ended_now = gone(key, &entry);
            if ended_now {
                ended += 1;
                self.books[which].deleted_by_sweeps += 1;
            } else {
                live += 1;
                map.put_back(key, &entry)?;
            }
            visit(Swept::Connection {
                key,
                entry: &entry,
                confirmed,
                ended: ended_now,
            });
        }
        let deleted = self.tally(DELETED[which])?;
        let book = &mut self.books[which];
        let expected = book.opening + inserted + carried - deleted - book.deleted_by_sweeps;
        book.evicted = book.evicted.max(u64::try_from(expected - i64::from(live)).unwrap_or(0));
        Ok((live, ended))
    }

    fn sweep_denials(&mut self, now: u64, retired: &HashSet<u32>, visit: &mut impl FnMut(Swept<'_>)) -> Result<u32> {
        let gone = |key: &CtKey, entry: &DenialEntry| {
            now > DenialEntry::forgotten_at(entry.last, entry.cut) || retired.contains(&key.endpoint())
        };
        let (mut live, mut dead) = (0, Vec::new());
        self.denials.each(|key, entry| {
            if gone(&key, &entry) {
                dead.push(key);
            } else {
                live += 1;
                visit(Swept::Denial {
                    key: &key,
                    entry: &entry,
                    ended: false,
                });
            }
            Ok(())
        })?;
        for key in &dead {
            let Some(entry) = self.denials.take(key)? else { continue };
            let ended = gone(key, &entry);
            if !ended {
                live += 1;
                self.denials.put_back(key, &entry)?;
            }
            visit(Swept::Denial {
                key,
                entry: &entry,
                ended,
            });
        }
        Ok(live)
    }

    fn sweep_fragments(&mut self, now: u64, retired: &HashSet<u32>) -> Result<u32> {
        let (mut live, mut dead) = (0, Vec::new());
        self.fragments.each(|key, entry| {
            if now > entry.expires || retired.contains(&(key.endpoint_protocol >> 8)) {
                dead.push(key);
            } else {
                live += 1;
            }
            Ok(())
        })?;
        for key in &dead {
            let Some(entry) = self.fragments.take(key)? else {
                continue;
            };
            if now <= entry.expires && !retired.contains(&(key.endpoint_protocol >> 8)) {
                live += 1;
                self.fragments.put_back(key, &entry)?;
            }
        }
        Ok(live)
    }
}

/// What entries of the state maps still name.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Endpoint ids.
    pub ids: HashSet<u32>,
    pub last_trace: u32,
}

/// Reads which endpoints and traces the state maps name.
pub(super) fn remembered(state: &Numbered, pins: &Pins, shapes: &BTreeMap<String, Shape>) -> Result<Remembered> {
    let mut remembered = Remembered::default();
    let open = |name| state::open(state, pins, shapes, name);
    for name in [map::CONNECTIONS, map::UNCONFIRMED] {
        each::<CtKey, CtEntry>(name, open(name)?.fd().as_fd(), |key, entry| {
            remembered.ids.insert(key.endpoint());
            remembered.last_trace = remembered.last_trace.max(entry.decision.trace());
            Ok(())
        })?;
    }
    each::<CtKey, DenialEntry>(map::DENIALS, open(map::DENIALS)?.fd().as_fd(), |key, entry| {
        remembered.ids.insert(key.endpoint());
        remembered.last_trace = remembered.last_trace.max(entry.decision.trace());
        Ok(())
    })?;
    each::<FragmentKey, FragmentEntry>(map::FRAGMENTS, open(map::FRAGMENTS)?.fd().as_fd(), |key, _| {
        remembered.ids.insert(key.endpoint_protocol >> 8);
        Ok(())
    })?;
    Ok(remembered)
}

/// An LRU map that is swept.
struct Elements<K: Pod, V: Pod> {
    name: &'static str,
    fd: OwnedFd,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod + Default> Elements<K, V> {
    fn new(name: &'static str, map: MapData) -> Result<Self> {
        // aya's typed maps do not show their descriptors.
        let fd = map
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(map_error(name, "open the map"))?;
        let map = HashMap::try_from(Map::LruHashMap(map))
            .map_err(|error: MapError| Error::map(name, "open the map", 0, error))?;
        Ok(Self { name, fd, map })
    }

    fn each(&self, visit: impl FnMut(K, V) -> Result<()>) -> Result<()> {
        each(self.name, self.fd.as_fd(), visit)
    }

    fn take(&self, key: &K) -> Result<Option<V>> {
        sys::lookup_and_delete(self.fd.as_fd(), key).map_err(map_error(self.name, "delete an entry"))
    }

    /// What the programs have put there meanwhile is newer, and stays.
    fn put_back(&mut self, key: &K, value: &V) -> Result<()> {
        const BPF_NOEXIST: u64 = 1;
        match self.map.insert(key, value, BPF_NOEXIST) {
            Err(error) if super::table::errno(&error) != Some(libc::EEXIST) => {
                Err(Error::map(self.name, "put an entry back", 0, error))
            }
            _ => Ok(()),
        }
    }
}

/// Every element of a map whose key and value sizes have been checked.
fn each<K: Pod, V: Pod>(
    name: &'static str,
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(K, V) -> Result<()>,
) -> Result<()> {
    let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
    let mut batches = Batches::new(map, key_size, value_size);
    while let Some((keys, values)) = batches.next().map_err(map_error(name, "read the map"))? {
        for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)) {
            if let (Some(key), Some(value)) = (sys::read(key), sys::read(value)) {
                visit(key, value)?;
            }
        }
    }
    Ok(())
}
