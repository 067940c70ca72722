//! The Kubernetes API as a source: one watch per kind that the cluster serves.
//!
//! | file | what |
//! |---|---|
//! | `client` | requests to the API server, failures sorted by what follows from them |
//! | `kinds` | which kinds to watch, and where; the choice between Calico's two groups |
//! | `discovery` | which of Calico's kinds the cluster serves |
//! | `watch` | one kind, listed and then watched, without end |
//! | `project` | objects' texts, read without what no policy can ask for |
//! | `catalogue` | the objects told, and which version of each is in force |
//! | `run` | takes in what the watches tell, says what follows, answers who asks; `refresh`: reads again; `trouble`: what cannot be read |
//! | `health` | how each watch does |
//! | `daemonset` | whether the agent's own DaemonSet is being removed |
//! | `report`, `condition` | Events on objects that are not enforced as written, and on pods of this node that are not enforced; a condition on the Node |
//! | `version`, `backoff` | which version is newer; when to try again |
//!
//! Nothing is told before everything that is served and permitted has been listed once: the first event is one Reset. A
//! watch that cannot go on (410) lists its kind again, which is one `ResetKinds`. While the API server is away, or a
//! permission is, the last objects known stay.

mod backoff;
mod catalogue;
mod client;
mod condition;
mod daemonset;
mod discovery;
mod health;
mod kinds;
mod project;
mod report;
mod run;
mod version;
mod watch;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};

use self::{
    catalogue::Catalogue,
    client::Api,
    daemonset::OwnDaemonSet,
    discovery::Discovery,
    report::Reporter,
    run::{Command, Inbox, Outbox, Runner},
};
pub use self::{
    condition::{CONDITION, ConditionError, NodeCondition},
    daemonset::{BadName, DaemonSetName, SEEN},
    health::{Health, KindHealth, Stale},
    report::PodEvents,
};
use super::{SourceEvent, store::Store};
use crate::{api::Pod, metrics::Instruments};

/// Messages of the watches that may be under way: few, so that a first list never lies in memory twice.
const UNDER_WAY: usize = 64;

/// How to reach the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// None: as the pod that the agent runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The agent's own DaemonSet, if its removal is to take everything away.
    pub daemonset: Option<DaemonSetName>,
    /// Write a condition on the agent's Node.
    pub node_condition: bool,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kubeconfig {
            Some(path) => write!(f, "the Kubernetes API of {}", path.display()),
            None => f.write_str("the Kubernetes API of this cluster"),
        }
    }
}

/// Why the API cannot be a source. An API server that does not answer is none of these: it is asked again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use kubeconfig {}: {message} (name a readable --kubeconfig with a current context)", path.display())]
    Kubeconfig { path: PathBuf, message: String },
    #[error(
        "no source of objects: this is no pod of a cluster ({0}); name one with --kubeconfig FILE or --manifests DIR"
    )]
    InCluster(String),
    #[error("cannot speak with the API server: {0} (see to the certificates and keys of the kubeconfig)")]
    Client(String),
    #[error("cannot keep last valid versions in {}: {source} (name a writable --run-dir)", path.display())]
    Store { path: PathBuf, source: io::Error },
}

/// Whether the configuration to reach the API with can be used. Asks nobody.
///
/// # Errors
/// [`Error::Kubeconfig`], [`Error::InCluster`] or [`Error::Client`].
pub async fn check(options: &Options) -> Result<(), Error> {
    Api::new(options.kubeconfig.as_deref()).await.map(drop)
}

/// A pod, as the API had it a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRead {
    pub pod: Arc<Pod>,
    pub uid: String,
    /// Its resource version.
    pub version: u64,
}

/// Why a pod could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(pub(super) String);

/// Reads single pods, past the watch. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PodReader {
    commands: mpsc::UnboundedSender<Command>,
}

