//! What outlives the agent: versions in force, of kinds that may be there though they cannot be understood or read. Each
//! under the name that the API has for it, which stays when the one that it is known by changes.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use super::names::{Claim, owners};
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
/// those without which less would be forbidden, as where a rule denies by a service account's labels.
///
/// Not Services and EndpointSlices, though a rule may deny by them: they change with the pods behind them, which would be a
/// write that waits for the disk each time, on every node. Until they have been read such a rule matches nothing; they hold up
/// the first sync, but, where permission to read just them is missing, not for long. That is a problem that is told.
pub(super) const fn is_kept(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::Policy(_)
            | ObjectKind::Tier
            | ObjectKind::NetworkSet
            | ObjectKind::GlobalNetworkSet
            | ObjectKind::ServiceAccount
    )
}

pub(super) struct Kept {
    store: Store,
    origin: Arc<Path>,
    /// What the last agent knew. Until all is known.
    stored: Stored,
    /// Kinds of which the last agent's versions were told, because they cannot be read.
    adopted: HashSet<ObjectKind>,
    /// Objects of kinds that are read from another group now, which has not been listed yet.
    left: HashMap<ObjectKind, Vec<ObjectKey>>,
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
            left: HashMap::new(),
            texts: HashMap::new(),
            unsaved: true,
            lines: Vec::new(),
        }
    }

    // === The last agent's ===

    /// The version that the last agent had in force of what the API calls so.
    pub(super) fn last(&self, parser: &mut Parser, called: &ObjectKey) -> Option<Good> {
        let (found, good) = understood(parser, self.stored.of_object(&self.origin, called)?)?;
        ((found.kind, &found.namespace) == (called.kind, &called.namespace)).then_some(good)
    }

    /// What the last agent knew of kinds that cannot be read now, and so goes on.
    pub(super) fn adopt(&mut self, parser: &mut Parser, is_read: impl Fn(ObjectKind) -> bool) -> Vec<Object> {
        let texts = self.stored.of_file(&self.origin).into_iter();
        let adopted: Vec<(ObjectKey, Claim, Good)> = texts
            .filter_map(|text| {
                let (key, good) = understood(parser, text)?;
                let claim = Claim::of_text(text, &key)?;
                (!is_read(key.kind)).then_some((key, claim, good))
            })
            .collect();
        self.adopted = adopted.iter().map(|(key, ..)| key.kind).collect();
        let owners = owners(adopted.iter().map(|(key, claim, _)| (key.clone(), claim.clone())));
        let mut objects = Vec::new();
        for (key, claim, good) in adopted {
            if owners.get(&key) == Some(&claim) {
                tracing::warn!(object = %key, "cannot be read from the API: its last known version stays in force");
                objects.push(good.object.clone());
            }
            let called = ObjectKey {
                name: (*claim.name).into(),
                ..key
            };
            self.keep_now(&called, &good.object, good.text);
        }
        objects
    }

    /// The adopted kinds that were not added: once all that are served have been, there is nothing of them.
    pub(super) fn unserved(&mut self, is_added: impl Fn(ObjectKind) -> bool) -> Vec<ObjectKind> {
        let (added, gone): (HashSet<ObjectKind>, _) = self.adopted.iter().partition(|kind| is_added(**kind));
        self.adopted = added;
        gone.into_iter().collect()
    }

    /// Whether what was known of the kind before is in force, until it has been listed.
    pub(super) fn has_known(&self, kind: ObjectKind) -> bool {
        self.adopted.contains(&kind) || self.left.contains_key(&kind)
    }

    /// A kind has been listed: of that, nothing counts any more that is not there.
    pub(super) fn listed(&mut self, kind: ObjectKind, is_there: impl Fn(&ObjectKey) -> bool) {
        self.adopted.remove(&kind);
        for called in self.left.remove(&kind).unwrap_or_default() {
            if !is_there(&called) {
                self.forget(called);
            }
        }
    }

    /// Another group's objects are to come in the place of these, which are kept until it has been listed.
    pub(super) fn leave(&mut self, kind: ObjectKind, called: Vec<ObjectKey>) {
        self.left.entry(kind).or_default().extend(called);
    }

    /// All kinds that are watched have been listed. Then nobody asks for what the last agent knew any more, unless a kind
    /// of which it knew something is not watched yet.
    pub(super) fn all_listed(&mut self) {
        if self.adopted.is_empty() {
            self.stored = Stored::default();
        }
    }

    // === For the next one ===

    /// A version came into force of what the API calls so.
    pub(super) fn keep(&mut self, called: &ObjectKey, object: &Object, text: Option<Arc<str>>) {
        if !self.unsaved {
            self.keep_now(called, object, text);
        } else if let Some(text) = text {
            self.texts.insert(called.clone(), text);
        }
    }

    /// What the API calls so is gone.
    pub(super) fn forget(&mut self, called: ObjectKey) {
        if !self.unsaved {
            self.lines.push(Line {
                file: self.origin.clone(),
                key: called,
                version: None,
            });
        }
    }

    /// Begins the store anew: with what was adopted, and with what is in force.
    pub(super) fn snapshot(&mut self, in_force: Vec<(ObjectKey, Object)>) {
        let mut texts = std::mem::take(&mut self.texts);
        for (called, object) in in_force {
            let text = texts.remove(&called);
            self.keep_now(&called, &object, text);
        }
        self.store.snapshot(std::mem::take(&mut self.lines));
        self.unsaved = false;
    }

    /// Hands on what changed since.
    pub(super) fn write(&mut self) {
        if !self.unsaved {
            self.store.append(std::mem::take(&mut self.lines));
        }
    }

    fn keep_now(&mut self, called: &ObjectKey, object: &Object, text: Option<Arc<str>>) {
        self.lines.push(Line {
            file: self.origin.clone(),
            key: called.clone(),
            version: Some(Version {
                object: object.clone(),
                text,
            }),
        });
    }
}
