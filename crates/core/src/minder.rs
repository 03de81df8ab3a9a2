//! What the minder judges: until when a primary may run without news of its agent.
//!
//! An agent that is dead, frozen or cut off can't stop its PostgreSQL, which would answer reads from
//! a past that the cluster has left. So a process beside each postmaster owns the deadline: the
//! later of the lease's end and the end of what the last proof of k acknowledgements is worth. Every
//! instant is one of CLOCK_BOOTTIME and counts from before what it rests on, so that news may arrive
//! late, after a freeze too, and still be read first: late news extends nothing.

use crate::decide::upkeep;
use crate::ids::{Epoch, Lsn, Time};
use crate::policy;
use crate::view::View;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The version of what an agent and a minder say to each other. A minder outlives its agent, so an
/// upgraded agent may find an older one, and replaces it.
pub const VERSION: u32 = 1;
/// So long before the deadline the minder begins to prove by itself. Three rounds fit in on a
/// machine whose disks need half a second for each flush. An agent that is well comes first: its
/// news reach further ahead than this.
pub const PROBE_BEFORE_MS: u64 = 2_000;
/// Between the begins of two probes: the first may have failed for a reason that passes.
pub const PROBE_EVERY_MS: u64 = 200;
/// What a promotion may take. The minder is armed before it, since the agent may die during it.
pub const PROMOTION_MS: u64 = 10_000;
/// No news reach further ahead: a wrong instant must not disarm the minder.
pub const UNTIL_MS_MAX: u64 = 15_000;

/// A postmaster that isn't taken for a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postmaster {
    pub pid: i32,
    /// In clock ticks since boot, as /proc says it.
    pub started: u64,
}

/// Until when a primary may run without further news, and who else can vouch for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Right {
    pub epoch: Epoch,
    pub until: Time,
    pub k: u32,
    /// Slots, which are application names too.
    pub members: Vec<String>,
}

/// What an agent tells the minder: one datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub postmaster: Postmaster,
    /// `None`: it is no primary, and may run as long as it likes.
    pub right: Option<Right>,
}

/// What the minder knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub right: Option<Right>,
    /// Before the newest record was written that k counted standbys were seen to hold.
    pub proven: Option<Time>,
    /// When the last probe began.
    pub asked: Option<Time>,
    /// It has not ended.
    pub asking: bool,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing before `until`; `None`: nothing before there are news.
    Wait { until: Option<Time> },
    /// Write a record, and see whether k counted standbys hold it.
    Probe,
    /// End every process of the server.
    Stop { why: Why },
}

/// Why a server was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    pub epoch: Epoch,
    /// Milliseconds between the deadline and the judgement: long after a freeze, else a few.
    pub late_ms: u64,
    pub k: u32,
    /// Whether standbys ever vouched for it to the minder itself, and how long ago.
    pub proven_ms_ago: Option<u64>,
}

impl State {
    /// Takes in what the agent tells.
    pub fn told(&mut self, right: Option<Right>, now: Time) {
        match right {
            // Of an agent that was stopped on the way, while another went on.
            Some(new) if self.right.as_ref().is_some_and(|old| new.epoch < old.epoch) => {}
            Some(new) => {
                let until = new.until.min(now.plus(UNTIL_MS_MAX));
                self.right = Some(Right { until, ..new });
            }
            None => {
                self.right = None;
                self.proven = None;
            }
        }
    }

    /// A probe begins.
    pub fn asks(&mut self, now: Time) {
        self.asked = Some(now);
        self.asking = true;
    }

    /// It ended, with the instant that it proved, if any.
    pub fn answered(&mut self, proven: Option<Time>) {
        self.asking = false;
        self.proven = self.proven.max(proven);
    }

    /// Until when the server may run. Waiting for nobody, it can't be proven that nobody else was
    /// made leader: only the lease counts.
    pub fn deadline(&self) -> Option<Time> {
        let right = self.right.as_ref()?;
        let proof = self.proven.map(|at| at.plus(policy::EVIDENCE_MS));
        if right.k == 0 { Some(right.until) } else { Some(right.until).max(proof) }
    }
}

