//! Kubernetes Events on objects that are not enforced as they are written.
//!
//! Every agent of a cluster sees the same objects, and so the same mistakes. An Event's name follows from what it says,
//! and it is only ever created: the second to say the same is told that it is there already. And only a few agents try,
//! one after the other: which ones follows from the object and the nodes' names. So a mistake costs a handful of
//! requests, whatever the size of the cluster, and is told even where most nodes have no agent.
//!
//! What keeps a pod from being enforced is known to the agent of its node alone, which says it at once.

use std::{
    collections::HashMap,
    fmt::Write as _,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use http::Method;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    catalogue::ObjectProblems,
    client::{Api, Failure, JSON},
    watch::escaped,
};
use crate::api::{Problem, Severity};

/// How many agents try, and how long each leaves the one before it.
const TRIES: usize = 12;
const TURN: Duration = Duration::from_secs(5);
/// API servers forget Events after an hour (`--event-ttl`): what is still so is said again then.
const AGAIN: Duration = Duration::from_secs(61 * 60);
/// Longest note of an Event (events.k8s.io/v1).
const LONGEST_NOTE: usize = 1024;
/// Longest part of an object's name in the name of an Event.
const LONGEST_NAME: usize = 200;
/// The kind of pods.
const POD: &str = "Pod";
/// Events per object and version.
const MOST: usize = 5;

/// What the reporter is told, in place of what it was told of the same object before.
#[derive(Debug)]
pub(super) enum Report {
    Object {
        problems: ObjectProblems,
        /// How many agents come before this one.
        rank: usize,
    },
    /// Why a pod of this node is not enforced. None: it is (again), or is gone.
    Pod {
        namespace: Arc<str>,
        name: Arc<str>,
        reason: Option<String>,
    },
}

/// Tells why pods of this node are not enforced. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PodEvents {
    pub(super) reports: mpsc::UnboundedSender<Report>,
}

impl PodEvents {
    /// In place of what was told of this pod before. None: it is enforced again, or gone.
    pub fn tell(&self, namespace: Arc<str>, name: Arc<str>, reason: Option<String>) {
        // Fails only if the source has ended.
        let _ = self.reports.send(Report::Pod {
            namespace,
            name,
            reason,
        });
    }
}

/// How many of these nodes come before one, for an object. The order is another for each object.
pub(super) fn rank<'a>(uid: &str, own: &str, nodes: impl Iterator<Item = &'a str>) -> usize {
    let place = |node: &str| {
        let mut hasher = DefaultHasher::new();
        (uid, node).hash(&mut hasher);
        (hasher.finish(), node.to_owned())
    };
    let own = place(own);
    nodes.filter(|node| place(node) < own).count()
}

enum Subject {
    /// With the paths to create them at.
    Events(Vec<(String, Value)>),
    /// A pod that is not enforced, to be read first: which one of this name it is, and whether it is there.
    Pod(Arc<str>, Arc<str>, String),
}

struct Due {
    at: Instant,
    subject: Subject,
    rank: usize,
    /// How often in a row they could not be created.
    failures: u32,
}

impl Due {
    fn new(subject: Subject, rank: usize) -> Self {
        let mut due = Self {
            at: Instant::now(),
            subject,
            rank,
            failures: 0,
        };
        due.at += due.turn();
        due
    }

    fn turn(&self) -> Duration {
        TURN * u32::try_from(self.rank).unwrap_or(u32::MAX)
    }

    /// When they have to be created again.
    fn next(&mut self, now: Instant, told: bool) {
        if told {
            self.failures = 0;
            self.at = now + AGAIN + self.turn();
        } else {
            self.at = now + TURN.saturating_mul(1 << self.failures.min(16)).min(AGAIN);
            self.failures = self.failures.saturating_add(1);
        }
    }
}

pub(super) struct Reporter {
    pub(super) api: Api,
    pub(super) node: Arc<str>,
    pub(super) reports: mpsc::UnboundedReceiver<Report>,
}

