//! The objects that the API has told, and which version of each is in force.
//!
//! Versions come from three sides: the watch, lists, and reads of single objects. Each can be late. So a version is taken
//! only if it is newer than the one known, and what is gone stays gone:
//!
//! - of each object the version known is kept; an older one changes nothing,
//! - of each kind the version of the last list (`floor`): what is older than that, and not in the list, is gone,
//! - of each kind how far the watch has come (`delivered`): an object read by itself that is older than that, and not
//!   known, has been deleted since.

mod objects;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use serde_json::Value;

use self::objects::{Entry, Name, Objects};
use super::{version::number, watch::version_of};
use crate::{
    api::{ApiKind, Object, ObjectKey, ObjectKind, Parser, Problem, Severity, Unknown},
    source::{
        SourceEvent,
        store::{Line, Store, Stored, Version},
        valid::{Good, choose, understood},
    },
};

/// Stands for the API where the store of last valid versions names files.
const ORIGIN: &str = "kubernetes";

/// Problems of one object, for whoever reports them to the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectProblems {
    /// As in `networking.k8s.io/v1`.
    pub api_version: String,
    pub kind: &'static str,
    /// Empty for a cluster-wide kind.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: String,
    pub resource_version: u64,
    /// Empty: solved.
    pub problems: Vec<Problem>,
}

impl Kind {
    /// The number of the list that is being taken in, else of the last one.
    fn list(&self) -> u32 {
        self.listing.map_or(self.lists, |listing| listing.number)
    }
}

#[derive(Clone, Copy)]
struct Listing {
    number: u32,
    /// The kind's `floor` when the list began: what another list has told since may be newer than this one.
    floor: u64,
}

struct Kind {
    api: ApiKind,
    objects: Objects,
    /// Texts of versions in force, until they are kept for the next start.
    texts: HashMap<ObjectKey, Arc<str>>,
    floor: u64,
    delivered: u64,
    /// Listed once, whole. Before that nothing is told of it.
    synced: bool,
    /// The list that is being taken in.
    listing: Option<Listing>,
    lists: u32,
}

pub(super) struct Catalogue {
    parser: Parser,
    kinds: BTreeMap<&'static str, Kind>,
    /// What the last agent knew. Until all is known.
    stored: Stored,
    /// Kinds of which the last agent's versions were told, because they cannot be read.
    adopted: HashSet<ObjectKind>,
    store: Store,
    /// A snapshot of the store is due: until then nothing is appended.
    unsaved: bool,
    lines: Vec<Line>,
    unknown: BTreeMap<Unknown, BTreeSet<String>>,
    unknown_changed: bool,
    origin: Arc<Path>,
    events: Vec<SourceEvent>,
    reports: Vec<ObjectProblems>,
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

/// Kinds whose last valid versions outlive the agent: those that can be invalid though an API server took them, and
/// those without which less would be forbidden.
const fn is_kept(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::Policy(_) | ObjectKind::Tier | ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet
    )
}

impl Catalogue {
    pub(super) fn new(store: Store, stored: Stored) -> Self {
        let origin: Arc<Path> = Path::new(ORIGIN).into();
        Self {
            parser: Parser::of_validated(),
            kinds: BTreeMap::new(),
            stored,
            adopted: HashSet::new(),
            store,
            unsaved: true,
            lines: Vec::new(),
            unknown: BTreeMap::new(),
            unknown_changed: false,
            origin,
            events: Vec::new(),
            reports: Vec::new(),
            started: false,
        }
    }

    /// Begins to know a kind: nothing of it is known yet.
    pub(super) fn add(&mut self, slot: &'static str, api: ApiKind) {
        self.kinds.entry(slot).or_insert_with(|| Kind {
            api,
            objects: Objects::default(),
            texts: HashMap::new(),
            floor: 0,
            delivered: 0,
            synced: false,
            listing: None,
            lists: 0,
        });
    }

