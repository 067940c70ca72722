//! What cannot be read, what follows from that, and what is told of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{Runner, Watched, is_built_in};
use crate::{
    api::Problem,
    source::{SourceEvent, kubernetes::client::Failure},
};

/// For how long kinds that cannot be read hold up the first sync, once all that matters most is known.
const GRACE: Duration = OUTAGE;
/// The same where permission is missing: waiting hardly mends that, but an API server that has just started refuses
/// everybody until it has read its roles.
const FORBIDDEN_GRACE: Duration = Duration::from_secs(3);
/// An API server that does not answer is a problem after this time; before that it may be just restarting.
const OUTAGE: Duration = Duration::from_secs(10);

impl Watched {
    /// It cannot be read, once more. Permission is missing since that was said, whatever was the matter before.
    pub(super) fn fails(&mut self, failure: Failure) {
        let forbidden = |failure: &Failure| matches!(failure, Failure::Forbidden(_));
        let since = match self.failing.take() {
            Some((since, before)) if forbidden(&before) || !forbidden(&failure) => since,
            _ => Instant::now(),
        };
        self.failing = Some((since, failure));
    }

    /// It fails, and not only for a moment: an API server may be just restarting, a CRD be just made.
    fn is_in_trouble(&self) -> bool {
        match &self.failing {
            None => false,
            Some((since, Failure::Forbidden(_))) => since.elapsed() >= FORBIDDEN_GRACE,
            Some((since, _)) => since.elapsed() >= OUTAGE,
        }
    }
}

impl Runner {
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

    /// Whether what is known may be told as all that there is.
    pub(super) fn may_start(&self) -> bool {
        let undiscovered = match &self.undiscovered {
            _ if self.discovered => false,
            Some((_, Failure::Unreachable(_) | Failure::Unauthorized(_))) | None => true,
            Some((since, _)) => since.elapsed() < GRACE,
        };
        !undiscovered && !self.watched.iter().any(|(slot, watched)| self.blocks(slot, watched))
    }

    /// What is not known although it is served, once everything else is.
    pub(super) fn incomplete(&self) -> Option<String> {
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
            Some((since, _)) if since.elapsed() < OUTAGE => Vec::new(),
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
