//! What cannot be read, what follows from that, and what is told of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{Runner, Watched, is_built_in};
use crate::{
    api::{ObjectKind, Problem},
    source::{
        Gap, SourceEvent,
        kubernetes::{
            client::Failure,
            daemonset::{DaemonSetName, Sight, Sighting},
        },
    },
};

/// For how long kinds that cannot be read hold up the first sync, once all that matters most is known.
const GRACE: Duration = OUTAGE;
/// The same where permission is missing: waiting hardly mends that, but an API server that has just started refuses
/// everybody until it has read its roles.
const FORBIDDEN_GRACE: Duration = Duration::from_secs(3);
/// An API server that does not answer is a problem after this time; before that it may be just restarting.
const OUTAGE: Duration = Duration::from_secs(10);

/// Something that cannot be read, until it can.
#[derive(Debug)]
pub(super) struct Failing {
    since: Instant,
    /// Since when the API server is away, refuses, or answers with something else: whichever it is now. An API server that
    /// comes back begins with refusing everybody, or with being too busy.
    of_this_kind: Instant,
    failure: Failure,
}

/// Why the removal of the agent's own DaemonSet would not be known for one.
#[derive(Debug)]
pub(super) struct Unsighted {
    daemonset: DaemonSetName,
    /// None: it can be watched, but there is no such DaemonSet, and never was on this node.
    failing: Option<Failing>,
}

impl Unsighted {
    /// It becomes a problem if it lasts.
    pub(super) const fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    fn problem(&self) -> Option<Problem> {
        const CONSEQUENCE: &str = "until then an uninstallation may be taken for a restart, and leave this node as it is, \
                                   programs and CNI plugin in place (`weir detach` takes them away)";
        let name = &self.daemonset;
        let (message, remedy) = match &self.failing {
            None => (
                format!("there is no DaemonSet {name}, which is said to be the agent's own"),
                "correct --daemonset (WEIR_NAMESPACE, WEIR_DAEMONSET)".to_owned(),
            ),
            Some(failing) if !failing.is_trouble() => return None,
            Some(Failing { failure, .. }) => (
                format!("cannot watch the agent's own DaemonSet {name}: {failure}"),
                match kind(failure) {
                    // Told once, for all that is watched.
                    FailureKind::NoAnswer => return None,
                    FailureKind::Forbidden => format!(
                        "allow the agent to get, list and watch daemonsets {} in {} (its Role there)",
                        name.name, name.namespace
                    ),
                    FailureKind::Other => "see to the API server".to_owned(),
                },
            ),
        };
        Some(Problem::warning(message, format!("{remedy}; {CONSEQUENCE}")))
    }
}

/// What patience depends on.
#[derive(PartialEq, Eq)]
enum FailureKind {
    NoAnswer,
    Forbidden,
    Other,
}

impl Failing {
    /// It fails (once more, if it did `before`).
    pub(super) fn again(before: Option<Self>, failure: Failure) -> Self {
        let now = Instant::now();
        let kind = kind(&failure);
        let (since, of_this_kind) = before.map_or((now, now), |before| {
            let before_kind = self::kind(&before.failure);
            // Permission is missing since that was said, whatever was the matter before.
            let began = before_kind == FailureKind::Forbidden || kind != FailureKind::Forbidden;
            (
                if began { before.since } else { now },
                if before_kind == kind { before.of_this_kind } else { now },
            )
        });
        Self {
            since,
            of_this_kind,
            failure,
        }
    }

    /// Not only for a moment: an API server may be just restarting, a CRD be just made.
    fn is_trouble(&self) -> bool {
        self.since.elapsed()
            >= match kind(&self.failure) {
                FailureKind::Forbidden => FORBIDDEN_GRACE,
                FailureKind::NoAnswer | FailureKind::Other => OUTAGE,
            }
    }

    /// Whether the first sync waits for it.
    fn blocks(&self) -> bool {
        match kind(&self.failure) {
            FailureKind::NoAnswer => true,
            FailureKind::Forbidden => self.of_this_kind.elapsed() < FORBIDDEN_GRACE,
            FailureKind::Other => self.of_this_kind.elapsed() < GRACE,
        }
    }
}

const fn kind(failure: &Failure) -> FailureKind {
    match failure {
        Failure::Unreachable(_) | Failure::Unauthorized(_) => FailureKind::NoAnswer,
        Failure::Forbidden(_) => FailureKind::Forbidden,
        _ => FailureKind::Other,
    }
}

impl Watched {
    /// It cannot be read, once more.
    pub(super) fn fails(&mut self, failure: Failure) {
        self.failing = Some(Failing::again(self.failing.take(), failure));
    }

