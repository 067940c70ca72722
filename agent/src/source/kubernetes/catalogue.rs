//! The objects that the API has told, and which version of each is in force.
//!
//! Versions come from three sides: the watch, lists, and reads of single objects. Each can be late. So a version is taken
//! only if it is newer than the one known, and what is gone stays gone:
//!
//! - of each object the version known is kept; an older one changes nothing,
//! - of each kind the version of the last list (`floor`): what is older than that, and not in the list, is gone,
//! - of each kind how far the watch has come (`delivered`): an object read by itself that is older than that, and not
//!   known, has been deleted since.
//!
//! | file | what |
//! |---|---|
//! | `objects` | a kind's objects by name |
//! | `names` | whose a name is that several objects claim |
//! | `kept` | what outlives the agent |
//! | `remarks` | what is wrong with objects |

mod kept;
mod names;
mod objects;
mod remarks;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

pub use self::remarks::ObjectProblems;
use self::{
    kept::{Kept, is_kept},
    names::can_be_renamed,
    objects::{Entry, Name, Objects},
    remarks::Remarks,
};
use super::{version::number, watch::version_of};
use crate::{
    api::{ApiKind, Object, ObjectKey, ObjectKind, Outcome, Parser, Severity},
    source::{
        SourceEvent,
        store::{Store, Stored},
        valid::choose,
    },
};

struct Listing {
    number: u32,
    /// The kind's `floor` when the list began: what another list has told since may be newer than this one.
    floor: u64,
    /// The kind's `delivered` when the list began.
    delivered: u64,
    /// Objects (namespace, name) that the list has in a version older than the one known. Few, if any.
    older: BTreeSet<(Box<str>, Box<str>)>,
}

struct Kind {
    api: ApiKind,
    objects: Objects,
    floor: u64,
    delivered: u64,
    /// Listed once, whole. Before that nothing is told of it.
    synced: bool,
    /// The list that is being taken in.
    listing: Option<Listing>,
    lists: u32,
}

impl Kind {
    fn begin(&mut self) -> Listing {
        self.lists += 1;
        Listing {
            number: self.lists,
            floor: self.floor,
            delivered: self.delivered,
            older: BTreeSet::new(),
        }
    }

    /// Whatever is told next is newer than what is known.
    fn forget_versions(&mut self) {
        self.floor = 0;
        self.delivered = 0;
        for entry in self.objects.iter_mut() {
            entry.version = 0;
        }
    }
}

pub(super) struct Catalogue {
    parser: Parser,
    kinds: BTreeMap<&'static str, Kind>,
    kept: Kept,
    remarks: Remarks,
    events: Vec<SourceEvent>,
    /// Everything is told with one Reset.
    started: bool,
}

/// The name by which a kind is known here: `networkpolicies.networking.k8s.io`.
pub(super) fn kind_name(api: &ApiKind) -> String {
    if api.group.is_empty() {
        api.plural.to_owned()
    } else {
        format!("{}.{}", api.plural, api.group)
    }
}

impl Catalogue {
    pub(super) fn new(store: Store, stored: Stored) -> Self {
        Self {
            parser: Parser::of_validated(),
            kinds: BTreeMap::new(),
            kept: Kept::new(store, stored),
            remarks: Remarks::default(),
            events: Vec::new(),
            started: false,
        }
    }

    /// Begins to know a kind: nothing of it is known yet.
    pub(super) fn add(&mut self, slot: &'static str, api: ApiKind) {
        self.kinds.entry(slot).or_insert_with(|| Kind {
            api,
            objects: Objects::default(),
            floor: 0,
            delivered: 0,
            synced: false,
            listing: None,
            lists: 0,
        });
    }

    /// The kind is not served any more, and so none of its objects is there; unless it is `succeeded` by one whose first list
    /// says what is in force instead of them.
    pub(super) fn remove(&mut self, slot: &'static str, succeeded: bool) {
        let Some(kind) = self.kinds.remove(slot) else { return };
        if succeeded {
            for entry in kind.objects.iter() {
                self.events.extend(self.remarks.forget(&kind.api, entry));
            }
            // Of what has not been listed whole the last agent's versions are in force still.
            if kind.synced {
                let known = kind.objects.iter().map(|entry| called(&kind.api, entry.name()));
                self.kept.leave(kind.api.object, known.collect());
            }
            return;
        }
        for entry in kind.objects.iter() {
            self.forget(&kind.api, entry);
        }
        self.kept.listed(kind.api.object, |_| false);
        if self.started {
            self.events.push(SourceEvent::ResetKinds {
                kinds: vec![kind.api.object],
                objects: Vec::new(),
            });
        }
    }

