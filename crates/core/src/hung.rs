//! Instances that run and are of no use, as after a deadlock: when one is started anew.
//!
//! That all gateways find an instance unhealthy for long, while its process runs, is its own fault only
//! if others do better: where a database behind all of them is gone, new starts help nobody. So at
//! least half of the others have to be well, and one of a service is started anew at a time.
//!
//! A program that starts slowly is unhealthy for long as well. One that was not well since it began has
//! its time to start on top, and each new start that came to nothing doubles the patience.

use crate::ids::Time;
use std::collections::BTreeMap;
use std::fmt;

/// Who looks again so late begins to count anew.
pub const BREAK_MS: u64 = 5_000;
/// How often the patience doubles: from a minute to an hour.
const DOUBLED_MAX: u32 = 6;

/// An HTTP service as it is seen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Those that requests may go to.
    pub instances: BTreeMap<String, Instance>,
    /// How long one has to be unhealthy without a break.
    pub restart_after_ms: u64,
    pub start_within_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Of its process, if it runs and its agent is heard.
    pub pid: Option<i32>,
    pub is: Is,
}

/// How the gateways find it that tell of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// All of them find it healthy.
    Well,
    /// All of them find it unhealthy.
    Dead,
    /// They differ, have not looked, or tell nothing.
    Unsure,
}

/// What is to become of an instance that has been unhealthy for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It starts anew, if it is still this process.
    Restart {
        pid: i32,
        for_ms: u64,
    },
    Hold(Why),
}

/// Why it goes on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// So many of the others are well.
    TooFew {
        well: usize,
        of: usize,
    },
    Another {
        instance: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::TooFew { well, of } => {
                write!(f, "only {well} of {of} others are well, so it may not be its own fault")
            }
            Why::Another { instance } => write!(f, "{instance} has just been started anew"),
        }
    }
}

impl Why {
    /// What ends it.
    pub fn unblocks(&self) -> &'static str {
        match self {
            Why::TooFew { .. } => {
                "it is healthy, or half of the others are; what all of them need may be gone"
            }
            Why::Another { .. } => "that one is healthy, or its time to start is over",
        }
    }
}

/// What whoever judges remembers of a service between two looks. It begins with nothing.
#[derive(Debug, Default)]
pub struct Watch {
    looked: Option<Time>,
    known: BTreeMap<String, Known>,
}

#[derive(Debug, Default)]
struct Known {
    pid: Option<i32>,
    /// This process was found well.
    served: bool,
    /// Since when without a break.
    well: Option<Time>,
    dead: Option<Time>,
    /// New starts in a row that came to nothing so far.
    again: u32,
    /// When it was last started anew, if it has not been well since.
    begun: Option<Time>,
}

impl Watch {
    /// Judges the instances of a service; those of which nothing is said go on. To be asked each
    /// second or so. At most one is to start anew.
    pub fn look(&mut self, service: &Service, now: Time) -> BTreeMap<String, Verdict> {
        self.learn(service, now);
        // Who is unhealthy for longest first.
        let mut due: Vec<(Time, &String, i32)> = service
            .instances
            .iter()
            .filter_map(|(id, it)| {
                let known = self.known.get(id)?;
                let since = known.dead?;
                let is_due = now.since(since) >= patience_ms(service, known);
                is_due.then_some((since, id, it.pid?))
            })
            .collect();
        due.sort();
        let mut verdicts = BTreeMap::new();
        let mut first = None;
        for (since, id, pid) in due {
            let verdict = match (self.against(service, id, now), first) {
                (Some(why), _) => Verdict::Hold(why),
                (None, Some(instance)) => {
                    Verdict::Hold(Why::Another { instance: String::clone(instance) })
                }
                (None, None) => {
                    first = Some(id);
                    Verdict::Restart { pid, for_ms: now.since(since) }
                }
            };
            verdicts.insert(id.clone(), verdict);
        }
        verdicts
    }

