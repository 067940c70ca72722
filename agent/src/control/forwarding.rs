//! When it is time to look whether packets between local pods may be handed over directly.

use std::time::{Duration, Instant};

use tracing::warn;

use super::agent::Agent;

/// How soon rules of netfilter are noticed.
const RULES: Duration = Duration::from_secs(2);
/// How soon is noticed what somebody does to an interface.
const INTERFACES: Duration = Duration::from_secs(10);

/// What is due when.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    rules: Option<Instant>,
    interfaces: Option<Instant>,
}

impl Forwarding {
    pub(super) const fn next(&self) -> Option<Instant> {
        self.rules
    }

    /// An interface is new, or another program runs on it.
    pub(super) fn soon(&mut self) {
        self.rules = Some(Instant::now());
    }
}

impl Agent {
    /// Looks, if it is time.
    pub(super) fn review_forwarding(&mut self, now: Instant) {
        if self.forwarding.rules.is_none_or(|due| due > now) {
            return;
        }
        let all = self.forwarding.interfaces.is_none_or(|due| due <= now);
        if all {
            self.forwarding.interfaces = Some(now + INTERFACES);
        }
        self.forwarding.rules = Some(now + RULES);
        if let Err(error) = self.datapath.review_forwarding(all) {
            warn!(%error, "cannot say who forwards between local pods; without news the kernel will");
        }
    }
}
