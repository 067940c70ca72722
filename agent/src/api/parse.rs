//! An object of any kind: its identity first, then its kind's parser.

use std::sync::Arc;

use serde_json::Value;

use super::{
    at::{At, Report, Reported, quoted},
    calico,
    intern::Interner,
    labels::is_subdomain,
    object::{Object, ObjectKey, ObjectKind},
    problem::{Problem, Severity},
    registry::{self, Kind},
};

/// What became of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Understood. (The problems may still say what a user should know.)
    Valid(Object),
    /// Not all of it is understood; this is what a new object of that text enforces. A known object keeps its last
    /// valid version instead.
    Partial(Object),
    /// Not even that can be enforced.
    Invalid,
    /// Weir has nothing to do with objects of this kind.
    Ignored,
}

/// One object's text, understood as far as possible.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// None: of a kind that is ignored, or its identity cannot be read.
    pub key: Option<ObjectKey>,
    pub outcome: Outcome,
    /// Without file and line, which the caller knows.
    pub problems: Vec<Problem>,
    /// What Weir does not know; told once for all objects that have it.
    pub unknown: Vec<Unknown>,
    /// Of a policy: its text, as far as it matters, in JSON; parsing it gives the same outcome.
    pub manifest: Option<Box<str>>,
}

/// A kind or field that Weir does not know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unknown {
    Kind {
        api_version: String,
        kind: String,
    },
    /// `path` without list positions (`spec.ingress[].form`).
    Field {
        kind: &'static str,
        path: String,
    },
}

impl Unknown {
    /// The warning, for the first that has it, and the number of all `of` (`files`, `objects`) that do.
    #[must_use]
    pub fn problem(&self, count: usize, of: &str) -> Problem {
        let others = match count {
            0 | 1 => String::new(),
            count => format!(" (in {count} {of}, this is one)"),
        };
        match self {
            Self::Kind { api_version, kind } => {
                let remedy = match registry::similar(kind) {
                    Some(known) if (known.kind, known.api_version()) != (kind.as_str(), api_version.clone()) => {
                        format!(
                            "if it was meant to be enforced, write kind: {} with apiVersion: {}",
                            known.kind,
                            known.api_version()
                        )
                    }
                    _ => "nothing to do, if it is no policy; else use a kind that Weir enforces".to_owned(),
                };
                Problem::warning(
                    format!("objects of kind {kind} ({api_version}) are ignored{others}"),
                    remedy,
                )
            }
            Self::Field { kind, path } => Problem::warning(
                format!("unknown field of {kind}, ignored{others}"),
                "correct or remove the field",
            )
            .at_field(path.clone()),
        }
    }
}

/// Turns objects' text into objects. Keeps what many of them share.
#[derive(Default)]
pub struct Parser {
    interner: Interner,
    /// Core objects have passed an API server's validation: only what may be newer than Weir is held against its schema.
    validated: bool,
}

/// What a kind's parser works with.
pub(super) struct Context<'a> {
    pub(super) root: At<'a>,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) report: &'a mut Report,
    pub(super) interner: &'a mut Interner,
}

impl Parser {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For objects that an API server hands out. It has checked those of its own kinds, and may know fields of them that
    /// are newer than Weir: only a policy's fields are held against what Weir knows.
    #[must_use]
    pub fn of_validated() -> Self {
        Self {
            validated: true,
            ..Self::default()
        }
    }

    /// One object. `of_list`: apiVersion and kind of the items, if it is an item of a typed list (which need not say
    /// them).
    pub fn parse(&mut self, value: &Value, of_list: Option<(&str, &str)>) -> Parsed {
        let mut report = Report::default();
        let mut parsed = Parsed {
            key: None,
            outcome: Outcome::Invalid,
            problems: Vec::new(),
            unknown: Vec::new(),
            manifest: None,
        };
        let _ = self.parse_into(value, of_list, &mut report, &mut parsed);
        let object = parsed
            .key
            .as_ref()
            .map_or_else(|| description(value), ObjectKey::to_string);
        for mut problem in report.problems {
            problem.object.get_or_insert_with(|| object.clone());
            parsed.problems.push(problem);
        }
        parsed
    }

