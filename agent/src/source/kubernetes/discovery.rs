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
    kinds::{Policies, SERVED, STORED, Seen, names_of},
    project::page,
    watch::{Message, Told, Watch, garbled},
};
use crate::api::ObjectKind;

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
    /// Of the watch of CRDs.
    pub(super) health: Arc<WatchHealth>,
}

/// Names of CRDs in Calico's groups.
#[derive(Default)]
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
            Message::Gone(object) => {
                let Some(name) = crd_name(&object) else { return false };
                if let Some(listing) = &mut self.listing {
                    listing.remove(&name);
                }
                return self.names.remove(&name);
            }
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

/// What has been told of the kinds that are served.
#[derive(Default)]
struct Belief {
    told: Option<Seen>,
    /// Since when something told is missing, if it is.
    gone: Option<Instant>,
    /// The last thing told is a failure.
    failed: bool,
}

/// When to ask again.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Usual,
    Soon,
    /// Ever later.
    Later,
}

impl Belief {
    /// What is to be told after an answer.
    fn hear(&mut self, answer: Result<Seen, Failure>, crds: &Crds, now: Instant) -> (Option<Discovered>, Next) {
        let seen = match answer {
            Ok(seen) => seen,
            Err(failure) => {
                self.failed = true;
                return (Some(Discovered::Failed(failure)), Next::Later);
            }
        };
        // Before anything is known, nothing that is missing is believed at once either.
        let fewer = self.told.as_ref().is_none_or(|told| lacks(&seen, told));
        let since = self.gone.filter(|_| fewer);
        let believed = since.is_some_and(|since| now.saturating_duration_since(since) >= BELIEVED);
        if fewer && !believed && !certain(&seen, crds) {
            self.gone = Some(since.unwrap_or(now));
            return (None, Next::Soon);
        }
        self.gone = None;
        // What failed before is over, which has to be told too.
        let told = std::mem::take(&mut self.failed) || self.told.as_ref() != Some(&seen);
        self.told = Some(seen.clone());
        (told.then_some(Discovered::Kinds(seen)), Next::Usual)
    }
}

