//! The state: store, nodes, walsenders, and what clients were told. Small and copied by value,
//! since millions of them are kept.

use super::names::{Names, Set, letter};
use std::fmt;

/// Nodes at most.
pub const NODES: usize = 4;
/// One more than the highest epoch: arrays are indexed by it.
pub const EPOCHS: usize = 6;
/// Sets in force at once, and branches: one per publication and the first.
pub const TERMS: usize = 6;
/// Follows nobody.
pub const NOBODY: u8 = 15;

/// A log: for each record the epoch of the branch that wrote it, four bits each, up to four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log(pub u16);

impl Log {
    pub fn len(self) -> u8 {
        (16 - self.0.leading_zeros()).div_ceil(4) as u8
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn at(self, place: u8) -> u8 {
        (self.0 >> (4 * place) & 15) as u8
    }

    /// The branch of the last record; 0: there is none.
    pub fn last(self) -> u8 {
        if self.is_empty() { 0 } else { self.at(self.len() - 1) }
    }

    pub fn push(&mut self, branch: u8) {
        self.0 |= u16::from(branch) << (4 * self.len());
    }

    pub fn cut(self, len: u8) -> Log {
        Log((u32::from(self.0) & ((1 << (4 * len)) - 1)) as u16)
    }

    pub fn is_prefix_of(self, other: Log) -> bool {
        other.cut(self.len()) == self
    }

    /// Length of what both begin with.
    pub fn common(self, other: Log) -> u8 {
        (0..self.len().min(other.len())).take_while(|i| self.at(*i) == other.at(*i)).count() as u8
    }
}

/// A short list by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List<T> {
    items: [T; TERMS],
    len: u8,
}

impl<T: Copy + Default> List<T> {
    pub fn as_slice(&self) -> &[T] {
        &self.items[..self.len as usize]
    }

    /// The bounds of a run keep lists shorter than [`TERMS`]: more is a mistake in the plan.
    pub fn push(&mut self, item: T) {
        self.items[self.len as usize] = item;
        self.len += 1;
    }

    pub fn one(item: T) -> Self {
        let mut list = List::default();
        list.push(item);
        list
    }

    pub fn last_mut(&mut self) -> Option<&mut T> {
        self.as_mut_slice().last_mut()
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.items[..self.len as usize]
    }

    pub fn is_full(&self) -> bool {
        self.len as usize == TERMS
    }
}

/// A published branch. Its timeline is its place in the list, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Branch {
    pub epoch: u8,
    pub parent: u8,
    pub fork: u8,
    /// The number that PostgreSQL gives it if nothing reserves one.
    pub number: u8,
}

/// The record of the term. Its leader is the target's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Term {
    pub epoch: u8,
    pub open: bool,
    pub inforce: List<Set>,
    pub target: Set,
    pub branches: List<Branch>,
}

impl Term {
    pub fn leader(&self) -> usize {
        self.target.leader()
    }

    pub fn current(&self) -> Set {
        self.inforce.as_slice().last().copied().unwrap_or(self.target)
    }

    /// The timeline of the leader's branch.
    pub fn tip(&self) -> u8 {
        self.branches.as_slice().len() as u8
    }

    pub fn branch(&self, tli: u8) -> Branch {
        self.branches.as_slice()[tli as usize - 1]
    }
}

/// A term as it was published or re-granted: what a late agent may still act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// The leader's set at first; [`Set::NONE`]: no term of that epoch, or nobody can use it.
    pub set: Set,
    pub tli: u8,
}

/// What a sealed node told the campaign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub told: bool,
    pub incarnation: u8,
    /// Tip of the line of branches the node knows itself on.
    pub line: u8,
    pub end: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    Down,
    Standby,
    Primary,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    // On disk.
    pub log: Log,
    pub promise: u8,
    pub incarnation: u8,
    /// Tip of the line of branches that the node recorded.
    pub line: u8,
    /// The epoch it was last granted.
    pub granted: u8,
    // Of the running server.
    pub role: Role,
    pub follows: u8,
    // Of a primary only.
    pub leads: u8,
    pub branch: u8,
    /// synchronous_standby_names in the configuration, and what the agent wants there.
    pub names: Names,
    pub wanted: Names,
    /// The checkpointer's `sync_standbys_defined`: without it nobody waits.
    pub defined: bool,
    /// All walsenders were seen with the names, and the flush position was then this, plus one.
    pub observed: u8,
    /// The names by which the checkpointer was last proven; kept only with `OldProof`.
    pub proven: Names,
    /// The set before the change, in the ways of changing that forget it in the store.
    pub before: Set,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    #[default]
    Gone,
    Live,
    /// The standby left, the walsender hasn't noticed.
    Lingering,
}

/// A walsender of a primary for one standby.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub link: Link,
    pub incarnation: u8,
    /// Its own copy of the names.
    pub copy: Names,
    pub flush: u8,
    /// A second one of the same standby, left from an older connection: flush plus one, and copy.
    pub stale: u8,
    pub stale_copy: Names,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub epoch: u8,
    pub term: Term,
    pub past: [Past; EPOCHS],
    pub reports: [[Report; NODES]; EPOCHS],
    /// The sets when the epoch was opened; only with `SetsReadAtOpen`.
    pub at_open: List<Set>,
    pub nodes: [Node; NODES],
    /// By primary and standby.
    pub rows: [[Row; NODES]; NODES],
    /// By branch epoch and place: the lowest epoch at which a client was told.
    pub acked: [Log; EPOCHS],
    pub crashes: u8,
    pub cuts: u8,
    pub changes: u8,
    pub wipes: u8,
}

