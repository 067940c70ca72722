//! A JSON value and where in its object it stands. Paths are only put together when something is wrong.

use std::{fmt::Write as _, sync::LazyLock};

use serde_json::{Map, Value};

use super::problem::Problem;

/// The problems of one object, as they are found.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) problems: Vec<Problem>,
}

/// Something cannot be understood, and the report says what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reported;

impl Report {
    pub(super) fn error(
        &mut self,
        field: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Reported {
        self.problems.push(Problem::error(message, remedy).at_field(field));
        Reported
    }

    pub(super) fn warn(&mut self, field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem::warning(message, remedy).at_field(field));
    }
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    value: &'a Value,
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

impl<'a> At<'a> {
    pub(super) const fn root(value: &'a Value) -> Self {
        Self {
            value,
            parent: None,
            step: Step::Root,
        }
    }

    pub(super) const fn value(&self) -> &'a Value {
        self.value
    }

    /// The member of that name. Null counts as absent, as it does for the API server.
    pub(super) fn get<'b>(&'b self, key: &'b str) -> Option<At<'b>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(At {
            value,
            parent: Some(self),
            step: Step::Key(key),
        })
    }

    /// The member of that name; an empty map where it is absent.
    pub(super) fn get_or_empty<'b>(&'b self, key: &'b str) -> At<'b> {
        static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
        self.get(key).unwrap_or_else(|| At::root(&EMPTY))
    }

    /// Of an array: its elements, null ones too.
    pub(super) fn elements<'b>(
        &'b self,
        report: &mut Report,
    ) -> Result<impl Iterator<Item = At<'b>> + use<'b>, Reported> {
        let Value::Array(elements) = self.value else {
            return Err(self.mistyped("a list", report));
        };
        Ok(elements.iter().enumerate().map(move |(index, value)| At {
            value,
            parent: Some(self),
            step: Step::Index(index),
        }))
    }

    /// The elements of a member; none if the member is absent.
    pub(super) fn map(&self, report: &mut Report) -> Result<&'a Map<String, Value>, Reported> {
        match self.value {
            Value::Object(map) => Ok(map),
            _ => Err(self.mistyped("a map", report)),
        }
    }

    pub(super) fn string(&self, report: &mut Report) -> Result<&'a str, Reported> {
        match self.value {
            Value::String(text) => Ok(text),
            Value::Number(_) | Value::Bool(_) => Err(report.error(
                self.path(),
                format!("must be a string, is {}", described(self.value)),
                format!("put it in quotes: \"{}\"", self.value),
            )),
            _ => Err(self.mistyped("a string", report)),
        }
    }

    pub(super) fn bool(&self, report: &mut Report) -> Result<bool, Reported> {
        self.value
            .as_bool()
            .ok_or_else(|| self.mistyped("true or false", report))
    }

    pub(super) fn mistyped(&self, wanted: &str, report: &mut Report) -> Reported {
        report.error(
            self.path(),
            format!("must be {wanted}, is {}", described(self.value)),
            format!("write {wanted} here, or leave the field out"),
        )
    }

    /// As in `spec.ingress[0].from[1].ipBlock.cidr`.
    pub(super) fn path(&self) -> String {
        let mut steps = Vec::new();
        let mut next = Some(self);
        while let Some(at) = next {
            steps.push(at.step);
            next = at.parent;
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            match step {
                Step::Root => {}
                Step::Key(key) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                }
                Step::Index(index) => {
                    let _ = write!(path, "[{index}]");
                }
            }
        }
        path
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        let path = self.path();
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    }
}

/// A value for people: its type, and itself if it is short.
pub(super) fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

/// A string of somebody else's, bounded.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    if text.chars().count() <= LONGEST {
        format!("{text:?}")
    } else {
        let head: String = text.chars().take(LONGEST).collect();
        format!("{head:?}…")
    }
}