impl Discovery {
    /// Until nobody listens.
    pub(super) async fn run(self) {
        let (told, mut tells) = mpsc::channel(16);
        let watch = Watch {
            id: 0,
            api: self.api.clone(),
            target: names_of(CRDS),
            health: self.health.clone(),
            out: told,
        };
        // Ends with its receiver.
        tokio::spawn(watch.run());
        let mut crds = Crds::default();
        let by = tokio::time::Instant::now() + FIRST;
        while !crds.answered {
            match tokio::time::timeout_at(by, tells.recv()).await {
                Ok(Some(Told { message, .. })) => drop(self.take(&mut crds, message)),
                Ok(None) | Err(_) => break,
            }
        }
        let mut backoff = Backoff::new();
        let mut belief = Belief::default();
        loop {
            let (message, next) = belief.hear(self.ask(&crds).await, &crds, Instant::now());
            if let Some(message) = message
                && self.out.send(message).await.is_err()
            {
                return;
            }
            let next = match next {
                Next::Usual => {
                    backoff.reset();
                    spread(EVERY)
                }
                Next::Soon => {
                    backoff.reset();
                    SOON
                }
                Next::Later => backoff.wait(),
            };
            let mut until = tokio::time::Instant::now() + next;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    // Soon, and not for each of many.
                    () = self.doubt.notified() => until = until.min(tokio::time::Instant::now() + SOON),
                    message = tells.recv() => match message {
                        Some(Told { message, .. }) => if self.take(&mut crds, message) {
                            until = until.min(tokio::time::Instant::now() + SOON);
                        },
                        None => return,
                    },
                    () = self.out.closed() => return,
                }
            }
        }
    }

    fn take(&self, crds: &mut Crds, message: Message) -> bool {
        if matches!(message, Message::Listed(_)) {
            self.health.synced();
        }
        let changed = crds.take(message);
        self.health.objects(crds.names.len());
        changed
    }

    async fn ask(&self, crds: &Crds) -> Result<Seen, Failure> {
        let (served, stored) = (format!("/apis/{SERVED}/v3"), format!("/apis/{STORED}/v1"));
        let (served, stored) = tokio::join!(self.resources(&served), self.resources(&stored));
        let mut seen = seen(served, stored?, crds.has_group(SERVED))?;
        if seen.has_two_sets() {
            let (served, stored) = tokio::join!(self.has_policies(&seen, SERVED), self.has_policies(&seen, STORED));
            seen.policies = Some(Policies {
                served: served?,
                stored: stored?,
            });
        }
        Ok(seen)
    }

    /// Whether a group holds any policy that may be read.
    async fn has_policies(&self, seen: &Seen, group: &'static str) -> Result<bool, Failure> {
        for api in seen
            .kinds(group)
            .filter(|api| matches!(api.object, ObjectKind::Policy(_)))
        {
            let target = names_of(&format!("/apis/{group}/{}/{}", api.version, api.plural));
            let answer = self
                .api
                .open(&format!("{}?limit=1", target.path), target.accept_list())
                .await;
            let text = match answer {
                Ok(answer) => answer.all().await?,
                Err(Failure::Missing | Failure::Forbidden(_)) => continue,
                Err(failure) => return Err(failure),
            };
            let page = page(&text, target.shape).map_err(|error| garbled(&error))?;
            if !page.items.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
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
                let list: List = serde_json::from_slice(&text).map_err(|error| garbled(&error))?;
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

/// What the groups' answers say together. An API server of Calico's that does not answer hides nothing where the objects that it
/// would show are read from the other group anyway.
fn seen(
    served: Result<Option<Vec<String>>, Failure>,
    stored: Option<Vec<String>>,
    served_is_stored: Option<bool>,
) -> Result<Seen, Failure> {
    let mut seen = Seen {
        stored,
        served_is_stored,
        ..Seen::default()
    };
    match served {
        Ok(served) => seen.served = served,
        Err(failure) if served_is_stored == Some(false) && seen.group() == Some(STORED) => {
            seen.unanswered = Some(failure.to_string());
        }
        Err(failure) => return Err(failure),
    }
    Ok(seen)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(stored: &[&str]) -> Seen {
        Seen {
            served: None,
            stored: (!stored.is_empty()).then(|| stored.iter().map(|&plural| plural.to_owned()).collect()),
            served_is_stored: Some(false),
            ..Seen::default()
        }
    }

    #[test]
    fn an_api_server_of_calico_s_that_does_not_answer_hides_no_crd() {
        let tiers = || Some(vec!["tiers".to_owned()]);
        let answer = super::seen(Err(failure()), tiers(), Some(false)).expect("is seen");
        assert_eq!(answer.group(), Some(STORED));
        assert_eq!(answer.problems().len(), 1);
        let mut belief = Belief::default();
        let now = Instant::now();
        assert_eq!(hear(&mut belief, Ok(answer), &crds(&["tiers"]), now), "tiers Usual");
        // It answers again, and there is nothing else to see.
        let answer = super::seen(Ok(tiers()), tiers(), Some(false)).expect("is seen");
        assert!(answer.problems().is_empty());
        assert_eq!(hear(&mut belief, Ok(answer), &crds(&["tiers"]), now), "tiers Usual");
        // Where its objects are read from nowhere else it matters, also where they may be.
        assert!(super::seen(Err(failure()), None, Some(false)).is_err());
        assert!(super::seen(Err(failure()), tiers(), Some(true)).is_err());
        assert!(super::seen(Err(failure()), tiers(), None).is_err());
    }

    fn crds(stored: &[&str]) -> Crds {
        Crds {
            names: stored.iter().map(|plural| format!("{plural}.{STORED}")).collect(),
            known: true,
            ..Crds::default()
        }
    }

    fn failure() -> Failure {
        Failure::Server("503".to_owned())
    }

    /// As text: what is told, and when it asks again.
    fn hear(belief: &mut Belief, answer: Result<Seen, Failure>, crds: &Crds, now: Instant) -> String {
        let (told, next) = belief.hear(answer, crds, now);
        let told = match told {
            None => "nothing".to_owned(),
            Some(Discovered::Failed(_)) => "failed".to_owned(),
            Some(Discovered::Kinds(seen)) => seen.stored.unwrap_or_default().join("+"),
        };
        format!("{told} {next:?}")
    }

    #[test]
    fn the_same_answer_is_told_once_and_again_after_a_failure() {
        let (mut belief, crds, now) = (Belief::default(), crds(&["tiers"]), Instant::now());
        let tiers = || Ok(seen(&["tiers"]));
        assert_eq!(hear(&mut belief, tiers(), &crds, now), "tiers Usual");
        assert_eq!(hear(&mut belief, tiers(), &crds, now), "nothing Usual");
        assert_eq!(hear(&mut belief, Err(failure()), &crds, now), "failed Later");
        assert_eq!(
            hear(&mut belief, tiers(), &crds, now),
            "tiers Usual",
            "the trouble is over"
        );
        assert_eq!(hear(&mut belief, tiers(), &crds, now), "nothing Usual");
    }

    #[test]
    fn what_is_missing_is_believed_where_crds_confirm_it_or_after_a_while() {
        let (mut belief, now) = (Belief::default(), Instant::now());
        let known = crds(&["tiers"]);
        assert_eq!(hear(&mut belief, Ok(seen(&["tiers"])), &known, now), "tiers Usual");
        // Its CRD is there: an API server that has just started.
        assert_eq!(hear(&mut belief, Ok(seen(&[])), &known, now), "nothing Soon");
        let later = now + BELIEVED;
        assert_eq!(hear(&mut belief, Ok(seen(&[])), &known, later), " Usual");

        let mut belief = Belief::default();
        assert_eq!(hear(&mut belief, Ok(seen(&["tiers"])), &known, now), "tiers Usual");
        assert_eq!(hear(&mut belief, Ok(seen(&[])), &crds(&[]), now), " Usual");
    }

    #[test]
    fn an_answer_in_full_ends_the_doubt() {
        let (mut belief, now) = (Belief::default(), Instant::now());
        let known = crds(&["tiers"]);
        let tiers = || Ok(seen(&["tiers"]));
        assert_eq!(hear(&mut belief, tiers(), &known, now), "tiers Usual");
        assert_eq!(hear(&mut belief, Ok(seen(&[])), &known, now), "nothing Soon");
        assert_eq!(hear(&mut belief, tiers(), &known, now + BELIEVED), "nothing Usual");
        assert_eq!(hear(&mut belief, Ok(seen(&[])), &known, now + BELIEVED), "nothing Soon");
    }
}
