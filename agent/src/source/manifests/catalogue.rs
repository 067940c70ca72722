//! Which objects which file offers, and which version of each is in force.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use smallvec::SmallVec;

use super::{
    notices::{Notices, Place},
    read::{self, Read, Stamp},
};
use crate::{
    api::{Document, Object, ObjectKey, Outcome, Parser, Problem, Severity, Unknown, YamlError, objects},
    source::{
        SourceEvent,
        store::{Line, Store, Stored, Version},
        valid::{Good, choose, understood},
    },
};

/// What came of looking at a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Done,
    /// It had objects and is empty now: its writer may be about to fill it again.
    Emptied,
}

struct FileState {
    stamp: Stamp,
    hash: u64,
    keys: Vec<ObjectKey>,
    problems: Vec<Problem>,
    unknown: Vec<Unknown>,
}

struct Offer {
    file: Arc<Path>,
    /// The last version that can be in force. None: there never was one.
    good: Option<Good>,
}

#[derive(Default)]
struct Entry {
    /// In the order of their files.
    offers: SmallVec<[Offer; 1]>,
    told: Option<Object>,
}

impl Entry {
    fn in_force(&self) -> Option<&Good> {
        self.offers.iter().rev().find_map(|offer| offer.good.as_ref())
    }
}

pub(super) struct Catalogue {
    parser: Parser,
    files: BTreeMap<Arc<Path>, FileState>,
    objects: HashMap<ObjectKey, Entry>,
    notices: Notices,
    /// Until the first full sync.
    stored: Option<Stored>,
    touched: HashSet<ObjectKey>,
    changed_problems: Vec<(Arc<Path>, Vec<Problem>)>,
    lines: Vec<Line>,
    store: Store,
}

impl Catalogue {
    pub(super) fn new(store: Store, stored: Stored) -> Self {
        Self {
            parser: Parser::new(),
            files: BTreeMap::new(),
            objects: HashMap::new(),
            notices: Notices::default(),
            stored: Some(stored),
            touched: HashSet::new(),
            changed_problems: Vec::new(),
            lines: Vec::new(),
            store,
        }
    }

    /// The files known at or below a path.
    pub(super) fn known_below(&self, path: &Path) -> Vec<Arc<Path>> {
        // Paths are ordered by component, so those below one follow it without a gap.
        self.files
            .range::<Path, _>((std::ops::Bound::Included(path), std::ops::Bound::Unbounded))
            .map(|(file, _)| file)
            .take_while(|file| file.starts_with(path))
            .cloned()
            .collect()
    }

