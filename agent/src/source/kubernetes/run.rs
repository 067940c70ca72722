//! The task between the watches and the index: takes in what they tell, says what follows, answers who asks.

mod refresh;
mod trouble;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
};

use self::{
    refresh::{Beside, Refresh},
    trouble::{Failing, Unsighted},
};
use super::{
    PodRead, ReadError,
    catalogue::{Catalogue, kind_name},
    client::{Api, Failure},
    daemonset::Sighting,
    discovery::Discovered,
    health::{Health, WatchHealth},
    kinds::{Resource, built_in},
    project::POD,
    report::{Report, rank},
    watch::{Message, Told, Watch, escaped},
};
use crate::{
    api::{Object, ObjectKind, Problem},
    metrics::Arrivals,
    source::{Gap, SourceEvent},
};

/// Messages taken in at once.
const MESSAGES: usize = 64;
pub(super) enum Command {
    Refresh(u64),
    Read {
        namespace: String,
        name: String,
        reply: oneshot::Sender<Result<Option<PodRead>, ReadError>>,
    },
}

struct Watched {
    id: u64,
    resource: Resource,
    health: Arc<WatchHealth>,
    task: JoinHandle<()>,
    failing: Option<Failing>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What came of a request beside the watches.
enum Done {
    /// A list for a refresh.
    Listed {
        token: u64,
        slot: &'static str,
        watch: u64,
        result: Result<Beside, Failure>,
    },
    Read {
        result: Result<Vec<u8>, Failure>,
        reply: oneshot::Sender<Result<Option<PodRead>, ReadError>>,
    },
}

pub(super) struct Runner {
    api: Api,
    catalogue: Catalogue,
    health: Health,
    doubt: Arc<Notify>,
    watched: BTreeMap<&'static str, Watched>,
    names: HashMap<String, &'static str>,
    by_id: HashMap<u64, &'static str>,
    next_id: u64,
    messages: mpsc::Sender<Told>,
    outbox: Outbox,
    /// When the first of the messages was read of which nothing has been told yet.
    arrived: Option<Instant>,
    discovered: bool,
    /// Discovery cannot ask.
    undiscovered: Option<Failing>,
    /// What keeps the agent from knowing that it is removed. Of no concern to what is enforced.
    unsighted: Option<Unsighted>,
    /// One at a time: what is asked for meanwhile is answered by the next.
    refresh: Option<Refresh>,
    /// The last refresh that was asked for and has not begun.
    wanted_refresh: Option<u64>,
    early: Vec<Command>,
    done: JoinSet<Done>,
    told_problems: BTreeMap<Arc<str>, Vec<Problem>>,
    told_incomplete: Option<Gap>,
    /// What keeps the source from being current may have changed.
    stirred: bool,
}

/// What the runner hears.
pub(super) struct Inbox {
    pub(super) messages: mpsc::Receiver<Told>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) discovered: mpsc::Receiver<Discovered>,
    /// Closed where the agent knows no DaemonSet of its own.
    pub(super) sightings: mpsc::UnboundedReceiver<Sighting>,
}

/// To whom the runner speaks.
pub(super) struct Outbox {
    pub(super) events: mpsc::UnboundedSender<SourceEvent>,
    pub(super) arrivals: Arrivals,
    /// Whose problems are to be reported, if anybody reports them.
    pub(super) reports: mpsc::UnboundedSender<Report>,
    /// The agent's own node.
    pub(super) node: Arc<str>,
}

impl Runner {
    pub(super) fn new(
        api: Api,
        catalogue: Catalogue,
        health: Health,
        doubt: Arc<Notify>,
        messages: mpsc::Sender<Told>,
        outbox: Outbox,
    ) -> Self {
        Self {
            api,
            catalogue,
            health,
            doubt,
            watched: BTreeMap::new(),
            names: HashMap::new(),
            by_id: HashMap::new(),
            next_id: 1,
            messages,
            outbox,
            arrived: None,
            discovered: false,
            undiscovered: None,
            unsighted: None,
            refresh: None,
            wanted_refresh: None,
            early: Vec::new(),
            done: JoinSet::new(),
            told_problems: BTreeMap::new(),
            told_incomplete: None,
            stirred: true,
        }
    }

