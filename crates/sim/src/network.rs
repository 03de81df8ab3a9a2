//! Links between nodes, to the store and to the clients.

use crate::server::{Proc, Who};
use crate::world::{Event, ForAgent, MS, Minder, World};
use everhold_core::agent::Input;
use everhold_core::ids::{Epoch, Time};
use everhold_core::policy;

/// An answer that doesn't come within this is none.
const PROBE: u64 = 200 * MS;
/// The minder looks so often.
const MIND: u64 = 250 * MS;

/// What is cut or slow. Each table is from × to.
pub struct Net {
    /// Between agents.
    pub agents: Vec<Vec<bool>>,
    /// Between servers.
    pub servers: Vec<Vec<bool>>,
    /// From nodes to the clients and back.
    pub clients: Vec<bool>,
    pub store: Vec<bool>,
    /// Added to each message of the node, at most.
    pub slow: Vec<u64>,
    pub loss_per_mille: u64,
    /// How long a standby takes to connect, at most.
    pub connect: u64,
    /// How long a walsender takes to read its configuration again, at most.
    pub reload: u64,
    /// How often a walsender outlives its standby, per mille.
    pub lingers: u64,
}

impl Net {
    pub fn new(nodes: usize) -> Net {
        Net {
            agents: vec![vec![false; nodes]; nodes],
            servers: vec![vec![false; nodes]; nodes],
            clients: vec![false; nodes],
            store: vec![false; nodes],
            slow: vec![0; nodes],
            loss_per_mille: 0,
            connect: 50 * MS,
            reload: 20 * MS,
            lingers: 200,
        }
    }
}

impl World {
    /// A message from one agent to another is lost.
    pub fn lost(&mut self, from: usize, to: usize) -> bool {
        self.net.agents[from][to]
            || (self.net.loss_per_mille > 0 && self.rng.chance(self.net.loss_per_mille))
    }

    pub fn delay(&mut self, from: usize, to: usize) -> u64 {
        let slow = self.net.slow[from].max(self.net.slow[to]);
        let extra = if slow == 0 { 0 } else { self.rng.below(slow) };
        200 + self.rng.below(800) + extra
    }

    /// Asks the server of a node whether it answers.
    pub fn probe(&mut self, n: usize, name: &str, epoch: Epoch) {
        let Some(to) = self.nodes.iter().position(|node| node.name == name) else { return };
        let cut = self.net.servers[n][to] || self.net.servers[to][n];
        let server = &self.nodes[to].server;
        let silent = cut || self.nodes[to].frozen || server.frozen;
        let ok = !silent && server.proc == Proc::Running;
        let delay = if silent { PROBE } else { self.delay(n, to) * 2 + MS };
        self.tell_agent(n, delay, ForAgent::Input(Box::new(Input::Probed { epoch, ok })));
    }

    pub fn told_to_mind(&mut self, n: usize, until: Time, k: u32, members: Vec<String>) {
        let begins = self.nodes[n].minder.is_none();
        let proof = self.nodes[n].minder.take().and_then(|minder| minder.proof);
        self.nodes[n].minder = Some(Minder { until, k, members, proof });
        if begins {
            self.after(MIND, Event::Minder { node: n });
        }
    }

    /// The minder's round: it gathers evidence of its own when the agent brings none, and stops the
    /// server at the deadline.
    pub fn mind(&mut self, n: usize) {
        let now = self.local(n);
        let Some(mut minder) = self.nodes[n].minder.take() else { return };
        if !self.nodes[n].server.is_primary() {
            return;
        }
        let frozen = self.nodes[n].server.frozen;
        if let Some((at, end)) = minder.proof {
            let counts = |row: &&crate::server::Row| {
                row.streaming
                    && row.owns_slot
                    && row.flush >= end
                    && minder.members.contains(&row.name)
            };
            let counted = self.nodes[n].server.rows.iter().filter(counts).count();
            if counted as u32 >= minder.k && minder.k > 0 && !frozen {
                minder.until = minder.until.max(at.plus(policy::EVIDENCE_MS));
                minder.proof = None;
            }
        }
        if now >= minder.until {
            crate::say!(self, "{n} minder: the deadline is over");
            self.end_server(n);
            let died = ForAgent::Input(Box::new(Input::PgDied));
            self.tell_agent(n, MS, died);
            return;
        }
        let left = minder.until.since(now);
        let stale = minder.proof.is_none_or(|(at, _)| now.since(at) > 1_000);
        if minder.k > 0 && left < policy::EVIDENCE_MS / 2 && stale && !frozen {
            let end = self.append(n, Who::Nobody);
            minder.proof = end.map(|end| (now, end));
        }
        self.nodes[n].minder = Some(minder);
        self.after(MIND, Event::Minder { node: n });
    }
}
