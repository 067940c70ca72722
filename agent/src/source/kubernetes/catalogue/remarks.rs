//! What is wrong with objects: told once to whoever follows the source, and to whoever reports it to the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::{
    api_version, kind_name,
    objects::{Entry, Name},
};
use crate::{
    api::{ApiKind, ObjectKey, Problem, Unknown},
    source::{
        SourceEvent,
        kubernetes::{version::number, watch::version_of},
    },
};

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

#[derive(Default)]
pub(super) struct Remarks {
    /// Fields that no version of the kind has, and the objects that have them.
    unknown: BTreeMap<Unknown, BTreeSet<String>>,
    unknown_changed: bool,
    reports: Vec<ObjectProblems>,
}

impl Remarks {
    /// A version of an object was taken in; `key` where it has one.
    pub(super) fn tell(
        &mut self,
        api: &ApiKind,
        (namespace, name): Name<'_>,
        value: &Value,
        key: Option<&ObjectKey>,
        problems: Vec<Problem>,
        unknown: Vec<Unknown>,
    ) -> SourceEvent {
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
        SourceEvent::Problems {
            origin: origin(api, (namespace, name)),
            problems,
        }
    }

    /// An object is gone, and what was wrong with it, too.
    pub(super) fn forget(&mut self, api: &ApiKind, entry: &Entry) -> Option<SourceEvent> {
        if !entry.remarks {
            return None;
        }
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
        Some(SourceEvent::Problems {
            origin: origin(api, (namespace, name)),
            problems: Vec::new(),
        })
    }

    fn forget_unknown(&mut self, key: &str) {
        let before = self.unknown.len();
        self.unknown.retain(|_, objects| {
            self.unknown_changed |= objects.remove(key);
            !objects.is_empty()
        });
        self.unknown_changed |= self.unknown.len() != before;
    }

    /// The unknown fields of all objects, if they are others now: one problem for each field.
    pub(super) fn unknown_fields(&mut self) -> Option<SourceEvent> {
        if !std::mem::take(&mut self.unknown_changed) {
            return None;
        }
        let problems = self.unknown.iter().filter_map(|(what, objects)| {
            let mut problem = what.problem(objects.len(), "objects");
            problem.object = Some(objects.first()?.clone());
            Some(problem)
        });
        Some(SourceEvent::Problems {
            origin: "unknown fields".into(),
            problems: problems.collect(),
        })
    }

    /// Whose problems are others now.
    pub(super) fn reports(&mut self) -> Vec<ObjectProblems> {
        std::mem::take(&mut self.reports)
    }
}

fn origin(api: &ApiKind, (namespace, name): Name<'_>) -> Arc<str> {
    format!("{} {namespace}/{name}", kind_name(api)).into()
}
