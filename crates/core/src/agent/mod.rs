//! The agent of one node for one PostgreSQL service, without any I/O: inputs change its view, the
//! controllers judge it, commands come out. The binary and the simulator drive the same code.

mod act;
mod holds;
mod learn;
mod tell;
#[cfg(test)]
mod tests;

pub use holds::Held;

use crate::decide::{Action, Intent, Verdict, Write};
use crate::detector::Detector;
use crate::durable::Durable;
use crate::ids::{Epoch, Time};
use crate::journal::Event;
use crate::kv::{Kv, Txn, TxnOutcome};
use crate::policy::{self, Policy};
use crate::postgres::{BadPages, PgAction, PgFacts, PgOutcome, Source};
use crate::records::Keys;
use crate::status::Status;
use crate::view::{Cause, Guard, Leading, Peer, Probe, StoreView, View};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a command is answered with.
pub type Id = u64;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed. To be given at least every 50 ms, so that the agent knows of its own gaps.
    Tick,
    /// A look at the server that began when [`Agent::generation`] was this.
    Pg {
        generation: u64,
        facts: PgFacts,
    },
    /// The postmaster died.
    PgDied,
    Persisted {
        id: Id,
        result: Result<(), String>,
    },
    /// An action ended; `facts` were read after it.
    PgDone {
        id: Id,
        result: Result<PgOutcome, String>,
        facts: PgFacts,
    },
    /// A write was answered; `Err`: nobody knows whether it happened.
    Written {
        id: Id,
        result: Result<TxnOutcome, String>,
    },
    /// All records of the service, read at once.
    Store {
        kvs: Vec<Kv>,
    },
    /// One key changed; `None`: it is gone.
    StoreChanged {
        key: String,
        kv: Option<Kv>,
    },
    /// The store could not be read.
    StoreLost,
    Heard {
        node: String,
        status: Arc<Status>,
    },
    Probed {
        epoch: Epoch,
        ok: bool,
    },
    Wished {
        cause: Cause,
    },
    /// A standby is to start anew.
    Restart,
    /// All bad pages that are known now.
    Scrubbed {
        bad: BadPages,
    },
    /// The spec changed.
    Policy {
        policy: Policy,
    },
}

/// Something to do. Commands of one lane are given one at a time.
#[derive(Clone, Debug)]
pub enum Command {
    /// Write and fsync the node's record.
    Persist {
        id: Id,
        durable: Box<Durable>,
    },
    Run {
        id: Id,
        action: PgAction,
    },
    /// Give up the running action of this id: a stop comes after it.
    Cancel {
        id: Id,
    },
    Write {
        id: Id,
        txn: Txn,
    },
    /// Read all records of the service again.
    Read,
    Probe {
        node: String,
        epoch: Epoch,
    },
    Mind {
        epoch: Epoch,
        until: Time,
        k: u32,
        members: Vec<String>,
    },
    /// The status changed: it should go out now, not with the next heartbeat.
    Tell,
    /// The operator's wish was fulfilled, or refused.
    WishEnded {
        refused: Option<String>,
    },
    /// For the journal, before the commands that follow.
    Journal {
        event: Box<Event>,
    },
    /// Decide again at this time at the latest.
    Wake {
        at: Time,
    },
}

/// What runs one at a time, side by side with the other lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// Steps that change the state of the server: strictly one after the other.
    Local,
    Barrier,
    Evidence,
    Checkpoint,
    Slots,
    Look,
}

fn lane(action: &PgAction) -> Lane {
    match action {
        PgAction::Bootstrap
        | PgAction::Stop { .. }
        | PgAction::Start { .. }
        | PgAction::SetSource { .. }
        | PgAction::Park
        | PgAction::Trim { .. }
        | PgAction::Promote { .. }
        | PgAction::SetSync { .. }
        | PgAction::Rewind { .. }
        | PgAction::Clone { .. }
        | PgAction::PutBack { .. } => Lane::Local,
        PgAction::Barrier { .. } => Lane::Barrier,
        PgAction::Evidence => Lane::Evidence,
        PgAction::Checkpoint => Lane::Checkpoint,
        PgAction::Slots { .. } => Lane::Slots,
        PgAction::Observe => Lane::Look,
    }
}

/// An action of the server that was begun.
#[derive(Clone, Debug)]
struct Running {
    id: Id,
    action: PgAction,
    began: Time,
    /// The names that sessions showed when it began.
    names: Option<String>,
}

