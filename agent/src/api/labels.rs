//! Label selectors and metadata, validated as the API server does
//! (apimachinery: validation.IsQualifiedName, IsValidLabelValue; meta/v1/validation.ValidateLabelSelector).

use std::collections::{BTreeMap, BTreeSet};

use super::at::{At, Report, Reported, described, quoted};
use crate::policy::selector::{Field, Selector};

/// `metadata.labels`. Values that the API server would refuse are kept, with a warning: they do no harm here.
pub(super) fn of_metadata(metadata: &At<'_>, report: &mut Report) -> Result<BTreeMap<String, String>, Reported> {
    let Some(labels) = metadata.get("labels") else {
        return Ok(BTreeMap::new());
    };
    let mut out = BTreeMap::new();
    let mut broken = None;
    for key in labels.map(report)?.keys() {
        // A null value is the empty string, as the API server reads it.
        let value = match labels.get(key) {
            None => "",
            Some(value) => match value.string(report) {
                Ok(value) => value,
                Err(reported) => {
                    broken = Some(reported);
                    continue;
                }
            },
        };
        if let Some(fault) = key_fault(key).or_else(|| value_fault(value)) {
            report.warn(
                labels.path_of(key),
                fault,
                "the API server refuses such a label: rename it",
            );
        }
        out.insert(key.clone(), value.to_owned());
    }
    broken.map_or(Ok(out), Err)
}

/// The parts of a label selector, all of which must hold; none if it is empty.
pub(super) fn selector(
    selector: &At<'_>,
    field: fn(String) -> Field,
    report: &mut Report,
) -> Result<Vec<Selector>, Reported> {
    selector.map(report)?;
    let mut parts = Vec::new();
    if let Some(labels) = selector.get("matchLabels") {
        for key in labels.map(report)?.keys() {
            let value = match labels.get(key) {
                Some(value) => value.string(report)?,
                None => "",
            };
            checked_key(&labels, key, report)?;
            checked_value(&labels.path_of(key), value, report)?;
            parts.push(Selector::equals(field(key.clone()), value));
        }
    }
    if let Some(expressions) = selector.get("matchExpressions") {
        for expression in expressions.elements(report)? {
            parts.push(requirement(&expression, field, report)?);
        }
    }
    parts.shrink_to_fit();
    Ok(parts)
}

fn requirement(expression: &At<'_>, field: fn(String) -> Field, report: &mut Report) -> Result<Selector, Reported> {
    expression.map(report)?;
    let missing =
        |key: &str, report: &mut Report, remedy: &str| report.error(expression.path_of(key), "is missing", remedy);
    let Some(key) = expression.get("key") else {
        return Err(missing("key", report, "name the label that the expression asks for"));
    };
    let key = key.string(report)?;
    checked_key(expression, key, report)?;
    let Some(operator) = expression.get("operator") else {
        return Err(missing("operator", report, "use In, NotIn, Exists or DoesNotExist"));
    };
    let operator_name = operator.string(report)?;

    let mut values = BTreeSet::new();
    if let Some(list) = expression.get("values") {
        for value in list.elements(report)? {
            let text = value.string(report)?;
            checked_value(&value.path(), text, report)?;
            values.insert(text.to_owned());
        }
    }
    let field = field(key.to_owned());
    match (operator_name, values.is_empty()) {
        ("In", false) => Ok(Selector::In(field, values.into())),
        ("NotIn", false) => Ok(Selector::Not(Box::new(Selector::In(field, values.into())))),
        ("Exists", true) => Ok(Selector::Has(field)),
        ("DoesNotExist", true) => Ok(Selector::Not(Box::new(Selector::Has(field)))),
        ("In" | "NotIn", true) => Err(report.error(
            expression.path_of("values"),
            format!("must not be empty with operator {operator_name}"),
            "list the values, or use Exists or DoesNotExist",
        )),
        ("Exists" | "DoesNotExist", false) => Err(report.error(
            expression.path_of("values"),
            format!("must be empty with operator {operator_name}"),
            "remove the values, or use In or NotIn",
        )),
        _ => Err(report.error(
            operator.path(),
            format!("{} is no operator", quoted(operator_name)),
            "use In, NotIn, Exists or DoesNotExist (as written here)",
        )),
    }
}

fn checked_key(at: &At<'_>, key: &str, report: &mut Report) -> Result<(), Reported> {
    match key_fault(key) {
        None => Ok(()),
        Some(fault) => Err(report.error(
            at.path(),
            fault,
            "correct the label key: [prefix/]name, as in app.kubernetes.io/name",
        )),
    }
}

fn checked_value(path: &str, value: &str, report: &mut Report) -> Result<(), Reported> {
    match value_fault(value) {
        None => Ok(()),
        Some(fault) => Err(report.error(
            path,
            fault,
            "no label can have this value; correct it (letters, digits, '-', '_' and '.', at most 63)",
        )),
    }
}

/// Letters, digits, `-`, `_`, `.`, beginning and ending with a letter or digit, at most 63.
fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// A DNS subdomain (RFC 1123): what most names of objects are.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        })
}

fn key_fault(key: &str) -> Option<String> {
    let valid = match key.split_once('/') {
        None => is_name(key),
        Some((prefix, name)) => is_subdomain(prefix) && is_name(name),
    };
    (!valid).then(|| format!("{} is no valid label key", quoted(key)))
}

fn value_fault(value: &str) -> Option<String> {
    (!value.is_empty() && !is_name(value)).then(|| format!("{} is no valid label value", described(&value.into())))
}
