//! Which of Calico's kinds the cluster serves: asked at the start, when a CRD comes or goes, and now and then.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use super::{
    backoff::{Backoff, spread},
    client::{Api, Failure},
    health::WatchHealth,
    kinds::{SERVED, STORED, Seen, names_of},
    watch::{Message, Told, Watch},
};
use crate::metrics::Watches;

/// How often to ask where nothing tells of changes (an aggregated API server that comes or goes).
const EVERY: Duration = Duration::from_secs(60);
/// How soon to ask again after a CRD changed: it is served a moment after it is there.
const SOON: Duration = Duration::from_millis(300);
/// For how long a group must be gone until that is believed: an API server that has just started does not know its CRDs
/// yet.
const BELIEVED: Duration = Duration::from_secs(5);
/// For the first answer about CRDs.
const FIRST: Duration = Duration::from_secs(2);
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// What discovery has to say.
#[derive(Debug)]
pub(super) enum Discovered {
    Kinds(Seen),
    Failed(Failure),
}

pub(super) struct Discovery {
    pub(super) api: Api,
    pub(super) out: mpsc::Sender<Discovered>,
    /// Woken when somebody met a kind that is not there.
    pub(super) doubt: Arc<Notify>,
}

/// Names of CRDs in Calico's groups.
struct Crds {
    names: BTreeSet<String>,
    listing: Option<BTreeSet<String>>,
    /// None: not known yet, or not permitted.
    known: bool,
    answered: bool,
}

impl Crds {
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Begin => self.listing = Some(BTreeSet::new()),
            Message::Items(items) => {
                if let Some(listing) = &mut self.listing {
                    listing.extend(items.iter().filter_map(crd_name));
                }
            }
            Message::Listed(_) => {
                self.answered = true;
                self.known = true;
                self.names = self.listing.take().unwrap_or_default();
                return true;
            }
            Message::Changed(object) => {
                if let Some(name) = crd_name(&object) {
                    self.names.insert(name);
                    // Also when its status changed: it is served from then on.
                    return true;
                }
            }
            Message::Gone(object) => return crd_name(&object).is_some_and(|name| self.names.remove(&name)),
            Message::Failed(failure) => {
                self.answered = true;
                // What was known stays so while the server cannot be asked.
                if matches!(failure, Failure::Forbidden(_)) {
                    self.known = false;
                    return true;
                }
            }
            Message::Progress(_) => {}
        }
        false
    }

    fn has_group(&self, group: &str) -> Option<bool> {
        self.known.then(|| {
            self.names
                .iter()
                .any(|name| name.split_once('.').is_some_and(|(_, of)| of == group))
        })
    }
}

fn crd_name(object: &Value) -> Option<String> {
    let name = object.pointer("/metadata/name")?.as_str()?;
    name.ends_with(SERVED).then(|| name.to_owned())
}

