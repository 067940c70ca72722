//! The task between the watches and the index: takes in what they tell, says what follows, answers who asks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
};

use super::{
    PodRead, ReadError,
    backoff::Backoff,
    catalogue::{Catalogue, kind_name},
    client::{Api, Failure},
    discovery::Discovered,
    health::{Health, WatchHealth},
    kinds::{Resource, built_in},
    project::{POD, Page, page},
    report::{Report, rank},
    version::number,
    watch::{Message, Told, Watch, escaped, garbled},
};
use crate::{
    api::{Object, Problem},
    metrics::Arrivals,
    source::SourceEvent,
};

/// Messages taken in at once.
const MESSAGES: usize = 64;
/// Kinds with more objects are not listed anew by a refresh: it waits until the watch has come far enough.
const MANY: usize = 2_000;
/// For how long a refresh waits for the watch, which tells its progress every minute if nothing happens, before it catches
/// up beside it.
const CAUGHT_UP: Duration = Duration::from_millis(200);
/// For how long kinds that cannot be read hold up the first sync, once all that matters most is known.
const GRACE: Duration = OUTAGE;
/// The same where permission is missing: waiting hardly mends that.
const FORBIDDEN_GRACE: Duration = Duration::from_secs(2);
/// An API server that does not answer is a problem after this time; before that it may be just restarting.
const OUTAGE: Duration = Duration::from_secs(10);

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
    failing: Option<(Instant, Failure)>,
}

impl Watched {
    /// It fails, and not only for a moment: an API server may be just restarting, a CRD be just made.
    fn is_in_trouble(&self) -> bool {
        match &self.failing {
            None => false,
            Some((_, Failure::Forbidden(_))) => true,
            Some((since, _)) => since.elapsed() >= OUTAGE,
        }
    }
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

enum Beside {
    Whole(Vec<serde_json::Value>, u64),
    /// Only the version of a list made now.
    Version(u64),
    /// What changed and what is gone (true), and up to which version that is everything.
    Since(Vec<(bool, serde_json::Value)>, u64),
}

/// How to read a kind for a refresh.
#[derive(Clone, Copy)]
enum Reading {
    Whole,
    Version,
    /// What happened after one version, until another.
    Since(u64, u64),
}

/// A refresh that is under way: what it still waits for.
#[derive(Default)]
struct Refresh {
    /// Requests under way.
    requests: usize,
    /// The watch of a kind must come so far.
    versions: Vec<(&'static str, u64)>,
    /// When to stop waiting for watches.
    patience: Option<Instant>,
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
    undiscovered: Option<(Instant, Failure)>,
    refreshes: BTreeMap<u64, Refresh>,
    early: Vec<Command>,
    done: JoinSet<Done>,
    told_problems: BTreeMap<Arc<str>, Vec<Problem>>,
    told_incomplete: Option<String>,
    /// What keeps the source from being current may have changed.
    stirred: bool,
}

/// What the runner hears.
pub(super) struct Inbox {
    pub(super) messages: mpsc::Receiver<Told>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) discovered: mpsc::Receiver<Discovered>,
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
            refreshes: BTreeMap::new(),
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
        let id = self.next_id;
        self.next_id += 1;
        let health = self.health.add(slot, resource.api.object);
        self.catalogue.add(slot, resource.api);
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

    fn unwatch(&mut self, slot: &'static str) {
        if let Some(watched) = self.watched.remove(slot) {
            tracing::info!(kind = slot, "is not served any more");
            self.by_id.remove(&watched.id);
            self.health.remove(slot, watched.resource.api.object);
            self.catalogue.remove(slot);
            for refresh in self.refreshes.values_mut() {
                refresh.versions.retain(|(waiting, _)| *waiting != slot);
            }
        }
    }

