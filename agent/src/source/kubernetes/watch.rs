//! One kind, listed and then watched, without end.
//!
//! Lists come as a stream where the server has that (`sendInitialEvents`, Kubernetes 1.32 and later), else in pages. A
//! watch that ends goes on from the last version that it told; only when the server has forgotten that version (410) is
//! there a new list. What fails is told once and tried again, ever later.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use super::{
    backoff::{Backoff, spread},
    client::{Answer, Api, Failure, METADATA_LIST, METADATA_ONLY, Status},
    health::WatchHealth,
    project::{INITIAL_EVENTS_END, Line, Shape, line, page},
    version::number,
};

/// The server ends a watch after this time, at the latest; ours are spread below it.
const WATCH_TIMEOUT: Duration = Duration::from_secs(600);
/// The API server tells its progress every minute: a watch that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that is only to catch up.
const BRIEF: Duration = Duration::from_secs(3);
/// For the next piece of a list.
const PATIENCE: Duration = Duration::from_secs(30);
/// Streaming lists in a row that come to a halt until they are given up.
const HALTS: u32 = 3;
/// Objects per page of a list.
const PAGE: usize = 500;
/// Objects per message: as few as keep the number of messages low, so that little is under way at once.
const BATCH: usize = 16;
/// A watch that ended sooner than this was of no use: the next one waits.
const SHORT: Duration = Duration::from_secs(1);
/// Room that a buffer of lines may keep.
const KEPT_BUFFER: usize = 64 * 1024;

/// What to watch.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// As in `/api/v1/pods`.
    pub(super) path: String,
    /// As in `fieldSelector=metadata.name%3Dweir`.
    pub(super) selector: Option<String>,
    pub(super) accept: &'static str,
    pub(super) shape: &'static Shape,
    /// It is kube-apiserver itself that serves it: lists may come as streams, and progress is told.
    pub(super) native: bool,
}

impl Target {
    /// What to accept for a list that does not come as a stream.
    pub(super) fn accept_list(&self) -> &'static str {
        if self.accept == METADATA_ONLY {
            METADATA_LIST
        } else {
            self.accept
        }
    }
}

/// What a watch has to say.
#[derive(Debug)]
pub(super) enum Message {
    /// A list begins. What it does not name will be gone.
    Begin,
    /// Objects of the list.
    Items(Vec<Value>),
    /// The list is over: that was everything at this version.
    Listed(u64),
    /// A new object, or a new version of a known one.
    Changed(Value),
    /// An object's last version, whose resource version is that of its deletion.
    Gone(Value),
    /// Everything up to this version has been told.
    Progress(u64),
    /// Nothing is told for now.
    Failed(Failure),
}

/// Says who says it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) watch: u64,
    /// When it was read.
    pub(super) at: Instant,
    pub(super) message: Message,
}

