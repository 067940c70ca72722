//! How each watch does: what `weir status` and the metrics say of the source.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::client::Failure;
use crate::metrics::Watches;

/// One watch, as it counts itself.
#[derive(Debug)]
pub(super) struct WatchHealth {
    /// Are told, too: they are what the metrics say.
    watches: Watches,
    kind: &'static str,
    bytes: AtomicU64,
    events: AtomicU64,
    lists: AtomicU64,
    failures: AtomicU64,
    /// Objects known of this kind.
    objects: AtomicU64,
    /// Set by the first list; cleared by nothing.
    synced: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failing: Option<(Instant, String)>,
}

impl WatchHealth {
    pub(super) fn new(watches: Watches, kind: &'static str) -> Self {
        watches.begin(kind);
        Self {
            watches,
            kind,
            bytes: AtomicU64::new(0),
            events: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            synced: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
        self.contact();
    }

    pub(super) fn lists(&self) {
        self.lists.fetch_add(1, Ordering::Relaxed);
        self.contact();
    }

    pub(super) fn synced(&self) {
        if !self.synced.swap(true, Ordering::Relaxed) {
            self.watches.synced(self.kind);
        }
    }

    pub(super) fn objects(&self, number: usize) {
        self.objects.store(number as u64, Ordering::Relaxed);
    }

    /// The server said something.
    pub(super) fn contact(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failing = None;
        drop(state);
        self.watches.heard(self.kind);
    }

    pub(super) fn failed(&self, failure: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = state.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        let why = failure.to_string();
        self.watches.failed(self.kind, why.clone());
        state.failing = Some((since, why));
    }

    fn report(&self, name: &str) -> KindHealth {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        KindHealth {
            kind: name.to_string(),
            synced: self.synced.load(Ordering::Relaxed),
            stale: state.failing.as_ref().map(|(since, why)| Stale {
                seconds: since.elapsed().as_secs(),
                reason: why.clone(),
            }),
            objects: self.objects.load(Ordering::Relaxed),
            lists: self.lists.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// How the watch of one kind does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindHealth {
    /// As in `pods`, or `networkpolicies.networking.k8s.io`.
    pub kind: String,
    /// It has been listed once, whole.
    pub synced: bool,
    /// For how long what is known may be out of date, and why. None: it is current, as far as the server tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Stale>,
    /// Objects known.
    pub objects: u64,
    /// Lists begun since the agent started: one, and one for each time that the watch could not go on.
    pub lists: u64,
    /// Changes that the watch told since the agent started.
    pub events: u64,
    /// Requests that failed since the agent started.
    pub failures: u64,
    /// Received for it since the agent started: bodies of answers, without HTTP and TLS.
    pub bytes: u64,
}

/// What is known may be out of date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    /// Since the first request that failed.
    pub seconds: u64,
    pub reason: String,
}

/// How all watches do. Cheap to clone; always current.
#[derive(Clone)]
pub struct Health {
    kinds: Arc<Mutex<BTreeMap<&'static str, Arc<WatchHealth>>>>,
    watches: Watches,
}

impl Health {
    pub(super) fn new(watches: Watches) -> Self {
        Self {
            kinds: Arc::default(),
            watches,
        }
    }

    /// `name`: as [`KindHealth::kind`] has it. `kind`: as metrics have it.
    pub(super) fn add(&self, name: &'static str, kind: &'static str) -> Arc<WatchHealth> {
        let health = Arc::new(WatchHealth::new(self.watches.clone(), kind));
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.insert(name, health.clone());
        health
    }

    pub(super) fn remove(&self, name: &str, kind: &str) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.remove(name);
        self.watches.end(kind);
    }

    /// Of every kind that is watched, by name.
    #[must_use]
    pub fn kinds(&self) -> Vec<KindHealth> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().map(|(name, health)| health.report(name)).collect()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.kinds()).finish()
    }
}
