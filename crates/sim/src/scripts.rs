//! Short sequences of faults that random ones would rarely line up: each is the shortest way in
//! which some rule of the protocol matters, drawn with random gaps.

use crate::faults::{Fault, Kind};
use crate::world::{MS, S, World};

/// A node stays down so long that the rest has to decide without it.
const DOWN: u64 = 16 * S;

/// How many there are; those that need more luck count twice.
const SCRIPTS: u64 = 16;

impl World {
    /// One of the sequences, from a healthy cluster; how long it takes.
    pub fn script(&mut self, leader: usize) -> u64 {
        let count = self.nodes.len();
        let b = (leader + 1 + self.plan.rng.index(count - 1)) % count;
        let rest: Vec<usize> = (0..count).filter(|n| *n != leader && *n != b).collect();
        match self.plan.rng.below(SCRIPTS) {
            0 | 8 => self.unread_tail(leader, b, &rest),
            1 | 9 => self.long_tail(leader),
            2 => self.late_publish(leader),
            3 | 13 => self.named_and_unaware(leader),
            4 => self.raise_unseen(leader, b, &rest),
            5 => self.raise_unflushed(leader, b, &rest),
            6 => self.back_from_alone(leader, b, &rest),
            7 => self.double_row(leader, b, &rest),
            10 | 11 => self.sealed_awake(leader),
            14 => self.lost_source(leader, b),
            12 => self.raise_unseen(leader, b, &rest),
            _ => self.aborted(leader, &rest),
        }
    }

    fn then(&mut self, begins: u64, kind: Kind, node: usize, other: usize, lasts: u64) {
        self.add(begins, Fault { kind, node, other, lasts });
    }

    fn gap(&mut self, from: u64, to: u64) -> u64 {
        self.plan.rng.between(from * MS, to * MS)
    }

    /// A tail that only `b` has, and `b` dies as soon as it is promoted.
    fn unread_tail(&mut self, leader: usize, b: usize, rest: &[usize]) -> u64 {
        for c in rest {
            self.then(3 * S, Kind::CutServers, leader, *c, S);
        }
        self.then(0, Kind::RespecTo(2, self.policy.redundancy.floor), leader, leader, 10 * MS);
        let dies = 3 * S + self.gap(30, 600);
        let late = self.gap(2, 40);
        // The others take their time to connect to it.
        self.then(dies - MS, Kind::SlowReload, leader, leader, 3 * S);
        self.then(dies - MS, Kind::KillPromoted(late), b, b, DOWN);
        self.then(dies, Kind::KillNode, leader, leader, DOWN);
        dies + DOWN
    }

    /// The old leader writes far ahead, alone; the new one leads, then everything goes down, and the
    /// old one is back first.
    fn long_tail(&mut self, leader: usize) -> u64 {
        let cut = self.gap(1_500, 3_000);
        self.then(0, Kind::CutNode, leader, leader, cut + S);
        self.then(5 * MS, Kind::Bulk, leader, leader, MS);
        let all = cut + self.gap(0, 900);
        self.then(all, Kind::KillNode, leader, leader, S);
        for n in (0..self.nodes.len()).filter(|n| *n != leader) {
            let down = self.gap(1_000, 2_500);
            self.then(all, Kind::KillNode, n, n, down);
        }
        all + 6 * S
    }

    /// A campaign whose publish is carried out late.
    fn late_publish(&mut self, leader: usize) -> u64 {
        let late = self.gap(1_000, 4_000);
        self.then(0, Kind::LatePublish(late), leader, leader, 8 * S);
        if self.plan.rng.chance(500) {
            self.then(0, Kind::StoreFlaky, leader, leader, 8 * S);
        }
        self.then(5 * MS, Kind::KillNode, leader, leader, DOWN);
        DOWN
    }

    /// The node chosen doesn't hear of it, and is sealed for the next epoch, which comes to nothing
    /// before it reads its own.
    fn named_and_unaware(&mut self, leader: usize) -> u64 {
        let b = self.favourite(leader);
        let cut = self.gap(2_500, 5_000);
        self.then(0, Kind::StoreCut, b, b, cut);
        // The first promise, the new leader's line, the second promise.
        for c in (0..self.nodes.len()).filter(|c| *c != leader && *c != b) {
            self.then(MS, Kind::CrashOn("persist", 2, false), c, c, DOWN);
        }
        self.then(5 * MS, Kind::KillNode, leader, leader, DOWN);
        DOWN
    }

    /// Who will lead next if all hold the same.
    fn favourite(&self, leader: usize) -> usize {
        let fit =
            |n: &usize| *n != leader && self.policy.preferences[&self.nodes[*n].name].failover;
        let rank = |n: &usize| self.policy.preferences[&self.nodes[*n].name].priority;
        let first = (0..self.nodes.len()).rev().filter(fit).max_by_key(rank);
        first.unwrap_or((leader + 1) % self.nodes.len())
    }

