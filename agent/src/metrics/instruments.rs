//! What is counted and timed as it happens.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::watches::Watches;

/// Upper bounds of the histograms' buckets, seconds: from what a single change takes to what a first sync may.
const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// What made the agent write to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Changed objects.
    Objects,
    /// A whole list of objects: the first one, or one after a watch was interrupted.
    Sync,
    /// A pod of this node.
    Endpoint,
}

impl Trigger {
    pub const ALL: [Self; 3] = [Self::Objects, Self::Sync, Self::Endpoint];

    /// As in the label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Sync => "sync",
            Self::Endpoint => "endpoint",
        }
    }
}

/// When the first event that the control loop has not taken yet came to the source. All clones share it.
#[derive(Clone, Debug, Default)]
pub struct Arrivals(Arc<Mutex<Option<Instant>>>);

impl Arrivals {
    /// An event came at that time, and is about to be sent to the control loop.
    pub fn mark(&self, at: Instant) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *first = Some(first.map_or(at, |first| first.min(at)));
    }

    /// The control loop has taken all events that were sent. None: whoever sent them did not say when they came.
    #[must_use]
    pub fn take(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Shared by whoever has something to count and whoever answers a scrape.
#[derive(Debug)]
pub struct Instruments {
    pub arrivals: Arrivals,
    pub watches: Watches,
    /// The kernel refused something that policy needs.
    pub kernel_failures: Counter,
    /// Somebody else has taken programs off a hook.
    pub hooks_lost: Counter,
    pub(super) started: SystemTime,
    pub(super) programming: [Histogram; Trigger::ALL.len()],
}

impl Default for Instruments {
    fn default() -> Self {
        Self {
            arrivals: Arrivals::default(),
            watches: Watches::default(),
            kernel_failures: Counter::default(),
            hooks_lost: Counter::default(),
            started: SystemTime::now(),
            programming: Trigger::ALL.map(|_| Histogram::new(BUCKETS)),
        }
    }
}

impl Instruments {
    /// What was decided is in the kernel, so long after its cause came to the agent.
    pub fn programmed(&self, trigger: Trigger, took: Duration) {
        self.programming[trigger as usize].observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_event_that_waits_counts() {
        let arrivals = Arrivals::default();
        assert_eq!(arrivals.take(), None);
        let first = Instant::now();
        let later = first + Duration::from_millis(3);
        arrivals.mark(later);
        arrivals.clone().mark(first);
        arrivals.mark(later);
        assert_eq!(arrivals.take(), Some(first));
        assert_eq!(arrivals.take(), None, "taken");
    }

    #[test]
    fn triggers_stand_where_they_are_looked_for() {
        for (at, trigger) in Trigger::ALL.into_iter().enumerate() {
            assert_eq!(trigger as usize, at);
        }
    }
}
