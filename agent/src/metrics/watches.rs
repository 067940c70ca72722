//! How fresh what the source's watches have told is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// One watch per kind of object. All clones share one state: the source writes it, metrics and status read it.
#[derive(Clone, Debug, Default)]
pub struct Watches(Arc<Mutex<BTreeMap<&'static str, Watch>>>);

#[derive(Debug)]
struct Watch {
    since: Instant,
    last_contact: Option<Instant>,
    synced: bool,
    failures: u64,
    error: Option<String>,
}

/// The state of one watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchReport {
    /// The kind of object, as [`crate::api::ObjectKind::name`] has it; `DaemonSet` and `CustomResourceDefinition` besides,
    /// from which the source learns what is no policy's matter.
    pub kind: &'static str,
    /// How long ago the server was last heard of by this watch; by one that never heard of it, how long ago it began.
    pub stale: Duration,
    /// The objects of the kind have been told once, whole.
    pub synced: bool,
    /// How often it failed since the agent started.
    pub failures: u64,
    /// Why it fails at the moment, if it does.
    pub error: Option<String>,
}

impl Watches {
    /// Somebody begins to watch a kind, and has heard nothing yet. Nothing changes for a kind that is watched already.
    pub fn begin(&self, kind: &'static str) {
        self.watch(kind, |_| {});
    }

    /// The server said something: an object, a bookmark, a part of a list.
    pub fn heard(&self, kind: &'static str) {
        self.watch(kind, |watch| {
            watch.last_contact = Some(Instant::now());
            watch.error = None;
        });
    }

    /// The objects of the kind have been told once, whole.
    pub fn synced(&self, kind: &'static str) {
        self.watch(kind, |watch| {
            watch.last_contact = Some(Instant::now());
            watch.error = None;
            watch.synced = true;
        });
    }

    /// The watch failed. What it told before stays in force, and grows old.
    pub fn failed(&self, kind: &'static str, error: impl Into<String>) {
        self.watch(kind, |watch| {
            watch.failures += 1;
            watch.error = Some(error.into());
        });
    }

    /// The kind is no longer watched: the server does not serve it any more.
    pub fn end(&self, kind: &str) {
        self.lock().remove(kind);
    }

    /// All watches, by kind.
    #[must_use]
    pub fn report(&self) -> Vec<WatchReport> {
        self.lock()
            .iter()
            .map(|(kind, watch)| WatchReport {
                kind,
                stale: watch.last_contact.unwrap_or(watch.since).elapsed(),
                synced: watch.synced,
                failures: watch.failures,
                error: watch.error.clone(),
            })
            .collect()
    }

    fn watch(&self, kind: &'static str, change: impl FnOnce(&mut Watch)) {
        change(self.lock().entry(kind).or_insert_with(|| Watch {
            since: Instant::now(),
            last_contact: None,
            synced: false,
            failures: 0,
            error: None,
        }));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Watch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_grows_old_from_its_last_contact_and_failures_are_remembered() {
        let watches = Watches::default();
        watches.begin("Pod");
        watches.clone().failed("Pod", "connection refused");
        let report = watches.report();
        assert_eq!((report.len(), report[0].kind, report[0].failures), (1, "Pod", 1));
        assert_eq!(report[0].error.as_deref(), Some("connection refused"));
        assert!(!report[0].synced);

        std::thread::sleep(Duration::from_millis(2));
        let before = watches.report()[0].stale;
        assert!(before >= Duration::from_millis(2), "{before:?}");
        watches.failed("Pod", "again");
        assert!(watches.report()[0].stale >= before, "a failure is no contact");
        watches.synced("Pod");
        let report = watches.report();
        assert!(report[0].synced && report[0].error.is_none());
        assert_eq!(report[0].failures, 2);
        watches.end("Pod");
        assert_eq!(watches.report(), []);
    }
}
