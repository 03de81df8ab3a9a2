//! What is known of the PostgreSQL on this node, and what can be done to it.
//!
//! The deciding code sees [`PgFacts`] and asks for [`PgAction`]s; the adapter carries them out one
//! at a time. Each action may be repeated after a crash at any point of it.

use crate::ids::{Epoch, Lsn, Member, Tli};
use crate::term::Branch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name nobody can have: a node that isn't to acknowledge anything waits for it.
pub const CLOSED: &str = "ANY 1 (\"-\")";

/// The server's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// No process of this data directory is alive.
    Down,
    /// The postmaster is gone, or something of the directory may be alive still.
    Remains,
    /// Started, not accepting connections yet.
    Starting,
    Running,
}

/// Where a standby streams from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub member: Member,
    pub host: String,
    pub port: u16,
    /// The slot there, which is the application name too: this node's `Member::slot`.
    pub slot: String,
}

/// The WAL receiver of a standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    pub streaming: bool,
    /// Since the last message from the leader; `None` before the first.
    pub message_ms_ago: Option<u64>,
    pub flushed: Lsn,
}

/// A row of pg_stat_replication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walsender {
    /// application_name
    pub name: String,
    pub streaming: bool,
    /// sync_priority: 0 unless its own copy of the setting lists it.
    pub priority: i32,
    pub flush: Lsn,
    /// Its pid is the active_pid of the slot with its name. A lingering second connection of the
    /// same standby has none, and must not count.
    pub owns_slot: bool,
}

/// One look at the server. Read in this order: a new session SHOWs the setting, then the rows, then
/// the flush position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgFacts {
    pub process: Process,
    pub pid: Option<i32>,
    pub in_recovery: Option<bool>,
    pub sysid: Option<u64>,
    /// Timeline that is written (primary) or replayed (standby).
    pub tli: Tli,
    /// Flushed (primary) or replayed (standby).
    pub lsn: Lsn,
    /// What primary_conninfo says: set by us, `None` when cleared. Unknown while not running.
    pub source: Option<Source>,
    pub receiver: Option<Receiver>,
    /// Up to where it received log since its start, also when nobody sends now.
    #[serde(default)]
    pub received: Lsn,
    /// Age of the newest replayed commit while behind, 0 when nothing is behind; `None` unknown.
    pub replay_lag_ms: Option<u64>,
    /// synchronous_standby_names as a new session SHOWs it.
    pub sync_names: Option<String>,
    pub walsenders: Vec<Walsender>,
    /// Timeline of the last checkpoint: a rewind needs the leader's to be of its own branch.
    pub checkpoint_tli: Tli,
    /// Names of the replication slots there that are usable (wal_status isn't lost).
    pub slots: Vec<String>,
    /// Of a primary: where the oldest segment of its log begins that is there.
    #[serde(default)]
    pub log_from: Option<Lsn>,
    /// Settings that weaken a guarantee and are in force by override (ALTER ROLE, DATABASE, …).
    pub overrides: Vec<String>,
    /// The disk of the data directory has no room for more WAL.
    #[serde(default)]
    pub full: bool,
    /// The last words of a server that is down.
    #[serde(default)]
    pub said: Option<String>,
}

/// Pages of the data directory that are not as they were written, found by reading all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPages {
    /// Of the node when they were found: another one has other data.
    pub incarnation: u32,
    pub pages: u64,
    /// One of them, for people.
    pub first: String,
}

/// How a server is stopped. Both end with a proof that no process of the directory is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// SIGQUIT, then SIGKILL: nothing more is acknowledged.
    Immediate,
    /// Bounded; standbys get the shutdown checkpoint. Falls back to immediate.
    Fast,
}

/// A data directory that was made from a repository beside the one in use, recovered to a point and
/// shut down there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Names the directory.
    pub id: String,
    pub sysid: u64,
    /// The path of branches it is on, root first, and where it ends.
    pub line: Vec<Branch>,
    pub end: Lsn,
    /// The highest of all that the repository knows: what comes now must be above them.
    pub epoch: Epoch,
    pub tli: Tli,
}