    /// Whether the file need not be read: it is surely as it was.
    pub(super) fn is_current(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|state| state.stamp.is_current(path))
    }

    /// Reads a file and takes in what it says now. `settled`: it has been left alone long enough to believe that it
    /// is empty.
    pub(super) fn look(&mut self, path: &Path, settled: bool) -> Looked {
        match read::read(path) {
            Read::Gone => self.remove(path),
            Read::Unreadable(reason) => self.unreadable(path, &reason),
            Read::Text { text, stamp, hash } => {
                if let Some(known) = self.files.get_mut(path) {
                    if known.hash == hash {
                        known.stamp = stamp;
                        return Looked::Done;
                    }
                    if text.is_empty() && !settled && !known.keys.is_empty() {
                        return Looked::Emptied;
                    }
                }
                self.parse(path, &text, stamp, hash);
            }
        }
        Looked::Done
    }

    fn remove(&mut self, path: &Path) {
        if let Some((file, state)) = self.files.remove_entry(path) {
            self.notices.forget(&file, &state.unknown);
            for key in &state.keys {
                self.withdraw(&file, key);
            }
            self.tell_problems(&file, &state.problems, &[]);
        }
    }

    fn unreadable(&mut self, path: &Path, reason: &str) {
        let problem = Problem::error(
            format!("cannot be read: {reason}"),
            "make it readable, or delete it; until then the file's last objects stay in force",
        );
        self.keep(path, Stamp::default(), 0, vec![problem.in_file(path, None)]);
    }

    /// The file's last objects stay.
    fn keep(&mut self, path: &Path, stamp: Stamp, hash: u64, problems: Vec<Problem>) {
        let (file, mut state) = self.take_file(path);
        if let Some(state) = &state {
            self.tell_problems(&file, &state.problems, &problems);
        } else {
            self.tell_problems(&file, &[], &problems);
        }
        let keys = match state.take() {
            Some(state) => {
                self.notices.forget(&file, &state.unknown);
                state.keys
            }
            None => self.adopt(&file, &[]),
        };
        let state = FileState {
            stamp,
            hash,
            keys,
            problems,
            unknown: Vec::new(),
        };
        self.files.insert(file, state);
    }

    fn take_file(&mut self, path: &Path) -> (Arc<Path>, Option<FileState>) {
        match self.files.remove_entry(path) {
            Some((file, state)) => (file, Some(state)),
            None => (path.into(), None),
        }
    }

    fn parse(&mut self, path: &Path, text: &str, stamp: Stamp, hash: u64) {
        let (documents, errors) = objects(path, text, &mut self.parser);
        if !errors.is_empty() {
            let problems = errors.into_iter().map(|error| parse_problem(path, error)).collect();
            let is_new = !self.files.contains_key(path);
            self.keep(path, stamp, hash, problems);
            if is_new {
                self.add_parsable(path, documents);
            }
            return;
        }
        let (file, old) = self.take_file(path);
        let is_new = old.is_none();
        let (old_keys, old_problems) = match old {
            Some(old) => {
                self.notices.forget(&file, &old.unknown);
                (old.keys, old.problems)
            }
            None => (Vec::new(), Vec::new()),
        };
        let nameless = documents.iter().any(Document::is_nameless);
        let mut state = FileState {
            stamp,
            hash,
            keys: Vec::new(),
            problems: Vec::new(),
            unknown: Vec::new(),
        };
        self.take_documents(&file, documents, &mut state);
        let present: HashSet<&ObjectKey> = state.keys.iter().collect();
        let missing: Vec<ObjectKey> = old_keys.into_iter().filter(|key| !present.contains(key)).collect();
        if nameless {
            // An object whose name cannot be read may be any of those that were here.
            state.keys.extend(missing);
            if is_new {
                let adopted = self.adopt(&file, &state.keys);
                state.keys.extend(adopted);
            }
        } else {
            for key in &missing {
                self.withdraw(&file, key);
            }
        }
        state.keys.shrink_to_fit();
        self.tell_problems(&file, &old_problems, &state.problems);
        self.files.insert(file, state);
    }

    /// Of a new file that does not parse as a whole: the documents that do, and of which nothing else is known.
    fn add_parsable(&mut self, path: &Path, mut documents: Vec<Document>) {
        let Some((file, mut state)) = self.files.remove_entry(path) else {
            return;
        };
        let known: HashSet<ObjectKey> = state.keys.iter().cloned().collect();
        documents.retain(|document| document.parsed.key.as_ref().is_none_or(|key| !known.contains(key)));
        let before = state.problems.clone();
        self.take_documents(&file, documents, &mut state);
        self.tell_problems(&file, &before, &state.problems);
        self.files.insert(file, state);
    }

    fn take_documents(&mut self, file: &Arc<Path>, documents: Vec<Document>, state: &mut FileState) {
        let mut seen: HashMap<ObjectKey, u32> = HashMap::with_capacity(documents.len());
        for document in documents {
            let line = document.line;
            let mut parsed = document.parsed;
            for unknown in parsed.unknown {
                let place = Place {
                    line,
                    object: parsed.key.clone(),
                };
                self.notices.know_not(file, unknown.clone(), place);
                if !state.unknown.contains(&unknown) {
                    state.unknown.push(unknown);
                }
            }
            if let Some(key) = &parsed.key {
                let text = parsed.manifest.map(Arc::from);
                let consequence = self.offer(file, key, parsed.outcome, text);
                for problem in &mut parsed.problems {
                    if problem.severity == Severity::Error
                        && let Some(consequence) = consequence
                    {
                        problem.remedy = format!("{}; {consequence}", problem.remedy);
                    }
                }
                match seen.insert(key.clone(), line) {
                    None => state.keys.push(key.clone()),
                    Some(other) => parsed.problems.push(
                        Problem::warning(
                            format!("is also on line {other}; this one counts"),
                            "remove one of them",
                        )
                        .of_object(key.to_string()),
                    ),
                }
            }
            let located = parsed
                .problems
                .into_iter()
                .map(|problem| problem.in_file(file.to_path_buf(), Some(line)));
            state.problems.extend(located);
        }
    }

    /// A file's version of an object. What follows if not all of it is understood.
    fn offer(
        &mut self,
        file: &Arc<Path>,
        key: &ObjectKey,
        outcome: Outcome,
        text: Option<Arc<str>>,
    ) -> Option<&'static str> {
        let stored = match outcome {
            Outcome::Valid(_) => None,
            _ => self.stored_version(file, key),
        };
        let entry = self.objects.entry(key.clone()).or_default();
        let place = entry.offers.iter().position(|offer| offer.file == *file);
        let known = place.and_then(|place| entry.offers[place].good.clone());
        let last = known.or_else(|| entry.in_force().cloned()).or(stored);
        let (good, consequence) = choose(outcome, text, last);
        let place = place.unwrap_or_else(|| {
            let place = entry.offers.partition_point(|offer| offer.file < *file);
            let new = Offer {
                file: file.clone(),
                good: None,
            };
            entry.offers.insert(place, new);
            place
        });
        let offer = &mut entry.offers[place];
        let unchanged = match (&offer.good, &good) {
            (Some(old), Some(new)) => old.object == new.object,
            (old, new) => old.is_none() && new.is_none(),
        };
        if !unchanged && let Some(good) = &good {
            self.lines.push(Line {
                file: file.clone(),
                key: key.clone(),
                version: Some(Version {
                    object: good.object.clone(),
                    text: good.text.clone(),
                }),
            });
        }
        match (unchanged, good) {
            // The version that others hold already.
            (true, Some(good)) => {
                if let Some(old) = &mut offer.good {
                    old.valid = good.valid;
                    old.text = good.text;
                }
            }
            (_, good) => offer.good = good,
        }
        self.touched.insert(key.clone());
        consequence
    }

    fn stored_version(&mut self, file: &Path, key: &ObjectKey) -> Option<Good> {
        let text = self.stored.as_ref()?.of_object(file, key)?;
        let (found, good) = understood(&mut self.parser, text)?;
        (found == *key).then_some(good)
    }

    /// Before the first full sync: what the last agent knew of a file that does not parse now. The keys adopted.
    fn adopt(&mut self, file: &Arc<Path>, except: &[ObjectKey]) -> Vec<ObjectKey> {
        let Some(stored) = &self.stored else { return Vec::new() };
        let parser = &mut self.parser;
        let versions: Vec<(ObjectKey, Good)> = stored
            .of_file(file)
            .into_iter()
            .filter_map(|text| understood(parser, text))
            .collect();
        let mut adopted = Vec::new();
        for (key, good) in versions {
            if !except.contains(&key) {
                let outcome = if good.valid {
                    Outcome::Valid(good.object)
                } else {
                    Outcome::Partial(good.object)
                };
                self.offer(file, &key, outcome, good.text);
                adopted.push(key);
            }
        }
        adopted
    }

    fn withdraw(&mut self, file: &Arc<Path>, key: &ObjectKey) {
        let Some(entry) = self.objects.get_mut(key) else { return };
        let before = entry.offers.len();
        entry.offers.retain(|offer| offer.file != *file);
        if entry.offers.len() != before {
            self.touched.insert(key.clone());
            self.lines.push(Line {
                file: file.clone(),
                key: key.clone(),
                version: None,
            });
        }
    }

    fn tell_problems(&mut self, file: &Arc<Path>, before: &[Problem], now: &[Problem]) {
        if before != now {
            self.changed_problems.push((file.clone(), now.to_vec()));
        }
    }

    /// What follows from all that was looked at: what is new first, then what is gone, then what is wrong.
    pub(super) fn events(&mut self) -> Vec<SourceEvent> {
        let first = self.stored.take().is_some();
        let mut applied = Vec::new();
        let mut deleted = Vec::new();
        let mut all = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let Some(entry) = self.objects.get_mut(&key) else {
                continue;
            };
            let now = entry.in_force().map(|good| good.object.clone());
            if first {
                all.extend(now.clone());
            } else {
                match (&entry.told, &now) {
                    (Some(old), Some(new)) if old == new => {}
                    (_, Some(new)) => applied.push(SourceEvent::Apply(new.clone())),
                    (Some(_), None) => deleted.push(SourceEvent::Delete(key.clone())),
                    (None, None) => {}
                }
            }
            entry.told = now;
            self.notices
                .held_by(&key, entry.offers.iter().map(|offer| offer.file.clone()).collect());
            if entry.offers.is_empty() {
                self.objects.remove(&key);
            }
        }
        let lines = std::mem::take(&mut self.lines);
        let mut out = Vec::new();
        if first {
            // In an order that is the same at every start.
            all.sort_by_cached_key(|object| object.key().to_string());
            out.push(SourceEvent::Reset(all));
            self.store.snapshot(lines);
        } else {
            out.append(&mut applied);
            out.append(&mut deleted);
            self.store.append(lines);
        }
        for (file, problems) in std::mem::take(&mut self.changed_problems) {
            out.push(SourceEvent::Problems {
                origin: file.to_string_lossy().into(),
                problems,
            });
        }
        out.extend(self.notices.events());
        out
    }
}

fn parse_problem(path: &Path, error: YamlError) -> Problem {
    Problem::error(
        format!("cannot be parsed: {}", error.message),
        "correct the text; until then the file's last objects stay in force",
    )
    .in_file(path, error.line)
}
