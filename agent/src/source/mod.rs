//! Where objects come from: the Kubernetes API, or a directory of manifests.
//!
//! | file | what |
//! |---|---|
//! | `kubernetes` | the Kubernetes API |
//! | `manifests` | a directory of manifests |
//! | `valid` | which version of an object is in force when not all of a new one is understood |
//! | `store` | versions in force, kept for the next start |

pub mod kubernetes;
pub mod manifests;
mod store;
mod valid;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::mpsc;

use self::{
    kubernetes::{KindHealth, KubernetesSource, NodeCondition, PodReader},
    manifests::ManifestSource,
};
use crate::{
    api::{Object, ObjectKey, ObjectKind, Problem},
    metrics::Instruments,
};

/// What a source tells the index. The first event is always [`SourceEvent::Reset`]; only problems may come before.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// A new object, or a new version of a known one.
    Apply(Object),
    Delete(ObjectKey),
    /// Everything there is. What is not in it is gone.
    Reset(Vec<Object>),
    /// Everything there is of these kinds. Nothing is said of others.
    ResetKinds {
        kinds: Vec<ObjectKind>,
        objects: Vec<Object>,
    },
    /// The problems of one origin (a file, or a part of the source), in place of those told before. Empty: solved.
    Problems {
        origin: Arc<str>,
        problems: Vec<Problem>,
    },
    /// What of the source could not be read since the start: of that, the last valid versions of an earlier agent count.
    /// None: all has been read.
    Incomplete(Option<Gap>),
    /// Everything that was in the source when the refresh with this token was asked for has been told.
    Refreshed(u64),
}

/// What of the source could not be read since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub reason: String,
    /// Policies that no agent of this node has ever read may be among it: of a new pod nobody can say that it obeys them.
    pub policies: bool,
}

/// Which source, as the command line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOptions {
    /// A directory of manifests. Created if missing.
    Manifests(PathBuf),
    Kubernetes(kubernetes::Options),
}

impl fmt::Display for SourceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "manifests in {}", directory.display()),
            Self::Kubernetes(options) => options.fmt(f),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Manifests(#[from] manifests::Error),
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
}

/// A running source. Stops when dropped.
#[derive(Debug)]
pub enum Source {
    Manifests(ManifestSource),
    Kubernetes(Box<KubernetesSource>),
}

impl Source {
    /// Whether there can be such a source, as far as can be said without asking it.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read; no cluster around.
    pub async fn check(options: &SourceOptions) -> Result<(), Error> {
        match options {
            SourceOptions::Manifests(_) => Ok(()),
            SourceOptions::Kubernetes(options) => Ok(kubernetes::check(options).await?),
        }
    }

    /// Starts to read. `run_dir` holds the last valid versions (`last-valid.log`); created if missing. `instruments`: are told
    /// when what led to an event was seen, and how watches do.
    ///
    /// # Errors
    /// What no retry can mend: a directory that cannot be used, a kubeconfig that cannot be read. An API server that
    /// cannot be reached is tried again without end.
    pub async fn start(
        options: &SourceOptions,
        run_dir: &Path,
        node: &str,
        instruments: &Instruments,
    ) -> Result<(Self, mpsc::UnboundedReceiver<SourceEvent>), Error> {
        match options {
            SourceOptions::Manifests(directory) => {
                let config = manifests::Config {
                    directory: directory.clone(),
                    run_dir: run_dir.to_owned(),
                };
                let (source, events) = ManifestSource::start(&config, instruments.arrivals.clone())?;
                Ok((Self::Manifests(source), events))
            }
            SourceOptions::Kubernetes(options) => {
                let (source, events) = KubernetesSource::start(options, run_dir, node, instruments).await?;
                Ok((Self::Kubernetes(Box::new(source)), events))
            }
        }
    }

    /// Has everything read again from the source itself. Answered by [`SourceEvent::Refreshed`] with the token returned.
    pub fn refresh(&self) -> u64 {
        match self {
            Self::Manifests(source) => source.refresh(),
            Self::Kubernetes(source) => source.refresh(),
        }
    }

    /// Reads single pods from the API, past the watch. None for manifests.
    #[must_use]
    pub fn pod_reader(&self) -> Option<PodReader> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => Some(source.pod_reader()),
        }
    }

    /// Whether the agent is told to end because it is removed from the cluster, and not to be started again.
    pub async fn is_removed(&self) -> bool {
        match self {
            Self::Manifests(_) => false,
            Self::Kubernetes(source) => source.is_removed().await,
        }
    }

    /// The condition on the agent's Node, if one is wanted.
    #[must_use]
    pub const fn condition(&self) -> Option<&NodeCondition> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => source.condition(),
        }
    }

    /// How the watch of each kind does. Empty for manifests.
    #[must_use]
    pub fn watches(&self) -> Vec<KindHealth> {
        match self {
            Self::Manifests(_) => Vec::new(),
            Self::Kubernetes(source) => source.health().kinds(),
        }
    }
}
