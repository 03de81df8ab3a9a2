//! The store: core's own pure one, behind delays, stalls, lost answers and watches.

use crate::world::{Event, ForAgent, MS, S, World};
use everhold_core::agent::{Id, Input};
use everhold_core::ids::Epoch;
use everhold_core::kv::{Change, Kv, Memory, Op, Txn, TxnOutcome};
use everhold_core::records::{Keys, decode, epoch_of};
use everhold_core::term::Term;

/// A request that isn't answered is given up after this.
const TIMEOUT: u64 = S;
const RETRY: u64 = 300 * MS;

pub struct Store {
    pub memory: Memory,
    pub keys: Keys,
    pub stalled_until: u64,
    /// Answers and requests that get lost, per mille each.
    pub flaky: u64,
    /// How long a watch takes to tell, at most.
    pub watch: u64,
    pub epoch: Epoch,
    led: Option<Term>,
}

/// An agent's reading of the store.
#[derive(Debug, Default)]
pub struct Watch {
    /// Rises with each read: what an older watch tells is void.
    pub session: u32,
    pub alive: bool,
    /// It tells nothing before this.
    next: u64,
}

impl Store {
    pub fn new() -> Store {
        Store {
            memory: Memory::new(),
            keys: Keys::new("sim", "main"),
            stalled_until: 0,
            flaky: 0,
            watch: 10 * MS,
            epoch: 0,
            led: None,
        }
    }

    pub fn record(&self, name: &str) -> Option<Kv> {
        let key = format!("{}{name}", self.keys.prefix);
        self.memory.range(&key).kvs.into_iter().find(|kv| kv.key == key)
    }

    /// The term's record as last written, which is not read anew each time it is asked for.
    pub fn read_term(&self) -> Option<&Term> {
        self.led.as_ref()
    }

    /// What is remembered of the records is what they say.
    pub fn check_memory(&self) -> Result<(), String> {
        let written = |name: &str| self.record(name).map(|kv| kv.value);
        let term = written("term").and_then(|text| decode::<Term>(&text).ok());
        let epoch = written("epoch").and_then(|text| epoch_of(&text).ok());
        if term == self.led && epoch.unwrap_or(0) == self.epoch {
            return Ok(());
        }
        Err(format!("the simulation remembers {:?}, the store holds {term:?}", self.led))
    }
}

impl World {
    pub fn store_write(&mut self, n: usize, id: Id, txn: Txn) {
        if self.publishes(&txn) {
            let term = txn.ops.iter().find_map(|op| match op {
                Op::Put { value, .. } => decode::<Term>(value).ok(),
                Op::Delete { .. } => None,
            });
            if let Some(term) = term {
                self.check_sound(n, &term);
                self.note_put_back(n, &term);
            }
        }
        let gen_ = self.nodes[n].gen_;
        let request_lost = self.net.store[n] || self.rng.chance(self.store.flaky);
        let answer_lost = self.rng.chance(self.store.flaky);
        let mut delay = self.rng.spread(300, 6 * MS);
        let stalled = self.store.stalled_until.saturating_sub(self.now);
        let late = stalled + delay >= TIMEOUT;
        // A request that nobody waits for any more may be carried out all the same, and late.
        if answer_lost && self.rng.chance(600) {
            delay += self.rng.between(0, 3 * S);
        }
        let mut answer = !answer_lost && !late;
        if self.publishes(&txn)
            && let Some(late) = self.plan.late_publish.take()
        {
            (delay, answer) = (delay + late, false);
        }
        if !request_lost && (stalled == 0 || self.rng.chance(600)) {
            let txn = Box::new(txn);
            self.after(stalled + delay, Event::StoreApply { node: n, gen_, id, txn, answer });
            if answer {
                return;
            }
        }
        let result = Err("no answer".to_string());
        self.tell_agent(n, TIMEOUT, ForAgent::Input(Box::new(Input::Written { id, result })));
    }

    /// It makes a term, and ends the campaign for it.
    fn publishes(&self, txn: &Txn) -> bool {
        let keys = &self.store.keys;
        let touches =
            |name: &str| txn.ops.iter().any(|op| op.key().strip_prefix(&keys.prefix) == Some(name));
        touches("term") && touches("campaign") && !touches("epoch")
    }

    pub fn store_apply(&mut self, n: usize, gen_: u32, id: Id, txn: &Txn, answer: bool) {
        let result = self.store.memory.apply(txn).map_err(|why| why.to_string());
        if let Ok(TxnOutcome::Done { rev }) = &result
            && !txn.ops.is_empty()
        {
            self.announce(n, *rev);
        }
        if answer {
            let delay = self.rng.spread(300, 6 * MS);
            let input = Box::new(Input::Written { id, result });
            let what = ForAgent::Input(input);
            self.after(delay, Event::Agent { node: n, gen_, what });
        }
    }

