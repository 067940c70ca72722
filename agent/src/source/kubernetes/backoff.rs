//! When to try again: soon at first, then ever later, never all agents at once.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

const SHORTEST: Duration = Duration::from_millis(100);
/// Long enough that 700 agents with a dozen watches each are no load for an API server that comes back.
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self { next: SHORTEST }
    }

    pub(super) const fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// How long to wait now: twice as long as the last time, of which a random half.
    pub(super) fn wait(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(LONGEST);
        spread(longest)
    }
}

/// A random time between half of `longest` and all of it.
pub(super) fn spread(longest: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    // 16 bits are enough to part agents.
    let fraction = f64::from(u16::try_from(random & 0xffff).unwrap_or(0)) / 65536.0;
    longest.mul_f64(0.5 + fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_start_anew() {
        let mut backoff = Backoff::new();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.wait()).collect();
        assert!(waits[0] >= SHORTEST / 2 && waits[0] <= SHORTEST, "{waits:?}");
        assert!(waits[11] >= LONGEST / 2 && waits[11] <= LONGEST, "{waits:?}");
        backoff.reset();
        assert!(backoff.wait() <= SHORTEST);
    }

    #[test]
    fn agents_do_not_wait_equally_long() {
        let waits: std::collections::HashSet<Duration> = (0..32).map(|_| spread(LONGEST)).collect();
        assert!(waits.len() > 16, "{waits:?}");
    }
}