    fn is_in_trouble(&self) -> bool {
        self.failing.as_ref().is_some_and(Failing::is_trouble)
    }
}

impl Runner {
    /// How it stands with the watch of the agent's own DaemonSet.
    pub(super) fn sighted(&mut self, Sighting { daemonset, sight }: Sighting) {
        self.stirred = true;
        let before = self.unsighted.take().and_then(|unsighted| unsighted.failing);
        let failing = match sight {
            Sight::Clear => return,
            Sight::Absent => None,
            Sight::Failed(failure) => Some(Failing::again(before, failure)),
        };
        self.unsighted = Some(Unsighted { daemonset, failing });
    }

    // === The first sync ===

    /// Whether a kind that is not known holds up the first sync.
    fn blocks(&self, slot: &str, watched: &Watched) -> bool {
        if self.catalogue.is_synced(slot) {
            return false;
        }
        watched.resource.is_essential() || watched.failing.as_ref().is_none_or(Failing::blocks)
    }

    /// Whether what is known may be told as all that there is.
    pub(super) fn may_start(&self) -> bool {
        let undiscovered = !self.discovered && self.undiscovered.as_ref().is_none_or(Failing::blocks);
        !undiscovered && !self.watched.iter().any(|(slot, watched)| self.blocks(slot, watched))
    }

    /// What is not known although it is served, once everything else is.
    pub(super) fn incomplete(&self) -> Option<Gap> {
        if !self.discovered {
            return Some(Gap {
                reason: "it is not known which of Calico's kinds the cluster serves; see the problems".to_owned(),
                policies: true,
            });
        }
        let unread: Vec<(&str, ObjectKind)> = self
            .watched
            .iter()
            .filter(|(slot, watched)| !self.catalogue.is_synced(slot) && watched.is_in_trouble())
            .map(|(slot, watched)| (*slot, watched.resource.api.object))
            .collect();
        if unread.is_empty() {
            return None;
        }
        let slots: Vec<&str> = unread.iter().map(|(slot, _)| *slot).collect();
        Some(Gap {
            reason: format!("cannot read {}; see the problems", slots.join(", ")),
            policies: unread.iter().any(|(_, kind)| {
                matches!(
                    kind,
                    ObjectKind::Policy(_) | ObjectKind::Tier | ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet
                ) && !self.catalogue.is_adopted(*kind)
            }),
        })
    }

    /// Err: nobody listens any more.
    pub(super) fn tell_problems(&mut self) -> Result<(), mpsc::error::SendError<SourceEvent>> {
        for (origin, problems) in self.problems() {
            if self.told_problems.get(&origin).map_or(&[][..], Vec::as_slice) != problems {
                self.told_problems.insert(origin.clone(), problems.clone());
                self.outbox.events.send(SourceEvent::Problems { origin, problems })?;
            }
        }
        Ok(())
    }

    /// What keeps the source from being current, or the agent from knowing of its removal, by origin.
    fn problems(&self) -> Vec<(Arc<str>, Vec<Problem>)> {
        let mut unreachable = None;
        let mut out = Vec::new();
        for (slot, watched) in &self.watched {
            let mut problems = Vec::new();
            match &watched.failing {
                Some(failing) if !failing.is_trouble() => {}
                None => {}
                Some(Failing { failure, .. }) if kind(failure) == FailureKind::NoAnswer => unreachable = Some(failure),
                // Discovery says whether it is gone for good.
                Some(Failing {
                    failure: Failure::Missing,
                    ..
                }) if !is_built_in(&watched.resource) => {}
                Some(Failing { failure, .. }) => problems.push(self.unread(slot, failure)),
            }
            out.push((format!("kubernetes {slot}").into(), problems));
        }
        for slot in self.names.values().filter(|slot| !self.watched.contains_key(*slot)) {
            out.push((format!("kubernetes {slot}").into(), Vec::new()));
        }
        let undiscovered = match &self.undiscovered {
            None => Vec::new(),
            Some(failing) if !failing.is_trouble() => Vec::new(),
            Some(Failing { failure, .. }) if kind(failure) == FailureKind::NoAnswer => {
                unreachable = Some(failure);
                Vec::new()
            }
            Some(Failing { failure, .. }) => vec![Problem::error(
                format!("cannot tell which of Calico's kinds the cluster serves: {failure}"),
                "see to the API server that serves projectcalico.org; until then what is known stays in force",
            )],
        };
        out.push(("kubernetes discovery".into(), undiscovered));
        let unsighted = self.unsighted.as_ref().and_then(Unsighted::problem);
        out.push(("kubernetes daemonset".into(), unsighted.into_iter().collect()));
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