    /// Until nobody listens.
    pub(super) async fn run(mut self, mut inbox: Inbox) {
        for resource in built_in() {
            self.watch(resource);
        }
        let mut batch = Vec::with_capacity(MESSAGES);
        loop {
            let wake = self.wake();
            tokio::select! {
                biased;
                count = inbox.messages.recv_many(&mut batch, MESSAGES) => {
                    if count == 0 {
                        return;
                    }
                    for told in batch.drain(..) {
                        self.take(told);
                    }
                }
                command = inbox.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                discovered = inbox.discovered.recv() => match discovered {
                    Some(discovered) => self.discovered(discovered),
                    None => return,
                },
                Some(sighting) = inbox.sightings.recv() => self.sighted(sighting),
                Some(done) = self.done.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => tracing::error!(%error, "a request has ended by itself"),
                },
                () = sleep_until(wake) => self.stirred = true,
            }
            if self.tell().is_err() {
                return;
            }
        }
    }

    // === Watches ===

    fn watch(&mut self, resource: Resource) {
        let slot = self.slot(&kind_name(&resource.api));
        if self.watched.contains_key(slot) {
            return;
        }
        let health = self.health.add(slot, resource.api.object.name());
        self.catalogue.add(slot, resource.api);
        self.begin(slot, resource, health);
    }

    /// Lists a kind anew, and watches it from there.
    fn watch_again(&mut self, slot: &'static str) {
        let Some(watched) = self.watched.remove(slot) else {
            return;
        };
        tracing::warn!(
            kind = slot,
            "the API server has an earlier state than it had: listing again, to believe it whole"
        );
        self.by_id.remove(&watched.id);
        self.begin(slot, watched.resource.clone(), watched.health.clone());
    }

    fn begin(&mut self, slot: &'static str, resource: Resource, health: Arc<WatchHealth>) {
        let id = self.next_id;
        self.next_id += 1;
        let watch = Watch {
            id,
            api: self.api.clone(),
            target: resource.target.clone(),
            health: health.clone(),
            out: self.messages.clone(),
        };
        let watched = Watched {
            id,
            resource,
            health,
            task: tokio::spawn(watch.run()),
            failing: None,
        };
        self.by_id.insert(id, slot);
        self.watched.insert(slot, watched);
    }

    /// A kind's name, for good: there are only so many.
    fn slot(&mut self, name: &str) -> &'static str {
        if let Some(slot) = self.names.get(name) {
            return slot;
        }
        let slot: &'static str = Box::leak(name.to_owned().into_boxed_str());
        self.names.insert(name.to_owned(), slot);
        slot
    }

    /// `succeeded`: its objects are to be read from another group now.
    fn unwatch(&mut self, slot: &'static str, succeeded: bool) {
        if let Some(watched) = self.watched.remove(slot) {
            tracing::info!(kind = slot, "is not served any more");
            self.by_id.remove(&watched.id);
            self.health.remove(slot, watched.resource.api.object.name());
            self.catalogue.remove(slot, succeeded);
            if let Some(refresh) = &mut self.refresh {
                refresh.versions.retain(|(waiting, _)| *waiting != slot);
            }
        }
    }

    fn discovered(&mut self, discovered: Discovered) {
        self.stirred = true;
        match discovered {
            Discovered::Failed(failure) => {
                self.undiscovered = Some(Failing::again(self.undiscovered.take(), failure));
            }
            Discovered::Kinds(seen) => {
                self.undiscovered = None;
                self.discovered = true;
                let resources = seen.resources();
                tracing::info!(
                    group = seen.group().unwrap_or("none"),
                    kinds = resources.len(),
                    "Calico's kinds that the cluster serves"
                );
                // Of two groups, one at a time tells an object. What the one told stays until the other has been listed.
                let wanted: Vec<String> = resources.iter().map(|resource| kind_name(&resource.api)).collect();
                let gone: Vec<(&'static str, ObjectKind)> = self
                    .watched
                    .iter()
                    .filter(|(_, watched)| !is_built_in(&watched.resource))
                    .map(|(slot, watched)| (*slot, watched.resource.api.object))
                    .filter(|(slot, _)| !wanted.iter().any(|name| name == slot))
                    .collect();
                for (slot, object) in gone {
                    let succeeded = resources.iter().any(|resource| resource.api.object == object);
                    self.unwatch(slot, succeeded);
                }
                for resource in resources {
                    self.watch(resource);
                }
                self.catalogue.all_served();
                let problems = SourceEvent::Problems {
                    origin: "kubernetes groups".into(),
                    problems: seen.problems(),
                };
                // Where nobody listens any more, the next event says so.
                let _ = self.outbox.events.send(problems);
            }
        }
    }

    fn take(&mut self, told: Told) {
        let Some(slot) = self.by_id.get(&told.watch).copied() else {
            return;
        };
        self.arrived.get_or_insert(told.at);
        let listed = matches!(told.message, Message::Listed(_));
        match told.message {
            Message::Begin => self.catalogue.begin(slot),
            Message::Items(items) => {
                for item in &items {
                    self.catalogue.item(slot, item);
                }
            }
            Message::Listed(version) => {
                if !self.catalogue.listed(slot, version) {
                    self.watch_again(slot);
                    return;
                }
            }
            Message::Changed(object) => self.catalogue.changed(slot, &object),
            Message::Gone(object) => self.catalogue.gone(slot, &object),
            Message::Progress(version) => self.catalogue.progress(slot, version),
            Message::Failed(failure) => {
                if failure == Failure::Missing {
                    self.doubt.notify_one();
                }
                if let Some(watched) = self.watched.get_mut(slot) {
                    watched.fails(failure);
                }
                self.stirred = true;
                return;
            }
        }
        if let Some(watched) = self.watched.get_mut(slot) {
            self.stirred |= listed || watched.failing.take().is_some();
            watched.health.objects(self.catalogue.len(slot));
            if self.catalogue.is_synced(slot) {
                watched.health.synced();
            }
        }
    }

    // === Questions ===

    fn command(&mut self, command: Command) {
        if let Command::Refresh(token) = command {
            self.wanted_refresh = Some(token);
            return;
        }
        if !self.catalogue.is_started() {
            self.early.push(command);
            return;
        }
        match command {
            Command::Refresh(_) => {}
            Command::Read { namespace, name, reply } => {
                let api = self.api.clone();
                self.done.spawn(async move {
                    let path = format!("/api/v1/namespaces/{}/pods/{}", escaped(&namespace), escaped(&name));
                    Done::Read {
                        result: api.get(&path).await,
                        reply,
                    }
                });
            }
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Listed {
                token,
                slot,
                watch,
                result,
            } => self.listed(token, slot, watch, result),
            Done::Read { result, reply } => {
                let answer = match result {
                    Ok(text) => self.read(&text),
                    Err(Failure::Missing) => Ok(None),
                    Err(failure) => Err(ReadError(failure.to_string())),
                };
                // The event comes before the answer: whoever has the answer may rely on it.
                let _ = self.tell();
                // Nobody there to hear it is no failure.
                let _ = reply.send(answer);
            }
        }
    }

    fn read(&mut self, text: &[u8]) -> Result<Option<PodRead>, ReadError> {
        let value = serde::de::DeserializeSeed::deserialize(
            super::project::Of(&POD),
            &mut serde_json::Deserializer::from_slice(text),
        )
        .map_err(|error| ReadError(format!("the pod cannot be read: {error}")))?;
        let uid = value
            .pointer("/metadata/uid")
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
            .to_owned();
        Ok(match self.catalogue.read("pods", &value) {
            Some((Object::Pod(pod), version)) => Some(PodRead { pod, uid, version }),
            _ => None,
        })
    }

    // === What follows ===

    fn wake(&self) -> Option<Instant> {
        // Graces and outages end by themselves; there are few, and not for long.
        let failing = self.watched.values().any(|watched| watched.failing.is_some())
            || self.undiscovered.is_some()
            || self.unsighted.as_ref().is_some_and(Unsighted::is_failing);
        let outage = failing.then(|| Instant::now() + Duration::from_secs(1));
        let patience = self.refresh.iter().filter(|refresh| !refresh.versions.is_empty());
        patience.map(|refresh| refresh.patience).chain(outage).min()
    }

    /// Err: nobody listens any more.
    fn tell(&mut self) -> Result<(), mpsc::error::SendError<SourceEvent>> {
        if !self.catalogue.is_started() && self.may_start() {
            self.stirred = true;
            self.catalogue.start(self.discovered);
        }
        let events = self.catalogue.events();
        let arrived = self.arrived.take();
        if let Some(at) = arrived.filter(|_| !events.is_empty()) {
            self.outbox.arrivals.mark(at);
        }
        for event in events {
            self.outbox.events.send(event)?;
        }
        if self.catalogue.is_started() {
            for problems in self.catalogue.reports() {
                let rank = rank(&problems.uid, &self.outbox.node, self.catalogue.names("nodes"));
                // Whoever reports may have ended.
                let _ = self.outbox.reports.send(Report::Object { problems, rank });
            }
        }
        if std::mem::take(&mut self.stirred) {
            self.tell_problems()?;
            let incomplete = self.incomplete().filter(|_| self.catalogue.is_started());
            if incomplete != self.told_incomplete {
                self.told_incomplete.clone_from(&incomplete);
                self.outbox.events.send(SourceEvent::Incomplete(incomplete))?;
            }
        }
        if self.catalogue.is_started() {
            for command in std::mem::take(&mut self.early) {
                self.command(command);
            }
            self.begin_refresh();
            self.tell_refreshed()?;
            self.begin_refresh();
        }
        Ok(())
    }
}

fn is_built_in(resource: &Resource) -> bool {
    use super::kinds::{SERVED, STORED};
    resource.api.group != SERVED && resource.api.group != STORED
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
