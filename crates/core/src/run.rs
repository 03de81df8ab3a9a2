//! Instances that Everhold runs: what becomes of each on its node, and how soon one that ended is
//! started again.

use crate::ids::Time;
use crate::spec::LimitsSpec;
use serde::{Deserialize, Serialize};

/// The first restart comes at once, as a person sees it; each further one takes twice as long.
pub const BACKOFF_MS: u64 = 100;
/// One that can't start is tried twice a minute: by then somebody has to mend it anyway.
pub const BACKOFF_MAX_MS: u64 = 30_000;
/// One that ran for so long failed for a new reason.
pub const HEALTHY_MS: u64 = 60_000;
/// One that can't start ends sooner than this; until then it is starting.
pub const SETTLED_MS: u64 = 1_000;
/// One that was started anew is watched for so long before the next one is.
pub const WATCH_MS: u64 = 5_000;
/// Between telling gateways that an instance goes and asking it to, at least: they hear it within
/// 500 ms. And at most when everything ends, since they end too.
pub const DRAIN_MS: u64 = 1_500;
/// What is on its way is waited for no longer, whatever a service's `timeout`: so long a gateway that
/// was succeeded stays with its clients, too.
pub const DRAIN_MAX_MS: u64 = 3_600_000;

/// What an instance is doing, in the words of `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    #[default]
    Starting,
    Running,
    /// It ended, and is started again in a while.
    Backoff,
    /// It is asked to end, or about to be: nothing new is sent to it.
    Stopping,
    Stopped,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// On the node's wall clock.
    pub at: String,
    pub reason: String,
    pub ran_ms: u64,
}

/// What a node tells of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub port: u16,
    pub pid: Option<i32>,
    pub state: RunState,
    /// Since it was last started on purpose.
    pub restarts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// Of command, environment, user and limits that it runs with: a keyed hash.
    pub fingerprint: String,
    /// The spec wants it to run with others.
    #[serde(default)]
    pub outdated: bool,
    /// It runs since [`WATCH_MS`].
    #[serde(default)]
    pub settled: bool,
    /// Thousandths of a core, over the last seconds.
    #[serde(default)]
    pub cpu_milli: Option<u64>,
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// See [`load`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<u32>,
    /// Limits that this machine can't hold it to, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unenforced: Vec<String>,
}

/// A machine: what it has, and how much of it is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    pub cpu_milli_used: u64,
    pub memory_bytes: u64,
    pub memory_bytes_used: u64,
}

/// How busy an instance is, in thousandths: of what it may have of cpu and memory, or of what its
/// machine has, whichever is nearest to its end. One on a machine that others keep busy is busy too.
pub fn load(cpu_milli: u64, memory_bytes: u64, limits: LimitsSpec, host: Host) -> u32 {
    let share = |used: u64, of: u64| match of {
        0 => 0,
        of => {
            u32::try_from(u128::from(used) * 1_000 / u128::from(of)).unwrap_or(u32::MAX).min(1_000)
        }
    };
    let cpu = limits.cpu_milli.map(|most| share(cpu_milli, most.into()));
    let memory = limits.memory_bytes.map(|most| share(memory_bytes, most));
    let host = [
        share(host.cpu_milli_used, host.cpu_milli),
        share(host.memory_bytes_used, host.memory_bytes),
    ];
    host.into_iter().chain(cpu).chain(memory).max().unwrap_or(0)
}

/// Ends in a row, counted for the backoff.
pub fn failures(before: u32, ran_ms: u64) -> u32 {
    if ran_ms >= HEALTHY_MS { 1 } else { before.saturating_add(1) }
}

/// How long to wait before the next start. `jitter`: any number; it takes off up to a quarter, so
/// that what failed together doesn't come back together.
pub fn backoff_ms(failures: u32, jitter: u64) -> u64 {
    let doubled = BACKOFF_MS << failures.saturating_sub(1).min(20);
    let full = doubled.min(BACKOFF_MAX_MS);
    full - jitter % (full / 4)
}

/// Whether an end is worth an entry in the journal: of a crash loop the first few, then ever fewer.
pub fn is_told(restarts: u64) -> bool {
    restarts <= 3 || restarts.is_power_of_two()
}

/// It ends again and again: a new start by another order takes nothing from anybody.
pub fn is_stuck(failures: u32) -> bool {
    failures >= 3
}

/// An instance as its node finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Somebody supervises it.
    pub runner: bool,
    /// Its process lives.
    pub alive: bool,
    /// It is sure that nothing of it is left.
    pub over: bool,
    /// Since when gateways are told that it goes.
    pub leaving: Option<Time>,
    /// All gateways tell that they have left it and that nothing is on its way to it.
    pub left: bool,
    /// How long that is waited for.
    pub drain_ms: u64,
    /// It is to start anew, with what the spec says now.
    pub renew: bool,
}

/// What to do about an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Steady,
    /// Start a runner: with the order that it runs by, or with the spec's.
    Begin {
        kept: bool,
    },
    /// Tell gateways that it goes.
    Leave,
    Wait {
        until: Time,
    },
    /// Its runner ends it.
    End,
    /// Start a runner that ends what may be left of it.
    Sweep,
    /// Nothing is left of it.
    Forget,
}

