//! What an agent tells the others about its instance of a service: the only message between them.
//!
//! It is sent whole ten times a second and at once when it changes, so nothing depends on the
//! arrival of any one message. All of it is first-hand.

use crate::durable::Data;
use crate::ids::{Epoch, Lsn, Member, Tli};
use crate::term::Report;
use serde::{Deserialize, Serialize};

/// What the instance is doing, in the words of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Unknown,
    /// No data yet.
    Empty,
    Bootstrapping,
    Stopped,
    Starting,
    /// A standby without a source that has not proven yet that it is quiet.
    Parking,
    /// Promised an epoch, receives nothing.
    Sealed,
    /// Has a source, is not streaming yet.
    Connecting,
    CatchingUp,
    Streaming,
    Rewinding,
    Cloning,
    Promoting,
    /// Primary, not open to clients.
    Closed,
    /// Primary, open to clients.
    Open,
    /// Runs and answers nothing.
    Frozen,
}

impl State {
    /// Every one, in order.
    pub const ALL: [State; 16] = [
        State::Unknown,
        State::Empty,
        State::Bootstrapping,
        State::Stopped,
        State::Starting,
        State::Parking,
        State::Sealed,
        State::Connecting,
        State::CatchingUp,
        State::Streaming,
        State::Rewinding,
        State::Cloning,
        State::Promoting,
        State::Closed,
        State::Open,
        State::Frozen,
    ];
}

/// Who is asked to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Summons {
    /// A switchover: the leader stops first, so that the others get all it has.
    Leader,
    All,
}

/// A campaign this node runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub epoch: Epoch,
    pub summons: Summons,
    /// This node shall stream from that one, both sealed in this campaign, up to that place.
    pub fast_forward: Option<FastForward>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastForward {
    pub node: String,
    pub from: String,
    pub end: Lsn,
}

/// One instance, as its own agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub member: Member,
    pub host: String,
    pub port: u16,
    pub pid: Option<i32>,
    pub state: State,
    pub data: Data,
    pub promise: Epoch,
    pub sysid: Option<u64>,
    /// Epoch of the newest term it has seen.
    pub term: Epoch,
    /// Its place in history, if it is sealed at `promise`.
    pub report: Option<Report>,
    /// It misses the leader of this epoch itself: no heartbeat, no answer, no WAL.
    pub misses: Option<Epoch>,
    /// It was granted this epoch, and its PostgreSQL does not lead (any more).
    pub fell: Option<Epoch>,
    /// It is the running primary on this timeline.
    pub primary: Option<Tli>,
    /// It leads this epoch and clients may come.
    pub serving: Option<Epoch>,
    /// The timeline of its last checkpoint.
    pub checkpoint: Tli,
    pub lsn: Lsn,
    /// The timeline of that, 0 if its PostgreSQL doesn't run.
    #[serde(default)]
    pub tli: Tli,
    /// The highest timeline it was seen on: its number is taken.
    #[serde(default)]
    pub seen_tli: Tli,
    pub streaming: bool,
    /// Behind the leader in time: 0 when nothing is missing, `None` when that can't be known.
    pub lag_ms: Option<u64>,
    pub call: Option<Call>,
    /// Settings in force that weaken a guarantee.
    pub overrides: Vec<String>,
    /// Its disk has no room for more WAL.
    #[serde(default)]
    pub full: bool,
    /// Pages of its data that are not as they were written: nobody reads from such a standby.
    #[serde(default)]
    pub bad_pages: u64,
    /// Of a primary: where the oldest segment of its log begins that is there.
    #[serde(default)]
    pub log_from: Option<Lsn>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_listed() {
        let places: Vec<usize> = State::ALL.iter().map(|state| *state as usize).collect();
        assert_eq!(places, (0..=State::Frozen as usize).collect::<Vec<_>>());
    }
}
