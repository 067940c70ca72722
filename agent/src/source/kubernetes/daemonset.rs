//! Whether the agent's own DaemonSet is being removed, or the agent merely ends: a rolling update, a drain, a crash.
//!
//! A pod is told to end by the same signal in all of these. What tells them apart is the DaemonSet: gone, or about to go.
//! It is watched while the agent runs, because permission to ask may be gone as early as the DaemonSet; and it is asked
//! for at the end, because the watch may be late. Being refused proves nothing; nor does a DaemonSet that was never seen
//! on this node: its name may be wrong. When its namespace is deleted, pods may go before the DaemonSet is touched
//! (KEP-5080, ordered namespace deletion), or the right to ask for it: so the namespace is asked for, too.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    client::{Api, Failure, JSON},
    health::WatchHealth,
    project::METADATA_OF,
    watch::{Message, Target, Told, Watch, escaped},
};

/// For the answers at the end. The kubelet waits for the agent, usually 30 s.
const PATIENCE: Duration = Duration::from_secs(3);
/// A DaemonSet that is deleted to be made anew at once is not there for a moment.
const AGAIN: Duration = Duration::from_millis(500);
/// In the run directory: which DaemonSet was seen here.
pub const SEEN: &str = "daemonset";

/// As in `kube-system/weir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSetName {
    pub namespace: String,
    pub name: String,
}

/// A name that names nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} names no DaemonSet: write NAMESPACE/NAME")]
pub struct BadName(String);

impl FromStr for DaemonSetName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(BadName(text.to_owned())),
        }
    }
}

impl fmt::Display for DaemonSetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl DaemonSetName {
    fn list(&self) -> String {
        format!("/apis/apps/v1/namespaces/{}/daemonsets", escaped(&self.namespace))
    }

    fn namespace(&self) -> String {
        format!("/api/v1/namespaces/{}", escaped(&self.namespace))
    }

    fn path(&self) -> String {
        format!("{}/{}", self.list(), escaped(&self.name))
    }
}

/// What is known of the DaemonSet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing yet.
    #[default]
    Unknown,
    There,
    /// It has a deletion time stamp: it goes when its pods are gone.
    Going,
    Gone,
}

impl State {
    fn of(object: &Value) -> Self {
        match object.pointer("/metadata/deletionTimestamp") {
            Some(Value::String(_)) => Self::Going,
            _ => Self::There,
        }
    }

    const fn is_removed(self) -> bool {
        matches!(self, Self::Going | Self::Gone)
    }
}

/// What the watch has told. Of the list under way: what it has named so far.
#[derive(Debug, Default)]
struct Sightings {
    state: State,
    listed: Option<State>,
}

impl Sightings {
    fn take(&mut self, message: &Message) {
        match message {
            Message::Begin => self.listed = Some(State::Gone),
            Message::Items(items) => {
                if let Some(object) = items.first() {
                    self.listed = Some(State::of(object));
                }
            }
            Message::Listed(_) => {
                if let Some(listed) = self.listed.take() {
                    self.state = listed;
                }
            }
            Message::Changed(object) => self.state = State::of(object),
            Message::Gone(_) => self.state = State::Gone,
            Message::Progress(_) | Message::Failed(_) => {}
        }
    }
}

/// What the answer for the DaemonSet means beside that for its namespace, in which nothing stays.
fn in_namespace(asked: Option<State>, namespace: Option<State>) -> Option<State> {
    namespace.filter(|state| state.is_removed()).or(asked)
}

/// Whether it is being removed. `seen`: on this node, once. `watched`: what the watch told last. `asked`: what the API
/// server says now, None if it does not say.
fn is_removed(seen: bool, watched: State, asked: Option<State>) -> bool {
    seen && asked.unwrap_or(watched).is_removed()
}