    /// k rises in the record while walsenders still acknowledge by the old one.
    fn raise_unseen(&mut self, leader: usize, b: usize, rest: &[usize]) -> u64 {
        let floor = self.policy.redundancy.floor;
        self.then(0, Kind::RespecTo(1, floor), leader, leader, 10 * MS);
        self.then(3 * S, Kind::SlowReload, leader, leader, 12 * S);
        self.then(3 * S + 10 * MS, Kind::RespecTo(2, floor), leader, leader, 10 * MS);
        let cut = 3 * S + 10 * MS + self.gap(30, 400);
        for c in rest {
            self.then(cut, Kind::CutServers, leader, *c, 4 * S);
        }
        let dies = cut + self.gap(100, 1_200);
        self.then(dies, Kind::KillNode, leader, leader, DOWN);
        self.then(dies, Kind::KillNode, b, b, DOWN);
        dies + DOWN
    }

    /// k rises while only `b` holds what was acknowledged last.
    fn raise_unflushed(&mut self, leader: usize, b: usize, rest: &[usize]) -> u64 {
        let floor = self.policy.redundancy.floor;
        self.then(0, Kind::RespecTo(1, floor), leader, leader, 10 * MS);
        let cut = 3 * S;
        for c in rest {
            self.then(cut, Kind::CutServers, leader, *c, 4 * S);
        }
        let raise = cut + self.gap(100, 1_200);
        self.then(raise, Kind::RespecTo(2, floor), leader, leader, 10 * MS);
        let dies = raise + self.gap(60, 600);
        self.then(dies, Kind::KillNode, leader, leader, DOWN);
        self.then(dies, Kind::KillNode, b, b, DOWN);
        dies + DOWN
    }

    /// The leader was alone, `b` comes back, the checkpointer is slow to hear of it.
    fn back_from_alone(&mut self, leader: usize, b: usize, rest: &[usize]) -> u64 {
        self.then(0, Kind::RespecTo(1, 0), leader, leader, 10 * MS);
        for c in rest {
            self.then(2 * S, Kind::KillNode, *c, *c, 2 * DOWN);
        }
        self.then(2 * S, Kind::KillNode, b, b, 5 * S);
        self.then(6 * S, Kind::SlowReload, leader, leader, DOWN);
        let cut = 7 * S + self.gap(1_500, 5_000);
        self.then(cut, Kind::CutServers, leader, b, 3 * S);
        let dies = cut + self.gap(100, 900);
        self.then(dies, Kind::KillNode, leader, leader, DOWN);
        2 * S + 2 * DOWN
    }

    /// A second connection of `b` while the first one lingers, and nobody else receives.
    fn double_row(&mut self, leader: usize, b: usize, rest: &[usize]) -> u64 {
        let floor = self.policy.redundancy.floor;
        self.then(0, Kind::RespecTo(2, floor), leader, leader, 10 * MS);
        self.then(3 * S, Kind::SlowReload, leader, leader, 12 * S);
        let cut = 3 * S + 10 * MS;
        for c in rest {
            self.then(cut, Kind::CutServers, leader, *c, 4 * S);
        }
        let reset = cut + self.gap(100, 900);
        self.then(reset, Kind::ResetConnection, b, b, 10 * MS);
        let dies = reset + self.gap(300, 900);
        self.then(dies, Kind::KillNode, leader, leader, DOWN);
        self.then(dies, Kind::KillNode, b, b, DOWN);
        dies + DOWN
    }

    /// The leader wakes in the middle of a campaign, and one standby that didn't hear of that goes
    /// on acknowledging for it.
    fn sealed_awake(&mut self, leader: usize) -> u64 {
        // Not the one who campaigns first.
        let b = (0..self.nodes.len()).rev().find(|n| *n != leader).unwrap_or(0);
        self.then(0, Kind::RespecTo(1, 0), leader, leader, 10 * MS);
        self.then(3 * S, Kind::StoreCut, leader, leader, 6 * S);
        self.then(3 * S, Kind::KillCalled, b, b, DOWN);
        let frozen = self.gap(1_300, 2_500);
        self.then(3 * S + 5 * MS, Kind::FreezeNode, leader, leader, frozen);
        3 * S + DOWN
    }

    /// A copy ends, and its source is lost before it has caught up.
    fn lost_source(&mut self, leader: usize, b: usize) -> u64 {
        let late = self.plan.rng.between(0, 60 * MS);
        self.then(0, Kind::KillSource(late), leader, leader, DOWN);
        self.then(5 * MS, Kind::Wipe, b, b, 100 * MS);
        DOWN
    }

    /// A campaign that was rightly begun loses its cover: the leader is back, those sealed wait. Now
    /// and then the leader is about to drop all but one of them.
    fn aborted(&mut self, leader: usize, rest: &[usize]) -> u64 {
        self.then(0, Kind::RespecTo(1, 1), leader, leader, 10 * MS);
        if self.plan.rng.chance(500) {
            let early = 3 * S - self.gap(100, 600);
            for c in rest {
                self.then(early, Kind::CutServers, leader, *c, S);
            }
        }
        let cut = self.gap(770, 1_100);
        self.then(3 * S, Kind::CutNode, leader, leader, cut);
        for n in (0..self.nodes.len()).filter(|n| *n != leader) {
            self.then(3 * S, Kind::CrashOn("park", 0, false), n, n, 4 * S);
        }
        // Long enough for anybody who was forgotten to be noticed.
        8 * S + 24 * S
    }
}
