//! A hash map or trie of the kernel that knows how full it is.

use std::os::fd::{AsFd, OwnedFd};

use aya::{
    Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, lpm_trie::Key},
};

use super::{
    error::{Error, Result},
    sys::{self, Interrupted},
};

const BPF_NOEXIST: u64 = 1;

/// What hash maps, per-CPU hash maps and tries have in common.
pub(super) trait Elements<K, V>: TryFrom<Map, Error = MapError> {
    fn insert(&mut self, key: &K, value: &V, flags: u64) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: Pod, V: Pod> Elements<K, V> for HashMap<MapData, K, V> {
    fn insert(&mut self, key: &K, value: &V, flags: u64) -> Result<(), MapError> {
        Self::insert(self, key, value, flags)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        Self::remove(self, key)
    }
}

impl<K: Pod, V: Pod> Elements<K, PerCpuValues<V>> for PerCpuHashMap<MapData, K, V> {
    fn insert(&mut self, key: &K, value: &PerCpuValues<V>, flags: u64) -> Result<(), MapError> {
        let values = PerCpuValues::try_from(value.to_vec())?;
        Self::insert(self, key, values, flags)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        Self::remove(self, key)
    }
}

impl<K: Pod, V: Pod> Elements<Key<K>, V> for LpmTrie<MapData, K, V> {
    fn insert(&mut self, key: &Key<K>, value: &V, flags: u64) -> Result<(), MapError> {
        Self::insert(self, key, value, flags)
    }

    fn remove(&mut self, key: &Key<K>) -> Result<(), MapError> {
        Self::remove(self, key)
    }
}

pub(super) struct Table<M> {
    pub map: M,
    pub name: &'static str,
    pub capacity: u32,
    /// Elements that are in it: we are its only writer.
    pub entries: u32,
    pub batches: Batched,
}

/// A map that takes many operations in one call, until the kernel says that it does not.
pub(super) struct Batched {
    fd: OwnedFd,
    refused: bool,
}

/// What the kernel says where it has no batches for a type of map (not a number that user space knows by name).
const ENOTSUPP: i32 = 524;

impl Batched {
    pub(super) const fn new(fd: OwnedFd) -> Self {
        Self { fd, refused: false }
    }

    /// Writes elements; returns how many were written before the kernel refused one (which is to be tried by itself).
    pub(super) fn put<K: Pod, V: Pod>(&mut self, keys: &[K], values: &[V], per_key: usize) -> usize {
        if self.refused {
            return 0;
        }
        let result = sys::update_batch(self.fd.as_fd(), keys, values, per_key);
        self.done(result, keys.len())
    }

    /// As [`Batched::put`], for deletions.
    pub(super) fn delete<K: Pod>(&mut self, keys: &[K]) -> usize {
        if self.refused {
            return 0;
        }
        let result = sys::delete_batch(self.fd.as_fd(), keys);
        self.done(result, keys.len())
    }

    fn done(&mut self, result: std::result::Result<(), Interrupted>, count: usize) -> usize {
        let Err(Interrupted { done, error }) = result else {
            return count;
        };
        let unknown = matches!(
            error.raw_os_error(),
            Some(libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP | ENOTSUPP)
        );
        self.refused = done == 0 && unknown;
        done
    }
}

impl<M> Table<M> {
    pub(super) fn put<K, V>(&mut self, key: &K, value: &V) -> Result<()>
    where
        M: Elements<K, V>,
    {
        match self.map.insert(key, value, BPF_NOEXIST) {
            Ok(()) => {
                self.entries += 1;
                Ok(())
            }
            Err(error) if errno(&error) == Some(libc::EEXIST) => self
                .map
                .insert(key, value, 0)
                .map_err(|error| Error::map(self.name, "replace an entry", self.capacity, error)),
            Err(error) => Err(Error::map(self.name, "add an entry", self.capacity, error)),
        }
    }

    /// Adds elements under keys that are new; returns how many it did, from the first on.
    pub(super) fn add_all<K: Pod, V: Pod>(&mut self, keys: &[K], values: &[V], per_key: usize) -> usize {
        let done = self.batches.put(keys, values, per_key);
        self.entries = self.entries.saturating_add(done as u32);
        done
    }

    /// Deletes elements up to one that is not there; returns how many it did.
    pub(super) fn delete_all<K: Pod>(&mut self, keys: &[K]) -> usize {
        let done = self.batches.delete(keys);
        self.entries = self.entries.saturating_sub(done as u32);
        done
    }

    /// What is not there is deleted already.
    pub(super) fn delete<K, V>(&mut self, key: &K) -> Result<()>
    where
        M: Elements<K, V>,
    {
        match self.map.remove(key) {
            Ok(()) => {
                self.entries = self.entries.saturating_sub(1);
                Ok(())
            }
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(Error::map(self.name, "delete an entry", self.capacity, error)),
        }
    }
}

pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// Bytes of kernel memory that a map takes (`memlock` in its fdinfo). None: this kernel does not tell.
pub(super) fn memory(map: impl AsFd) -> Option<u64> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}
