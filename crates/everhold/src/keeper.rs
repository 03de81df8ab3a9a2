//! Drives the agent of one service: gives it what happens, carries out what it commands.
//!
//! Nothing here judges. One task owns the agent; whatever waits runs in tasks of its own and comes
//! back as an input.

use crate::archive::Tender;
use crate::backup::cloner::{Cloner, Wanted};
use crate::backup::origin::Origin;
use crate::backup::shown::{self, Summary};
use crate::failovers::{self, LastFailover};
use crate::holds::Notes;
use crate::journal::Journal;
use crate::link::Hold;
use crate::minder::Feed;
use crate::{clock, disk};
use everhold_adapters::postgres::{self, Postgres};
use everhold_core::agent::{Agent, Command, Input};
use everhold_core::decide::Verdict;
use everhold_core::health;
use everhold_core::ids::{Member, Time};
use everhold_core::minder;
use everhold_core::postgres::{BadPages, PgAction, PgOutcome, StopMode};
use everhold_core::status::Status;
use everhold_core::term::{Redundancy, Term};
use everhold_core::view::{Cause, View};
use everhold_store::{Etcd, Store, WatchEvent};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// The agent's own clock: half of a heartbeat.
const TICK: Duration = Duration::from_millis(50);
/// Between two looks at a server that nothing happens to.
const LOOK: Duration = Duration::from_millis(200);
/// A witness waits so long for an answer of the leader's PostgreSQL.
const PROBE: Duration = Duration::from_millis(300);
/// Between two tries to read the store.
const REREAD: Duration = Duration::from_millis(200);
/// After passwords could not be given.
const ROLES_AGAIN: Duration = Duration::from_secs(2);
/// Inputs not yet taken in. The agent takes each in microseconds.
const INPUTS_MAX: usize = 4_096;

/// What a keeper needs.
pub struct Parts {
    pub agent: Agent,
    pub service: String,
    pub postgres: Arc<Postgres>,
    pub store: Etcd,
    pub journal: Journal,
    /// Where the durable record stands.
    pub record: PathBuf,
    pub replication_password: PathBuf,
    /// For questions to the servers of other machines.
    pub probe_tls: Option<Arc<rustls::ClientConfig>>,
    pub minder: Feed,
    /// Of a service with backups.
    pub archive: Option<Tender>,
    /// The same: no second database is made beside one that could be brought back.
    pub origin: Option<Origin>,
    /// Makes copies out of the repositories where that is asked for.
    pub cloner: Cloner,
    /// Told of each change of the status and of what is waited for; `true`: at once.
    pub tell: Tell,
}

/// Where a status goes.
pub type Tell = Box<dyn Fn(Arc<Status>, Vec<Hold>, bool) + Send + Sync>;

