//! Which version of an object is in force when not all of a new one is understood: the fail-closed rules, for every source.

use std::sync::Arc;

use crate::api::{Object, ObjectKey, Outcome, Parser};

/// What follows for a user whose object is not understood: the last valid version counts,
pub(in crate::source) const KEPT: &str = "until then the last valid version stays in force";
/// or the rest of it does,
pub(in crate::source) const PARTLY: &str = "until then the rule matches nothing, the rest is enforced";
/// or nothing.
pub(in crate::source) const NOTHING: &str = "until then nothing of it is enforced";

/// A version of an object that can be in force.
#[derive(Clone)]
pub(in crate::source) struct Good {
    pub(in crate::source) object: Object,
    /// The object's text, where the object does not hold all of it.
    pub(in crate::source) text: Option<Arc<str>>,
    /// All of it was understood.
    pub(in crate::source) valid: bool,
}

/// The version in force after a new one came, and what follows if not all of the new one is understood. `last`: the
/// version in force until now, or of the agent before this one.
pub(in crate::source) fn choose(
    outcome: Outcome,
    text: Option<Arc<str>>,
    last: Option<Good>,
) -> (Option<Good>, Option<&'static str>) {
    let good = |object, valid| Good { object, text, valid };
    match (outcome, last) {
        (Outcome::Valid(object), _) => (Some(good(object, true)), None),
        (Outcome::Partial(_), Some(last)) if last.valid => (Some(last), Some(KEPT)),
        (Outcome::Partial(object), _) => (Some(good(object, false)), Some(PARTLY)),
        (Outcome::Invalid | Outcome::Ignored, Some(last)) => (Some(last), Some(KEPT)),
        (Outcome::Invalid | Outcome::Ignored, None) => (None, Some(NOTHING)),
    }
}

/// A version that was kept as text.
pub(in crate::source) fn understood(parser: &mut Parser, text: &str) -> Option<(ObjectKey, Good)> {
    let parsed = parser.parse(&serde_json::from_str(text).ok()?, None);
    let (object, valid) = match parsed.outcome {
        Outcome::Valid(object) => (object, true),
        Outcome::Partial(object) => (object, false),
        Outcome::Invalid | Outcome::Ignored => return None,
    };
    let good = Good {
        object,
        text: parsed.manifest.map(Arc::from),
        valid,
    };
    Some((parsed.key?, good))
}
