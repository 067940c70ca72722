//! When it is time to look whether packets between local pods may be handed over directly.

use std::time::{Duration, Instant};

use tracing::warn;

use super::agent::Agent;

/// How soon rules of netfilter are noticed.
const RULES: Duration = Duration::from_secs(2);
/// How soon is noticed that they are gone: a node with thousands of chains is not asked for all of them all the time.
const NO_RULES: Duration = Duration::from_secs(15);
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
}

impl Agent {
    /// An interface is new, or another program runs on it: to be looked at, unless the kernel forwards anyway.
    pub(super) fn review_forwarding_soon(&mut self) {
        if self.forwarding.rules.is_none() || self.datapath.forwarding_obstacle().is_none() {
            self.forwarding.rules = Some(Instant::now());
        }
    }

    /// Looks, if it is time.
    pub(super) fn review_forwarding(&mut self, now: Instant) {
        if self.forwarding.rules.is_none_or(|due| due > now) {
            return;
        }
        let all = self.forwarding.interfaces.is_none_or(|due| due <= now);
        if all {
            self.forwarding.interfaces = Some(now + INTERFACES);
        }
        if let Err(error) = self.datapath.review_forwarding(all) {
            warn!(%error, "cannot say who forwards between local pods; without news the kernel will");
        }
        let again = if self.datapath.forwarding_obstacle().is_some() {
            NO_RULES
        } else {
            RULES
        };
        self.forwarding.rules = Some(now + again);
    }
}