    fn parse_into(
        &mut self,
        value: &Value,
        of_list: Option<(&str, &str)>,
        report: &mut Report,
        parsed: &mut Parsed,
    ) -> Result<(), Reported> {
        let root = At::root(value);
        if root.map(report).is_err() {
            report.problems.clear();
            report.problems.push(Problem::error(
                "is no Kubernetes object",
                "every document must be a map with apiVersion, kind and metadata",
            ));
            return Err(Reported);
        }
        let said = |key: &'static str, default: Option<&str>, report: &mut Report| match root.get(key) {
            Some(at) => at.string(report).map(str::to_owned),
            None => default.map(str::to_owned).ok_or_else(|| {
                report.error(
                    key,
                    "is missing",
                    "every object needs apiVersion, kind and metadata.name",
                )
            }),
        };
        let kind_name = said("kind", of_list.map(|(_, kind)| kind), report)?;
        let api_version = said("apiVersion", of_list.map(|(version, _)| version), report)?;
        let (group, version) = registry::group_version(&api_version);
        let Some(kind) = registry::find(group, &kind_name) else {
            parsed.outcome = Outcome::Ignored;
            parsed.unknown.push(Unknown::Kind {
                api_version,
                kind: kind_name,
            });
            return Ok(());
        };
        let (namespace, name) = self.identity(&root, kind, report)?;
        parsed.key = Some(ObjectKey {
            kind: kind.object,
            namespace: kind.namespaced.then(|| namespace.clone()),
            name: name.clone(),
        });
        if !kind.versions.contains(&version) {
            return Err(report.error(
                "apiVersion",
                format!("{} of {} is not understood", quoted(&api_version), kind.kind),
                format!("use {}", kind.api_version()),
            ));
        }
        let mut context = Context {
            root,
            namespace,
            name,
            report,
            interner: &mut self.interner,
        };
        parsed.outcome = (kind.parse)(&mut context);
        if self.validated && !matters(kind.object) {
            return Ok(());
        }
        let misfits = (kind.schema)(value);
        parsed.unknown.extend(
            misfits
                .unknown
                .into_iter()
                .map(|path| Unknown::Field { kind: kind.kind, path }),
        );
        if let Some((path, message)) = misfits.mistyped
            && !report
                .problems
                .iter()
                .any(|problem| problem.severity == Severity::Error)
        {
            report.warn(
                path,
                format!("the API server would refuse this: {message}"),
                "correct the field; Weir itself does not look at it",
            );
        }
        if matches!(
            parsed.outcome,
            Outcome::Valid(Object::Policy(_) | Object::ServicePolicy(_))
                | Outcome::Partial(Object::Policy(_) | Object::ServicePolicy(_))
        ) {
            parsed.manifest = Some(essence(value, &kind.api_version(), kind.kind).into());
        }
        Ok(())
    }

    fn identity(&mut self, root: &At<'_>, kind: &Kind, report: &mut Report) -> Result<(Arc<str>, Arc<str>), Reported> {
        let Some(metadata) = root.get("metadata") else {
            return Err(report.error("metadata", "is missing", "name the object: metadata.name"));
        };
        metadata.map(report)?;
        let name = match metadata.get("name") {
            Some(name) => name.string(report)?,
            None => return Err(report.error("metadata.name", "is missing", "name the object")),
        };
        if name.is_empty() {
            return Err(report.error("metadata.name", "is empty", "name the object"));
        }
        if !is_subdomain(name) {
            report.warn(
                "metadata.name",
                format!("{} is no valid name", quoted(name)),
                "the API server refuses it: use lower-case letters, digits, '-' and '.'",
            );
        }
        let namespace = match metadata.get("namespace") {
            Some(namespace) if kind.namespaced => match namespace.string(report)? {
                "" => "default",
                namespace => namespace,
            },
            _ => "default",
        };
        let name = (kind.name)(root, name);
        // Hardly any two objects have one name.
        Ok((self.interner.string(namespace), Arc::from(&*name)))
    }
}

/// Whether a field that Weir does not know may change what is enforced.
const fn matters(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::Policy(_) | ObjectKind::Tier | ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet
    )
}

/// Kind and name as far as they can be read, for messages.
fn description(value: &Value) -> String {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("object");
    match (text("/metadata/namespace"), text("/metadata/name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => format!("{kind} without a name"),
    }
}

/// The parts of a policy's text that matter to its meaning.
fn essence(value: &Value, api_version: &str, kind: &str) -> String {
    let mut metadata = serde_json::Map::new();
    for key in ["name", "namespace", "labels", "creationTimestamp"] {
        if let Some(member) = value.get("metadata").and_then(|metadata| metadata.get(key)) {
            metadata.insert(key.to_owned(), member.clone());
        }
    }
    let kept = value
        .get("metadata")
        .and_then(|metadata| metadata.get("annotations")?.get(calico::METADATA));
    if let Some(kept) = kept {
        metadata.insert("annotations".to_owned(), serde_json::json!({ calico::METADATA: kept }));
    }
    serde_json::json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": metadata,
        "spec": value.get("spec").unwrap_or(&Value::Null),
    })
    .to_string()
}
