//! Errors as the CNI protocol has them (CNI spec, section 5, "Error").

use serde_json::json;

/// Codes of the specification, and from 100 on our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// The configuration is of a version that we do not speak, or that has no such command.
    IncompatibleVersion = 1,
    /// `CNI_*` variables are missing or make no sense.
    InvalidEnvironment = 4,
    /// Something could not be read or written.
    Io = 5,
    /// Standard input is no configuration.
    Decoding = 6,
    /// The configuration is not one that we can work with.
    InvalidConfiguration = 7,
    /// `CNI_NETNS` is no network namespace of a container (libcni's ErrInvalidNetNS).
    InvalidNetns = 8,
    TryAgainLater = 11,
    /// `STATUS`: pods cannot be attached. (51 would say that existing pods suffer, too: they keep their policy.)
    NotAvailable = 50,
    /// The pod's policy cannot be enforced on its interface.
    NotEnforced = 100,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {details}")]
pub struct CniError {
    pub code: Code,
    /// What is wrong, short.
    pub message: String,
    /// More about it, and what to do.
    pub details: String,
}

impl CniError {
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.into(),
        }
    }

    /// As the runtime reads it from standard output.
    #[must_use]
    pub fn json(&self, version: &str) -> String {
        json!({
            "cniVersion": version,
            "code": self.code as u16,
            "msg": self.message,
            "details": self.details,
        })
        .to_string()
    }
}