/// What becomes of the watch, for whoever tells of problems.
#[derive(Debug)]
pub(super) struct Sighting {
    pub(super) daemonset: DaemonSetName,
    pub(super) sight: Sight,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    Clear,
    /// There is no such DaemonSet, and never was one on this node: its name may be wrong.
    Absent,
    /// The watch has failed, perhaps once more.
    Failed(Failure),
}

/// Watches the agent's own DaemonSet.
#[derive(Debug)]
pub(super) struct OwnDaemonSet {
    name: DaemonSetName,
    api: Api,
    sightings: Arc<Mutex<Sightings>>,
    seen: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl OwnDaemonSet {
    pub(super) fn watch(
        name: DaemonSetName,
        api: Api,
        run_dir: &Path,
        health: Arc<WatchHealth>,
        sighted: mpsc::UnboundedSender<Sighting>,
    ) -> Self {
        let sightings = Arc::new(Mutex::new(Sightings::default()));
        let seen = run_dir.join(SEEN);
        let (told, mut tells) = mpsc::channel(16);
        let watch = Watch {
            id: 0,
            api: api.clone(),
            target: Target {
                path: name.list(),
                selector: Some(format!(
                    "fieldSelector={}",
                    escaped(&format!("metadata.name={}", name.name))
                )),
                accept: JSON,
                shape: &METADATA_OF,
                native: true,
            },
            health: health.clone(),
            out: told,
        };
        tokio::spawn(watch.run());
        let task = tokio::spawn({
            let (sightings, seen, name) = (sightings.clone(), seen.clone(), name.clone());
            async move {
                let mut last = State::Unknown;
                let mut last_sight = Sight::Clear;
                while let Some(Told { message, .. }) = tells.recv().await {
                    let state = {
                        let mut sightings = sightings.lock().unwrap_or_else(PoisonError::into_inner);
                        sightings.take(&message);
                        sightings.state
                    };
                    if state != last {
                        last = state;
                        note(state, &name, &seen);
                    }
                    if matches!(message, Message::Listed(_)) {
                        health.synced();
                    }
                    health.objects(usize::from(matches!(state, State::There | State::Going)));
                    let sight = match message {
                        Message::Failed(failure) => Sight::Failed(failure),
                        _ if state == State::Gone && !was_seen(&seen, &name) => Sight::Absent,
                        _ => Sight::Clear,
                    };
                    // A failure counts each time.
                    if sight != last_sight || matches!(sight, Sight::Failed(_)) {
                        last_sight = sight.clone();
                        // Whoever tells of problems may have ended.
                        let _ = sighted.send(Sighting {
                            daemonset: name.clone(),
                            sight,
                        });
                    }
                }
            }
        });
        Self {
            name,
            api,
            sightings,
            seen,
            task,
        }
    }

    /// Whether the agent is told to end because its DaemonSet is removed. Takes a few seconds at most.
    pub(super) async fn is_removed(&self) -> bool {
        let seen = was_seen(&self.seen, &self.name);
        let asked = tokio::time::timeout(PATIENCE, self.ask()).await.ok().flatten();
        let watched = self.sightings.lock().unwrap_or_else(PoisonError::into_inner).state;
        let removed = is_removed(seen, watched, asked);
        tracing::info!(daemonset = %self.name, seen, ?watched, ?asked, removed, "told to end");
        removed
    }

    async fn ask(&self) -> Option<State> {
        let path = self.name.path();
        match self.ask_once(&path).await {
            Some(State::Gone) => {
                tokio::time::sleep(AGAIN).await;
                // Where it was gone a moment ago, not being told is no reason to doubt it.
                Some(self.ask_once(&path).await.unwrap_or(State::Gone))
            }
            Some(State::Going) => Some(State::Going),
            asked => in_namespace(asked, self.ask_once(&self.name.namespace()).await),
        }
    }

    async fn ask_once(&self, path: &str) -> Option<State> {
        match self.api.get(path).await {
            Ok(text) => serde_json::from_slice::<Value>(&text)
                .ok()
                .map(|object| State::of(&object)),
            Err(Failure::Missing) => Some(State::Gone),
            Err(failure) => {
                tracing::warn!(path, "cannot be asked for: {failure}");
                None
            }
        }
    }
}

impl Drop for OwnDaemonSet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether it was ever there while an agent ran on this node.
fn was_seen(seen: &Path, name: &DaemonSetName) -> bool {
    fs::read_to_string(seen).is_ok_and(|text| text.trim() == name.to_string())
}

fn note(state: State, name: &DaemonSetName, seen: &Path) {
    match state {
        State::There => {
            if let Err(error) = fs::write(seen, name.to_string()) {
                tracing::warn!(file = %seen.display(), %error, "cannot be written: a removal would not be known for one");
            }
        }
        // A problem, told as such.
        State::Gone if !was_seen(seen, name) => {}
        State::Going | State::Gone => tracing::warn!(
            daemonset = %name,
            "the agent's DaemonSet is removed: when the agent is told to end, it takes everything away"
        ),
        State::Unknown => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn there() -> Value {
        json!({"metadata": {"name": "weir", "uid": "1"}})
    }

    fn going() -> Value {
        json!({"metadata": {"name": "weir", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}})
    }

    fn after(messages: &[Message]) -> State {
        let mut sightings = Sightings::default();
        for message in messages {
            sightings.take(message);
        }
        sightings.state
    }

    #[test]
    fn names_have_two_parts() {
        let name: DaemonSetName = "kube-system/weir".parse().expect("parses");
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("kube-system", "weir"));
        for text in ["weir", "/weir", "a/", "a/b/c", ""] {
            assert!(text.parse::<DaemonSetName>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_watch_tells_what_becomes_of_it() {
        use Message::{Begin, Changed, Failed, Gone, Items, Listed};
        assert_eq!(after(&[]), State::Unknown);
        assert_eq!(
            after(&[Begin, Items(vec![there()])]),
            State::Unknown,
            "the list is not over"
        );
        assert_eq!(after(&[Begin, Items(vec![there()]), Listed(1)]), State::There);
        assert_eq!(after(&[Begin, Listed(1)]), State::Gone);
        assert_eq!(after(&[Changed(there()), Changed(going())]), State::Going);
        assert_eq!(after(&[Changed(going()), Gone(going())]), State::Gone);
        // Deleted and made anew.
        assert_eq!(after(&[Gone(there()), Changed(there())]), State::There);
        // A new list that was cut short, or refused, takes nothing back.
        let refused = Failed(Failure::Forbidden(String::new()));
        assert_eq!(after(&[Gone(there()), refused]), State::Gone);
        assert_eq!(after(&[Changed(there()), Begin]), State::There);
    }

    #[test]
    fn only_a_daemonset_that_is_gone_or_going_is_removed() {
        use State::{Going, Gone, There, Unknown};
        // A rolling update, a drain, a crash.
        assert!(!is_removed(true, There, Some(There)));
        // The watch was late, or had ended.
        assert!(is_removed(true, There, Some(Gone)));
        assert!(is_removed(true, Unknown, Some(Going)));
        // Permission went with it: what was seen before counts.
        assert!(is_removed(true, Gone, None));
        assert!(is_removed(true, Going, None));
        assert!(!is_removed(true, There, None), "being refused proves nothing");
        assert!(!is_removed(true, Unknown, None));
        // Made anew since.
        assert!(!is_removed(true, Gone, Some(There)));
        // Its namespace goes, and it has not been touched yet, or may not be asked for any more.
        for asked in [Some(There), None] {
            for namespace in [Going, Gone] {
                assert!(is_removed(true, There, in_namespace(asked, Some(namespace))));
            }
            for namespace in [Some(There), None] {
                assert!(!is_removed(true, There, in_namespace(asked, namespace)));
            }
        }
        // Never seen: the name may be wrong.
        assert!(!is_removed(false, Gone, Some(Gone)));
    }
}
