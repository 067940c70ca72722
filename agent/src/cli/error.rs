//! How a verb can fail, and what its exit code is.

use std::{io, path::PathBuf};

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Exit code 3.
    #[error("no agent is running with run directory {}", run_dir.display())]
    NoAgent { run_dir: PathBuf },
    /// Exit code 1.
    #[error("{message}")]
    Failed { message: String, remedy: Option<String> },
    /// Exit code 2: what was asked cannot be meant.
    #[error("{0}")]
    Misused(&'static str),
    /// All is said: only the exit code is left.
    #[error("")]
    Told(u8),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl CliError {
    /// Exit code 1, without a remedy.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            remedy: None,
        }
    }

    /// The exit code. Whoever closed our output has seen enough: no failure.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::NoAgent { .. } => 3,
            Self::Misused(_) => 2,
            Self::Told(code) => *code,
            Self::Failed { .. } | Self::Io(_) => 1,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::NoAgent { .. } => Some(
                "start one with `weir agent`, or name the run directory of the one that runs with --run-dir \
                 (explain also works without: give it --manifests DIR)",
            ),
            Self::Failed { remedy, .. } => remedy.as_deref(),
            Self::Misused(_) | Self::Told(_) | Self::Io(_) => None,
        }
    }

    /// Whether there is something to print.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        match self {
            Self::Told(_) => true,
            Self::Io(error) => error.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        if let Some(kind) = error.io_error_kind() {
            return Self::Io(kind.into());
        }
        Self::failed(format!("cannot write JSON: {error}"))
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}