impl PodReader {
    /// Reads a pod from the API server now. None: there is no such pod (any more). Before it answers, the source has told
    /// the version read as a [`SourceEvent::Apply`], unless a newer one was known, which is returned then; no older event
    /// of the watch takes it back. Before the first full sync it waits for that.
    ///
    /// # Errors
    /// The API server cannot be reached, or does not permit it. The source has ended.
    pub async fn read(&self, namespace: &str, name: &str) -> Result<Option<PodRead>, ReadError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Read {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reply,
        };
        let ended = || ReadError("the agent is shutting down".to_owned());
        self.commands.send(command).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// A running source. Stops when dropped; what it had told stays kept.
#[derive(Debug)]
pub struct KubernetesSource {
    commands: mpsc::UnboundedSender<Command>,
    tokens: AtomicU64,
    health: Health,
    api: Api,
    daemonset: Option<OwnDaemonSet>,
    condition: Option<NodeCondition>,
    pod_events: PodEvents,
    tasks: Vec<JoinHandle<()>>,
}

impl KubernetesSource {
    /// Starts to read. The first event is the Reset with all objects, once all that is served and permitted is known.
    ///
    /// # Errors
    /// The configuration cannot be used, or versions cannot be kept.
    pub async fn start(
        options: &Options,
        run_dir: &Path,
        node: &str,
        instruments: &Instruments,
    ) -> Result<(Self, mpsc::UnboundedReceiver<SourceEvent>), Error> {
        let unusable = |source| Error::Store {
            path: run_dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(run_dir).map_err(unusable)?;
        let (store, stored) = Store::open(run_dir).map_err(unusable)?;
        let api = Api::new(options.kubeconfig.as_deref()).await?;
        let (messages, told) = mpsc::channel(UNDER_WAY);
        let (commands, asked) = mpsc::unbounded_channel();
        let (events, told_events) = mpsc::unbounded_channel();
        let (discovered, discoveries) = mpsc::channel(4);
        let (sighted, sightings) = mpsc::unbounded_channel();
        let (reports, reported) = mpsc::unbounded_channel();
        let pod_events = PodEvents {
            reports: reports.clone(),
        };
        let doubt = Arc::new(Notify::new());
        let health = Health::new(instruments.watches.clone());
        let discovery = Discovery {
            api: api.clone(),
            out: discovered,
            doubt: doubt.clone(),
            health: health.add(
                "customresourcedefinitions.apiextensions.k8s.io",
                "CustomResourceDefinition",
            ),
        };
        let catalogue = Catalogue::new(store, stored);
        let outbox = Outbox {
            events,
            arrivals: instruments.arrivals.clone(),
            reports,
            node: node.into(),
        };
        let runner = Runner::new(api.clone(), catalogue, health.clone(), doubt, messages, outbox);
        let inbox = Inbox {
            messages: told,
            commands: asked,
            discovered: discoveries,
            sightings,
        };
        let reporter = Reporter {
            api: api.clone(),
            node: node.into(),
            reports: reported,
        };
        let tasks = vec![
            tokio::spawn(discovery.run()),
            tokio::spawn(runner.run(inbox)),
            tokio::spawn(reporter.run()),
        ];
        let daemonset = options.daemonset.clone();
        let daemonset = daemonset.map(|name| {
            let health = health.add("daemonsets.apps", "DaemonSet");
            OwnDaemonSet::watch(name, api.clone(), run_dir, health, sighted)
        });
        let condition = options.node_condition.then(|| NodeCondition {
            api: api.clone(),
            node: node.to_owned(),
        });
        let source = Self {
            commands,
            tokens: AtomicU64::new(1),
            health,
            api,
            daemonset,
            condition,
            pod_events,
            tasks,
        };
        Ok((source, told_events))
    }

    /// Has everything read again from the API server. Answered by [`SourceEvent::Refreshed`] with the token returned,
    /// after every event that this caused; not while the API server cannot be reached.
    pub fn refresh(&self) -> u64 {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        // Fails only if the source has ended, and then the closed event channel says so.
        let _ = self.commands.send(Command::Refresh(token));
        token
    }

    /// Reads single pods, past the watch.
    #[must_use]
    pub fn pod_reader(&self) -> PodReader {
        PodReader {
            commands: self.commands.clone(),
        }
    }

    /// How the watches do.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether the agent is told to end because its own DaemonSet is removed. Takes a few seconds at most.
    pub async fn is_removed(&self) -> bool {
        match &self.daemonset {
            Some(daemonset) => daemonset.is_removed().await,
            None => false,
        }
    }

    /// The condition on the agent's Node, if one is wanted.
    #[must_use]
    pub const fn condition(&self) -> Option<&NodeCondition> {
        self.condition.as_ref()
    }

    /// Events on pods of this node.
    #[must_use]
    pub const fn pod_events(&self) -> &PodEvents {
        &self.pod_events
    }

    /// The API server's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.api.server
    }
}

impl Drop for KubernetesSource {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