    /// It was asked to start anew.
    pub fn restarted(&mut self, id: &str, now: Time) {
        if let Some(known) = self.known.get_mut(id) {
            (known.begun, known.dead) = (Some(now), None);
            known.again = (known.again + 1).min(DOUBLED_MAX);
        }
    }

    fn learn(&mut self, service: &Service, now: Time) {
        if self.looked.is_none_or(|at| now.since(at) > BREAK_MS) {
            self.known.values_mut().for_each(|known| (known.well, known.dead) = (None, None));
        }
        self.looked = Some(now);
        self.known.retain(|id, _| service.instances.contains_key(id));
        for (id, it) in &service.instances {
            let known = self.known.entry(id.clone()).or_default();
            if it.pid.is_some() && it.pid != known.pid {
                let (again, begun) = (known.again, known.begun);
                *known = Known { pid: it.pid, again, begun, ..Known::default() };
            }
            let runs = it.pid.is_some();
            known.well = (runs && it.is == Is::Well).then(|| known.well.unwrap_or(now));
            known.dead = (runs && it.is == Is::Dead).then(|| known.dead.unwrap_or(now));
            let Some(since) = known.well else { continue };
            (known.served, known.begun) = (true, None);
            if now.since(since) >= service.restart_after_ms {
                known.again = 0;
            }
        }
    }

    /// What speaks against a new start of `id`.
    fn against(&self, service: &Service, id: &str, now: Time) -> Option<Why> {
        let others = || service.instances.iter().filter(|(other, _)| *other != id);
        let (well, of) = (others().filter(|(_, it)| it.is == Is::Well).count(), others().count());
        if well * 2 < of {
            return Some(Why::TooFew { well, of });
        }
        let begins = |other: &String| {
            let begun = self.known.get(other).and_then(|known| known.begun);
            begun.is_some_and(|at| now.since(at) < service.start_within_ms)
        };
        let another = others().find(|(other, _)| begins(other));
        another.map(|(other, _)| Why::Another { instance: other.clone() })
    }
}

