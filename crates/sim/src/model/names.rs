//! Synchronous sets and `synchronous_standby_names`, sixteen bits each.

use super::state::NODES;
use std::fmt;

/// A synchronous set. Two bits per node say in which incarnation it is a member (0: it isn't,
/// else incarnation + 1); then k, leader, the leader's incarnation, and a bit that tells it from
/// nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set(pub u16);

impl Set {
    pub const NONE: Set = Set(0);

    pub fn new(leader: usize, incarnation: u8, k: u8) -> Set {
        Set(1 << 15 | u16::from(incarnation) << 12 | (leader as u16) << 10 | u16::from(k) << 8)
    }

    pub fn k(self) -> u8 {
        (self.0 >> 8 & 3) as u8
    }

    pub fn with_k(self, k: u8) -> Set {
        Set(self.0 & !(3 << 8) | u16::from(k) << 8)
    }

    pub fn leader(self) -> usize {
        (self.0 >> 10 & 3) as usize
    }

    pub fn leader_incarnation(self) -> u8 {
        (self.0 >> 12 & 3) as u8
    }

    pub fn member(self, node: usize) -> Option<u8> {
        member(self.0, node)
    }

    pub fn with(self, node: usize, incarnation: u8) -> Set {
        Set(self.without(node).0 | u16::from(incarnation + 1) << (2 * node))
    }

    pub fn without(self, node: usize) -> Set {
        Set(self.0 & !(3 << (2 * node)))
    }

    pub fn size(self) -> u8 {
        (0..NODES).filter(|node| self.member(*node).is_some()).count() as u8
    }

    pub fn same_members(self, other: Set) -> bool {
        self.0 & 255 == other.0 & 255
    }

    pub fn renamed(self, renaming: &Renaming) -> u64 {
        let leader = u64::from(renaming.to[self.leader()]);
        u64::from(self.0 & 0xf300) | leader << 10 | renaming.members(self.0)
    }
}

/// What `synchronous_standby_names` says: members and k as in [`Set`], and whether it is of the
/// form `FIRST k ("-", …)` by which a rise of k is seen.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Names(pub u16);

const FIRST: u16 = 1 << 10;

impl Names {
    pub fn new(k: u8, first: bool) -> Names {
        Names(u16::from(k) << 8 | if first { FIRST } else { 0 })
    }

    pub fn with(self, node: usize, incarnation: u8) -> Names {
        Names(self.0 | u16::from(incarnation + 1) << (2 * node))
    }

    pub fn k(self) -> u8 {
        (self.0 >> 8 & 3) as u8
    }

    /// Not empty: commits wait.
    pub fn defined(self) -> bool {
        self.k() > 0
    }

    pub fn lists(self, node: usize) -> Option<u8> {
        member(self.0, node)
    }

    /// PostgreSQL's sync_priority of a walsender that has this copy.
    pub fn priority(self, node: usize, incarnation: u8) -> i32 {
        if self.lists(node) != Some(incarnation) {
            0
        } else if self.0 & FIRST == 0 {
            1
        } else {
            // The name nobody has comes first.
            2 + (0..node).filter(|other| self.lists(*other).is_some()).count() as i32
        }
    }

    pub fn renamed(self, renaming: &Renaming) -> u64 {
        u64::from(self.0 & !255) | renaming.members(self.0)
    }
}

fn member(bits: u16, node: usize) -> Option<u8> {
    let incarnation = (bits >> (2 * node) & 3) as u8;
    incarnation.checked_sub(1)
}

/// One way of giving the nodes other names.
#[derive(Clone, Debug)]
pub struct Renaming {
    /// New by old.
    pub to: [u8; NODES],
    /// Old by new.
    pub from: [u8; NODES],
    members: Vec<u8>,
}

impl Renaming {
    pub fn new(to: [u8; NODES]) -> Renaming {
        let mut from = [0; NODES];
        for (old, new) in to.iter().enumerate() {
            from[*new as usize] = old as u8;
        }
        let moved = |bits: usize| {
            (0..NODES).fold(0, |all, old| all | (bits >> (2 * old) & 3) << (2 * to[old])) as u8
        };
        Renaming { to, from, members: (0..256).map(moved).collect() }
    }

    fn members(&self, bits: u16) -> u64 {
        u64::from(self.members[(bits & 255) as usize])
    }

    /// The new name; numbers that aren't a node's stay.
    pub fn node(&self, node: u8) -> u64 {
        u64::from(self.to.get(node as usize).copied().unwrap_or(node))
    }
}

/// `a` to `d`.
pub fn letter(node: usize) -> char {
    char::from(b'a' + node as u8)
}

fn members(f: &mut fmt::Formatter<'_>, of: impl Fn(usize) -> Option<u8>) -> fmt::Result {
    for node in 0..NODES {
        match of(node) {
            Some(0) => write!(f, "{}", letter(node))?,
            Some(incarnation) => write!(f, "{}.{incarnation}", letter(node))?,
            None => {}
        }
    }
    Ok(())
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", letter(self.leader()))?;
        if self.leader_incarnation() > 0 {
            write!(f, ".{}", self.leader_incarnation())?;
        }
        write!(f, "+{}(", self.k())?;
        members(f, |node| self.member(node))?;
        write!(f, ")")
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.defined() {
            return write!(f, "''");
        }
        let form = if self.0 & FIRST == 0 { "ANY" } else { "FIRST" };
        write!(f, "{form} {} (", self.k())?;
        members(f, |node| self.lists(node))?;
        write!(f, ")")
    }
}
