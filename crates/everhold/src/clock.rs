//! The one file of the binary that reads clocks.

use everhold_core::ids::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now on CLOCK_BOOTTIME, which goes on while the machine sleeps.
pub fn now() -> Time {
    let at = clock_gettime(ClockId::Boottime);
    Time(at.tv_sec as u64 * 1_000 + at.tv_nsec as u64 / 1_000_000)
}

/// The wall clock in RFC 3339, UTC, with milliseconds. For people, never for decisions.
pub fn wall() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}
