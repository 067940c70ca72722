//! What is wrong with objects: told once to whoever follows the source, and to whoever reports it to the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::{
    api_version, called, kind_name,
    objects::{Entry, Name},
};
use crate::{
    api::{ApiKind, Problem, Unknown},
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
    /// Objects known by a name that is another's, by origin.
    nameless: BTreeMap<Arc<str>, Problem>,
    nameless_changed: bool,
    reports: Vec<ObjectProblems>,
}

impl Remarks {
    /// A version of an object was taken in.
    pub(super) fn tell(
        &mut self,
        api: &ApiKind,
        (namespace, name): Name<'_>,
        value: &Value,
        problems: Vec<Problem>,
        unknown: Vec<Unknown>,
    ) -> SourceEvent {
        let object = called(api, (namespace, name)).to_string();
        self.forget_unknown(&object);
        for what in unknown {
            self.unknown_changed = true;
            self.unknown.entry(what).or_default().insert(object.clone());
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
        self.has_name(api, entry);
        if !entry.remarks {
            return None;
        }
        self.forget_unknown(&called(api, entry.name()).to_string());
        self.reports.push(report(api, entry, Vec::new()));
        Some(SourceEvent::Problems {
            origin: origin(api, entry.name()),
            problems: Vec::new(),
        })
    }

    /// The object's name is that of another one, which the API calls `owner`: nothing of it is in force.
    pub(super) fn has_no_name(&mut self, api: &ApiKind, entry: &Entry, owner: &str) {
        let Some(key) = entry.key() else { return };
        let problem = Problem::error(
            format!(
                "is known by the name {}, which is that of {}",
                key.name,
                called(api, (entry.name().0, owner))
            ),
            "give it a name of its own: metadata.name, and none in the annotation projectcalico.org/metadata; until \
             then nothing of it is enforced",
        )
        .of_object(called(api, entry.name()).to_string());
        let known = self.nameless.insert(origin(api, entry.name()), problem.clone());
        if known.as_ref() != Some(&problem) {
            self.nameless_changed = true;
            self.reports.push(report(api, entry, vec![problem]));
        }
    }

    /// The object has its name for itself, or is gone.
    pub(super) fn has_name(&mut self, api: &ApiKind, entry: &Entry) {
        if !self.nameless.is_empty() && self.nameless.remove(&origin(api, entry.name())).is_some() {
            self.nameless_changed = true;
            self.reports.push(report(api, entry, Vec::new()));
        }
    }

    fn forget_unknown(&mut self, key: &str) {
        let before = self.unknown.len();
        self.unknown.retain(|_, objects| {
            self.unknown_changed |= objects.remove(key);
            !objects.is_empty()
        });
        self.unknown_changed |= self.unknown.len() != before;
    }

    /// What changed of that which is told for all objects at once.
    pub(super) fn events(&mut self) -> impl Iterator<Item = SourceEvent> {
        let nameless = std::mem::take(&mut self.nameless_changed).then(|| SourceEvent::Problems {
            origin: "duplicate names".into(),
            problems: self.nameless.values().cloned().collect(),
        });
        nameless.into_iter().chain(self.unknown_fields())
    }

    /// The unknown fields of all objects, if they are others now: one problem for each field.
    fn unknown_fields(&mut self) -> Option<SourceEvent> {
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

fn report(api: &ApiKind, entry: &Entry, problems: Vec<Problem>) -> ObjectProblems {
    let (namespace, name) = entry.name();
    ObjectProblems {
        api_version: api_version(api),
        kind: api.kind,
        namespace: namespace.into(),
        name: name.into(),
        uid: entry.uid().to_owned(),
        resource_version: entry.version,
        problems,
    }
}

fn origin(api: &ApiKind, (namespace, name): Name<'_>) -> Arc<str> {
    format!("{} {namespace}/{name}", kind_name(api)).into()
}