impl Reporter {
    /// Until nobody reports.
    pub(super) async fn run(mut self) {
        let mut due: HashMap<(&'static str, Arc<str>, Arc<str>), Due> = HashMap::new();
        let mut refused = false;
        loop {
            let next = due.values().map(|due| due.at).min();
            tokio::select! {
                report = self.reports.recv() => {
                    let Some(report) = report else { return };
                    match report {
                        Report::Object { problems, rank } => {
                            let key = (problems.kind, problems.namespace.clone(), problems.name.clone());
                            let events = events(&problems, &self.node);
                            if events.is_empty() || rank >= TRIES {
                                due.remove(&key);
                            } else {
                                due.insert(key, Due::new(Subject::Events(events), rank));
                            }
                        }
                        Report::Pod { namespace, name, reason } => {
                            let key = (POD, namespace.clone(), name.clone());
                            match reason {
                                Some(reason) => drop(due.insert(key, Due::new(Subject::Pod(namespace, name, reason), 0))),
                                None => drop(due.remove(&key)),
                            }
                        }
                    }
                }
                () = wait(next) => {
                    let now = Instant::now();
                    for due in due.values_mut().filter(|due| due.at <= now) {
                        let failure = self.create(&mut due.subject).await.err();
                        let told = failure.as_ref().is_none_or(is_final);
                        due.next(Instant::now(), told);
                        match failure {
                            None => {}
                            Some(failure) if refused => tracing::debug!("cannot create an Event: {failure}"),
                            Some(failure) => {
                                refused = true;
                                tracing::warn!("cannot create Events: {failure}; problems are told in the log, by `weir status` and by metrics");
                            }
                        }
                    }
                }
            }
        }
    }

    /// Creates all Events on an object. One that is there already is fine.
    async fn create(&self, subject: &mut Subject) -> Result<(), Failure> {
        let mut read;
        let events = match subject {
            Subject::Events(events) => events,
            Subject::Pod(namespace, name, reason) => {
                let path = format!("/api/v1/namespaces/{}/pods/{}", escaped(namespace), escaped(name));
                let pod = match self.api.get(&path).await {
                    // Its end has not been heard of yet.
                    Err(Failure::Missing) => return Ok(()),
                    pod => pod?,
                };
                read = events(&unenforced(namespace, name, reason, &pod), &self.node);
                &mut read
            }
        };
        let mut refused = Ok(());
        for (path, event) in events {
            event["eventTime"] = json!(now_text());
            let body = event.to_string().into_bytes();
            match self.api.write(Method::POST, path, JSON, body).await {
                Ok(()) | Err(Failure::Conflict(_)) => {}
                Err(failure) if is_final(&failure) => refused = Err(failure),
                Err(failure) => return Err(failure),
            }
        }
        refused
    }
}

/// The problem of a pod, as the API server has it.
fn unenforced(namespace: &Arc<str>, name: &Arc<str>, reason: &str, pod: &[u8]) -> ObjectProblems {
    let pod: Value = serde_json::from_slice(pod).unwrap_or_default();
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    ObjectProblems {
        api_version: "v1".to_owned(),
        kind: POD,
        namespace: namespace.clone(),
        name: name.clone(),
        uid: text("uid").to_owned(),
        resource_version: text("resourceVersion").parse().unwrap_or_default(),
        problems: vec![Problem::error(reason, "see `weir status` on its node")],
    }
}

/// Whether the same Event will be refused again: its namespace goes, or the server does not take it.
fn is_final(failure: &Failure) -> bool {
    matches!(failure, Failure::Missing | Failure::Unsupported(_))
}

async fn wait(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn now_text() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// The Events that say an object's errors, with the paths to create them at.
fn events(object: &ObjectProblems, node: &str) -> Vec<(String, Value)> {
    let ObjectProblems {
        api_version,
        kind,
        namespace,
        name,
        uid,
        resource_version,
        problems,
    } = object;
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    // Events on what belongs to no namespace are in this one.
    let place = if namespace.is_empty() { "default" } else { &**namespace };
    let why = if *kind == POD {
        "NotEnforced"
    } else {
        "NotEnforcedAsWritten"
    };
    let event = |problem: &Problem| {
        let mut note = String::new();
        if let Some(field) = &problem.field {
            let _ = write!(note, "{field}: ");
        }
        let _ = write!(note, "{} ({})", problem.message, problem.remedy);
        let note = shortened(&note, LONGEST_NOTE);
        let mut hasher = DefaultHasher::new();
        (uid, &note).hash(&mut hasher);
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "namespace": place,
                "name": format!("{}.{:016x}", shortened(name, LONGEST_NAME).trim_end_matches(['.', '-', '…']), hasher.finish()),
            },
            "type": "Warning",
            "reason": why,
            "action": "Enforce",
            "note": note,
            "reportingController": "weir",
            "reportingInstance": shortened(node, 128),
            "regarding": {
                "apiVersion": api_version,
                "kind": kind,
                "namespace": **namespace,
                "name": **name,
                "uid": uid,
                "resourceVersion": resource_version.to_string(),
            },
        });
        (
            format!("/apis/events.k8s.io/v1/namespaces/{}/events", escaped(place)),
            event,
        )
    };
    errors.take(MOST).map(event).collect()
}