/// What an agent knows, what it concludes, and its time.
pub type Seen = (Box<View>, BTreeMap<&'static str, Verdict>, Time);

/// What is counted and measured of a service, for Prometheus.
pub struct Measured {
    pub facts: Arc<health::Facts>,
    /// How often each rule became a verdict, and acts that the checker refused.
    pub fired: BTreeMap<String, u64>,
    pub refused: usize,
    pub store_reachable: bool,
    pub store_revision: u64,
    pub term: Option<Term>,
    pub redundancy: Redundancy,
    /// Since each other node was heard.
    pub silence_ms: BTreeMap<String, u64>,
    pub last_failover: Option<LastFailover>,
    pub backups: Option<Summary>,
}

/// A question that only the owner of the agent can answer.
pub enum Ask {
    View(oneshot::Sender<Seen>),
    Measure(oneshot::Sender<Measured>),
    Wish {
        cause: Cause,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Decide nothing any more and stop the server.
    Halt(oneshot::Sender<Result<(), String>>),
}

/// The handle of a running keeper.
#[derive(Clone)]
pub struct Keeper {
    inputs: mpsc::Sender<Input>,
    asks: mpsc::Sender<Ask>,
    health: watch::Receiver<Arc<health::Facts>>,
    postgres: Arc<Postgres>,
}

impl Keeper {
    /// Starts it. It runs until the process ends.
    pub fn start(parts: Parts) -> Keeper {
        let (inputs, taken) = mpsc::channel(INPUTS_MAX);
        let (asks, asked) = mpsc::channel(64);
        let (health, seen) = watch::channel(Arc::new(facts(&parts.agent)));
        let postgres = parts.postgres.clone();
        let keeper = Keeper { inputs: inputs.clone(), asks, health: seen, postgres };
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(0),
            member: Mutex::new(parts.agent.view.member()),
            postgres: parts.postgres.clone(),
            origin: parts.origin.clone(),
            inputs,
        });
        tokio::spawn(look(shared.clone()));
        let needed = parts.agent.view.durable.put_back.is_some();
        tokio::spawn(drop_leftovers(shared.clone(), needed));
        tokio::spawn(renew_roles(shared.clone()));
        tokio::spawn(watch_deaths(shared.clone()));
        let prefix = parts.agent.keys().prefix.clone();
        tokio::spawn(watch_store(parts.store.clone(), prefix, shared.inputs.clone()));
        tokio::spawn(
            Driver {
                parts,
                shared,
                running: BTreeMap::new(),
                wish: None,
                promotion: None,
                notes: Notes::default(),
                health,
                last_failover: None,
                backups: None,
            }
            .run(taken, asked),
        );
        keeper
    }

    /// Another node was heard. Dropped if the agent is that far behind: the next one comes soon.
    pub fn heard(&self, node: String, status: Arc<Status>) {
        let _ = self.inputs.try_send(Input::Heard { node, status });
    }

    pub async fn policy(&self, policy: everhold_core::policy::Policy) {
        let _ = self.inputs.send(Input::Policy { policy }).await;
    }

    /// These are all bad pages known.
    pub async fn scrubbed(&self, bad: BadPages) {
        let _ = self.inputs.send(Input::Scrubbed { bad }).await;
    }

    /// Has the standby's server started anew, if it is still that process.
    pub async fn restart(&self, pid: i32) -> Result<(), String> {
        let seen = self.view().await.ok_or("the agent is stopping")?;
        if seen.0.pg.pid != Some(pid) {
            return Err(format!("pid {pid} is not its PostgreSQL any more"));
        }
        if !seen.0.is_standby() {
            return Err("it is no running standby".to_string());
        }
        self.inputs.send(Input::Restart).await.map_err(|_| "the agent is stopping".to_string())
    }

    /// The facts and verdicts as they stand.
    pub async fn view(&self) -> Option<Seen> {
        let (answer, told) = oneshot::channel();
        self.asks.send(Ask::View(answer)).await.ok()?;
        told.await.ok()
    }

    /// Removes what a recovery made beside the data; with `unfinished` only what never became whole.
    pub async fn drop_restored(&self, unfinished: bool) -> Result<(), String> {
        self.postgres.drop_restored(unfinished).await.map_err(|error| chain(&error))
    }

    /// What load balancers go by, as it stands; nobody is asked.
    pub fn health(&self) -> Arc<health::Facts> {
        self.health.borrow().clone()
    }

    pub async fn measure(&self) -> Option<Measured> {
        let (answer, told) = oneshot::channel();
        self.asks.send(Ask::Measure(answer)).await.ok()?;
        told.await.ok()
    }

    /// Asks for a switchover or a forced failover; returns when it was done or refused.
    pub async fn wish(&self, cause: Cause) -> Result<(), String> {
        let (done, told) = oneshot::channel();
        let gone = |_| "the agent is stopping".to_string();
        self.asks.send(Ask::Wish { cause, done }).await.map_err(|_| gone(()))?;
        told.await.map_err(|_| gone(()))?
    }
}

impl Keeper {
    /// Stops the server cleanly; the agent of the service decides nothing any more.
    pub async fn halt(&self) -> Result<(), String> {
        let (done, told) = oneshot::channel();
        let gone = |_| "the agent is stopping".to_string();
        self.asks.send(Ask::Halt(done)).await.map_err(|_| gone(()))?;
        told.await.map_err(|_| gone(()))?
    }
}

/// What the tasks of a keeper share.
struct Shared {
    generation: AtomicU64,
    member: Mutex<Member>,
    postgres: Arc<Postgres>,
    origin: Option<Origin>,
    inputs: mpsc::Sender<Input>,
}

