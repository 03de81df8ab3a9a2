//! What a node keeps on its own disk, outside of PostgreSQL's data directory.

use crate::ids::{Epoch, Lsn, Member, Tli};
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