/// At most so many bytes, cut between characters.
fn shortened(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let mut end = longest - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(problems: Vec<Problem>) -> ObjectProblems {
        ObjectProblems {
            api_version: "networking.k8s.io/v1".to_owned(),
            kind: "NetworkPolicy",
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u-1".to_owned(),
            resource_version: 7,
            problems,
        }
    }

    #[test]
    fn every_agent_gives_the_same_mistake_the_same_name() {
        let wrong = || {
            object(vec![
                Problem::error("is no port", "correct it").at_field("spec.ingress[0]"),
            ])
        };
        let (one, other) = (events(&wrong(), "n1"), events(&wrong(), "n2"));
        assert_eq!(one[0].1["metadata"], other[0].1["metadata"]);
        assert_eq!(one[0].0, "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(one[0].1["note"], "spec.ingress[0]: is no port (correct it)");
        let another = events(&object(vec![Problem::error("is no CIDR", "correct it")]), "n1");
        assert_ne!(one[0].1["metadata"], another[0].1["metadata"]);
    }

    #[test]
    fn warnings_make_no_events_and_errors_not_too_many() {
        assert!(events(&object(vec![Problem::warning("odd", "")]), "n").is_empty());
        let many = (0..20).map(|n| Problem::error(format!("wrong {n}"), "")).collect();
        assert_eq!(events(&object(many), "n").len(), MOST);
    }

    /// An API server that is busy or away for a moment costs no Event its hour.
    #[test]
    fn what_could_not_be_told_is_tried_again_ever_more_seldom() {
        let mut due = Due::new(Subject::Events(Vec::new()), 2);
        let now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            due.next(now, false);
            pauses.push(due.at - now);
        }
        assert_eq!(pauses[..4], [TURN, TURN * 2, TURN * 4, TURN * 8]);
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&AGAIN));
        due.next(now, true);
        assert_eq!(due.at, now + AGAIN + TURN * 2);
        due.next(now, false);
        assert_eq!(due.at, now + TURN);
        let busy = Failure::Server("429 Too Many Requests".to_owned());
        assert!(!is_final(&busy) && is_final(&Failure::Missing));
    }

    #[test]
    fn a_pod_is_meant_by_its_uid() {
        let pod = json!({"metadata": {"uid": "u-7", "resourceVersion": "12"}}).to_string();
        let problems = unenforced(&"shop".into(), &"web".into(), "no route leads to it", pod.as_bytes());
        let events = events(&problems, "n1");
        assert_eq!(events.len(), 1);
        let event = &events[0].1;
        assert_eq!(event["reason"], "NotEnforced");
        assert_eq!(event["note"], "no route leads to it (see `weir status` on its node)");
        let regarding = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "u-7", "resourceVersion": "12",
        });
        assert_eq!(event["regarding"], regarding);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(shortened("abc", 3), "abc");
        let long = "ä".repeat(600);
        let short = shortened(&long, LONGEST_NOTE);
        assert!(short.len() <= LONGEST_NOTE && short.ends_with('…'));
    }

    #[test]
    fn agents_come_one_after_the_other_and_not_always_the_same_first() {
        let nodes: Vec<String> = (0..50).map(|n| format!("node{n}")).collect();
        let mut first = std::collections::HashSet::new();
        for uid in 0..40 {
            let uid = uid.to_string();
            let ranks = nodes
                .iter()
                .map(|node| rank(&uid, node, nodes.iter().map(String::as_str)));
            let mut ranks: Vec<usize> = ranks.collect();
            first.insert(ranks.iter().position(|rank| *rank == 0));
            ranks.sort_unstable();
            assert_eq!(ranks, (0..50).collect::<Vec<_>>());
        }
        assert!(first.len() > 10, "{first:?}");
    }
}