/// Why there is nothing more to read.
enum Stop {
    /// Nobody listens any more.
    Closed,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

pub(super) struct Watch {
    pub(super) id: u64,
    pub(super) api: Api,
    pub(super) target: Target,
    pub(super) health: Arc<WatchHealth>,
    pub(super) out: mpsc::Sender<Told>,
}

impl Watch {
    /// Until nobody listens, or it is aborted.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new();
        // Streaming lists that may still come to a halt. One that does may be a server's trouble, not its age.
        let mut streams = if self.target.native { HALTS } else { 0 };
        let mut halted = false;
        loop {
            let listed = if streams > 0 && !std::mem::take(&mut halted) {
                match self.stream().await {
                    Ok(Some((version, lines))) => {
                        streams = HALTS;
                        Ok((version, Some(lines)))
                    }
                    Ok(None) => {
                        tracing::info!(
                            path = self.target.path,
                            "a streaming list does not go on: listing by pages"
                        );
                        streams -= 1;
                        halted = true;
                        continue;
                    }
                    Err(stop) => Err(stop),
                }
            } else {
                self.pages().await.map(|version| (version, None))
            };
            let stop = match listed {
                Ok((version, lines)) => {
                    backoff.reset();
                    self.follow(version, lines).await
                }
                // An older server.
                Err(Stop::Failed(Failure::Unsupported(_))) if streams > 0 => {
                    streams = 0;
                    continue;
                }
                Err(stop) => stop,
            };
            match stop {
                Stop::Closed => return,
                // Told as a list that begins.
                Stop::Failed(Failure::Expired(why)) => {
                    tracing::info!(path = self.target.path, "listing again: {why}");
                    tokio::time::sleep(spread(Duration::from_millis(20))).await;
                }
                Stop::Failed(failure) => {
                    if self.tell(Message::Failed(failure)).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }

    async fn tell(&self, message: Message) -> Result<(), Stop> {
        match &message {
            Message::Failed(failure) => self.health.failed(failure),
            Message::Begin => self.health.lists(),
            Message::Changed(_) | Message::Gone(_) => self.health.event(),
            _ => self.health.contact(),
        }
        let told = Told {
            watch: self.id,
            at: Instant::now(),
            message,
        };
        self.out.send(told).await.map_err(|_| Stop::Closed)
    }

    fn path(&self, query: &str) -> String {
        let Target { path, selector, .. } = &self.target;
        match selector {
            Some(selector) => format!("{path}?{selector}&{query}"),
            None => format!("{path}?{query}"),
        }
    }

    async fn open(&self, query: &str) -> Result<Lines, Stop> {
        Ok(self.open_for(spread(WATCH_TIMEOUT), query).await?)
    }

    async fn open_for(&self, time: Duration, query: &str) -> Result<Lines, Failure> {
        let seconds = time.as_secs();
        let query = format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&{query}");
        let answer = self.api.open(&self.path(&query), self.target.accept).await?;
        Ok(Lines {
            answer,
            health: self.health.clone(),
            buffer: Vec::new(),
            start: 0,
        })
    }

    // === Lists ===

    /// A list that goes over into a watch. None: it does not go on. So it is with a server that is so old that it takes it for
    /// a watch.
    async fn stream(&self) -> Result<Option<(String, Lines)>, Stop> {
        let mut lines = self
            .open("sendInitialEvents=true&resourceVersionMatch=NotOlderThan")
            .await?;
        self.tell(Message::Begin).await?;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let Ok(next) = timeout(PATIENCE, lines.next(self.target.shape)).await else {
                return Ok(None);
            };
            let Some(Line { event, object }) = next? else {
                return Err(Failure::Server("the list ended before it was whole".to_owned()).into());
            };
            match event.as_str() {
                "ADDED" | "MODIFIED" => {
                    batch.push(object);
                    if batch.len() == BATCH {
                        self.tell(Message::Items(std::mem::take(&mut batch))).await?;
                    }
                }
                // The list may begin with a state that is some time old, and go on from there.
                "DELETED" => {
                    self.tell(Message::Items(std::mem::take(&mut batch))).await?;
                    self.tell(Message::Gone(object)).await?;
                }
                "BOOKMARK" if marks_the_end(&object) => {
                    self.tell(Message::Items(batch)).await?;
                    let version = version_of(&object).to_owned();
                    self.tell(Message::Listed(number(&version))).await?;
                    return Ok(Some((version, lines)));
                }
                "ERROR" => return Err(status(object).into()),
                _ => {}
            }
        }
    }

    async fn pages(&self) -> Result<String, Stop> {
        let mut next = String::new();
        let mut begun = false;
        loop {
            let query = if next.is_empty() {
                format!("limit={PAGE}")
            } else {
                format!("limit={PAGE}&continue={}", escaped(&next))
            };
            let text = self.api.open(&self.path(&query), self.target.accept_list()).await?;
            let text = text.all().await?;
            self.health.received(text.len());
            let page = page(&text, self.target.shape).map_err(|error| garbled(&error))?;
            drop(text);
            if !std::mem::replace(&mut begun, true) {
                self.tell(Message::Begin).await?;
            }
            let mut items = page.items.into_iter();
            loop {
                let batch: Vec<Value> = items.by_ref().take(BATCH).collect();
                if batch.is_empty() {
                    break;
                }
                self.tell(Message::Items(batch)).await?;
            }
            if page.next.is_empty() {
                self.tell(Message::Listed(number(&page.version))).await?;
                return Ok(page.version);
            }
            next = page.next;
        }
    }

    // === Catching up ===

    /// Everything that happened after one version, until another at least: what changed, what is gone (true), and up to
    /// which version that is everything. Kubernetes tells a watch its progress two seconds before its time is over: so a
    /// short watch is soon told, even where nothing happens. None: it was not told in time.
    pub(super) async fn since(&self, from: u64, until: u64) -> Result<Option<(Vec<(bool, Value)>, u64)>, Failure> {
        let mut lines = self.open_for(BRIEF, &format!("resourceVersion={from}")).await?;
        let mut told = Vec::new();
        let mut reached = from;
        while let Ok(next) = timeout(2 * BRIEF, lines.next(self.target.shape)).await {
            let Some(Line { event, object }) = next? else { break };
            if event == "ERROR" {
                return Err(status(object));
            }
            reached = reached.max(number(version_of(&object)));
            match event.as_str() {
                "ADDED" | "MODIFIED" => told.push((false, object)),
                "DELETED" => told.push((true, object)),
                _ => {}
            }
            // Events come in the order of their versions.
            if reached >= until {
                return Ok(Some((told, reached)));
            }
        }
        Ok(None)
    }

    // === The watch ===

    /// Tells what changes after a version, until a new list is needed.
    async fn follow(&self, mut version: String, mut open: Option<Lines>) -> Stop {
        let mut backoff = Backoff::new();
        loop {
            let mut lines = match open.take() {
                Some(lines) => lines,
                None => match self.open(&format!("resourceVersion={version}")).await {
                    Ok(lines) => {
                        if let Err(stop) = self.tell(Message::Progress(0)).await {
                            return stop;
                        }
                        lines
                    }
                    Err(Stop::Failed(failure @ (Failure::Expired(_) | Failure::Missing))) => {
                        return Stop::Failed(failure);
                    }
                    Err(Stop::Failed(failure)) => {
                        if let Err(stop) = self.tell(Message::Failed(failure)).await {
                            return stop;
                        }
                        tokio::time::sleep(backoff.wait()).await;
                        continue;
                    }
                    Err(stop) => return stop,
                },
            };
            let since = Instant::now();
            match self.read(&mut lines, &mut version).await {
                Ok(()) => {}
                // The connection broke; whether the server is there shows when it is asked again.
                Err(Stop::Failed(Failure::Unreachable(why))) => {
                    tracing::debug!(path = self.target.path, "watch: {why}");
                }
                Err(Stop::Failed(failure @ Failure::Server(_))) => {
                    if let Err(stop) = self.tell(Message::Failed(failure)).await {
                        return stop;
                    }
                }
                Err(stop) => return stop,
            }
            if since.elapsed() < SHORT {
                tokio::time::sleep(backoff.wait()).await;
            } else {
                backoff.reset();
            }
        }
    }

    /// Until the watch ends.
    async fn read(&self, lines: &mut Lines, version: &mut String) -> Result<(), Stop> {
        let patience = if self.target.native {
            SILENCE
        } else {
            WATCH_TIMEOUT + PATIENCE
        };
        loop {
            let Ok(next) = timeout(patience, lines.next(self.target.shape)).await else {
                return Err(Failure::Unreachable(format!("silent for {} s", patience.as_secs())).into());
            };
            let Some(Line { event, object }) = next? else {
                return Ok(());
            };
            if event == "ERROR" {
                return Err(status(object).into());
            }
            let told = version_of(&object);
            if !told.is_empty() {
                told.clone_into(version);
            }
            let message = match event.as_str() {
                "ADDED" | "MODIFIED" => Message::Changed(object),
                "DELETED" => Message::Gone(object),
                "BOOKMARK" => Message::Progress(number(told)),
                _ => continue,
            };
            self.tell(message).await?;
        }
    }
}

/// The lines of a watch, as they come.
struct Lines {
    answer: Answer,
    health: Arc<WatchHealth>,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
}

impl Lines {
    /// None: the server has ended the watch.
    async fn next(&mut self, shape: &'static Shape) -> Result<Option<Line>, Failure> {
        let mut searched = self.start;
        loop {
            if let Some(length) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let text = &self.buffer[self.start..searched + length];
                let line = line(text, shape).map_err(|error| garbled(&error))?;
                self.start = searched + length + 1;
                return Ok(Some(line));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER {
                self.buffer = Vec::new();
            }
            searched = self.buffer.len();
            let Some(bytes) = self.answer.next().await? else {
                // A piece of a line is one that was cut short.
                return Ok(None);
            };
            self.health.received(bytes.len());
            self.buffer.extend_from_slice(&bytes);
        }
    }
}

fn marks_the_end(bookmark: &Value) -> bool {
    bookmark
        .pointer("/metadata/annotations")
        .is_some_and(|annotations| annotations.get(INITIAL_EVENTS_END).is_some())
}

/// An object's resource version; empty if it has none.
pub(super) fn version_of(object: &Value) -> &str {
    object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn status(object: Value) -> Failure {
    match serde_json::from_value::<Status>(object) {
        Ok(status) => status.into(),
        Err(error) => garbled(&error),
    }
}

pub(super) fn garbled(error: &serde_json::Error) -> Failure {
    Failure::Server(format!("something that cannot be read: {error}"))
}

/// Percent-encoded for a query.
pub(super) fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
