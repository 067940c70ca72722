//! The kernel's clock and the wall's.

use jiff::Timestamp;

use crate::datapath;

/// What two looks at the same clocks may differ by, ns.
const TOLERANCE: u128 = 1_000_000;

/// Turns `CLOCK_MONOTONIC` into wall-clock time. Taken anew from time to time, since the wall clock is set and slewed.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall minus monotonic, ns.
    offset: i128,
}

impl Clock {
    /// Both clocks as they are now.
    #[must_use]
    pub fn now() -> Self {
        // Between two reads another process may run: the shortest of a few tries is right.
        let tries = (0..3).map(|_| {
            let before = datapath::clock();
            let wall = Timestamp::now().as_nanosecond();
            let after = datapath::clock();
            (after - before, wall - i128::from(before))
        });
        Self {
            offset: tries.min().map_or(0, |(_, offset)| offset),
        }
    }

    /// Both clocks as they are now. Where nobody has set the wall clock meanwhile, they are as they were, and the same
    /// moment keeps the same name in every record. (Both are slewed alike.)
    #[must_use]
    pub fn again(self) -> Self {
        let now = Self::now();
        if now.offset.abs_diff(self.offset) < TOLERANCE {
            self
        } else {
            now
        }
    }

    /// With a known difference, for what must come out the same every time.
    #[must_use]
    pub const fn with_offset(offset: i128) -> Self {
        Self { offset }
    }

    /// The wall-clock time of a `CLOCK_MONOTONIC` time in ns.
    #[must_use]
    pub fn wall(&self, monotonic: u64) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(monotonic) + self.offset).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_moment_keeps_its_name_until_the_clock_is_set() {
        let clock = Clock::now();
        assert_eq!(clock.again().offset, clock.offset);
        let before_it_was_set = Clock::with_offset(clock.offset - 5_000_000_000);
        assert!(before_it_was_set.again().offset.abs_diff(clock.offset) < TOLERANCE);
    }
}