/// How long it may be unhealthy.
fn patience_ms(service: &Service, known: &Known) -> u64 {
    let doubled = service.restart_after_ms.saturating_mul(1 << known.again);
    doubled + if known.served { 0 } else { service.start_within_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks, each a second after the last one: instances as `ID:PID:IS`, `w`ell, `d`ead or `u`nsure,
    /// `-` for no process; seconds to look the same; then what is said at the last of them.
    /// Who is to start anew is asked to.
    fn check(watch: &mut Watch, now: &mut u64, seen: &str, seconds: u64, expected: &str) {
        let instances = seen.split(' ').map(|text| {
            let mut parts = text.split(':');
            let id = parts.next().expect("an id").to_string();
            let pid = parts.next().and_then(|pid| pid.parse().ok());
            let is = match parts.next() {
                Some("w") => Is::Well,
                Some("d") => Is::Dead,
                _ => Is::Unsure,
            };
            (id, Instance { pid, is })
        });
        let service = Service {
            instances: instances.collect(),
            restart_after_ms: 10_000,
            start_within_ms: 20_000,
        };
        let mut said = String::new();
        for _ in 0..seconds {
            *now += 1_000;
            let verdicts = watch.look(&service, Time(*now));
            let told = verdicts.iter().map(|(id, verdict)| match verdict {
                Verdict::Restart { pid, for_ms } => {
                    watch.restarted(id, Time(*now));
                    format!("{id} {pid} after {for_ms}")
                }
                Verdict::Hold(why) => format!("{id}: {why}"),
            });
            said = told.collect::<Vec<_>>().join("; ");
        }
        assert_eq!(said, expected, "{seen} at {now}");
    }

    #[test]
    fn one_that_hangs_starts_anew_and_ever_later_while_that_does_not_help() {
        let (mut watch, mut now) = (Watch::default(), 0);
        let mut check = |seen: &str, seconds, expected: &str| {
            check(&mut watch, &mut now, seen, seconds, expected)
        };
        check("a:1:w b:1:w c:1:w", 1, "");
        check("a:1:d b:1:w c:1:w", 10, "");
        check("a:1:d b:1:w c:1:w", 1, "a 1 after 10000");
        // Its time to start, and twice the patience.
        check("a:-:u b:1:w c:1:w", 3, "");
        check("a:2:d b:1:w c:1:w", 40, "");
        check("a:2:d b:1:w c:1:w", 1, "a 2 after 40000");
        check("a:3:d b:1:w c:1:w", 60, "");
        check("a:3:d b:1:w c:1:w", 1, "a 3 after 60000");
        // Well for a moment: the patience stays.
        check("a:4:w b:1:w c:1:w", 5, "");
        check("a:4:d b:1:w c:1:w", 80, "");
        check("a:4:d b:1:w c:1:w", 1, "a 4 after 80000");
        check("a:5:w b:1:w c:1:w", 11, "");
        check("a:5:d b:1:w c:1:w", 11, "a 5 after 10000");
    }

    #[test]
    fn a_break_begins_anew_and_what_is_not_sure_is_one() {
        let (mut watch, mut now) = (Watch::default(), 0);
        let well = "a:1:w b:1:w";
        check(&mut watch, &mut now, well, 1, "");
        for is in ["a:1:w b:1:w", "a:1:u b:1:w", "a:-:u b:1:w", "a:-:d b:1:w"] {
            check(&mut watch, &mut now, "a:1:d b:1:w", 10, "");
            check(&mut watch, &mut now, is, 1, "");
        }
        check(&mut watch, &mut now, "a:1:d b:1:w", 10, "");
        // Whoever looks was frozen.
        now += BREAK_MS;
        check(&mut watch, &mut now, "a:1:d b:1:w", 10, "");
        check(&mut watch, &mut now, "a:1:d b:1:w", 1, "a 1 after 10000");
        // Who begins to look knows of no process that it was ever well.
        let (mut watch, mut now) = (Watch::default(), 0);
        check(&mut watch, &mut now, "a:1:d b:1:w", 30, "");
        check(&mut watch, &mut now, "a:1:d b:1:w", 1, "a 1 after 30000");
    }

    #[test]
    fn where_most_are_ill_nobody_starts_anew_and_only_one_at_a_time() {
        let (mut watch, mut now) = (Watch::default(), 0);
        let mut check = |seen: &str, seconds, expected: &str| {
            check(&mut watch, &mut now, seen, seconds, expected)
        };
        check("a:1:w b:1:w c:1:w d:1:w", 1, "");
        let too_few = |id: &str, well: &str| {
            format!("{id}: only {well} of 3 others are well, so it may not be its own fault")
        };
        let all = "a:1:d b:1:d c:1:d d:1:d";
        let held = ["a", "b", "c", "d"].map(|id| too_few(id, "0")).join("; ");
        check(all, 11, &held);
        check("a:1:d b:1:d c:1:d d:1:w", 1, &["a", "b", "c"].map(|id| too_few(id, "1")).join("; "));
        let two = "a:1:d b:1:d c:1:w d:1:w";
        check(two, 1, "a 1 after 12000; b: a has just been started anew");
        check("a:2:u b:1:d c:1:w d:1:w", 19, "b: a has just been started anew");
        // Not well within its time to start: the others are not to wait for it.
        check("a:2:d b:1:d c:1:w d:1:w", 1, "b 1 after 32000");
        check("a:2:w b:2:w c:1:w d:1:w", 11, "");
        // Two of them: one is half.
        let (mut watch, mut now) = (Watch::default(), 0);
        super::tests::check(&mut watch, &mut now, "a:1:w b:1:w", 1, "");
        super::tests::check(&mut watch, &mut now, "a:1:d b:1:w", 11, "a 1 after 10000");
        // There is no other.
        let (mut watch, mut now) = (Watch::default(), 0);
        super::tests::check(&mut watch, &mut now, "a:1:w", 1, "");
        super::tests::check(&mut watch, &mut now, "a:1:d", 11, "a 1 after 10000");
    }
}
