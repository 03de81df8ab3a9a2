//! What a node keeps on its own disk, outside of PostgreSQL's data directory.

use crate::ids::{Epoch, Lsn, Member, Tli};
use crate::postgres::Restored;
use crate::term::{Branch, BranchId, last_written};
use serde::{Deserialize, Serialize};

/// The state of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// Nothing there yet.
    Empty,
    /// Whole: it may start, follow, be sealed, lead.
    Ok,
    /// A rewind or a clone was begun: garbage until a clone has ended.
    Destroying,
    /// Copied, but not consistent before it has replayed to `until`: it may follow, nothing else.
    CatchUp { until: Lsn },
}

/// The right to lead, written before promoting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub epoch: Epoch,
    pub tli: Tli,
}

/// What was restored takes the place of the data: written before anything is replaced, so that it goes
/// on after a crash at any point. It holds as long as the term is the one whose sets were covered:
/// those who covered them have promised never to acknowledge anything of that term again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBack {
    pub restored: Restored,
    pub force: bool,
    /// That term, by revision and epoch; `None`: there was none.
    pub term: Option<(u64, Epoch)>,
    /// What was promised then: the data that it replaces is kept under this number.
    pub epoch: Epoch,
    /// The incarnation that the data had before, if it was whole: it is whole until it is replaced.
    pub was: Option<u32>,
}

/// A node's durable record for one service. Written whole: temporary file, fsync, rename, fsync of
/// the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// Never to acknowledge, follow or lead below it. Only rises.
    pub promise: Epoch,
    pub incarnation: u32,
    pub data: Data,
    /// PostgreSQL's system identifier, once known.
    pub sysid: Option<u64>,
    /// The path of branches this data directory is on, root first.
    pub line: Vec<Branch>,
    pub grant: Option<Grant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_back: Option<PutBack>,
}

impl Default for Durable {
    fn default() -> Self {
        Durable {
            promise: 0,
            incarnation: 0,
            data: Data::Empty,
            sysid: None,
            line: Vec::new(),
            grant: None,
            put_back: None,
        }
    }
}

impl Durable {
    pub fn member(&self, node: &str) -> Member {
        Member::new(node, self.incarnation)
    }

    /// The branch of the last record of a history that ends at `end`.
    pub fn last_record(&self, end: Lsn) -> Option<BranchId> {
        last_written(&self.line, end).map(Branch::id)
    }

    /// The data directory ever held something worth keeping.
    pub fn is_new(&self) -> bool {
        self.promise == 0 && self.incarnation == 0 && self.data == Data::Empty
    }
}