    /// A write by somebody other than the agents.
    pub fn store_put(&mut self, txn: &Txn) {
        if let Ok(TxnOutcome::Done { rev }) = self.store.memory.apply(txn) {
            self.announce(usize::MAX, rev);
        }
    }

    /// Tells the watchers, and checks what was written.
    fn announce(&mut self, writer: usize, rev: u64) {
        let prefix = self.store.keys.prefix.clone();
        let Ok(all) = self.store.memory.changes_since(&prefix, rev) else { return };
        for change in all.into_iter().flat_map(|at| at.changes) {
            let (key, kv) = match change {
                Change::Put(kv) => (kv.key.clone(), Some(kv)),
                Change::Deleted { key } => (key, None),
            };
            self.check_record(writer, &key[prefix.len()..], kv.as_ref());
            for n in 0..self.nodes.len() {
                if !self.nodes[n].watch.alive {
                    continue;
                }
                if self.net.store[n] {
                    self.break_watch(n);
                    continue;
                }
                let at = self.now + self.rng.spread(200, self.store.watch);
                let watch = &mut self.nodes[n].watch;
                watch.next = watch.next.max(at);
                let (delay, session) = (watch.next - self.now, watch.session);
                let what = ForAgent::Watched { session, key: key.clone(), kv: kv.clone() };
                self.tell_agent(n, delay, what);
            }
        }
    }

    pub fn break_watch(&mut self, n: usize) {
        let watch = &mut self.nodes[n].watch;
        watch.alive = false;
        let session = watch.session;
        let delay = self.rng.between(S, 2 * S);
        self.tell_agent(n, delay, ForAgent::WatchLost { session });
    }

    pub fn watch_lost(&mut self, n: usize, session: u32) {
        if self.nodes[n].watch.session == session {
            self.give(n, Input::StoreLost);
            self.tell_agent(n, RETRY, ForAgent::StoreRetry { session });
        }
    }

    /// Begins a read; the watch that was is over.
    pub fn store_retry(&mut self, n: usize, session: u32) {
        if self.nodes[n].watch.session != session {
            return;
        }
        self.nodes[n].watch.session += 1;
        self.nodes[n].watch.alive = false;
        let session = self.nodes[n].watch.session;
        let delay = self.rng.spread(300, 6 * MS);
        self.tell_agent(n, delay, ForAgent::StoreRead { session });
    }

    /// The read reaches the store.
    pub fn store_read(&mut self, n: usize, session: u32) {
        if self.nodes[n].watch.session != session || self.nodes[n].watch.alive {
            return;
        }
        let stalled = self.store.stalled_until.saturating_sub(self.now);
        if self.net.store[n] || stalled > TIMEOUT || self.rng.chance(self.store.flaky) {
            self.tell_agent(n, TIMEOUT, ForAgent::WatchLost { session });
            return;
        }
        if stalled > 0 {
            self.tell_agent(n, stalled, ForAgent::StoreRead { session });
            return;
        }
        let kvs = self.store.memory.range(&self.store.keys.prefix).kvs;
        let delay = self.rng.spread(300, 6 * MS);
        let watch = &mut self.nodes[n].watch;
        watch.alive = true;
        watch.next = self.now + delay;
        self.tell_agent(n, delay, ForAgent::Input(Box::new(Input::Store { kvs })));
    }

    fn check_record(&mut self, writer: usize, name: &str, kv: Option<&Kv>) {
        let Some(kv) = kv else { return };
        match name {
            "epoch" => {
                let Ok(epoch) = epoch_of(&kv.value) else { return };
                crate::say!(self, "store: epoch {epoch} by {writer}");
                if epoch < self.store.epoch {
                    self.violated(format!("the store's epoch falls to {epoch}"));
                }
                self.store.epoch = epoch;
            }
            "term" => {
                let Ok(term) = decode::<Term>(&kv.value) else { return };
                crate::say!(self, "store: term by {writer}: {}", show(&term));
                let (epoch, open) =
                    self.store.led.as_ref().map_or((0, false), |t| (t.epoch, t.open));
                if term.epoch < epoch {
                    self.violated(format!("the term falls to epoch {}", term.epoch));
                }
                if term.epoch == epoch && open && !term.open {
                    self.violated(format!("the open term {} is closed again", term.epoch));
                }
                self.store.led = Some(term);
                (0..self.nodes.len()).for_each(|n| self.is_let_go(n));
            }
            "campaign" => self.check_campaign(writer, kv),
            _ => {}
        }
    }
}

pub fn show(term: &Term) -> String {
    let sets: Vec<String> = term.inforce.iter().map(|set| set.to_string()).collect();
    let open = if term.open { "open" } else { "closed" };
    format!(
        "{} {open} {} in force [{}] target {} branch {:?}",
        term.epoch,
        term.leader,
        sets.join("; "),
        term.target,
        term.branch()
    )
}
