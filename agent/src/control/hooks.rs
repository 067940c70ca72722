//! Looks whether the programs are still on the pods' interfaces, and puts back what somebody else has taken away.
//!
//! Tools and agents of others remove whole clsact qdiscs, with our filters on them; links can be detached. The kernel tells of
//! qdiscs and filters, so those are back within milliseconds; of links it tells nothing, so all hooks are looked at in turn.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{agent::Agent, endpoints::LocalEndpoint};
use crate::{
    datapath::{self, Unhooked},
    policy::change::PeerKey,
};

/// Every hook is looked at once in so long,
const ROUND: Duration = Duration::from_secs(5);
/// so many endpoints at a time: each takes some microseconds, and everything else waits meanwhile.
const AT_ONCE: usize = 32;
/// Where programs had to be put back, the kernel's next news of removals are gathered for so long: somebody who takes them away
/// again and again must not keep the agent from all else.
const PAUSE: Duration = Duration::from_millis(200);

/// What is to be looked at when.
#[derive(Debug)]
pub(super) struct Hooks {
    /// Of the round, the endpoint that was looked at last,
    last: u32,
    /// and when the next ones are due.
    round: Instant,
    /// Interfaces from which something was removed.
    touched: BTreeSet<u32>,
    /// Not earlier these are looked at.
    calm: Instant,
}

impl Hooks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: 0,
            round: now + ROUND,
            touched: BTreeSet::new(),
            calm: now,
        }
    }

    pub(super) fn next(&self) -> Instant {
        if self.touched.is_empty() {
            self.round
        } else {
            self.round.min(self.calm)
        }
    }

    /// Those whose turn it is, of all `ids` in their order.
    fn turn<'a>(&mut self, ids: &'a [u32], now: Instant) -> &'a [u32] {
        let parts = u32::try_from(ids.len().div_ceil(AT_ONCE)).unwrap_or(u32::MAX);
        self.round = now + ROUND / parts.max(1);
        let rest = &ids[ids.partition_point(|id| *id <= self.last)..];
        let rest = if rest.is_empty() { ids } else { rest };
        let turn = &rest[..rest.len().min(AT_ONCE)];
        self.last = turn.last().copied().unwrap_or(0);
        turn
    }
}

impl Agent {
    /// The kernel says that something was removed from an interface.
    pub(super) fn hooks_touched(&mut self, ifindex: u32) {
        self.hooks.touched.insert(ifindex);
        self.review_hooks(Instant::now());
    }

    /// Looks at what is due.
    pub(super) fn review_hooks(&mut self, now: Instant) {
        let mut ids = Vec::new();
        if self.hooks.calm <= now && !self.hooks.touched.is_empty() {
            let touched = std::mem::take(&mut self.hooks.touched);
            ids = self.hooked(|ifindex| touched.contains(&ifindex));
        }
        if self.hooks.round <= now {
            let all = self.hooked(|_| true);
            ids.extend(self.hooks.turn(&all, now));
        }
        if let Err(error) = self.look_at_hooks(&ids) {
            warn!(%error, "cannot look whether the programs are still on the interfaces of pods; it is tried again");
            self.instruments.kernel_failures.inc();
        }
    }

    /// Endpoints that are to have programs on such interfaces, closed ones of pods that are gone too; in order.
    fn hooked(&self, on: impl Fn(u32) -> bool) -> Vec<u32> {
        let local = self.endpoints.iter().map(|(_, endpoint)| (endpoint.id, endpoint));
        let gone = self.departed.iter().map(|gone| (Some(gone.id), &gone.endpoint));
        let wanted = local.chain(gone).filter_map(|(id, endpoint)| {
            let interface = endpoint.interface.as_ref()?;
            id.filter(|_| on(interface.ifindex))
        });
        let mut ids: Vec<u32> = wanted.collect();
        ids.sort_unstable();
        ids
    }

    /// Looks at these endpoints now, and puts back what is missing. What does not succeed stands with the pod.
    ///
    /// # Errors
    /// Some could not be looked at.
    pub(super) fn look_at_hooks(&mut self, ids: &[u32]) -> datapath::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let (unhooked, looked) = self.datapath.look(ids);
        for lost in &unhooked {
            self.instruments.hooks_lost.inc_by(lost.directions.len() as u64);
            self.put_back(lost);
        }
        if !unhooked.is_empty() {
            self.hooks.calm = Instant::now() + PAUSE;
        }
        looked
    }

    fn put_back(&mut self, lost: &Unhooked) {
        if let Some(pod) = self.endpoints.with_id(lost.id).cloned() {
            if let Some(endpoint) = self.endpoints.get_mut(&pod) {
                missed(&pod, endpoint, lost);
            }
            self.bind(&pod);
        } else if let Some(gone) = self.departed.get_mut(lost.id) {
            missed(&gone.pod, &mut gone.endpoint, lost);
            self.close_again(lost.id);
        }
    }
}

fn missed(pod: &PeerKey, endpoint: &mut LocalEndpoint, lost: &Unhooked) {
    let interface = endpoint.interface.as_ref().map(|interface| interface.name.clone());
    let name = interface.unwrap_or_else(|| format!("index {}", lost.ifindex));
    warn!(
        %pod, interface = name, hooks = %lost,
        "somebody has taken Weir's programs off a pod's interface; they are put back"
    );
    endpoint.unhooked = true;
    endpoint.waits(format!("somebody has taken the programs off its interface: {lost}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_looks_at_every_endpoint_once_and_in_time() {
        let start = Instant::now();
        let mut hooks = Hooks::new(start);
        let ids: Vec<u32> = (0..110).map(|id| 3 * id + 1).collect();
        let (mut now, mut seen) = (start, Vec::new());
        while seen.len() < ids.len() {
            let turn = hooks.turn(&ids, now).to_vec();
            assert!(turn.len() <= AT_ONCE, "{turn:?}");
            seen.extend(turn);
            now = hooks.next();
        }
        assert_eq!(seen, ids);
        assert!(now - start <= ROUND, "{:?}", now - start);
        // Then from the beginning, also where the last one is gone meanwhile.
        assert_eq!(hooks.turn(&ids[..50], now), &ids[..AT_ONCE]);
        assert_eq!(hooks.turn(&[], now), &[] as &[u32]);
        assert_eq!(hooks.next(), now + ROUND);
    }

    #[test]
    fn news_of_removals_are_looked_at_at_once_but_not_again_and_again() {
        let start = Instant::now();
        let mut hooks = Hooks::new(start);
        assert_eq!(hooks.next(), start + ROUND);
        hooks.touched.insert(7);
        assert_eq!(hooks.next(), start);
        hooks.calm = start + PAUSE;
        assert_eq!(hooks.next(), start + PAUSE);
    }
}
