//! Which backends get traffic, after what checks and requests told of them.
//!
//! 1. Those that the checks found healthy; while there is none, those of which nothing is known yet;
//!    while there is none of these either, all: checks may be wrong, and nothing is lost by asking.
//!    These are *alive*.
//! 2. Of them those that are not ejected, unless these are fewer than half: then requests say more
//!    about the way there, or about too much load, than about backends, and all that are alive get
//!    traffic (*panic*).
//!
//! Envoy's panic counts all backends and brings back all, also those that checks found dead. With
//! one of three alive it sends two thirds of the traffic to dead ones. Here a check's word, which
//! somebody declared for that end, stands while anybody is left.

use super::probe::Health;

/// Who gets traffic, and why those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usable {
    pub why: Why,
    /// Ascending.
    pub backends: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Healthy and not ejected.
    Healthy,
    /// Nothing is known yet of any that could be healthy.
    Unknown,
    /// More than half are ejected, so nobody counts as that.
    Panic,
    /// Checks fail everywhere: all are asked.
    NobodyHealthy,
}

/// Who would get traffic if nobody was ejected.
pub fn alive(health: &[Health]) -> Vec<bool> {
    let best = best(health);
    health.iter().map(|health| best.is_none_or(|best| *health == best)).collect()
}

/// `ejected` as [`Judge::ejected`](super::outlier::Judge::ejected).
pub fn usable(health: &[Health], ejected: impl Fn(usize) -> bool) -> Usable {
    let alive = alive(health);
    let alive: Vec<usize> = (0..health.len()).filter(|i| alive[*i]).collect();
    let good: Vec<usize> = alive.iter().copied().filter(|i| !ejected(*i)).collect();
    if good.len() * 2 < alive.len() {
        return Usable { why: Why::Panic, backends: alive };
    }
    let why = match best(health) {
        Some(Health::Healthy) => Why::Healthy,
        Some(Health::Unknown) => Why::Unknown,
        Some(Health::Unhealthy) | None => Why::NobodyHealthy,
    };
    Usable { why, backends: good }
}

/// What those that are alive have in common; `None`: nothing.
fn best(health: &[Health]) -> Option<Health> {
    [Health::Healthy, Health::Unknown].into_iter().find(|best| health.contains(best))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_traffic() {
        // Health of each backend, small where it is ejected: H ealthy, U nknown, D ead.
        #[rustfmt::skip]
        let cases: &[(&str, Why, &str)] = &[
            ("HHH",   Why::Healthy,       "012"),
            ("H",     Why::Healthy,       "0"),
            // Dead ones stay dead, however many they are.
            ("HHD",   Why::Healthy,       "01"),
            ("HDD",   Why::Healthy,       "0"),
            ("DHDDD", Why::Healthy,       "1"),
            ("HD",    Why::Healthy,       "0"),
            // New ones wait for their first check while somebody is healthy.
            ("HUU",   Why::Healthy,       "0"),
            ("UUD",   Why::Unknown,       "01"),
            ("UUU",   Why::Unknown,       "012"),
            // Checks fail everywhere.
            ("DDD",   Why::NobodyHealthy, "012"),
            ("D",     Why::NobodyHealthy, "0"),
            // Ejections, up to half.
            ("HHh",   Why::Healthy,       "01"),
            ("Hh",    Why::Healthy,       "0"),
            ("HHHhh", Why::Healthy,       "012"),
            ("HHhU",  Why::Healthy,       "01"),
            ("Uud",   Why::Unknown,       "0"),
            ("Ddd",   Why::Panic,         "012"),
            // Somebody died beside them.
            ("HhhDD", Why::Panic,         "012"),
            ("hDD",   Why::Panic,         "0"),
            ("hhD",   Why::Panic,         "01"),
            ("HhD",   Why::Healthy,       "0"),
            ("hU",    Why::Panic,         "0"),
            ("h",     Why::Panic,         "0"),
            ("",      Why::NobodyHealthy, ""),
        ];
        for (letters, why, expected) in cases {
            let health: Vec<Health> = letters
                .chars()
                .map(|letter| match letter.to_ascii_uppercase() {
                    'H' => Health::Healthy,
                    'U' => Health::Unknown,
                    _ => Health::Unhealthy,
                })
                .collect();
            let usable = usable(&health, |i| letters.as_bytes()[i].is_ascii_lowercase());
            let backends: String = usable.backends.iter().map(|i| i.to_string()).collect();
            assert_eq!((usable.why, backends.as_str()), (*why, *expected), "{letters}");
        }
    }

    #[test]
    fn somebody_is_usable_whenever_somebody_is_declared() {
        let states = [Health::Healthy, Health::Unknown, Health::Unhealthy];
        for n in 1..=5 {
            for code in 0..6_usize.pow(n as u32) {
                let digit = |i: usize| code / 6_usize.pow(i as u32) % 6;
                let health: Vec<Health> = (0..n).map(|i| states[digit(i) % 3]).collect();
                let usable = usable(&health, |i| digit(i) >= 3);
                assert!(!usable.backends.is_empty(), "{health:?}");
                let any_alive = health.iter().any(|health| *health != Health::Unhealthy);
                let dead = usable.backends.iter().any(|i| health[*i] == Health::Unhealthy);
                assert!(!(any_alive && dead), "{health:?} {usable:?}");
            }
        }
    }
}
