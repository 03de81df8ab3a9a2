//! Clients: writers behind the gateway's table, writers that go past it, a reader.

use crate::random::Random;
use crate::say;
use crate::server::{Proc, Waiting, Who};
use crate::world::{Event, ForServer, MS, S, World};
use everhold_core::ids::Epoch;
use everhold_core::status::Status;

/// A client that hears nothing gives its connection up after this.
const PATIENCE: u64 = S;
/// Between two tries.
const RETRY: u64 = 20 * MS;
const READS: u64 = 200 * MS;

pub struct Writer {
    pub attempt: u64,
    /// It goes to any running primary, a superseded one too.
    pub nasty: bool,
    waits: bool,
}

pub struct Clients {
    pub writers: Vec<Writer>,
    pub rng: Random,
    /// The gateway's table: who serves, at which epoch.
    pub route: Option<usize>,
    pub epoch: Epoch,
    /// The newest one that it heard of, open or not.
    term: Epoch,
    pub last_ack: u64,
    pub acked: u64,
    /// A loss of the leader that stands alone: what kind, when, and the life of the server lost.
    pub outage: Option<(&'static str, u64, usize, u32)>,
    /// Milliseconds without an acknowledgement.
    pub outages: Vec<(&'static str, u64)>,
}

impl Clients {
    pub fn new(seed: u64) -> Clients {
        let writer = |nasty| Writer { attempt: 0, nasty, waits: false };
        Clients {
            writers: vec![writer(false), writer(false), writer(false), writer(true)],
            rng: Random::new(seed, 3),
            route: None,
            epoch: 0,
            term: 0,
            last_ack: 0,
            acked: 0,
            outage: None,
            outages: Vec::new(),
        }
    }
}

impl World {
    pub fn gateway_heard(&mut self, from: usize, status: &Status) {
        // A term newer than the one served: who served that may be elsewhere by now than its last
        // word says, on its way to lead again, not open, with records that can vanish.
        self.clients.term = self.clients.term.max(status.term);
        if self.clients.term > self.clients.epoch {
            self.clients.route = None;
        }
        match status.serving {
            Some(epoch) if epoch >= self.clients.epoch.max(self.clients.term) => {
                if self.clients.route != Some(from) {
                    say!(self, "gateway: {from} serves epoch {epoch}");
                    // Those that waited come at once.
                    self.after(MS, Event::Read { again: false });
                }
                self.clients.epoch = epoch;
                self.clients.route = Some(from);
            }
            Some(_) => {}
            None if self.clients.route == Some(from) => self.clients.route = None,
            None => {}
        }
    }

    fn target(&mut self, writer: usize) -> Option<usize> {
        if !self.clients.writers[writer].nasty {
            return self.clients.route;
        }
        let primaries: Vec<usize> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].server.is_primary()).collect();
        let at = self.clients.rng.index(primaries.len().max(1));
        primaries.get(at).copied()
    }

    /// The writer's next insert, or, if it still waits for the last one, the end of its patience.
    pub fn client_next(&mut self, w: usize) {
        let target = self.target(w);
        let writer = &mut self.clients.writers[w];
        writer.attempt += 1;
        writer.waits = true;
        let attempt = writer.attempt;
        let reached = target.filter(|n| !self.net.clients[*n]);
        let Some(n) = reached else {
            self.after(RETRY, Event::ClientAnswer { writer: w, attempt, acked: false });
            return;
        };
        let slow = self.nodes[n].fsync;
        let delay = self.clients.rng.between(300, MS) + self.clients.rng.between(slow / 4, slow);
        let who = Who::Client { writer: w, attempt };
        self.tell_server(n, delay, ForServer::Commit { who });
        self.after(PATIENCE, Event::ClientAnswer { writer: w, attempt, acked: false });
    }

    pub fn client_answer(&mut self, w: usize, attempt: u64, acked: bool) {
        let rest = if acked { self.clients.rng.spread(40 * MS, 500 * MS) } else { RETRY };
        let writer = &mut self.clients.writers[w];
        if writer.attempt != attempt || !writer.waits {
            return;
        }
        writer.waits = false;
        let rest = if writer.nasty { rest * 3 } else { rest };
        self.after(rest, Event::ClientNext { writer: w });
    }

    /// PostgreSQL says COMMIT.
    pub fn acknowledge(&mut self, n: usize, commit: Waiting) {
        self.check_acknowledged(n, commit);
        match commit.who {
            Who::Client { writer, attempt } => {
                if !self.clients.writers[writer].nasty {
                    self.clients.last_ack = self.now;
                }
                self.clients.acked += 1;
                self.end_outage(n);
                self.after(MS, Event::ClientAnswer { writer, attempt, acked: true });
            }
            Who::Barrier { gen_, id } => {
                let node = &mut self.nodes[n];
                if node.gen_ == gen_
                    && let Some(task) = node.tasks.get_mut(&id)
                {
                    task.end = 1;
                    self.tell_agent(n, 0, crate::world::ForAgent::Step(id));
                }
            }
            Who::Nobody => {}
        }
    }

    fn end_outage(&mut self, n: usize) {
        let Some((kind, at, node, life)) = self.clients.outage else { return };
        if n != node || self.nodes[n].server.life != life {
            self.clients.outages.push((kind, (self.now - at) / MS));
            self.clients.outage = None;
        }
    }

    /// A read of everything at the leader: what it shows must not vanish any more.
    pub fn read(&mut self, again: bool) {
        if again {
            self.after(READS, Event::Read { again });
        }
        let Some(n) = self.clients.route.filter(|n| !self.net.clients[*n]) else { return };
        let node = &self.nodes[n];
        let answers = !node.frozen && !node.server.frozen && node.server.proc == Proc::Running;
        if answers && !node.server.recovery {
            self.saw(n);
        }
    }
}
