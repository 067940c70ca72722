//! Problems told once for many files: what Weir does not know, and objects that several files hold.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use crate::{
    api::{ObjectKey, Problem, Unknown},
    source::SourceEvent,
};

#[derive(Default)]
pub(super) struct Notices {
    unknown: BTreeMap<Unknown, BTreeMap<Arc<Path>, Place>>,
    /// By the object: the file that counts, the others.
    duplicates: HashMap<ObjectKey, (Arc<Path>, Vec<Arc<Path>>)>,
    changed: (bool, bool),
}

/// Where in a file something unknown is first met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) object: Option<ObjectKey>,
}

impl Notices {
    pub(super) fn know_not(&mut self, file: &Arc<Path>, unknown: Unknown, place: Place) {
        self.unknown
            .entry(unknown)
            .or_default()
            .entry(file.clone())
            .or_insert(place);
        self.changed.0 = true;
    }

    /// The file is about to be told anew, or is gone.
    pub(super) fn forget(&mut self, file: &Path, unknown: &[Unknown]) {
        for what in unknown {
            self.changed.0 = true;
            if let Some(files) = self.unknown.get_mut(what) {
                files.remove(file);
                if files.is_empty() {
                    self.unknown.remove(what);
                }
            }
        }
    }

    /// The files that hold the object, the one that counts last.
    pub(super) fn held_by(&mut self, key: &ObjectKey, mut files: Vec<Arc<Path>>) {
        let duplicate = match files.pop() {
            Some(last) if !files.is_empty() => Some((last, files)),
            _ => None,
        };
        if self.duplicates.get(key) == duplicate.as_ref() {
            return;
        }
        self.changed.1 = true;
        match duplicate {
            Some(duplicate) => self.duplicates.insert(key.clone(), duplicate),
            None => self.duplicates.remove(key),
        };
    }

    /// What changed since it was told.
    pub(super) fn events(&mut self) -> Vec<SourceEvent> {
        let (unknown, duplicates) = std::mem::take(&mut self.changed);
        let mut out = Vec::new();
        if unknown {
            out.push(SourceEvent::Problems {
                origin: "unknown kinds and fields".into(),
                problems: self
                    .unknown
                    .iter()
                    .filter_map(|(what, files)| unknown_problem(what, files))
                    .collect(),
            });
        }
        if duplicates {
            let mut problems: Vec<Problem> = self
                .duplicates
                .iter()
                .map(|(key, (last, others))| duplicate_problem(key, last, others))
                .collect();
            problems.sort_by(|one, other| one.object.cmp(&other.object));
            out.push(SourceEvent::Problems {
                origin: "duplicate objects".into(),
                problems,
            });
        }
        out
    }
}

fn unknown_problem(what: &Unknown, files: &BTreeMap<Arc<Path>, Place>) -> Option<Problem> {
    let (file, place) = files.first_key_value()?;
    let mut problem = what
        .problem(files.len(), "files")
        .in_file(file.to_path_buf(), Some(place.line));
    problem.object = place.object.as_ref().map(ToString::to_string);
    Some(problem)
}

fn duplicate_problem(key: &ObjectKey, last: &Path, others: &[Arc<Path>]) -> Problem {
    let others: Vec<String> = others.iter().map(|file| file.display().to_string()).collect();
    Problem::warning(
        format!("is also in {}; this file counts", others.join(", ")),
        "keep it in one file only",
    )
    .in_file(last, None)
    .of_object(key.to_string())
}