/// Judges. A deadline that has passed comes before everything else.
pub fn decide(state: &State, now: Time) -> Verdict {
    let (Some(right), Some(deadline)) = (&state.right, state.deadline()) else {
        return Verdict::Wait { until: None };
    };
    if now >= deadline {
        let why = Why {
            epoch: right.epoch,
            late_ms: now.since(deadline),
            k: right.k,
            proven_ms_ago: state.proven.filter(|_| right.k > 0).map(|at| now.since(at)),
        };
        return Verdict::Stop { why };
    }
    let hopeless = right.k == 0 || right.members.len() < right.k as usize;
    if hopeless || state.asking {
        return Verdict::Wait { until: Some(deadline) };
    }
    let near = Time(deadline.0.saturating_sub(PROBE_BEFORE_MS));
    let again = state.asked.map_or(near, |at| at.plus(PROBE_EVERY_MS));
    match near.max(again) {
        due if now >= due => Verdict::Probe,
        due => Verdict::Wait { until: Some(due.min(deadline)) },
    }
}

/// The instant before the newest of `records` that `right.k` of its members have flushed. `flushed`
/// holds one position for each slot, of the connection that owns it.
pub fn proven(
    records: &[(Time, Lsn)],
    flushed: &BTreeMap<String, Lsn>,
    right: &Right,
) -> Option<Time> {
    let holds = |end: Lsn| {
        let rows =
            flushed.iter().filter(|(name, lsn)| **lsn >= end && right.members.contains(name));
        right.k > 0 && rows.count() >= right.k as usize
    };
    records.iter().filter(|(_, end)| holds(*end)).map(|(at, _)| *at).max()
}

/// What the minder is told before a promotion begins.
pub fn promotion(view: &View, now: Time) -> Right {
    let until = now.plus(PROMOTION_MS);
    match view.term() {
        Some(term) => Right { until, ..upkeep::vouching(term) },
        None => Right { epoch: 0, until, k: 0, members: Vec::new() },
    }
}

