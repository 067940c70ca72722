//! A kind's objects by name, as small as can be: there may be tens of thousands.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::{HashTable, hash_table};
use serde_json::Value;

use crate::{
    api::{Object, ObjectKey},
    source::valid::Good,
};

/// An object's namespace and name as the API knows it. The namespace is empty for a cluster-wide kind.
pub(super) type Name<'a> = (&'a str, &'a str);

#[derive(Default)]
pub(super) struct Entry {
    /// As in its metadata. 0: of unknown age.
    pub(super) version: u64,
    /// The number of the list that named it last.
    pub(super) listed: u32,
    /// It was told to the index.
    pub(super) told: bool,
    /// It has problems, or fields that are not known.
    pub(super) remarks: bool,
    /// All of the version in force was understood.
    valid: bool,
    /// The version in force. None: there never was one that could be.
    object: Option<Object>,
    /// Its name, where the object does not say it.
    name: Option<Box<Alias>>,
}

/// What the API says of an object that is known by another name, or that cannot be in force.
#[derive(Default)]
struct Alias {
    namespace: Box<str>,
    name: Box<str>,
    created: Box<str>,
    uid: Box<str>,
}

impl Entry {
    fn new((namespace, name): Name<'_>) -> Self {
        Self {
            name: Some(Box::new(Alias {
                namespace: namespace.into(),
                name: name.into(),
                ..Alias::default()
            })),
            ..Self::default()
        }
    }

    pub(super) fn name(&self) -> Name<'_> {
        match (&self.name, &self.object) {
            (Some(alias), _) => (&alias.namespace, &alias.name),
            (None, Some(object)) => object.name(),
            // Nothing has no name.
            (None, None) => ("", ""),
        }
    }

    pub(super) const fn object(&self) -> Option<&Object> {
        self.object.as_ref()
    }

    /// metadata.creationTimestamp, where it is known by another name than the API's.
    pub(super) fn created(&self) -> &str {
        self.name.as_ref().map_or("", |alias| &alias.created)
    }

    /// Its uid, where it is known by another name than the API's.
    pub(super) fn uid(&self) -> &str {
        self.name.as_ref().map_or("", |alias| &alias.uid)
    }

    /// Whether it is known by this name.
    pub(super) fn claims(&self, key: &ObjectKey) -> bool {
        let name = (key.namespace.as_deref().unwrap_or_default(), &*key.name);
        self.object.as_ref().is_some_and(|object| object.name() == name)
    }

    /// What the index calls it.
    pub(super) fn key(&self) -> Option<ObjectKey> {
        self.object.as_ref().map(Object::key)
    }

    /// The version in force, without its text.
    pub(super) fn good(&self) -> Option<Good> {
        self.object.clone().map(|object| Good {
            object,
            text: None,
            valid: self.valid,
        })
    }

    /// Another version comes into force. `value`: the last one that was told.
    pub(super) fn set(&mut self, good: Option<Good>, value: &Value) {
        let (namespace, name) = self.name();
        let said = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
        self.name = match &good {
            Some(good) if good.object.name() == (namespace, name) => None,
            _ => Some(Box::new(Alias {
                namespace: namespace.into(),
                name: name.into(),
                created: said("/metadata/creationTimestamp").into(),
                uid: said("/metadata/uid").into(),
            })),
        };
        self.valid = good.as_ref().is_some_and(|good| good.valid);
        self.object = good.map(|good| good.object);
    }
}

#[derive(Default)]
pub(super) struct Objects {
    table: HashTable<Entry>,
    hasher: RandomState,
}

impl Objects {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn get(&self, name: Name<'_>) -> Option<&Entry> {
        self.table
            .find(self.hasher.hash_one(name), |entry| entry.name() == name)
    }

    pub(super) fn get_mut(&mut self, name: Name<'_>) -> Option<&mut Entry> {
        self.table
            .find_mut(self.hasher.hash_one(name), |entry| entry.name() == name)
    }

    /// The entry of that name; a new one where there is none.
    pub(super) fn entry(&mut self, name: Name<'_>) -> &mut Entry {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(name);
        let entry = self.table.entry(
            hash,
            |entry| entry.name() == name,
            |entry| hasher.hash_one(entry.name()),
        );
        match entry {
            hash_table::Entry::Occupied(known) => known.into_mut(),
            hash_table::Entry::Vacant(vacant) => vacant.insert(Entry::new(name)).into_mut(),
        }
    }

    pub(super) fn remove(&mut self, name: Name<'_>) -> Option<Entry> {
        let hash = self.hasher.hash_one(name);
        let known = self.table.find_entry(hash, |entry| entry.name() == name).ok()?;
        Some(known.remove().0)
    }

    /// Takes out those of which `is_gone` says so.
    pub(super) fn extract(&mut self, mut is_gone: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        self.table.extract_if(|entry| is_gone(entry)).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.table.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.table.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_as_small_as_can_be() {
        assert_eq!(size_of::<Entry>(), 40);
    }
}
