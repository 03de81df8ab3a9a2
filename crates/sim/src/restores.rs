//! The operator puts the service back to an older state, at the worst of times.

use crate::faults::{Fault, Kind};
use crate::world::{MS, S, World};
use everhold_core::agent::Input;
use everhold_core::postgres::Restored;
use everhold_core::view::Cause;

impl World {
    /// A restore, alone or with something that goes wrong in the middle of it.
    pub fn restore_some(&mut self, count: usize) -> u64 {
        let rng = &mut self.plan.restores;
        let node = rng.index(count);
        let lasts = 20 * S;
        let harmed = rng.chance(700);
        let (begins, other) = (rng.spread(MS, 6 * S), rng.index(count));
        self.add(0, Fault { kind: Kind::Restore, node, other, lasts });
        if harmed {
            let kind = self.plan.kind();
            self.add(begins, Fault { kind, node: other, other: node, lasts: 8 * S });
        }
        lasts
    }

    /// What a repository holds of the leader's history up to some record, and the wish to have it.
    pub fn restore(&mut self, n: usize) {
        let Some(term) = self.store.read_term().cloned() else { return };
        let Some(leader) = self.leader() else { return };
        let whole = &self.nodes[leader].dir;
        let Some(agent) = &self.nodes[leader].agent else { return };
        let mut line = agent.view.durable.line.clone();
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
        self.give(n, Input::Wished { cause: Cause::Restore { restored, force: false } });
    }
}
