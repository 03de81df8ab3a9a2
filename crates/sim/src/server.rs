//! The server process of a node: standbys' connections with their own copies of the setting, and
//! PostgreSQL's rule of when a commit is acknowledged.

use everhold_core::ids::Epoch;
use everhold_core::postgres::Source;
use std::rc::Rc;

/// A parsed synchronous_standby_names.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    pub text: String,
    /// `ANY k`, else `FIRST k`.
    pub any: bool,
    pub k: usize,
    pub list: Vec<String>,
}

impl Names {
    pub fn parse(text: &str) -> Names {
        let (head, rest) = text.split_once('(').unwrap_or(("", ""));
        let mut words = head.split_whitespace();
        let any = words.next() == Some("ANY");
        let k = words.next().and_then(|k| k.parse().ok()).unwrap_or(0);
        let list = rest.trim_end_matches(')').split(',');
        let list = list.map(|name| name.trim().trim_matches('"').to_string());
        let list = list.filter(|name| !name.is_empty()).collect();
        Names { text: text.to_string(), any, k, list }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// sync_priority of a row of this name: always 1 under ANY, the place in the list under FIRST.
    pub fn priority(&self, name: &str) -> u32 {
        let place = self.list.iter().position(|other| other == name);
        place.map_or(0, |place| if self.any { 1 } else { place as u32 + 1 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proc {
    Down,
    /// The postmaster is gone; children live on.
    Remains,
    Starting,
    Running,
}

/// A walsender.
#[derive(Clone, Debug)]
pub struct Row {
    pub conn: u64,
    pub standby: usize,
    pub name: String,
    /// Its own copy of the setting.
    pub names: Rc<Names>,
    pub priority: u32,
    pub flush: u64,
    pub streaming: bool,
    /// The other end still exists. A row outlives it.
    pub live: bool,
    pub owns_slot: bool,
    /// Records handed to the connection, and one batch of them is on its way.
    pub sent: usize,
    pub sending: bool,
}

/// A commit that waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub end: u64,
    pub uid: u32,
    pub who: Who,
}

/// Who wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Client {
        writer: usize,
        attempt: u64,
    },
    /// The agent's barrier: its command.
    Barrier {
        gen_: u32,
        id: u64,
    },
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    None,
    Connecting { conn: u64 },
    Streaming { conn: u64, from: usize },
}

#[derive(Clone, Debug)]
pub struct Server {
    /// Rises with each start and end: what was scheduled for an older one is void.
    pub life: u32,
    pub proc: Proc,
    pub recovery: bool,
    /// Its processes were stopped by a signal.
    pub frozen: bool,
    /// A fast stop is under way: no new commits.
    pub closing: bool,
    /// Children can still write and acknowledge.
    pub children: bool,
    /// What a new session shows.
    pub shown: Rc<Names>,
    /// The checkpointer's copy: somebody is to be waited for.
    pub defined: bool,
    /// SyncRepCtl's flush position: everything below was released.
    pub released: u64,
    pub rows: Vec<Row>,
    pub waiting: Vec<Waiting>,
    pub source: Option<Source>,
    /// What the startup process has taken in.
    pub taken: Option<Source>,
    pub receiver: Receiver,
    /// Last message of the leader, in µs.
    pub message: u64,
    /// Replay waits for a session.
    pub conflict_until: u64,
    /// Of the branch written.
    pub epoch: Epoch,
    /// Records before its promotion: visible without anybody's acknowledgement.
    pub inherited: usize,
    pub pid: i32,
}

impl Server {
    pub fn new() -> Server {
        let closed = Rc::new(Names::parse(everhold_core::postgres::CLOSED));
        Server {
            life: 0,
            proc: Proc::Down,
            recovery: true,
            frozen: false,
            closing: false,
            children: false,
            shown: closed,
            defined: true,
            released: 0,
            rows: Vec::new(),
            waiting: Vec::new(),
            source: None,
            taken: None,
            receiver: Receiver::None,
            message: 0,
            conflict_until: 0,
            epoch: 0,
            inherited: 0,
            pid: 0,
        }
    }

    pub fn is_primary(&self) -> bool {
        !self.recovery && (self.proc == Proc::Running || self.children)
    }

    pub fn runs_as_standby(&self) -> bool {
        self.recovery && self.proc == Proc::Running
    }

    pub fn row(&mut self, conn: u64) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.conn == conn)
    }

