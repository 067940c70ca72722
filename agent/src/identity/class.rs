//! Classes: identities of one family that no live table tells apart.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::policy::model::{Family, NamedPort};

/// What makes a class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClassKey {
    pub family: Family,
    /// The live matches, sorted, that match it and not the world (addresses of nobody outside of all CIDRs), or the
    /// world and not it.
    pub signature: Box<[u32]>,
    /// Its ports of names that live tables ask of peers, sorted.
    pub ports: Arc<[NamedPort]>,
}

#[derive(Debug)]
pub struct Class {
    pub key: ClassKey,
    /// Identities.
    pub(super) members: FxHashSet<u32>,
    /// Found by its key.
    pub(super) keyed: bool,
}

impl Class {
    /// Identities in it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.members.len()
    }
}

/// Classes by id and by what makes them.
#[derive(Debug)]
pub struct Classes {
    classes: FxHashMap<u32, Class>,
    ids: FxHashMap<ClassKey, u32>,
    next: u32,
    no_ports: Arc<[NamedPort]>,
}

impl Classes {
    pub(super) fn new() -> Self {
        Self {
            classes: FxHashMap::default(),
            ids: FxHashMap::default(),
            // 0 is the class of nothing (weir_common::identity::CLASS_UNKNOWN).
            next: 1,
            no_ports: Arc::new([]),
        }
    }

    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Class> {
        self.classes.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Class)> {
        self.classes.iter().map(|(&id, class)| (id, class))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// An id that no class has had.
    pub fn fresh_id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// The id that the next new class gets.
    pub(super) const fn next_id(&self) -> u32 {
        self.next
    }

    pub(super) fn no_ports(&self) -> Arc<[NamedPort]> {
        self.no_ports.clone()
    }

    pub(super) fn find(&self, key: &ClassKey) -> Option<u32> {
        self.ids.get(key).copied()
    }

    pub(super) fn create(&mut self, key: ClassKey) -> u32 {
        let id = self.fresh_id();
        self.ids.insert(key.clone(), id);
        self.classes.insert(
            id,
            Class {
                key,
                members: FxHashSet::default(),
                keyed: true,
            },
        );
        id
    }

    /// Makes the same class be found by another key.
    pub(super) fn rekey(&mut self, id: u32, key: ClassKey) {
        self.unkey(id);
        if let Some(class) = self.classes.get_mut(&id) {
            self.ids.insert(key.clone(), id);
            class.key = key;
            class.keyed = true;
        }
    }

    /// Nobody gets into this class any more.
    pub(super) fn unkey(&mut self, id: u32) {
        if let Some(class) = self.classes.get_mut(&id).filter(|class| class.keyed) {
            self.ids.remove(&class.key);
            class.keyed = false;
        }
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Class> {
        self.classes.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Class> {
        self.unkey(id);
        self.classes.remove(&id)
    }
}