    fn discovered(&mut self, discovered: Discovered) {
        self.stirred = true;
        match discovered {
            Discovered::Failed(failure) => {
                let since = self.undiscovered.take().map_or_else(Instant::now, |(since, _)| since);
                self.undiscovered = Some((since, failure));
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
                // What is new comes before what goes; but of two groups, one at a time tells an object.
                let wanted: Vec<String> = resources.iter().map(|resource| kind_name(&resource.api)).collect();
                let gone: Vec<&'static str> = self
                    .watched
                    .iter()
                    .filter(|(_, watched)| !is_built_in(&watched.resource))
                    .map(|(slot, _)| *slot)
                    .filter(|slot| !wanted.iter().any(|name| name == slot))
                    .collect();
                for slot in gone {
                    self.unwatch(slot);
                }
                for resource in resources {
                    self.watch(resource);
                }
                self.catalogue.all_served();
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
            Message::Listed(version) => self.catalogue.listed(slot, version),
            Message::Changed(object) => self.catalogue.changed(slot, &object),
            Message::Gone(object) => self.catalogue.gone(slot, &object),
            Message::Progress(version) => self.catalogue.progress(slot, version),
            Message::Failed(failure) => {
                if failure == Failure::Missing {
                    self.doubt.notify_one();
                }
                if let Some(watched) = self.watched.get_mut(slot) {
                    let since = watched.failing.take().map_or_else(Instant::now, |(since, _)| since);
                    watched.failing = Some((since, failure));
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

    // === The first sync ===

    /// Whether a kind that is not known holds up the first sync.
    fn blocks(&self, slot: &str, watched: &Watched) -> bool {
        if self.catalogue.is_synced(slot) {
            return false;
        }
        watched.resource.is_essential()
            || match &watched.failing {
                Some((since, Failure::Forbidden(_))) => since.elapsed() < FORBIDDEN_GRACE,
                Some((_, Failure::Unreachable(_) | Failure::Unauthorized(_))) | None => true,
                Some((since, _)) => since.elapsed() < GRACE,
            }
    }

    fn may_start(&self) -> bool {
        let undiscovered = match &self.undiscovered {
            _ if self.discovered => false,
            Some((_, Failure::Unreachable(_) | Failure::Unauthorized(_))) | None => true,
            Some((since, _)) => since.elapsed() < GRACE,
        };
        !undiscovered && !self.watched.iter().any(|(slot, watched)| self.blocks(slot, watched))
    }

    /// What is not known although it is served, once everything else is.
    fn incomplete(&self) -> Option<String> {
        let unread: Vec<&str> = self
            .watched
            .iter()
            .filter(|(slot, watched)| !self.catalogue.is_synced(slot) && watched.is_in_trouble())
            .map(|(slot, _)| *slot)
            .collect();
        if !self.discovered {
            return Some("it is not known which of Calico's kinds the cluster serves; see the problems".to_owned());
        }
        (!unread.is_empty()).then(|| format!("cannot read {}; see the problems", unread.join(", ")))
    }

    // === Questions ===

    fn command(&mut self, command: Command) {
        if !self.catalogue.is_started() {
            self.early.push(command);
            return;
        }
        match command {
            Command::Refresh(token) => self.refresh(token),
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

    fn refresh(&mut self, token: u64) {
        let mut refresh = Refresh {
            patience: Some(Instant::now() + CAUGHT_UP),
            ..Refresh::default()
        };
        let slots: Vec<&'static str> = self.watched.keys().copied().collect();
        for slot in slots {
            // What cannot be read is a problem that is told; it does not keep the rest from being known.
            if self
                .watched
                .get(slot)
                .is_some_and(|watched| self.catalogue.is_synced(slot) || watched.failing.is_none())
            {
                refresh.requests += 1;
                let few = self.catalogue.len(slot) <= MANY;
                self.list(token, slot, if few { Reading::Whole } else { Reading::Version });
            }
        }
        self.refreshes.insert(token, refresh);
    }

    fn list(&mut self, token: u64, slot: &'static str, reading: Reading) {
        let Some(watched) = self.watched.get(slot) else { return };
        let (api, target, watch, health) = (
            self.api.clone(),
            watched.resource.target.clone(),
            watched.id,
            watched.health.clone(),
        );
        let beside = Watch {
            id: 0,
            api: api.clone(),
            target: target.clone(),
            health: health.clone(),
            out: self.messages.clone(),
        };
        self.done.spawn(async move {
            let one = async |query: String| -> Result<Page, Failure> {
                let text = api
                    .open(&format!("{}?{query}", target.path), target.accept)
                    .await?
                    .all()
                    .await?;
                health.received(text.len());
                page(&text, target.shape).map_err(|error| garbled(&error))
            };
            let list = async || {
                match reading {
                    Reading::Whole => {}
                    Reading::Version => {
                        let page = one("limit=1".to_owned()).await?;
                        return Ok(Beside::Version(number(&page.version)));
                    }
                    Reading::Since(from, until) => match beside.since(from, until).await {
                        Ok(Some((told, reached))) => return Ok(Beside::Since(told, reached)),
                        // Then all of it.
                        Ok(None) | Err(Failure::Expired(_)) => {}
                        Err(failure) => return Err(failure),
                    },
                }
                let mut items = Vec::new();
                let mut next = String::new();
                loop {
                    let page = one(format!("limit=500&continue={next}")).await?;
                    items.extend(page.items);
                    if page.next.is_empty() {
                        return Ok(Beside::Whole(items, number(&page.version)));
                    }
                    next = escaped(&page.next);
                }
            };
            let mut backoff = Backoff::new();
            let result = loop {
                match list().await {
                    // Whoever asked waits until its own deadline.
                    Err(
                        Failure::Unreachable(_) | Failure::Unauthorized(_) | Failure::Server(_) | Failure::Expired(_),
                    ) => tokio::time::sleep(backoff.wait()).await,
                    result => break result,
                }
            };
            Done::Listed {
                token,
                slot,
                watch,
                result,
            }
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Listed {
                token,
                slot,
                watch,
                result,
            } => {
                let current = self.by_id.contains_key(&watch);
                let Some(refresh) = self.refreshes.get_mut(&token) else {
                    return;
                };
                refresh.requests -= 1;
                match result {
                    Ok(Beside::Whole(items, version)) if current => {
                        self.catalogue.listed_beside(slot, &items, version);
                    }
                    Ok(Beside::Since(told, version)) if current => self.catalogue.caught_up(slot, &told, version),
                    Ok(Beside::Version(version)) if current => refresh.versions.push((slot, version)),
                    Ok(_) => {}
                    // A problem that is told elsewhere.
                    Err(failure) => tracing::warn!(kind = slot, "cannot be read again: {failure}"),
                }
            }
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
        let failing = self.watched.values().any(|watched| watched.failing.is_some()) || self.undiscovered.is_some();
        let outage = failing.then(|| Instant::now() + Duration::from_secs(1));
        let patience = self.refreshes.values().filter(|refresh| !refresh.versions.is_empty());
        patience.filter_map(|refresh| refresh.patience).chain(outage).min()
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
                let _ = self.outbox.reports.send(Report { problems, rank });
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
            self.tell_refreshed()?;
        }
        Ok(())
    }

    fn tell_refreshed(&mut self) -> Result<(), mpsc::error::SendError<SourceEvent>> {
        let now = Instant::now();
        let mut over = Vec::new();
        let mut late = Vec::new();
        for (token, refresh) in &mut self.refreshes {
            refresh
                .versions
                .retain(|(slot, version)| self.catalogue.delivered(slot) < *version);
            if refresh.requests == 0 && refresh.versions.is_empty() {
                over.push(*token);
            } else if refresh.patience.is_some_and(|by| by <= now) && !refresh.versions.is_empty() {
                refresh.requests += refresh.versions.len();
                late.extend(
                    std::mem::take(&mut refresh.versions)
                        .into_iter()
                        .map(|(slot, version)| (*token, slot, version)),
                );
            }
        }
        for (token, slot, version) in late {
            // Where the kind has never been known whole there is nothing to go on from.
            let reading = match self.catalogue.delivered(slot) {
                from if from > 0 && self.catalogue.is_synced(slot) => Reading::Since(from, version),
                _ => Reading::Whole,
            };
            self.list(token, slot, reading);
        }
        for token in over {
            self.refreshes.remove(&token);
            self.outbox.events.send(SourceEvent::Refreshed(token))?;
        }
        Ok(())
    }

    fn tell_problems(&mut self) -> Result<(), mpsc::error::SendError<SourceEvent>> {
        for (origin, problems) in self.problems() {
            if self.told_problems.get(&origin).map_or(&[][..], Vec::as_slice) != problems {
                self.told_problems.insert(origin.clone(), problems.clone());
                self.outbox.events.send(SourceEvent::Problems { origin, problems })?;
            }
        }
        Ok(())
    }

    /// What keeps the source from being current, by origin.
    fn problems(&self) -> Vec<(Arc<str>, Vec<Problem>)> {
        let mut unreachable = None;
        let mut out = Vec::new();
        for (slot, watched) in &self.watched {
            let mut problems = Vec::new();
            match &watched.failing {
                _ if !watched.is_in_trouble() => {}
                None => {}
                Some((_, failure @ (Failure::Unreachable(_) | Failure::Unauthorized(_)))) => {
                    unreachable = Some(failure);
                }
                // Discovery says whether it is gone for good.
                Some((_, Failure::Missing)) if !is_built_in(&watched.resource) => {}
                Some((_, failure)) => problems.push(self.unread(slot, failure)),
            }
            out.push((format!("kubernetes {slot}").into(), problems));
        }
        for slot in self.names.values().filter(|slot| !self.watched.contains_key(*slot)) {
            out.push((format!("kubernetes {slot}").into(), Vec::new()));
        }
        match &self.undiscovered {
            Some((since, failure @ (Failure::Unreachable(_) | Failure::Unauthorized(_))))
                if since.elapsed() >= OUTAGE =>
            {
                unreachable = Some(failure);
            }
            _ => {}
        }
        let undiscovered = match &self.undiscovered {
            None | Some((_, Failure::Unreachable(_) | Failure::Unauthorized(_))) => Vec::new(),
            Some((_, failure)) => vec![Problem::error(
                format!("cannot tell which of Calico's kinds the cluster serves: {failure}"),
                "see to the API server that serves projectcalico.org; until then what is known stays in force",
            )],
        };
        out.push(("kubernetes discovery".into(), undiscovered));
        let problems = unreachable.map(|failure| {
            Problem::error(
                format!("{}: {failure}", self.api.server),
                "see to the API server and the way to it; until then what is known stays in force, and is getting old",
            )
        });
        out.push(("kubernetes".into(), problems.into_iter().collect()));
        out
    }

    fn unread(&self, slot: &str, failure: &Failure) -> Problem {
        let known = if self.catalogue.is_synced(slot) {
            "until then the objects known stay in force, and are getting old"
        } else {
            "until then those that an earlier agent knew stay in force"
        };
        let remedy = match failure {
            Failure::Forbidden(_) => format!("allow the agent to list and watch {slot} (its ClusterRole)"),
            _ => "see to the API server".to_owned(),
        };
        Problem::error(format!("cannot read {slot}: {failure}"), format!("{remedy}; {known}"))
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