    /// What the walsender of this connection may release, by its own copy of the setting and the
    /// priorities that each other one gave itself (SyncRepReleaseWaiters).
    pub fn releases(&self, conn: u64) -> Option<u64> {
        let own = self.rows.iter().find(|row| row.conn == conn)?;
        if own.priority == 0 || !own.streaming || own.names.is_empty() {
            return None;
        }
        kth(self.rows.iter().filter(|row| row.streaming), own)
    }

    /// It can acknowledge a commit made now: nobody is waited for, or enough live standbys are.
    pub fn can_acknowledge(&self) -> bool {
        if !self.is_primary() || self.closing {
            return false;
        }
        let live = || self.rows.iter().filter(|row| row.live && row.streaming);
        !self.defined
            || live()
                .any(|own| own.priority > 0 && !own.names.is_empty() && kth(live(), own).is_some())
    }
}

fn kth<'a>(rows: impl Iterator<Item = &'a Row>, own: &Row) -> Option<u64> {
    let mut counted: Vec<(u32, u64)> =
        rows.filter(|row| row.priority > 0).map(|row| (row.priority, row.flush)).collect();
    let k = own.names.k;
    if counted.len() < k || k == 0 {
        return None;
    }
    if own.names.any {
        counted.sort_unstable_by_key(|(_, flush)| std::cmp::Reverse(*flush));
        return Some(counted[k - 1].1);
    }
    counted.sort_by_key(|(priority, _)| *priority);
    counted[..k].iter().map(|(_, flush)| *flush).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, names: &str, flush: u64) -> Row {
        let names = Rc::new(Names::parse(names));
        let priority = names.priority(name);
        Row {
            conn: flush,
            standby: 0,
            name: name.to_string(),
            names,
            priority,
            flush,
            streaming: true,
            live: true,
            owns_slot: true,
            sent: 0,
            sending: false,
        }
    }

    #[test]
    fn each_walsender_releases_by_its_own_copy() {
        #[rustfmt::skip]
        type Case = (&'static [(&'static str, &'static str, u64)], u64, Option<u64>);
        let cases: [Case; 6] = [
            (
                &[("b_1", "ANY 1 (\"b_1\", \"c_1\")", 5), ("c_1", "ANY 1 (\"b_1\", \"c_1\")", 7)],
                5,
                Some(7),
            ),
            (
                &[("b_1", "ANY 2 (\"b_1\", \"c_1\")", 5), ("c_1", "ANY 2 (\"b_1\", \"c_1\")", 7)],
                7,
                Some(5),
            ),
            (&[("b_1", "ANY 1 (\"-\")", 5)], 5, None),
            // A lingering second connection of the same standby counts twice.
            (
                &[("b_1", "ANY 2 (\"b_1\", \"c_1\")", 5), ("b_1", "ANY 2 (\"b_1\", \"c_1\")", 4)],
                5,
                Some(4),
            ),
            // One walsender has reloaded, the other has not.
            (&[("b_1", "ANY 2 (\"b_1\", \"c_1\")", 9), ("c_1", "ANY 1 (\"c_1\")", 3)], 3, Some(9)),
            (
                &[("b_1", "FIRST 2 (\"-\", \"b_1\", \"c_1\")", 9), ("c_1", "ANY 1 (\"c_1\")", 3)],
                9,
                Some(3),
            ),
        ];
        for (rows, conn, expected) in cases {
            let mut server = Server::new();
            server.rows =
                rows.iter().map(|(name, names, flush)| row(name, names, *flush)).collect();
            assert_eq!(server.releases(conn), expected, "{rows:?}");
        }
    }
}