/// The agent of one service on one node.
#[derive(Clone, Debug)]
pub struct Agent {
    pub view: View,
    keys: Keys,
    next_id: Id,
    generation: u64,
    running: BTreeMap<Lane, Running>,
    persisting: Option<(Id, Box<Durable>, Intent)>,
    writing: Option<(Id, Box<Write>, Txn, Time)>,
    /// The outcome of a write is unknown: nothing is written before everything was read.
    unread: bool,
    /// Where the server was told to stream from, if this process told it: a session may show the
    /// old value for a moment after a reload.
    source: Option<Option<Source>>,
    /// When the server was last started, and how often in a row that had come to nothing before.
    started: Option<(Time, u32)>,
    last_tick: Time,
    last_look: Time,
    status: Arc<Status>,
    verdicts: BTreeMap<&'static str, Verdict>,
    holds: BTreeMap<&'static str, Held>,
    /// Entries for the journal are made; the simulator does without.
    pub journals: bool,
    /// Actions that the checker refused, newest last: never any, unless a rule is broken.
    pub refused: Vec<String>,
    /// How often each rule became the verdict of its controller.
    pub fired: BTreeMap<String, u64>,
}

/// Where and as what an agent runs.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster: String,
    pub service: String,
    pub node: String,
    /// Where the others reach this node's PostgreSQL.
    pub host: String,
    pub port: u16,
}

impl Agent {
    /// An agent that knows its own disk and nothing else yet.
    pub fn new(identity: Identity, policy: Policy, durable: Durable, now: Time) -> Agent {
        let peers = policy.nodes.iter().filter(|node| **node != identity.node);
        let peers = peers
            .map(|node| {
                let detector = Detector::new(policy::HEARTBEAT_MS);
                (node.clone(), Peer { status: None, detector })
            })
            .collect();
        let view = View {
            me: identity.node.clone(),
            host: identity.host.clone(),
            port: identity.port,
            policy,
            durable,
            pg: PgFacts::default(),
            pg_alive: now,
            parked: None,
            trimmed: None,
            promoting: None,
            seen_tli: 0,
            slots_kept: None,
            misbranched: false,
            rejoin: None,
            put_back: None,
            restart: false,
            rot: None,
            confirmed: None,
            store: StoreView::default(),
            peers,
            probe: Probe::default(),
            campaign: None,
            reason: None,
            campaign_pause: None,
            leading: Leading::default(),
            wish: None,
            failures: BTreeMap::new(),
            awake: now,
            without: None,
        };
        let status = Arc::new(tell::status(&view, now, None));
        Agent {
            view,
            keys: Keys::new(&identity.cluster, &identity.service),
            next_id: 1,
            generation: 0,
            running: BTreeMap::new(),
            persisting: None,
            writing: None,
            unread: true,
            source: None,
            started: None,
            last_tick: now,
            last_look: now,
            status,
            verdicts: BTreeMap::new(),
            holds: BTreeMap::new(),
            journals: true,
            refused: Vec::new(),
            fired: BTreeMap::new(),
        }
    }

    /// For tests: takes one rule of the protocol away.
    pub fn without(mut self, guard: Guard) -> Agent {
        self.view.without = Some(guard);
        self
    }

    /// Rises with each step that changes the server. A look that began under an older one is stale.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the others are told.
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    /// The last verdict of each controller.
    pub fn verdicts(&self) -> &BTreeMap<&'static str, Verdict> {
        &self.verdicts
    }

    /// The keys of the service, to read and to watch.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Takes in what happened, judges, and answers with what is to be done.
    pub fn step(&mut self, now: Time, input: Input) -> Vec<Command> {
        let mut out = Vec::new();
        let changed = self.learn(now, input, &mut out);
        if changed {
            self.act(now, &mut out);
            self.tell(now, &mut out);
        }
        out
    }

    fn id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }

    fn tell(&mut self, now: Time, out: &mut Vec<Command>) {
        let local = self.running.get(&Lane::Local).map(|running| &running.action);
        let status = tell::status(&self.view, now, local);
        if tell::matters(&self.status, &status) {
            out.push(Command::Tell);
        }
        self.status = Arc::new(status);
    }
}

/// An action as a command of the outside, if it is one.
fn is_routine(action: &Action) -> bool {
    match action {
        Action::Pg { action } => matches!(
            action,
            PgAction::Observe | PgAction::Evidence | PgAction::Slots { .. } | PgAction::Checkpoint
        ),
        Action::Store { write } => matches!(**write, Write::Lease { .. } | Write::Renew { .. }),
        Action::Probe { .. } | Action::Mind { .. } => true,
        Action::Persist { .. }
        | Action::EndCampaign
        | Action::SummonAll
        | Action::FastForward { .. }
        | Action::HandOver { .. }
        | Action::EndWish { .. } => false,
    }
}