impl State {
    /// Node 0 leads epoch 1 with the first set, all others stream from it.
    pub fn first(bounds: &super::plan::Bounds, names: Names) -> State {
        let mut set = Set::new(0, 0, bounds.first_k);
        for node in 1..=bounds.standbys {
            set = set.with(node, 0);
        }
        let root = Branch { epoch: 1, parent: 0, fork: 0, number: 1 };
        let standby =
            Node { promise: 1, line: 1, role: Role::Standby, follows: 0, ..Node::default() };
        let mut nodes = [Node { follows: NOBODY, ..Node::default() }; NODES];
        let mut rows = [[Row::default(); NODES]; NODES];
        for node in 1..bounds.nodes {
            nodes[node] = standby;
            rows[0][node] = Row { link: Link::Live, copy: names, ..Row::default() };
        }
        nodes[0] = Node {
            role: Role::Primary,
            follows: NOBODY,
            granted: 1,
            leads: 1,
            branch: 1,
            names,
            wanted: names,
            defined: names.defined(),
            ..standby
        };
        let mut past = [Past::default(); EPOCHS];
        past[1] = Past { set, tli: 1 };
        State {
            epoch: 1,
            term: Term {
                epoch: 1,
                open: true,
                inforce: List::one(set),
                target: set,
                branches: List::one(root),
            },
            past,
            reports: [[Report::default(); NODES]; EPOCHS],
            at_open: List::default(),
            nodes,
            rows,
            acked: [Log::default(); EPOCHS],
            crashes: 0,
            cuts: 0,
            changes: 0,
            wipes: 0,
        }
    }

    /// The primary works under the store's term.
    pub fn leads_the_term(&self, node: usize) -> bool {
        let primary = &self.nodes[node];
        primary.leads == self.term.epoch
            && self.term.leader() == node
            && self.term.target.leader_incarnation() == primary.incarnation
    }

    /// The standby's connection ends; the walsender may linger.
    pub fn disconnect(&mut self, standby: usize) {
        let source = self.nodes[standby].follows;
        if source != NOBODY {
            let row = &mut self.rows[source as usize][standby];
            if row.link == Link::Live {
                row.link = Link::Lingering;
            }
            self.nodes[standby].follows = NOBODY;
        }
    }

    /// The server of a primary ends, and with it all its walsenders.
    pub fn stop_primary(&mut self, node: usize) {
        for standby in 0..NODES {
            if self.nodes[standby].follows == node as u8 {
                self.nodes[standby].follows = NOBODY;
            }
        }
        self.rows[node] = [Row::default(); NODES];
        let old = self.nodes[node];
        self.nodes[node] = Node {
            log: old.log,
            promise: old.promise,
            incarnation: old.incarnation,
            line: old.line,
            granted: old.granted,
            follows: NOBODY,
            ..Node::default()
        };
    }

    pub fn report(&mut self, node: usize, epoch: u8) {
        let it = &self.nodes[node];
        self.reports[epoch as usize][node] =
            Report { told: true, incarnation: it.incarnation, line: it.line, end: it.log.len() };
    }

    /// A client was told that the record at `place` is committed.
    pub fn acknowledge(&mut self, branch: u8, place: u8, epoch: u8) {
        let acked = &mut self.acked[branch as usize];
        let old = acked.at(place);
        if old == 0 || old > epoch {
            acked.0 &= !(15 << (4 * place));
            acked.0 |= u16::from(epoch) << (4 * place);
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let term = &self.term;
        let open = if term.open { "open" } else { "published" };
        let sets = term.inforce.as_slice();
        write!(f, "epoch {} term {} {open} {sets:?}", self.epoch, term.epoch)?;
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.promise > 0) {
            let records: Vec<u8> = (0..node.log.len()).map(|place| node.log.at(place)).collect();
            write!(f, " | {}", letter(index))?;
            if node.incarnation > 0 {
                write!(f, ".{}", node.incarnation)?;
            }
            write!(f, " {records:?} promise {}", node.promise)?;
            match node.role {
                Role::Down => write!(f, " down")?,
                Role::Standby if node.follows == NOBODY => {}
                Role::Standby => write!(f, " of {}", letter(node.follows.into()))?,
                Role::Primary => self.show_primary(f, index)?,
            }
        }
        Ok(())
    }
}

impl State {
    fn show_primary(&self, f: &mut fmt::Formatter<'_>, index: usize) -> fmt::Result {
        let node = &self.nodes[index];
        write!(f, " leads {} by {:?}", node.leads, node.names)?;
        if node.names.defined() != node.defined {
            write!(f, " (checkpointer not yet)")?;
        }
        for (standby, row) in self.rows[index].iter().enumerate() {
            if row.link != Link::Gone {
                let name = letter(standby);
                let gone = if row.link == Link::Live { "" } else { " lingers" };
                write!(f, ", {name} at {} by {:?}{gone}", row.flush, row.copy)?;
            }
        }
        Ok(())
    }
}
