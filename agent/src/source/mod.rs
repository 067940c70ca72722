//! Where objects come from: the Kubernetes API, or a directory of manifests.
//!
//! | file | what |
//! |---|---|
//! | `manifests` | a directory of manifests

pub mod manifests;

use std::sync::Arc;

use crate::api::{Object, ObjectKey, Problem};

/// What a source tells the index. The first event is always [`SourceEvent::Reset`].
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// A new object, or a new version of a known one.
    Apply(Object),
    Delete(ObjectKey),
    /// Everything there is. What is not in it is gone.
    Reset(Vec<Object>),
    /// The problems of one origin (a file, or a part of the source), in place of those told before. Empty: solved.
    Problems {
        origin: Arc<str>,
        problems: Vec<Problem>,
    },
    /// Everything that was in the source when the refresh with this token was asked for has been told.
    Refreshed(u64),
}