impl Discovery {
    /// Until nobody listens.
    pub(super) async fn run(self) {
        let (told, mut tells) = mpsc::channel(16);
        let watch = Watch {
            id: 0,
            api: self.api.clone(),
            target: names_of(CRDS),
            health: Arc::new(WatchHealth::new(Watches::default(), "CustomResourceDefinition")),
            out: told,
        };
        // Ends with its receiver.
        tokio::spawn(watch.run());
        let mut crds = Crds {
            names: BTreeSet::new(),
            listing: None,
            known: false,
            answered: false,
        };
        let by = tokio::time::Instant::now() + FIRST;
        while !crds.answered {
            match tokio::time::timeout_at(by, tells.recv()).await {
                Ok(Some(Told { message, .. })) => drop(crds.take(message)),
                Ok(None) | Err(_) => break,
            }
        }
        let mut backoff = Backoff::new();
        let mut told: Option<Seen> = None;
        let mut gone: Option<Instant> = None;
        let mut failed = false;
        loop {
            let next = match self.ask(&crds).await {
                Ok(seen) => {
                    backoff.reset();
                    let fewer = told.as_ref().is_none_or(|told| lacks(&seen, told));
                    let since = gone.filter(|_| fewer);
                    // Before anything is known, nothing that is missing is believed at once either.
                    let sure =
                        !fewer || certain(&seen, &crds) || since.is_some_and(|since| since.elapsed() >= BELIEVED);
                    if sure {
                        gone = None;
                        // What failed before is over, which has to be told too.
                        if std::mem::take(&mut failed) || told.as_ref() != Some(&seen) {
                            told = Some(seen.clone());
                            if self.out.send(Discovered::Kinds(seen)).await.is_err() {
                                return;
                            }
                        }
                        spread(EVERY)
                    } else {
                        gone = Some(since.unwrap_or_else(Instant::now));
                        SOON
                    }
                }
                Err(failure) => {
                    failed = true;
                    if self.out.send(Discovered::Failed(failure)).await.is_err() {
                        return;
                    }
                    backoff.wait()
                }
            };
            let until = tokio::time::Instant::now() + next;
            let mut until = until;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    // Soon, and not for each of many.
                    () = self.doubt.notified() => until = until.min(tokio::time::Instant::now() + SOON),
                    message = tells.recv() => match message {
                        Some(Told { message, .. }) => if crds.take(message) {
                            until = until.min(tokio::time::Instant::now() + SOON);
                        },
                        None => return,
                    },
                    () = self.out.closed() => return,
                }
            }
        }
    }

    async fn ask(&self, crds: &Crds) -> Result<Seen, Failure> {
        let (served, stored) = (format!("/apis/{SERVED}/v3"), format!("/apis/{STORED}/v1"));
        let (served, stored) = tokio::join!(self.resources(&served), self.resources(&stored));
        Ok(Seen {
            served: served?,
            stored: stored?,
            served_is_stored: crds.has_group(SERVED),
        })
    }

    /// The resources of a group. None: it is not served.
    async fn resources(&self, path: &str) -> Result<Option<Vec<String>>, Failure> {
        #[derive(Deserialize)]
        struct List {
            resources: Vec<Resource>,
        }
        #[derive(Deserialize)]
        struct Resource {
            name: String,
            #[serde(default)]
            verbs: Vec<String>,
        }
        match self.api.get(path).await {
            Ok(text) => {
                let list: List = serde_json::from_slice(&text).map_err(|error| super::watch::garbled(&error))?;
                let watchable = |resource: &Resource| {
                    ["list", "watch"]
                        .iter()
                        .all(|verb| resource.verbs.iter().any(|known| known == verb))
                };
                let mut names: Vec<String> = list
                    .resources
                    .into_iter()
                    .filter(watchable)
                    .map(|resource| resource.name)
                    .collect();
                names.sort_unstable();
                Ok(Some(names))
            }
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// Whether something that was there is not any more.
fn lacks(now: &Seen, before: &Seen) -> bool {
    let part = |now: &Option<Vec<String>>, before: &Option<Vec<String>>| {
        before
            .iter()
            .flatten()
            .any(|plural| !now.iter().flatten().any(|known| known == plural))
    };
    part(&now.served, &before.served) || part(&now.stored, &before.stored)
}

/// Whether CRDs confirm what is missing: there are none in a group that is not served.
fn certain(seen: &Seen, crds: &Crds) -> bool {
    let confirmed = |resources: &Option<Vec<String>>, group: &str| match crds.has_group(group) {
        None => false,
        Some(false) => resources.is_none(),
        Some(true) => resources.as_ref().is_some_and(|resources| {
            crds.names_in(group)
                .all(|plural| resources.iter().any(|known| known == plural))
        }),
    };
    // An aggregated API server is no CRD, and is there if it answers.
    (seen.served.is_some() || confirmed(&seen.served, SERVED)) && confirmed(&seen.stored, STORED)
}

impl Crds {
    fn names_in<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a str> {
        self.names.iter().filter_map(move |name| {
            name.split_once('.')
                .filter(|(_, of)| *of == group)
                .map(|(plural, _)| plural)
        })
    }
}