    /// The kind is not served any more, and so none of its objects is there.
    pub(super) fn remove(&mut self, slot: &'static str) {
        let Some(kind) = self.kinds.remove(slot) else { return };
        for entry in kind.objects.iter() {
            self.forget(&kind.api, entry);
        }
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
            kind.lists += 1;
            kind.listing = Some(Listing {
                number: kind.lists,
                floor: kind.floor,
            });
        }
    }

    /// An object of the list that was begun.
    pub(super) fn item(&mut self, slot: &str, value: &Value) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        let list = kind.list();
        let Some(name) = name(value) else { return };
        let version = number(version_of(value));
        // Told to be gone since this list began.
        let overtaken = kind.listing.is_some_and(|listing| listing.floor < kind.floor) && version <= kind.floor;
        match kind.objects.get_mut(name) {
            Some(entry) => {
                entry.listed = entry.listed.max(list);
                if entry.version >= version && version != 0 {
                    return;
                }
            }
            None if overtaken && version != 0 => return,
            None => {}
        }
        // Told when the list is over.
        self.put(slot, name, value, list);
    }

    /// The list that was begun is over: what it did not name is gone.
    pub(super) fn listed(&mut self, slot: &str, version: u64) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        let Some(list) = kind.listing.take() else { return };
        // Older than what was known when it was asked for: the store behind the API was put back to an earlier state. That
        // is the truth now.
        let earlier = version < list.floor;
        self.merge(slot, version, list.number, earlier);
    }

    /// Takes in a list that came beside the watch, whole.
    pub(super) fn listed_beside(&mut self, slot: &str, items: &[Value], version: u64) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        if version < kind.floor {
            return;
        }
        kind.lists += 1;
        let own = Listing {
            number: kind.lists,
            floor: kind.floor,
        };
        let listing = kind.listing.replace(own);
        for item in items {
            self.item(slot, item);
        }
        if let Some(kind) = self.kinds.get_mut(slot) {
            kind.listing = listing;
        }
        self.merge(slot, version, own.number, false);
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

    fn merge(&mut self, slot: &str, version: u64, list: u32, earlier: bool) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        if earlier {
            kind.floor = version;
            kind.delivered = version;
        } else {
            kind.floor = kind.floor.max(version);
            kind.delivered = kind.delivered.max(version);
        }
        kind.synced = true;
        let api = kind.api;
        let gone = kind
            .objects
            .extract(|entry| entry.listed < list && (earlier || entry.version <= version));
        let objects = Self::objects_of(kind);
        for entry in kind.objects.iter_mut() {
            entry.told = entry.object().is_some();
        }
        for entry in &gone {
            self.forget(&api, entry);
        }
        if self.started {
            self.events.push(SourceEvent::ResetKinds {
                kinds: vec![api.object],
                objects,
            });
            if self.kinds.values().all(|kind| kind.synced) {
                self.stored = Stored::default();
            }
        }
    }

    fn objects_of(kind: &Kind) -> Vec<Object> {
        kind.objects.iter().filter_map(Entry::object).cloned().collect()
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
        let list = kind.list();
        self.put_and_tell(slot, name, value, list);
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
        let key = entry.key();
        // Two names of the API may be one of Calico's (with and without the prefix `default.`).
        let other = match &key {
            Some(key) if is_kept(api.object) => kind
                .objects
                .iter()
                .find(|other| other.key().as_ref() == Some(key))
                .and_then(|other| other.object().cloned()),
            _ => None,
        };
        let synced = kind.synced;
        self.forget(&api, &entry);
        if self.started
            && synced
            && entry.told
            && let Some(key) = key
        {
            self.events.push(match other {
                Some(object) => SourceEvent::Apply(object),
                None => SourceEvent::Delete(key),
            });
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
        let list = kind.list();
        let listing = kind.listing.is_some();
        if newer {
            self.put_and_tell(slot, name, value, list);
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

    fn put_and_tell(&mut self, slot: &str, name: Name<'_>, value: &Value, list: u32) {
        let changed = self.put(slot, name, value, list);
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        let synced = kind.synced;
        if self.started
            && synced
            && changed
            && let Some(entry) = kind.objects.get_mut(name)
            && let Some(object) = entry.object().cloned()
        {
            entry.told = true;
            self.events.push(SourceEvent::Apply(object));
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
        let key = parsed.key;
        let entry = kind.objects.entry(name);
        let last = entry.good();
        let before = last.as_ref().map(|good| good.object.clone());
        let last = match (&last, &key) {
            (None, Some(key)) if is_kept(api.object) && !matches!(parsed.outcome, crate::api::Outcome::Valid(_)) => {
                stored_version(&self.stored, &self.origin, &mut self.parser, key)
            }
            _ => last,
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
        entry.set(good);
        let now = entry.key();
        if changed
            && is_kept(api.object)
            && let (Some(key), Some(object)) = (&now, entry.object())
        {
            if !self.unsaved {
                self.lines.push(saved(&self.origin, key, object, text));
            } else if let Some(text) = text {
                kind.texts.insert(key.clone(), text);
            }
        }
        if remarked || entry.remarks {
            self.tell_problems(&api, name, value, key.as_ref(), parsed.problems, parsed.unknown);
        }
        // Calico's name of a policy depends on its tier.
        if self.started
            && let Some(old) = before
                .map(|object| object.key())
                .filter(|old| Some(old) != now.as_ref())
        {
            self.events.push(SourceEvent::Delete(old));
        }
        changed
    }

    // === What is wrong ===

    fn tell_problems(
        &mut self,
        api: &ApiKind,
        (namespace, name): Name<'_>,
        value: &Value,
        key: Option<&ObjectKey>,
        problems: Vec<Problem>,
        unknown: Vec<Unknown>,
    ) {
        if let Some(key) = key {
            self.forget_unknown(&key.to_string());
            for what in unknown {
                self.unknown_changed = true;
                self.unknown.entry(what).or_default().insert(key.to_string());
            }
        }
        self.reports.push(ObjectProblems {
            api_version: api_version(api),
            kind: api.kind,
            namespace: namespace.into(),
            name: name.into(),
            uid: value
                .pointer("/metadata/uid")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            resource_version: number(version_of(value)),
            problems: problems.clone(),
        });
        self.events.push(SourceEvent::Problems {
            origin: origin(api, (namespace, name)),
            problems,
        });
    }

    fn forget_unknown(&mut self, key: &str) {
        let before = self.unknown.len();
        self.unknown.retain(|_, objects| {
            self.unknown_changed |= objects.remove(key);
            !objects.is_empty()
        });
        self.unknown_changed |= self.unknown.len() != before;
    }

    /// The object is gone: what was kept and told of it goes, too.
    fn forget(&mut self, api: &ApiKind, entry: &Entry) {
        if entry.remarks {
            if let Some(key) = entry.key() {
                self.forget_unknown(&key.to_string());
            }
            let (namespace, name) = entry.name();
            self.reports.push(ObjectProblems {
                api_version: api_version(api),
                kind: api.kind,
                namespace: namespace.into(),
                name: name.into(),
                uid: String::new(),
                resource_version: 0,
                problems: Vec::new(),
            });
            self.events.push(SourceEvent::Problems {
                origin: origin(api, (namespace, name)),
                problems: Vec::new(),
            });
        }
        if is_kept(api.object)
            && !self.unsaved
            && let Some(key) = entry.key()
        {
            self.lines.push(Line {
                file: self.origin.clone(),
                key,
                version: None,
            });
        }
    }

    // === Beginning, and what follows ===

    /// What the last agent knew of kinds that cannot be read now, and so goes on.
    fn adopted(&mut self, all_served: bool) -> Vec<(ObjectKey, Good)> {
        let (kinds, parser) = (&self.kinds, &mut self.parser);
        let is_read = |object: ObjectKind| match kinds.values().find(|kind| kind.api.object == object) {
            Some(kind) => kind.synced,
            None => all_served,
        };
        let texts = self.stored.of_file(&self.origin);
        texts
            .into_iter()
            .filter_map(|text| understood(parser, text))
            .filter(|(key, _)| !is_read(key.kind))
            .collect()
    }

    /// Everything that is known is told, as all that there is. Whether that is so is for the caller to say. `all_served`:
    /// a kind that was not added is one that is not served.
    pub(super) fn start(&mut self, all_served: bool) {
        let adopted = self.adopted(all_served);
        self.adopted = adopted.iter().map(|(key, _)| key.kind).collect();
        self.started = true;
        let mut objects: Vec<Object> = Vec::new();
        let mut lines = Vec::new();
        for (key, good) in adopted {
            tracing::warn!(object = %key, "cannot be read from the API: its last known version stays in force");
            objects.push(good.object.clone());
            lines.push(saved(&self.origin, &key, &good.object, good.text));
        }
        for kind in self.kinds.values_mut() {
            let mut texts = std::mem::take(&mut kind.texts);
            if kind.synced {
                objects.extend(Self::objects_of(kind));
            }
            for entry in kind.objects.iter_mut() {
                entry.told = kind.synced && entry.object().is_some();
                if is_kept(kind.api.object)
                    && let (Some(key), Some(object)) = (entry.key(), entry.object())
                {
                    lines.push(saved(&self.origin, &key, object, texts.remove(&key)));
                }
            }
        }
        self.events.insert(0, SourceEvent::Reset(objects));
        self.store.snapshot(lines);
        self.unsaved = false;
        if self.adopted.is_empty() && self.kinds.values().all(|kind| kind.synced) {
            self.stored = Stored::default();
        }
    }

    /// All kinds that are served have been added: of others there is nothing.
    pub(super) fn all_served(&mut self) {
        let kinds: Vec<ObjectKind> = self
            .adopted
            .iter()
            .copied()
            .filter(|object| !self.kinds.values().any(|kind| kind.api.object == *object))
            .collect();
        if !kinds.is_empty() {
            self.adopted.retain(|kind| !kinds.contains(kind));
            self.events.push(SourceEvent::ResetKinds {
                kinds,
                objects: Vec::new(),
            });
        }
    }

    /// Whether the last agent's versions of this kind are in force, because it cannot be read.
    pub(super) fn is_adopted(&self, kind: ObjectKind) -> bool {
        self.adopted.contains(&kind)
    }

    pub(super) const fn is_started(&self) -> bool {
        self.started
    }

    /// What follows from all that was taken in, in its order.
    pub(super) fn events(&mut self) -> Vec<SourceEvent> {
        if self.started {
            self.store.append(std::mem::take(&mut self.lines));
        }
        if std::mem::take(&mut self.unknown_changed) {
            let problems = self.unknown.iter().filter_map(|(what, objects)| {
                let mut problem = what.problem(objects.len(), "objects");
                problem.object = Some(objects.first()?.clone());
                Some(problem)
            });
            let event = SourceEvent::Problems {
                origin: "unknown fields".into(),
                problems: problems.collect(),
            };
            self.events.push(event);
        }
        if self.started {
            std::mem::take(&mut self.events)
        } else {
            Vec::new()
        }
    }

    /// Whose problems are others now.
    pub(super) fn reports(&mut self) -> Vec<ObjectProblems> {
        std::mem::take(&mut self.reports)
    }
}

fn saved(origin: &Arc<Path>, key: &ObjectKey, object: &Object, text: Option<Arc<str>>) -> Line {
    Line {
        file: origin.clone(),
        key: key.clone(),
        version: Some(Version {
            object: object.clone(),
            text,
        }),
    }
}

fn stored_version(stored: &Stored, origin: &Path, parser: &mut Parser, key: &ObjectKey) -> Option<Good> {
    let (found, good) = understood(parser, stored.of_object(origin, key)?)?;
    (found == *key).then_some(good)
}

fn origin(api: &ApiKind, (namespace, name): Name<'_>) -> Arc<str> {
    format!("{} {namespace}/{name}", kind_name(api)).into()
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
