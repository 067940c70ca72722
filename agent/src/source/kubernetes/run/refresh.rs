//! Has everything read again from the API server itself, for somebody who must know what is there now.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Done, Runner};
use crate::source::{
    SourceEvent,
    kubernetes::{
        backoff::Backoff,
        client::Failure,
        project::{Page, page},
        version::number,
        watch::{Watch, escaped, garbled},
    },
};

/// Kinds with more objects are not listed anew by a refresh: it waits until the watch has come far enough.
const MANY: usize = 2_000;
/// For how long a refresh waits for the watch, which tells its progress every minute if nothing happens, before it catches
/// up beside it.
const CAUGHT_UP: Duration = Duration::from_millis(200);

pub(super) enum Beside {
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
pub(super) struct Refresh {
    token: u64,
    /// Requests under way.
    requests: usize,
    /// The watch of a kind must come so far.
    pub(super) versions: Vec<(&'static str, u64)>,
    /// When to stop waiting for watches.
    pub(super) patience: Instant,
}

impl Runner {
    /// Begins the refresh that is wanted, unless one is under way: what that reads may be older than the question.
    pub(super) fn begin_refresh(&mut self) {
        if self.refresh.is_some() {
            return;
        }
        let Some(token) = self.wanted_refresh.take() else {
            return;
        };
        let mut refresh = Refresh {
            token,
            requests: 0,
            versions: Vec::new(),
            patience: Instant::now() + CAUGHT_UP,
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
        self.refresh = Some(refresh);
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

    /// A list, or what else was asked for in its stead, has come.
    pub(super) fn listed(&mut self, token: u64, slot: &'static str, watch: u64, result: Result<Beside, Failure>) {
        let current = self.by_id.contains_key(&watch);
        let Some(refresh) = self.refresh.as_mut().filter(|refresh| refresh.token == token) else {
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

    /// Answers those who asked for the refresh under way, once everything has come. Err: nobody listens any more.
    pub(super) fn tell_refreshed(&mut self) -> Result<(), mpsc::error::SendError<SourceEvent>> {
        let Some(refresh) = &mut self.refresh else {
            return Ok(());
        };
        let token = refresh.token;
        refresh
            .versions
            .retain(|(slot, version)| self.catalogue.delivered(slot) < *version);
        if refresh.requests == 0 && refresh.versions.is_empty() {
            self.refresh = None;
            return self.outbox.events.send(SourceEvent::Refreshed(token));
        }
        if refresh.patience > Instant::now() {
            return Ok(());
        }
        let late = std::mem::take(&mut refresh.versions);
        refresh.requests += late.len();
        for (slot, version) in late {
            // Where the kind has never been known whole there is nothing to go on from.
            let reading = match self.catalogue.delivered(slot) {
                from if from > 0 && self.catalogue.is_synced(slot) => Reading::Since(from, version),
                _ => Reading::Whole,
            };
            self.list(token, slot, reading);
        }
        Ok(())
    }
}
