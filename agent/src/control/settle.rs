//! When pods that were attached in a hurry get links in the place of filters: once no pod starts any more for a moment, since
//! each link makes everybody wait who sets up an interface.

use std::time::{Duration, Instant};

use super::agent::Agent;

/// For so long no pod has been attached: the runtime prepares several at once.
const CALM: Duration = Duration::from_millis(100);
/// After so long a pod gets its links also while others start.
const LATEST: Duration = Duration::from_secs(10);

impl Agent {
    /// A pod was attached in a hurry, or could have been.
    pub(super) fn hurried(&mut self) {
        self.last_hurry = Some(Instant::now());
    }

    /// When [`Self::settle`] has something to do.
    pub(super) fn settle_at(&self) -> Option<Instant> {
        let since = self.datapath.unsettled_since()?;
        Some(due(since, self.last_hurry.unwrap_or(since)))
    }

    /// One hook of one interface, if it is time: what comes meanwhile waits no longer than that.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.settle_at().is_some_and(|at| at <= now) {
            self.datapath.settle();
        }
    }
}

fn due(since: Instant, last: Instant) -> Instant {
    (last + CALM).min(since + LATEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_wait_for_calm_but_not_for_ever() {
        let first = Instant::now();
        let later = |seconds: f64| first + Duration::from_secs_f64(seconds);
        assert_eq!(due(first, first), first + CALM);
        assert_eq!(due(first, later(5.0)), later(5.0) + CALM);
        assert_eq!(due(first, later(60.0)), first + LATEST);
    }
}
