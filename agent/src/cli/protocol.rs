//! What verbs and the agent say to each other over the socket: lines of JSON.
//!
//! One request line, one response line. `flows` answers with one response line and then bare record lines, as in the
//! flow log, until the connection ends.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    cni::attachment::{CniAnswer, CniRequest},
    control::{
        explain::{ExplainRequest, Explanation},
        query::{DetachReport, Dump, DumpKind, QueryError, StatusReport, WaitReport},
    },
    flow::filter::Filter,
};

/// Grows when a request or a response changes its meaning. (A new field or verb needs no new version.)
pub const VERSION: u32 = 1;

/// Longest request, bytes.
pub const MAX_REQUEST: u64 = 256 * 1024;

/// Longest wait that can be asked for, ms: a day.
pub const MAX_WAIT: u64 = 24 * 3600 * 1000;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "weir.sock";

/// Where the agent of a run directory listens.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    #[serde(flatten)]
    pub verb: Verb,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Verb {
    Status,
    Wait {
        timeout_ms: u64,
    },
    Explain {
        request: ExplainRequest,
    },
    Dump {
        what: DumpKind,
    },
    Flows {
        /// Go on with what comes.
        follow: bool,
        /// So many recent records first.
        last: usize,
        #[serde(default)]
        filter: Filter,
    },
    Detach,
    /// From the CNI plugin.
    Cni {
        request: CniRequest,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Status(Box<StatusReport>),
    Wait(WaitReport),
    Explain(Box<Explanation>),
    Dump(Dump),
    /// Record lines follow.
    Flows {
        /// Recent records; with `follow`, what comes afterwards is live.
        recent: usize,
        /// Events were wanted before this reader came.
        recording: bool,
    },
    Detach(DetachReport),
    Cni(CniAnswer),
    Error(QueryError),
}
