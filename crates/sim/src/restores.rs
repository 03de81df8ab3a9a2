//! The operator puts the service back to an older state, at the worst of times.

use crate::faults::{Fault, Kind};
use crate::world::{MS, S, World};
use everhold_core::agent::Input;
use everhold_core::postgres::Restored;
use everhold_core::term::Term;
use everhold_core::view::Cause;

/// Where the agent of the node that is put back is killed.
const MOMENTS: [&str; 6] = ["write", "persist", "stop", "put-back", "start", "park"];

impl World {
    /// A restore, alone or with something that goes wrong in the middle of it.
    pub fn restore_some(&mut self, count: usize) -> u64 {
        let rng = &mut self.plan.restores;
        let node = rng.index(count);
        let lasts = 20 * S;
        let harmed = rng.chance(700);
        let (begins, other) = (rng.spread(MS, 6 * S), rng.index(count));
        self.add(0, Fault { kind: Kind::Restore, node, other, lasts });
        let rng = &mut self.plan.restores;
        if harmed && rng.chance(400) {
            // It alone knows what it was about to do.
            let moment = MOMENTS[rng.index(MOMENTS.len())];
            let crash = Kind::CrashOn(moment, rng.below(3) as u32, false);
            self.add(MS, Fault { kind: crash, node, other, lasts: 8 * S });
        } else if harmed {
            let kind = self.plan.kind();
            self.add(begins, Fault { kind, node: other, other: node, lasts: 8 * S });
        }
        lasts
    }

    /// What a repository holds of the leader's history up to some record, and the wish to have it.
    pub fn restore(&mut self, n: usize, force: bool) {
        let Some(term) = self.store.read_term().cloned() else { return };
        let Some(leader) = self.leader() else { return };
        let whole = &self.nodes[leader].dir;
        if whole.garbage {
            return;
        }
        let mut line = self.nodes[leader].disk.line.clone();
        let back = self.plan.restores.index(whole.wal.len().min(400));
        let mut dir = whole.clone();
        dir.wal.truncate(whole.wal.len() - back);
        let end = dir.lsn();
        line.truncate(1 + line.iter().skip(1).take_while(|branch| branch.fork < end).count());
        dir.tli = dir.last_tli();
        dir.history.retain(|tli, _| line.iter().any(|branch| branch.tli == *tli));
        (dir.replayed, dir.partial, dir.checkpoint_tli) = (dir.wal.len(), 0, dir.tli);
        dir.slots.clear();
        let restored = Restored {
            id: format!("at {}", self.now),
            sysid: dir.sysid,
            line,
            end,
            epoch: term.epoch,
            tli: term.branches.iter().map(|branch| branch.tli).max().unwrap_or(1),
        };
        self.nodes[n].restored = Some((restored.id.clone(), dir));
        self.give(n, Input::Wished { cause: Cause::Restore { restored, force } });
    }

    /// A term of a campaign that put a node back is about to be published.
    pub fn note_put_back(&mut self, writer: usize, term: &Term) {
        let agent = self.nodes.get(writer).and_then(|node| node.agent.as_ref());
        let campaign = agent.and_then(|agent| agent.view.campaign.as_ref());
        if campaign.is_some_and(|it| matches!(it.cause, Cause::Restore { .. })) {
            self.ghost.restored = Some((term.epoch, writer, self.nodes[writer].replaced));
        }
    }
}
