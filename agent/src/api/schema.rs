//! Fields that a kind's API does not have, and values of the wrong type in fields that Weir does not look at.

use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::Value;

/// What does not fit the schema.
#[derive(Debug, Default)]
pub(super) struct Misfits {
    /// Paths of unknown fields, list positions left out (`spec.ingress[].form`).
    pub(super) unknown: Vec<String>,
    /// The first value of a wrong type: where, and what is wrong.
    pub(super) mistyped: Option<(String, String)>,
}

/// Holds the object against the API's own type.
pub(super) fn misfits<T: DeserializeOwned>(value: &Value) -> Misfits {
    let mut unknown: Vec<String> = Vec::new();
    let mut note = |path: Path<'_>| {
        let path = without_positions(&path);
        if !unknown.contains(&path) {
            unknown.push(path);
        }
    };
    let checked: Result<T, _> = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(value, &mut note));
    let mistyped = checked
        .err()
        .map(|error| (error.path().to_string(), error.inner().to_string()));
    Misfits { unknown, mistyped }
}

fn without_positions(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, .. } => without_positions(parent) + "[]",
        Path::Map { parent, key } => {
            let mut text = without_positions(parent);
            if !text.is_empty() {
                text.push('.');
            }
            let _ = write!(text, "{key}");
            text
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            without_positions(parent)
        }
    }
}
