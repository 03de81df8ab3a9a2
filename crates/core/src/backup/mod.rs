//! Backups: when one is due and who makes it, which are kept, which are proven next.

mod choice;
pub mod cron;
pub mod keep;
pub mod schedule;

pub use choice::{Next, Proving, ROUND_OVERDUE_S, next_proof, owed, to_prove};
pub use cron::Cron;
pub use keep::Keep;

use crate::ids::{Lsn, Tli};
use serde::{Deserialize, Serialize};

/// How much of a database is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Every byte.
    #[default]
    Full,
    /// What may have changed since the one before. It is whole by itself all the same: what did not
    /// change is named where it lies.
    Incremental,
}

/// What is known of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Its time and who made it; sorts by age.
    pub id: String,
    pub kind: Kind,
    /// Seconds since 1970, by the clock of the machine that made it.
    pub began_s: u64,
    pub ended_s: u64,
    /// From where the log is needed, and to where to be consistent.
    pub start: Lsn,
    pub stop: Lsn,
    pub tli: Tli,
    /// As many copies of it are whole as the policy asks for, and no recovery has given up the history
    /// it is of.
    pub good: bool,
    pub proof: Proof,
}

/// Whether a restore of it was seen to work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    #[default]
    Unproven,
    Proven {
        at_s: u64,
    },
    Failed {
        at_s: u64,
    },
}

impl Backup {
    /// One that a restore may rest on.
    pub fn is_sound(&self) -> bool {
        self.good && !matches!(self.proof, Proof::Failed { .. })
    }
}
