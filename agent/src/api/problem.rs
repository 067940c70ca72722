//! What is wrong with an object or a file, where, and what to do.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something in the source is not enforced as written.
    Error,
    /// Everything is enforced, but the author may have meant something else.
    Warning,
}

/// One thing that is wrong in the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    pub severity: Severity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Where the object begins in the file, or where its text cannot be parsed. From 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Kind and name, as in `NetworkPolicy default/web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// As in `spec.ingress[0].from[1].ipBlock.cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    #[must_use]
    pub fn error(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: None,
            line: None,
            object: None,
            field: None,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    #[must_use]
    pub fn warning(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(message, remedy)
        }
    }

    #[must_use]
    pub fn in_file(mut self, file: impl Into<PathBuf>, line: Option<u32>) -> Self {
        self.file = Some(file.into());
        self.line = line;
        self
    }

    #[must_use]
    pub fn of_object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    #[must_use]
    pub fn at_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

/// One line: `error: web.yaml:7: NetworkPolicy default/web: spec.ingress[0].ports[0].port: … (remedy)`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, _) => {}
        }
        for place in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message.replace('\n', " "))?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy.replace('\n', " "))?;
        }
        Ok(())
    }
}