/// Decides about one instance. A process that lives is never started a second time, and one that
/// goes is left by the gateways first, and by the requests that are on their way to it.
pub fn decide(wanted: bool, seen: &Seen, now: Time) -> Verdict {
    let goes = !wanted || seen.renew;
    match (seen.runner, seen.alive) {
        // It takes a runner to end it too.
        (false, true) => Verdict::Begin { kept: true },
        (false, false) if wanted => Verdict::Begin { kept: false },
        (false, false) if seen.over => Verdict::Forget,
        // Runner and process were killed, children of it may not have been.
        (false, false) => Verdict::Sweep,
        (true, _) if !goes => Verdict::Steady,
        (true, false) => Verdict::End,
        (true, true) => match seen.leaving {
            None => Verdict::Leave,
            Some(since) => {
                let drain_ms = if seen.left { DRAIN_MS } else { seen.drain_ms.max(DRAIN_MS) };
                match now.since(since) < drain_ms {
                    true => Verdict::Wait { until: Time(since.0 + drain_ms) },
                    false => Verdict::End,
                }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_end_counts() {
        // cpu, memory of the instance / its limits / of its machine, of 2000 and 100
        let check = |instance: (u64, u64), limits: (u32, u64), host: (u64, u64), expected: u32| {
            let limits = LimitsSpec {
                cpu_milli: Some(limits.0).filter(|it| *it > 0),
                memory_bytes: Some(limits.1).filter(|it| *it > 0),
            };
            let host = Host {
                cpu_milli: 2_000,
                cpu_milli_used: host.0,
                memory_bytes: 100,
                memory_bytes_used: host.1,
            };
            assert_eq!(
                load(instance.0, instance.1, limits, host),
                expected,
                "{instance:?} {host:?}"
            );
        };
        check((0, 0), (0, 0), (0, 0), 0);
        check((500, 10), (0, 0), (600, 20), 300);
        check((500, 10), (0, 0), (100, 20), 200);
        check((500, 10), (1_000, 0), (600, 20), 500);
        check((500, 10), (1_000, 12), (600, 20), 833);
        // What the machine can't hold it to may be passed.
        check((5_000, 10), (1_000, 12), (600, 20), 1_000);
        assert_eq!(load(1, 1, LimitsSpec::default(), Host::default()), 0, "nothing is known");
    }

    #[test]
    fn restarts_come_ever_later_until_one_ran_for_a_minute() {
        let mut failed = 0;
        let mut waits = Vec::new();
        for _ in 0..11 {
            failed = failures(failed, 10);
            waits.push(backoff_ms(failed, 0));
        }
        let expected = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000];
        assert_eq!(waits, expected);
        assert_eq!(backoff_ms(failures(failed, HEALTHY_MS), 0), BACKOFF_MS);
        assert_eq!(backoff_ms(u32::MAX, 0), BACKOFF_MAX_MS);
        for jitter in 0..1_000 {
            assert!((76..=100).contains(&backoff_ms(1, jitter)));
        }
    }

    #[test]
    fn a_crash_loop_fills_no_journal() {
        assert_eq!((0..10_000).filter(|it| is_told(*it)).count(), 16);
    }

    /// Of the instance: `runner`, `alive`, `over`, `renew`, `leaving` (since 0), `left`; all
    /// ends: `halt`.
    #[test]
    fn what_becomes_of_an_instance() {
        let check = |wanted: bool, is: &str, now: u64, expected: Verdict| {
            let has = |word: &str| is.split(' ').any(|it| it == word);
            let seen = Seen {
                runner: has("runner"),
                alive: has("alive"),
                over: has("over"),
                leaving: has("leaving").then_some(Time(0)),
                left: has("left"),
                drain_ms: if has("halt") { 0 } else { 60_000 },
                renew: has("renew"),
            };
            assert_eq!(decide(wanted, &seen, Time(now)), expected, "{wanted} {is} {now}");
        };
        let wait = |until: u64| Verdict::Wait { until: Time(until) };
        check(true, "", 0, Verdict::Begin { kept: false });
        check(true, "runner alive", 0, Verdict::Steady);
        check(true, "runner", 0, Verdict::Steady);
        // Its runner was killed: the process goes on as it is, also if it is to go.
        check(true, "alive", 0, Verdict::Begin { kept: true });
        check(false, "alive", 0, Verdict::Begin { kept: true });
        check(true, "alive renew", 0, Verdict::Begin { kept: true });
        check(true, "renew", 0, Verdict::Begin { kept: false });
        // Not wanted here any more, or to start anew: gateways first.
        for (wanted, is) in [(false, "runner alive"), (true, "runner alive renew")] {
            let leaving = format!("{is} leaving");
            check(wanted, is, 0, Verdict::Leave);
            // What is on its way there is waited for, but not for ever.
            check(wanted, &leaving, DRAIN_MS, wait(60_000));
            check(wanted, &leaving, 59_999, wait(60_000));
            check(wanted, &leaving, 60_000, Verdict::End);
            // A gateway that can't tell as yet may have to hear it.
            let left = format!("{leaving} left");
            check(wanted, &left, DRAIN_MS - 1, wait(DRAIN_MS));
            check(wanted, &left, DRAIN_MS, Verdict::End);
            let halt = format!("{leaving} halt");
            check(wanted, &halt, DRAIN_MS - 1, wait(DRAIN_MS));
            check(wanted, &halt, DRAIN_MS, Verdict::End);
        }
        // Nobody sends anything to one that doesn't run.
        check(false, "runner", 0, Verdict::End);
        check(true, "runner renew", 0, Verdict::End);
        check(true, "over", 0, Verdict::Begin { kept: false });
        check(false, "over", 0, Verdict::Forget);
        check(false, "", 0, Verdict::Sweep);
    }
}