    pub(super) fn is_synced(&self, slot: &str) -> bool {
        self.kinds.get(slot).is_some_and(|kind| kind.synced)
    }

    pub(super) fn len(&self, slot: &str) -> usize {
        self.kinds.get(slot).map_or(0, |kind| kind.objects.len())
    }

    /// The names of a kind's objects.
    pub(super) fn names(&self, slot: &str) -> impl Iterator<Item = &str> {
        let kind = self.kinds.get(slot).into_iter();
        kind.flat_map(|kind| kind.objects.iter().map(|entry| entry.name().1))
    }

    /// Up to which version everything of the kind has been told.
    pub(super) fn delivered(&self, slot: &str) -> u64 {
        self.kinds.get(slot).map_or(0, |kind| kind.delivered)
    }

    // === Lists ===

    pub(super) fn begin(&mut self, slot: &str) {
        if let Some(kind) = self.kinds.get_mut(slot) {
            kind.listing = Some(kind.begin());
        }
    }

    /// An object of the list that was begun.
    pub(super) fn item(&mut self, slot: &str, value: &Value) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        let Some(listing) = &mut kind.listing else { return };
        let Some(name) = name(value) else { return };
        let version = number(version_of(value));
        // Told to be gone since this list began.
        let overtaken = listing.floor < kind.floor && version <= kind.floor;
        match kind.objects.get_mut(name) {
            Some(entry) => {
                entry.listed = entry.listed.max(listing.number);
                if entry.version > version && version != 0 {
                    listing.older.insert((name.0.into(), name.1.into()));
                    return;
                }
                // A list that comes as a stream may begin with an earlier state.
                if !listing.older.is_empty() {
                    listing.older.remove(&(name.0.into(), name.1.into()));
                }
                if entry.version == version && version != 0 {
                    return;
                }
            }
            None if overtaken && version != 0 => return,
            None => {}
        }
        let list = listing.number;
        // Told when the list is over.
        self.put(slot, name, value, list);
    }

    /// The list that was begun is over: what it did not name is gone. False: it contradicts what was known, and so nothing
    /// follows from it; the kind must be listed again, which will be believed whatever it says.
    ///
    /// The store behind the API was put back to an earlier state then. Either the list is older than what was known when it was
    /// asked for; or, where versions were made to go on after those given out before (`etcdutl snapshot restore
    /// --bump-revision`), it has an object in an older version than one that is known, which is not newer than the list.
    pub(super) fn listed(&mut self, slot: &str, version: u64) -> bool {
        let Some(kind) = self.kinds.get_mut(slot) else {
            return true;
        };
        let Some(list) = kind.listing.take() else { return true };
        let mut older = list
            .older
            .iter()
            .filter_map(|(namespace, name)| kind.objects.get((namespace, name)));
        if version < list.delivered || older.any(|entry| entry.version <= version) {
            kind.forget_versions();
            return false;
        }
        self.merge(slot, version, list.number);
        true
    }

    /// Takes in a list that came beside the watch, whole.
    pub(super) fn listed_beside(&mut self, slot: &str, items: &[Value], version: u64) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        if version < kind.floor {
            return;
        }
        // As in `listed`.
        let contradicts = |item: &Value| {
            let known = name(item).and_then(|name| kind.objects.get(name));
            known
                .is_some_and(|entry| entry.version <= version && (1..entry.version).contains(&number(version_of(item))))
        };
        if items.iter().any(contradicts) {
            kind.forget_versions();
        }
        let own = kind.begin();
        let number = own.number;
        let listing = kind.listing.replace(own);
        for item in items {
            self.item(slot, item);
        }
        if let Some(kind) = self.kinds.get_mut(slot) {
            kind.listing = listing;
        }
        self.merge(slot, version, number);
    }

    /// Takes in what was read beside the watch: all that happened after a version that the watch had come to by then, what
    /// changed and what is gone (true), until this version. The watch may tell all of it once more.
    pub(super) fn caught_up(&mut self, slot: &str, told: &[(bool, Value)], version: u64) {
        // The watch has told more meanwhile: a change before that would bring back what is gone since.
        let known = self.delivered(slot);
        for (gone, value) in told {
            if (1..=known).contains(&number(version_of(value))) {
                continue;
            }
            if *gone {
                self.gone(slot, value);
            } else {
                self.changed(slot, value);
            }
        }
        if let Some(kind) = self.kinds.get_mut(slot) {
            kind.floor = kind.floor.max(version);
            kind.delivered = kind.delivered.max(version);
        }
    }

    fn merge(&mut self, slot: &str, version: u64, list: u32) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        kind.floor = kind.floor.max(version);
        kind.delivered = kind.delivered.max(version);
        kind.synced = true;
        let api = kind.api;
        let gone = kind
            .objects
            .extract(|entry| entry.listed < list && entry.version <= version);
        self.kept.listed(api.object, |called| {
            let name = (called.namespace.as_deref().unwrap_or_default(), &*called.name);
            kind.objects.get(name).is_some()
        });
        for entry in &gone {
            self.forget(&api, entry);
        }
        if self.started {
            let objects = self.in_force(slot);
            self.events.push(SourceEvent::ResetKinds {
                kinds: vec![api.object],
                objects,
            });
            if self.kinds.values().all(|kind| kind.synced) {
                self.kept.all_listed();
            }
        }
    }

    // === Changes ===

    /// The watch told a version.
    pub(super) fn changed(&mut self, slot: &str, value: &Value) {
        let version = number(version_of(value));
        let Some(name) = name(value) else { return };
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        let late = version != 0 && version <= kind.floor;
        kind.delivered = kind.delivered.max(version);
        if late
            || kind
                .objects
                .get(name)
                .is_some_and(|entry| entry.version >= version.max(1))
        {
            return;
        }
        self.put_and_tell(slot, name, value);
    }

    /// The watch told a deletion.
    pub(super) fn gone(&mut self, slot: &str, value: &Value) {
        let version = number(version_of(value));
        let Some(name) = name(value) else { return };
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        let late = version != 0 && version <= kind.floor;
        kind.delivered = kind.delivered.max(version);
        // One of that name that was made since is another object.
        if late
            || kind
                .objects
                .get(name)
                .is_none_or(|entry| entry.version > version && version != 0)
        {
            return;
        }
        let api = kind.api;
        let Some(entry) = kind.objects.remove(name) else {
            return;
        };
        let synced = kind.synced;
        self.forget(&api, &entry);
        if self.started
            && synced
            && let Some(key) = entry.key()
        {
            self.tell_owner(slot, key, entry.told);
        }
    }

    pub(super) fn progress(&mut self, slot: &str, version: u64) {
        if let Some(kind) = self.kinds.get_mut(slot) {
            kind.delivered = kind.delivered.max(version);
        }
    }

    /// An object was read by itself. What is known of it now, and its version; None: it is gone.
    pub(super) fn read(&mut self, slot: &str, value: &Value) -> Option<(Object, u64)> {
        let version = number(version_of(value));
        let name = name(value)?;
        let kind = self.kinds.get_mut(slot)?;
        let newer = match kind.objects.get(name) {
            Some(entry) => entry.version < version,
            // What the watch has told already and is not known has been deleted since.
            None => version > kind.delivered,
        };
        let listing = kind.listing.is_some();
        if newer {
            self.put_and_tell(slot, name, value);
        }
        let kind = self.kinds.get_mut(slot)?;
        let entry = kind.objects.get_mut(name)?;
        let object = entry.object()?.clone();
        if listing && !newer && self.started && kind.synced {
            // Known from a list that is not over, and so not told yet.
            entry.told = true;
            self.events.push(SourceEvent::Apply(object.clone()));
        }
        Some((object, entry.version))
    }

    /// Takes in a version that is in no list.
    fn put_and_tell(&mut self, slot: &str, name: Name<'_>, value: &Value) {
        let kind = self.kinds.get(slot).filter(|kind| can_be_renamed(kind.api.object));
        let was = kind.and_then(|kind| {
            let entry = kind.objects.get(name)?;
            Some((entry.key()?, entry.told))
        });
        let changed = self.put(slot, name, value, 0);
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        if !self.started || !kind.synced {
            return;
        }
        let Some(entry) = kind.objects.get_mut(name) else {
            return;
        };
        entry.told &= !changed;
        let Some(key) = entry.key() else { return };
        // What is new comes before what goes.
        let left = was.filter(|(known_as, _)| *known_as != key);
        if changed || can_be_renamed(key.kind) {
            self.tell_owner(slot, key, false);
        }
        if let Some((known_as, told)) = left {
            self.tell_owner(slot, known_as, told);
        }
    }

    /// Takes in a version. Whether the one in force is another now.
    fn put(&mut self, slot: &str, name: Name<'_>, value: &Value, list: u32) -> bool {
        let Some(kind) = self.kinds.get_mut(slot) else {
            return false;
        };
        let api = kind.api;
        let api_version = api_version(&api);
        let mut parsed = self.parser.parse(value, Some((&api_version, api.kind)));
        let called = || called(&api, name);
        let entry = kind.objects.entry(name);
        let last = entry.good();
        let before = last.as_ref().map(|good| good.object.clone());
        let last = match last {
            None if is_kept(api.object) && !matches!(parsed.outcome, Outcome::Valid(_)) => {
                self.kept.last(&mut self.parser, &called())
            }
            last => last,
        };
        let (mut good, consequence) = choose(parsed.outcome, parsed.manifest.map(Arc::from), last);
        for problem in &mut parsed.problems {
            if problem.severity == Severity::Error
                && let Some(consequence) = consequence
            {
                problem.remedy = format!("{}; {consequence}", problem.remedy);
            }
        }
        let remarked = std::mem::replace(
            &mut entry.remarks,
            !parsed.problems.is_empty() || !parsed.unknown.is_empty(),
        );
        let changed = before.as_ref() != good.as_ref().map(|good| &good.object);
        let text = good.as_mut().and_then(|good| good.text.take());
        entry.version = number(version_of(value));
        entry.listed = entry.listed.max(list);
        entry.set(good, value);
        if changed
            && is_kept(api.object)
            && let Some(object) = entry.object()
        {
            self.kept.keep(&called(), object, text);
        }
        if remarked || entry.remarks {
            let event = self.remarks.tell(&api, name, value, parsed.problems, parsed.unknown);
            self.events.push(event);
        }
        changed
    }

    /// The object is gone: what was kept and told of it goes, too.
    fn forget(&mut self, api: &ApiKind, entry: &Entry) {
        self.events.extend(self.remarks.forget(api, entry));
        if is_kept(api.object) {
            self.kept.forget(called(api, entry.name()));
        }
    }

    // === Beginning, and what follows ===

    /// Everything that is known is told, as all that there is. Whether that is so is for the caller to say. `all_served`:
    /// a kind that was not added is one that is not served.
    pub(super) fn start(&mut self, all_served: bool) {
        let kinds = &self.kinds;
        let is_read = |object: ObjectKind| match kinds.values().find(|kind| kind.api.object == object) {
            Some(kind) => kind.synced,
            None => all_served,
        };
        let mut objects = self.kept.adopt(&mut self.parser, is_read);
        self.started = true;
        let mut in_force = Vec::new();
        for kind in self.kinds.values().filter(|kind| is_kept(kind.api.object)) {
            let known = kind.objects.iter();
            in_force.extend(known.filter_map(|entry| Some((called(&kind.api, entry.name()), entry.object()?.clone()))));
        }
        let synced: Vec<&'static str> = self
            .kinds
            .iter()
            .filter_map(|(slot, kind)| kind.synced.then_some(*slot))
            .collect();
        let all = synced.len() == self.kinds.len();
        for slot in synced {
            objects.extend(self.in_force(slot));
        }
        self.events.insert(0, SourceEvent::Reset(objects));
        self.kept.snapshot(in_force);
        if all {
            self.kept.all_listed();
        }
    }

    /// All kinds that are served have been added: of others there is nothing.
    pub(super) fn all_served(&mut self) {
        let added = &self.kinds;
        let is_added = |object: ObjectKind| added.values().any(|kind| kind.api.object == object);
        let kinds = self.kept.unserved(is_added);
        if !kinds.is_empty() {
            self.events.push(SourceEvent::ResetKinds {
                kinds,
                objects: Vec::new(),
            });
        }
    }

    /// Whether versions of this kind are in force that were known before, because it cannot be read: the last agent's, or
    /// those of the group that it was read from.
    pub(super) fn is_adopted(&self, kind: ObjectKind) -> bool {
        self.kept.has_known(kind)
    }

    pub(super) const fn is_started(&self) -> bool {
        self.started
    }

    /// What follows from all that was taken in, in its order.
    pub(super) fn events(&mut self) -> Vec<SourceEvent> {
        self.kept.write();
        self.events.extend(self.remarks.events());
        if self.started {
            std::mem::take(&mut self.events)
        } else {
            Vec::new()
        }
    }

    /// Whose problems are others now.
    pub(super) fn reports(&mut self) -> Vec<ObjectProblems> {
        self.remarks.reports()
    }
}

/// Names an object as the API does.
fn called(api: &ApiKind, (namespace, name): Name<'_>) -> ObjectKey {
    ObjectKey {
        kind: api.object,
        namespace: api.namespaced.then(|| namespace.into()),
        name: name.into(),
    }
}

pub(super) fn api_version(api: &ApiKind) -> String {
    if api.group.is_empty() {
        api.version.to_owned()
    } else {
        format!("{}/{}", api.group, api.version)
    }
}

fn name(value: &Value) -> Option<Name<'_>> {
    let metadata = value.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    Some((namespace, name))
}
