//! The kernel's clock and the wall's.

use jiff::Timestamp;

use crate::datapath;

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
        let monotonic = datapath::clock();
        Self {
            offset: Timestamp::now().as_nanosecond() - i128::from(monotonic),
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
