//! Interfaces that were attached in a hurry: filters at once, links in their place when there is time.
//!
//! A container runtime waits for the attachment of a new pod, and a link takes the kernel two orders of magnitude longer
//! than a filter ([`Links::attach_at_once`]). Until links are there the same programs run from filters, as on a kernel
//! without TCX. While one takes the place of the other both run, and a packet that passes both is judged twice.
//!
//! [`Links::attach_at_once`]: super::links::Links::attach_at_once

use std::time::{Duration, Instant};

use tracing::{debug, warn};
use weir_common::Direction;

use super::{Datapath, Result, links::DIRECTIONS};

/// For so long after its attachment nobody sends to a pod: its sandbox has yet to be started, and its containers after
/// that. Afterwards the empty qdisc stays until the interface goes, since removing it would lose packets, some
/// milliseconds' worth of them.
const QUIET: Duration = Duration::from_millis(300);

/// What [`Datapath::attach_at_once`] has left to be done, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Vec<Hurried>);

#[derive(Debug)]
struct Hurried {
    ifindex: u32,
    since: Instant,
    /// Hooks that have filters yet.
    hooks: Vec<Direction>,
}

impl Unsettled {
    /// The interface is settled, or detached, or gone.
    pub(super) fn forget(&mut self, ifindex: u32) {
        self.0.retain(|hurried| hurried.ifindex != ifindex);
    }
}

impl Datapath {
    /// Like [`Self::attach`], without waiting for the kernel where a new link would take long. For an interface that
    /// nobody sends to yet. [`Self::settle`] does the rest.
    pub fn attach_at_once(&mut self, id: u32) -> Result<()> {
        let Some(ifindex) = self.to_attach(id)? else {
            return Ok(());
        };
        let mut hooks = Vec::new();
        for direction in DIRECTIONS {
            let program = self.generation.program(direction);
            if self.links.attach_at_once(ifindex, direction, program)? {
                hooks.push(direction);
            }
        }
        self.unsettled.forget(ifindex);
        if !hooks.is_empty() {
            self.unsettled.0.push(Hurried {
                ifindex,
                since: Instant::now(),
                hooks,
            });
        }
        self.set_attached(id);
        Ok(())
    }

    /// Since when an interface waits for [`Self::settle`].
    #[must_use]
    pub fn unsettled_since(&self) -> Option<Instant> {
        self.unsettled.0.first().map(|hurried| hurried.since)
    }

    /// Puts a link in the place of one filter, which takes the kernel some 10 to 20 ms. An interface of which that
    /// fails goes on with its filters.
    pub fn settle(&mut self) {
        let Some(hurried) = self.unsettled.0.first_mut() else {
            return;
        };
        let ifindex = hurried.ifindex;
        if let Some(direction) = hurried.hooks.pop() {
            let program = self.generation.program(direction);
            if let Err(error) = self.links.attach(ifindex, direction, program) {
                // It may have gone in this moment.
                debug!(ifindex, %error, "filters stay in the place of links");
                return self.unsettled.forget(ifindex);
            }
        }
        if hurried.hooks.is_empty() {
            let quiet = hurried.since.elapsed() < QUIET;
            self.unsettled.forget(ifindex);
            let left = if quiet {
                self.links.remove_qdisc(ifindex)
            } else {
                self.links.disown_qdisc(ifindex)
            };
            if let Err(error) = left {
                warn!(ifindex, %error, "an empty clsact qdisc stays");
            }
        }
    }
}