impl Shared {
    fn member(&self) -> Member {
        self.member.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Looks at the server again and again.
async fn look(shared: Arc<Shared>) {
    loop {
        let generation = shared.generation.load(Ordering::Acquire);
        let facts = shared.postgres.observe(&shared.member()).await;
        if shared.inputs.send(Input::Pg { generation, facts }).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a recovery left that ended with an earlier agent. What is whole may be `needed` still.
async fn drop_leftovers(shared: Arc<Shared>, needed: bool) {
    if let Err(error) = shared.postgres.drop_restored(needed).await {
        let error = chain(&error);
        tracing::warn!(error, "what a recovery left unfinished stays, until the next one");
    }
}

/// What was restored and leads gets this cluster's passwords, tried until it has them: an agent may
/// have been killed before, and no standby gets in without.
async fn renew_roles(shared: Arc<Shared>) {
    while !shared.inputs.is_closed() {
        match shared.postgres.renew_roles().await {
            Ok(true) => {
                tracing::info!("the roles of what was restored have this cluster's passwords")
            }
            Ok(false) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "what was restored has other passwords; tried again");
                tokio::time::sleep(ROLES_AGAIN).await;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn watch_deaths(shared: Arc<Shared>) {
    let mut deaths = shared.postgres.death();
    while deaths.changed().await.is_ok() {
        if shared.inputs.send(Input::PgDied).await.is_err() {
            return;
        }
    }
}

/// Hands on what changes in the store, and reads everything again after a gap.
async fn watch_store(store: Etcd, prefix: String, inputs: mpsc::Sender<Input>) {
    loop {
        let mut watch = store.watch(&prefix, 0);
        let mut lost = false;
        while let Some(event) = watch.next().await {
            let sent = match event {
                WatchEvent::Reset(snapshot) => {
                    lost = false;
                    inputs.send(Input::Store { kvs: snapshot.kvs }).await
                }
                WatchEvent::Changed(changes) => {
                    let mut sent = Ok(());
                    for change in changes.changes {
                        let (key, kv) = match change {
                            everhold_core::kv::Change::Put(kv) => (kv.key.clone(), Some(kv)),
                            everhold_core::kv::Change::Deleted { key } => (key, None),
                        };
                        sent = inputs.send(Input::StoreChanged { key, kv }).await;
                    }
                    sent
                }
                WatchEvent::Progress if lost => {
                    lost = false;
                    read_store(&store, &prefix, &inputs).await;
                    Ok(())
                }
                WatchEvent::Progress => Ok(()),
                WatchEvent::Lost(error) => {
                    tracing::warn!(%error, "the store is out of reach");
                    lost = true;
                    inputs.send(Input::StoreLost).await
                }
                WatchEvent::Ended(error) => {
                    tracing::error!(%error, "the store is not the one it was");
                    inputs.send(Input::StoreLost).await
                }
            };
            if sent.is_err() {
                return;
            }
        }
        tokio::time::sleep(REREAD).await;
    }
}

async fn read_store(store: &Etcd, prefix: &str, inputs: &mpsc::Sender<Input>) {
    loop {
        match store.get_prefix(prefix).await {
            Ok(snapshot) => {
                let _ = inputs.send(Input::Store { kvs: snapshot.kvs }).await;
                return;
            }
            Err(_) => tokio::time::sleep(REREAD).await,
        }
    }
}

struct Driver {
    parts: Parts,
    shared: Arc<Shared>,
    running: BTreeMap<u64, AbortHandle>,
    wish: Option<oneshot::Sender<Result<(), String>>>,
    /// The promotion under way.
    promotion: Option<u64>,
    notes: Notes,
    health: watch::Sender<Arc<health::Facts>>,
    last_failover: Option<LastFailover>,
    backups: Option<Summary>,
}

fn facts(agent: &Agent) -> health::Facts {
    health::Facts::of(&agent.view, agent.status(), clock::now())
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, mut asks: mpsc::Receiver<Ask>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut wake: Option<Time> = None;
        loop {
            let now = clock::now();
            let pause = wake.map_or(TICK, |at| Duration::from_millis(at.since(now)));
            let input = tokio::select! {
                biased;
                _ = tick.tick() => Input::Tick,
                input = inputs.recv() => match input {
                    Some(input) => input,
                    None => return,
                },
                Some(ask) = asks.recv() => match ask {
                    Ask::Halt(done) => return self.halt(done).await,
                    Ask::Measure(answer) => {
                        let _ = answer.send(self.measure());
                        continue;
                    }
                    Ask::View(answer) => {
                        self.tell_view(answer);
                        continue;
                    }
                    Ask::Wish { cause, done } => match self.wish(done) {
                        true => Input::Wished { cause },
                        false => continue,
                    },
                },
                () = tokio::time::sleep(pause), if wake.is_some() => {
                    wake = None;
                    Input::Tick
                }
            };
            if let Input::PgDone { id, .. } = &input
                && self.promotion == Some(*id)
            {
                self.promotion = None;
            }
            self.last_failover = failovers::told(&input).or(self.last_failover.take());
            self.backups = failovers::told_of(&input, shown::KEY).or(self.backups.take());
            let commands = self.parts.agent.step(clock::now(), input);
            self.health.send_replace(Arc::new(facts(&self.parts.agent)));
            self.tend_minder();
            if let Some(archive) = &self.parts.archive {
                archive.lead(self.parts.agent.view.led_term());
            }
            self.shared.generation.store(self.parts.agent.generation(), Ordering::Release);
            let member = self.parts.agent.view.member();
            *self.shared.member.lock().unwrap_or_else(PoisonError::into_inner) = member;
            let mut at_once = false;
            for command in commands {
                match command {
                    Command::Wake { at } => wake = Some(wake.map_or(at, |old: Time| old.min(at))),
                    Command::Tell => at_once = true,
                    other => self.execute(other),
                }
            }
            let mut holds = self.notes.holds(&self.parts.service, &self.parts.agent);
            holds.extend(self.parts.archive.iter().flat_map(Tender::holds));
            (self.parts.tell)(self.parts.agent.status(), holds, at_once);
        }
    }

    /// Each postmaster has a minder; that of a standby is at rest, armed before it is promoted.
    fn tend_minder(&self) {
        let view = &self.parts.agent.view;
        self.parts.minder.tend(view.pg.pid, view.is_primary());
        if view.is_standby() && self.promotion.is_none() {
            self.parts.minder.rest();
        }
    }

    fn measure(&self) -> Measured {
        let agent = &self.parts.agent;
        let (view, now) = (&agent.view, clock::now());
        let silence = view.peers.iter().filter_map(|(node, peer)| {
            peer.detector.last().map(|at| (node.clone(), now.since(at)))
        });
        Measured {
            facts: Arc::new(facts(agent)),
            fired: agent.fired.clone(),
            refused: agent.refused.len(),
            store_reachable: view.store.reachable,
            store_revision: view.store.newest_rev(),
            term: view.term().cloned(),
            redundancy: view.policy.redundancy,
            silence_ms: silence.collect(),
            last_failover: self.last_failover.clone(),
            backups: self.backups.clone(),
        }
    }

    fn tell_view(&self, answer: oneshot::Sender<Seen>) {
        let agent = &self.parts.agent;
        let seen = (Box::new(agent.view.clone()), agent.verdicts().clone(), clock::now());
        let _ = answer.send(seen);
    }

    /// One wish at a time.
    fn wish(&mut self, done: oneshot::Sender<Result<(), String>>) -> bool {
        if self.wish.is_some() {
            let _ = done.send(Err("another switchover is under way".to_string()));
            return false;
        }
        self.wish = Some(done);
        true
    }

    async fn halt(mut self, done: oneshot::Sender<Result<(), String>>) {
        // The archiver goes with it.
        self.parts.archive = None;
        // Balancers are told first.
        let last = health::Facts { at: Time(0), ..facts(&self.parts.agent) };
        self.health.send_replace(Arc::new(last));
        for running in std::mem::take(&mut self.running).into_values() {
            running.abort();
        }
        let stop = PgAction::Stop { mode: StopMode::Fast };
        let _ = done.send(perform(&self.shared, &stop).await.map(|_| ()));
    }

    fn execute(&mut self, command: Command) {
        let inputs = self.shared.inputs.clone();
        match command {
            Command::Persist { id, durable } => {
                let path = self.parts.record.clone();
                tokio::spawn(async move {
                    let saved = tokio::task::spawn_blocking(move || disk::save(&path, &durable));
                    let result = match saved.await {
                        Ok(saved) => saved.map_err(|error| error.to_string()),
                        Err(error) => Err(error.to_string()),
                    };
                    let _ = inputs.send(Input::Persisted { id, result }).await;
                });
            }
            Command::Run { id, action } => {
                if let PgAction::Promote { .. } = &action {
                    self.promotion = Some(id);
                    let right = minder::promotion(&self.parts.agent.view, clock::now());
                    self.parts.minder.feed(right);
                }
                let shared = self.shared.clone();
                let is_clone = matches!(action, PgAction::Clone { .. });
                let cloner = self.parts.cloner.clone();
                let term = self.parts.agent.view.term().filter(|_| is_clone);
                let elsewhere = term.map(Wanted::of);
                let task = tokio::spawn(async move {
                    if let Some(wanted) = elsewhere {
                        cloner.make(wanted).await;
                    }
                    let result = perform(&shared, &action).await;
                    let facts = shared.postgres.observe(&shared.member()).await;
                    let _ = shared.inputs.send(Input::PgDone { id, result, facts }).await;
                });
                self.running.retain(|_, running| !running.is_finished());
                self.running.insert(id, task.abort_handle());
            }
            Command::Cancel { id } => {
                if let Some(running) = self.running.remove(&id) {
                    running.abort();
                }
            }
            Command::Write { id, txn } => {
                let store = self.parts.store.clone();
                tokio::spawn(async move {
                    let result = store.txn(&txn).await.map_err(|error| error.to_string());
                    let _ = inputs.send(Input::Written { id, result }).await;
                });
            }
            Command::Read => {
                let store = self.parts.store.clone();
                let prefix = self.parts.agent.keys().prefix.clone();
                tokio::spawn(async move { read_store(&store, &prefix, &inputs).await });
            }
            Command::Probe { node, epoch } => self.probe(&node, epoch),
            Command::Mind { epoch, until, k, members } => {
                self.parts.minder.feed(minder::Right { epoch, until, k, members });
            }
            Command::WishEnded { refused } => {
                if let Some(done) = self.wish.take() {
                    let _ = done.send(refused.map_or(Ok(()), Err));
                }
            }
            Command::Journal { event } => {
                self.notes.journaled(&self.parts.journal, &self.parts.service, *event);
            }
            Command::Wake { .. } | Command::Tell => {}
        }
    }

    /// Asks the leader's PostgreSQL directly, as a client over the network would.
    fn probe(&self, node: &str, epoch: u64) {
        let status = self.parts.agent.view.peers.get(node).and_then(|peer| peer.status.clone());
        let inputs = self.shared.inputs.clone();
        let password = self.parts.replication_password.clone();
        let tls = self.parts.probe_tls.clone();
        tokio::spawn(async move {
            let ok = match status {
                Some(status) => {
                    postgres::probe(&status.host, status.port, &password, tls, PROBE).await.is_ok()
                }
                None => false,
            };
            let _ = inputs.send(Input::Probed { epoch, ok }).await;
        });
    }
}

/// Carries one action out, in a bounded time.
async fn perform(shared: &Shared, action: &PgAction) -> Result<PgOutcome, String> {
    let bound = Duration::from_secs(match action {
        PgAction::Park => 2,
        PgAction::SetSource { .. } | PgAction::SetSync { .. } | PgAction::Observe => 3,
        PgAction::Slots { .. } => 5,
        PgAction::Promote { .. } => 10,
        PgAction::Stop { .. } | PgAction::Evidence => 30,
        PgAction::Barrier { .. } => 60,
        // Crash recovery of a busy server takes its time.
        PgAction::Start { .. } | PgAction::Trim { .. } | PgAction::Bootstrap => 600,
        PgAction::Checkpoint => 1_800,
        PgAction::Rewind { .. } | PgAction::Clone { .. } => 86_400,
        PgAction::PutBack { .. } => 60,
    });
    if let (PgAction::Bootstrap, Some(origin)) = (action, &shared.origin) {
        origin.clone().require_nothing_held().await?;
    }
    let me = shared.member();
    match tokio::time::timeout(bound, shared.postgres.run(&me, action)).await {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_) => Err(format!("not done within {} s", bound.as_secs())),
    }
}

/// An error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
