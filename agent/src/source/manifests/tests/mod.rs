//! Real files, the real watcher.

mod files;
mod validity;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError};

use super::{Config, ManifestSource, SETTLE};
use crate::{
    api::{Object, Problem, Severity},
    metrics::Arrivals,
    source::SourceEvent,
};

/// Longer than anything here takes, on the slowest machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A source and the world as its events tell it.
struct Watched {
    source: Option<ManifestSource>,
    events: UnboundedReceiver<SourceEvent>,
    objects: BTreeMap<String, Object>,
    problems: BTreeMap<String, Vec<Problem>>,
    /// Every event since the last look, as text.
    history: Vec<String>,
    home: TempDir,
}

impl Watched {
    fn empty() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("manifests")).unwrap();
        Self::start(home)
    }

    fn with(files: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = home.path().join("manifests").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self::start(home)
    }

    fn start(home: TempDir) -> Self {
        let config = Config {
            directory: home.path().join("manifests"),
            run_dir: home.path().join("run"),
        };
        let (source, events) = ManifestSource::start(&config, Arrivals::default()).unwrap();
        let mut watched = Self {
            source: Some(source),
            events,
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
            history: Vec::new(),
            home,
        };
        let first = watched.next();
        assert!(matches!(first, SourceEvent::Reset(_)), "{first:?}");
        watched.refresh();
        watched
    }

    /// Stops the source and starts another one on the same directories.
    fn restart(mut self) -> Self {
        self.source = None;
        Self::start(self.home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn next(&mut self) -> SourceEvent {
        let until = Instant::now() + DEADLINE;
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    self.take(&event);
                    return event;
                }
                Err(TryRecvError::Empty) => assert!(Instant::now() < until, "nothing came: {:?}", self.history),
                Err(TryRecvError::Disconnected) => panic!("the source ended"),
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn take(&mut self, event: &SourceEvent) {
        match event {
            SourceEvent::Reset(objects) => {
                self.objects = objects
                    .iter()
                    .map(|object| (object.key().to_string(), object.clone()))
                    .collect();
                self.history.push("reset".into());
            }
            SourceEvent::Apply(object) => {
                self.history.push(format!("apply {}", object.key()));
                self.objects.insert(object.key().to_string(), object.clone());
            }
            SourceEvent::Delete(key) => {
                self.history.push(format!("delete {key}"));
                assert!(self.objects.remove(&key.to_string()).is_some());
            }
            SourceEvent::Problems { origin, problems } => {
                self.problems.insert(origin.to_string(), problems.clone());
            }
            SourceEvent::Refreshed(_) => {}
            SourceEvent::ResetKinds { .. } | SourceEvent::Incomplete(_) => panic!("of a directory: {event:?}"),
        }
    }

    /// Takes in all that is in the directory now. Returns what happened since the last time.
    fn refresh(&mut self) -> Vec<String> {
        let token = self.source.as_ref().unwrap().refresh();
        while self.next() != SourceEvent::Refreshed(token) {}
        std::mem::take(&mut self.history)
    }

    /// Waits for the watcher, without asking for a refresh.
    fn until(&mut self, what: impl Fn(&Self) -> bool) -> Vec<String> {
        while !what(self) {
            self.next();
        }
        std::mem::take(&mut self.history)
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.objects.contains_key(name)
    }

    /// How many rules the policy has for ingress.
    fn rules(&self, name: &str) -> Option<usize> {
        match self.objects.get(name) {
            Some(Object::Policy(policy)) => policy.ingress.as_ref().map(Vec::len),
            _ => None,
        }
    }

    fn errors(&self) -> Vec<&Problem> {
        self.problems
            .values()
            .flatten()
            .filter(|problem| problem.severity == Severity::Error)
            .collect()
    }

    fn warnings(&self) -> Vec<&Problem> {
        self.problems
            .values()
            .flatten()
            .filter(|problem| problem.severity == Severity::Warning)
            .collect()
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

/// A policy with as many rules as said.
fn policy(name: &str, rules: usize) -> String {
    let rules = vec!["{}"; rules].join(", ");
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: ns}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress], ingress: [{rules}]}}\n"
    )
}

fn partly_broken(name: &str) -> String {
    policy(name, 2).replacen("{}, {}]", "{ports: [{port: 99999}]}, {}]", 1)
}

fn wholly_broken(name: &str) -> String {
    policy(name, 1).replace("podSelector: {}", "podSelector: 7")
}

const P: &str = "NetworkPolicy ns/p";
