//! What outlives the agent: versions in force, of kinds that may be there though they cannot be understood or read.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use crate::{
    api::{Object, ObjectKey, ObjectKind, Parser},
    source::{
        store::{Line, Store, Stored, Version},
        valid::{Good, understood},
    },
};

/// Stands for the API where the store of last valid versions names files.
const ORIGIN: &str = "kubernetes";

/// Kinds whose last valid versions outlive the agent: those that can be invalid though an API server took them, and
/// those without which less would be forbidden.
pub(super) const fn is_kept(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::Policy(_) | ObjectKind::Tier | ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet
    )
}

pub(super) struct Kept {
    store: Store,
    origin: Arc<Path>,
    /// What the last agent knew. Until all is known.
    stored: Stored,
    /// Kinds of which the last agent's versions were told, because they cannot be read.
    adopted: HashSet<ObjectKind>,
    /// Texts of versions in force, until the first snapshot.
    texts: HashMap<ObjectKey, Arc<str>>,
    /// A snapshot of the store is due: until then nothing is appended.
    unsaved: bool,
    lines: Vec<Line>,
}

impl Kept {
    pub(super) fn new(store: Store, stored: Stored) -> Self {
        Self {
            store,
            origin: Path::new(ORIGIN).into(),
            stored,
            adopted: HashSet::new(),
            texts: HashMap::new(),
            unsaved: true,
            lines: Vec::new(),
        }
    }

    // === The last agent's ===

    /// The version that the last agent had in force.
    pub(super) fn last(&self, parser: &mut Parser, key: &ObjectKey) -> Option<Good> {
        let (found, good) = understood(parser, self.stored.of_object(&self.origin, key)?)?;
        (found == *key).then_some(good)
    }

    /// What the last agent knew of kinds that cannot be read now, and so goes on.
    pub(super) fn adopt(&mut self, parser: &mut Parser, is_read: impl Fn(ObjectKind) -> bool) -> Vec<Object> {
        let texts = self.stored.of_file(&self.origin).into_iter();
        let adopted: Vec<(ObjectKey, Good)> = texts
            .filter_map(|text| understood(parser, text))
            .filter(|(key, _)| !is_read(key.kind))
            .collect();
        self.adopted = adopted.iter().map(|(key, _)| key.kind).collect();
        let mut objects = Vec::new();
        for (key, good) in adopted {
            tracing::warn!(object = %key, "cannot be read from the API: its last known version stays in force");
            objects.push(good.object.clone());
            let line = self.line(&key, &good.object, good.text);
            self.lines.push(line);
        }
        objects
    }

    /// The adopted kinds that were not added: once all that are served have been, there is nothing of them.
    pub(super) fn unserved(&mut self, is_added: impl Fn(ObjectKind) -> bool) -> Vec<ObjectKind> {
        let (added, gone): (HashSet<ObjectKind>, _) = self.adopted.iter().partition(|kind| is_added(**kind));
        self.adopted = added;
        gone.into_iter().collect()
    }

    pub(super) fn has_adopted(&self) -> bool {
        !self.adopted.is_empty()
    }

    /// All is known: nobody asks for what the last agent knew any more.
    pub(super) fn forget_last(&mut self) {
        self.stored = Stored::default();
    }

    // === For the next one ===

    /// A version came into force.
    pub(super) fn keep(&mut self, key: &ObjectKey, object: &Object, text: Option<Arc<str>>) {
        if !self.unsaved {
            let line = self.line(key, object, text);
            self.lines.push(line);
        } else if let Some(text) = text {
            self.texts.insert(key.clone(), text);
        }
    }

    /// An object is gone.
    pub(super) fn forget(&mut self, key: ObjectKey) {
        if !self.unsaved {
            self.lines.push(Line {
                file: self.origin.clone(),
                key,
                version: None,
            });
        }
    }

    /// Begins the store anew: with what was adopted, and with what is in force.
    pub(super) fn snapshot(&mut self, in_force: Vec<(ObjectKey, Object)>) {
        let mut texts = std::mem::take(&mut self.texts);
        let mut lines = std::mem::take(&mut self.lines);
        lines.extend(in_force.into_iter().map(|(key, object)| {
            let text = texts.remove(&key);
            self.line(&key, &object, text)
        }));
        self.store.snapshot(lines);
        self.unsaved = false;
    }

    /// Hands on what changed since.
    pub(super) fn write(&mut self) {
        if !self.unsaved {
            self.store.append(std::mem::take(&mut self.lines));
        }
    }

    fn line(&self, key: &ObjectKey, object: &Object, text: Option<Arc<str>>) -> Line {
        Line {
            file: self.origin.clone(),
            key: key.clone(),
            version: Some(Version {
                object: object.clone(),
                text,
            }),
        }
    }
}
