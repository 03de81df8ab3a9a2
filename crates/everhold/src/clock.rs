//! The one file of the binary that reads clocks.

use everhold_core::ids::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now on CLOCK_BOOTTIME, which goes on while the machine sleeps.
pub fn now() -> Time {
    let at = clock_gettime(ClockId::Boottime);
    Time(at.tv_sec as u64 * 1_000 + at.tv_nsec as u64 / 1_000_000)
}

/// Another instant of [`now`] in seconds since 1970.
pub fn unix_at(at: Time) -> i64 {
    let ago = i64::try_from(now().since(at) / 1_000).unwrap_or(i64::MAX);
    jiff::Timestamp::now().as_second().saturating_sub(ago)
}

/// The wall clock in seconds since 1970: for schedules, which are people's.
pub fn unix_s() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

/// What this thread has had of the processor, in microseconds.
pub fn thread_us() -> u64 {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    at.tv_sec as u64 * 1_000_000 + at.tv_nsec as u64 / 1_000
}

/// The same in milliseconds.
pub fn unix_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// The wall clock in RFC 3339, UTC, with milliseconds. For people, never for decisions.
pub fn wall() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// The same for another instant of [`now`], as both clocks run at present.
pub fn wall_at(at: Time) -> String {
    let ahead = i64::try_from(at.0).unwrap_or(i64::MAX).saturating_sub_unsigned(now().0);
    let wall = jiff::Timestamp::now();
    let then = wall.checked_add(jiff::SignedDuration::from_millis(ahead));
    format!("{:.3}", then.unwrap_or(wall))
}