/// What a minder is told that finds a primary of which its agent can't say anything yet: as long as
/// a lease, so that the agent has time to learn.
pub fn found(now: Time) -> Right {
    Right { epoch: 0, until: now.plus(policy::LEASE_MS), k: 0, members: Vec::new() }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Why { epoch, late_ms, k, proven_ms_ago } = self;
        write!(
            f,
            "the right to lead in epoch {epoch} has ended, {late_ms} ms before it was judged"
        )?;
        match (k, proven_ms_ago) {
            (0, _) => write!(f, ": the lease is over, and no standby is waited for"),
            (k, None) => write!(f, ": no news of the agent, and {k} standbys never vouched for it"),
            (k, Some(ms)) => {
                write!(
                    f,
                    ": no news of the agent, and {k} standbys last vouched for it {ms} ms ago"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `k1@9000 proven@5000 asked@7900 asking`, and what is decided at some instants. Without a
    /// right: `-`.
    fn state(text: &str) -> State {
        let mut state = State::default();
        for word in text.split_whitespace() {
            let (name, at) = word.split_once('@').unwrap_or((word, "0"));
            let at = Time(at.parse().unwrap());
            match name {
                "-" => {}
                "proven" => state.proven = Some(at),
                "asked" => state.asked = Some(at),
                "asking" => state.asking = true,
                k => {
                    let k: u32 = k.trim_start_matches('k').parse().unwrap();
                    let members = vec!["b_1".to_string(), "c_1".to_string()];
                    state.right = Some(Right { epoch: 7, until: at, k, members });
                }
            }
        }
        state
    }

    fn said(verdict: &Verdict) -> String {
        match verdict {
            Verdict::Wait { until: None } => "wait".to_string(),
            Verdict::Wait { until: Some(at) } => format!("wait {}", at.0),
            Verdict::Probe => "probe".to_string(),
            Verdict::Stop { why } => format!("stop {} late", why.late_ms),
        }
    }

    #[test]
    fn the_later_of_two_deadlines_counts_and_the_lease_alone_when_alone() {
        #[rustfmt::skip]
        let cases = [
            // state                                     now    verdict
            ("-",                                        9_000, "wait"),
            ("- proven@1000",                           99_000, "wait"),
            // The agent's word.
            ("k1@9000",                                  6_999, "wait 7000"),
            ("k1@9000",                                  7_000, "probe"),
            ("k1@9000 asked@7000 asking",                7_000, "wait 9000"),
            ("k1@9000 asked@7000 asking",                8_999, "wait 9000"),
            ("k1@9000 asked@7000",                       7_100, "wait 7200"),
            ("k1@9000 asked@7000",                       7_200, "probe"),
            ("k1@9000 asked@8950",                       8_960, "wait 9000"),
            ("k1@9000 asked@7000 asking",                9_000, "stop 0 late"),
            ("k1@9000",                                  9_000, "stop 0 late"),
            ("k1@9000",                                 15_000, "stop 6000 late"),
            // Its own proof: later, or earlier than the agent's word.
            ("k1@9000 proven@7000",                      7_999, "wait 8000"),
            ("k1@9000 proven@7000",                      8_000, "probe"),
            ("k1@9000 proven@7000",                      9_999, "probe"),
            ("k1@9000 proven@7000",                     10_000, "stop 0 late"),
            ("k1@9000 proven@5000",                      9_000, "stop 0 late"),
            ("k2@9000 proven@8000 asked@8000",           9_100, "probe"),
            // Alone: no proof helps, and none is sought.
            ("k0@9000",                                  8_999, "wait 9000"),
            ("k0@9000 proven@8500",                      9_000, "stop 0 late"),
            // More are waited for than there are: as good as alone, but never provable.
            ("k3@9000",                                  8_000, "wait 9000"),
        ];
        for (text, now, expected) in cases {
            assert_eq!(said(&decide(&state(text), Time(now))), expected, "{text} at {now}");
        }
    }

    #[test]
    fn news_are_taken_in_order_of_epoch_and_never_reach_far() {
        let right = |epoch, until| {
            Some(Right { epoch, until: Time(until), k: 1, members: vec!["b_1".to_string()] })
        };
        let mut state = State::default();
        state.told(right(7, 9_000), Time(5_000));
        assert_eq!(state.deadline(), Some(Time(9_000)));
        state.told(right(6, 12_000), Time(5_000));
        assert_eq!(state.deadline(), Some(Time(9_000)));
        state.told(right(7, 8_000), Time(5_000));
        assert_eq!(state.deadline(), Some(Time(8_000)));
        state.told(right(8, u64::MAX), Time(6_000));
        assert_eq!(state.deadline(), Some(Time(6_000 + UNTIL_MS_MAX)));
        state.asks(Time(7_000));
        assert_eq!((state.asking, state.asked), (true, Some(Time(7_000))));
        state.answered(Some(Time(7_000)));
        state.answered(Some(Time(6_000)));
        state.answered(None);
        assert_eq!((state.asking, state.proven), (false, Some(Time(7_000))));
        state.told(None, Time(7_000));
        assert_eq!((state.deadline(), state.proven), (None, None));
        state.told(right(1, 9_000), Time(7_000));
        assert_eq!(state.deadline(), Some(Time(9_000)));
    }

    #[test]
    fn the_newest_record_that_enough_members_hold_proves() {
        #[rustfmt::skip]
        let cases = [
            // k  flushed                    proven at; records end at 100 (t 10), 200 (t 20), 300 (t 30)
            (1, "b_1:99 c_1:0",              None),
            (1, "b_1:100 c_1:0",             Some(10)),
            (1, "b_1:0 c_1:250",             Some(20)),
            (2, "b_1:0 c_1:250",             None),
            (2, "b_1:199 c_1:900",           Some(10)),
            (2, "b_1:300 c_1:900",           Some(30)),
            // Not counted: a former incarnation, somebody else's receiver.
            (1, "b_0:900 backup:900",        None),
            (2, "b_1:900 d_1:900",           None),
            // Waiting for nobody proves nothing.
            (0, "b_1:900 c_1:900",           None),
        ];
        let records = [(Time(10), Lsn(100)), (Time(20), Lsn(200)), (Time(30), Lsn(300))];
        for (k, text, expected) in cases {
            let flushed = text.split_whitespace().map(|row| {
                let (name, lsn) = row.split_once(':').unwrap();
                (name.to_string(), Lsn(lsn.parse().unwrap()))
            });
            let members = vec!["b_1".to_string(), "c_1".to_string()];
            let right = Right { epoch: 1, until: Time(0), k, members };
            let found = proven(&records, &flushed.collect(), &right);
            assert_eq!(found, expected.map(Time), "k {k}: {text}");
        }
    }
}