/// A step on the local server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PgAction {
    /// Makes a data directory with roles and database, and stops it again, cleanly.
    Bootstrap,
    /// Ends every process of the directory and proves it.
    Stop { mode: StopMode },
    /// Starts as a standby; history files that aren't of `line` are removed first. No source unless
    /// one is given (a copy that has to catch up).
    Start { line: Vec<Branch>, source: Option<Source> },
    /// Writes where to stream from, or that there is no source, and reloads.
    SetSource { source: Option<Source> },
    /// Proves that nothing is received or left to replay: Seal, step 4 and 5.
    Park,
    /// Removes history files that aren't of `line`, with a restart if there are any.
    Trim { line: Vec<Branch> },
    /// Promotes the parked server to the branch, with `reserved` numbers below it kept unused.
    Promote { branch: Branch, reserved: Vec<Tli>, slots: Vec<String> },
    /// Writes synchronous_standby_names, reloads, and waits until a new session shows it.
    SetSync { names: String },
    /// Writes a record of this epoch and waits for its acknowledgement, without a warning.
    Barrier { epoch: Epoch },
    /// Writes and flushes a record locally; the answer is its position.
    Evidence,
    /// A checkpoint, completed.
    Checkpoint,
    /// Makes these physical slots exist and reserve WAL, and drops others that we made. On a standby,
    /// where nobody streams by them, they are moved on to its last restartpoint, but not past what
    /// their owners still need.
    Slots {
        names: Vec<String>,
        #[serde(default)]
        needed: BTreeMap<String, Lsn>,
    },
    /// Keeps the WAL past `fork` aside, then makes the directory a copy of the source's by
    /// pg_rewind. Leaves it stopped.
    Rewind { source: Source, fork: Lsn, epoch: Epoch },
    /// The same by a whole new base backup, keeping diverging WAL where there is a `fork`, and the
    /// whole old directory beside the new one if `keep` says so. Of a source that is known to have
    /// bad pages (`bad_pages_too`) they are copied as they are.
    Clone {
        source: Source,
        fork: Option<Lsn>,
        epoch: Epoch,
        keep: bool,
        #[serde(default)]
        bad_pages_too: bool,
    },
    /// The restored directory of that name takes the place of the data directory, which is kept
    /// under the number of `epoch`. Where that can't be, the old one is in its place again.
    PutBack { id: String, epoch: Epoch },
    /// One more look, now.
    Observe,
}

/// What an action answers besides the facts that are read after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PgOutcome {
    Done,
    Bootstrapped {
        sysid: u64,
    },
    /// Parked here, on this timeline.
    Parked {
        end: Lsn,
        tli: Tli,
    },
    /// Promoted; what PostgreSQL itself says of the new branch.
    Promoted {
        tli: Tli,
        parent: Tli,
        fork: Lsn,
    },
    /// True: there was something to remove, and the server was restarted.
    Trimmed {
        restarted: bool,
    },
    /// Position just past the record, flushed locally.
    Evidence {
        end: Lsn,
    },
    /// The data directory is what it was, in its place.
    NotPutBack {
        why: String,
    },
    /// Bytes copied and bytes in all.
    Copied {
        bytes: u64,
        of: u64,
    },
}

/// `ANY k (members)` as PostgreSQL wants it; closed when nobody could satisfy it. `raising` is the
/// form that makes a rise of k visible: a first priority that nobody has moves all others up by one.
pub fn sync_names(set: &crate::term::Set, raising: bool) -> String {
    if set.is_alone() {
        return String::new();
    }
    if set.is_closed() {
        return CLOSED.to_string();
    }
    let mut names = match raising {
        true => format!("FIRST {} (\"-\"", set.k),
        false => format!("ANY {} (", set.k),
    };
    for member in &set.members {
        names += if names.ends_with('(') { "\"" } else { ", \"" };
        names += &member.slot();
        names += "\"";
    }
    names + ")"
}
