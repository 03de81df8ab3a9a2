//! How inputs change the view.

use super::{Agent, Command, Input, Lane, Running, tell};
use crate::decide::{Intent, Write, campaign, leader, pg_name, put_back, rejoin, upkeep};
use crate::durable::{Data, Durable};
use crate::ids::{Lsn, Time};
use crate::journal::Event;
use crate::kv::{Kv, Op, TxnOutcome};
use crate::minder;
use crate::policy;
use crate::postgres::{PgAction, PgFacts, PgOutcome, Process};
use crate::status::Summons;
use crate::term::{Branch, Report};
use crate::view::{Campaign, Cause, Failure, Leading, Probe, Rejoin, Wish};

impl Agent {
    /// Takes the input in. False: nothing that any decision looks at has changed.
    pub(super) fn learn(&mut self, now: Time, input: Input, out: &mut Vec<Command>) -> bool {
        match input {
            Input::Tick => self.ticked(now),
            Input::Pg { generation, facts } => {
                if generation != self.generation || self.is_moving() {
                    return false;
                }
                return self.looked(now, facts);
            }
            Input::PgDied => {
                self.generation += 1;
                if self.view.pg.process == Process::Running
                    || self.view.pg.process == Process::Starting
                {
                    self.note_death(now);
                    self.server_left(Process::Remains);
                    self.view.pg_alive = now;
                }
            }
            Input::Persisted { id, result } => return self.persisted(now, id, result, out),
            Input::PgDone { id, result, facts } => {
                return self.pg_done(now, id, result, facts, out);
            }
            Input::Written { id, result } => return self.written(now, id, result, out),
            Input::Store { kvs } => {
                self.unread = false;
                self.keys.learn_all(&mut self.view.store, &kvs, now);
            }
            Input::StoreChanged { key, kv } => {
                self.keys.learn(&mut self.view.store, &key, kv.as_ref(), now);
                if self.view.store.unreadable.is_some() {
                    // Whether that is over, only a look at everything says.
                    self.unread = true;
                    out.push(Command::Read);
                }
            }
            Input::StoreLost => {
                self.view.store.reachable = false;
                self.unread = true;
            }
            Input::Heard { node, status } => {
                let Some(peer) = self.view.peers.get_mut(&node) else { return false };
                peer.detector.heard(now);
                // A position alone changes no decision: the next tick sees it.
                let known = peer.status.as_deref();
                let changed = known.is_none_or(|known| tell::matters(known, &status));
                if let Some(report) = &status.report {
                    self.collect(report.clone());
                }
                let Some(peer) = self.view.peers.get_mut(&node) else { return false };
                peer.status = Some(status);
                return changed;
            }
            Input::Probed { epoch, ok } => {
                self.view.probe.epoch = epoch;
                let slot =
                    if ok { &mut self.view.probe.answered } else { &mut self.view.probe.failed };
                *slot = Some(now);
            }
            Input::Wished { cause } => {
                let epoch = self.view.term().map_or(0, |term| term.epoch);
                self.view.wish = Some(Wish { cause, epoch, since: now });
            }
            // A leader is handed over first, and starts anew in the course of that.
            Input::Restart => self.view.restart = self.view.is_standby(),
            Input::Scrubbed { bad } => {
                if self.view.rot.as_ref() == Some(&bad) {
                    return false;
                }
                self.view.rot = Some(bad);
            }
            Input::Policy { policy } => self.view.policy = policy,
        }
        true
    }

    fn ticked(&mut self, now: Time) {
        if now.since(self.last_tick) > policy::OWN_GAP_MS {
            // Whatever was not heard, this agent was not listening.
            self.view.awake = now;
            self.view.probe = Probe::default();
            for peer in self.view.peers.values_mut() {
                peer.detector.forgive(now);
            }
        }
        self.last_tick = now;
    }

    /// A step is under way that takes the server up or down: what is seen meanwhile means nothing.
    fn is_moving(&mut self) -> bool {
        let moving = self.running.get(&Lane::Local).is_some_and(|running| {
            !matches!(
                running.action,
                PgAction::SetSource { .. } | PgAction::Park | PgAction::SetSync { .. }
            )
        });
        if moving {
            self.view.pg_alive = self.last_tick;
        }
        moving
    }

    /// A server that ends by itself before it is up, or soon after, is started less and less often,
    /// as one that doesn't start.
    fn note_death(&mut self, now: Time) {
        let Some((began, failed)) = self.started.take() else { return };
        let ms = now.since(began);
        if ms < policy::STARTED_MS || self.view.pg.process == Process::Starting {
            let text = format!("PostgreSQL ended by itself {ms} ms after it had started");
            let failure = Failure { times: failed + 1, ..failure(now, text) };
            self.view.failures.insert("start".to_string(), failure);
        }
    }

    /// The server is gone or going: what was known of it is worth nothing any more.
    pub(super) fn server_left(&mut self, process: Process) {
        self.view.pg = PgFacts { process, sysid: self.view.pg.sysid, ..PgFacts::default() };
        self.source = None;
        self.view.parked = None;
        self.view.trimmed = None;
        self.view.leading = Leading::default();
        self.view.promoting = None;
        self.view.misbranched = false;
        self.view.restart = false;
    }

    fn looked(&mut self, now: Time, mut facts: PgFacts) -> bool {
        let answered = facts.in_recovery.is_some() || facts.process != Process::Running;
        if answered {
            self.view.pg_alive = now;
        } else if self.view.pg.process == Process::Running {
            // No answer: what it was is remembered, until it is given up.
            let frozen = now.since(self.view.pg_alive.max(self.view.awake)) >= policy::FROZEN_MS;
            let old = self.view.pg.clone();
            facts = PgFacts { in_recovery: old.in_recovery.filter(|_| !frozen), ..old };
        }
        if let (Process::Running, Some(told)) = (facts.process, &self.source) {
            facts.source.clone_from(told);
        }
        if facts.process == Process::Down && self.view.pg.process != Process::Down {
            self.server_left(Process::Down);
        }
        // Places alone change no decision: the next tick sees them.
        self.view.seen_tli = self.view.seen_tli.max(facts.tli);
        let old = std::mem::replace(&mut self.view.pg, facts);
        let same = only_moved(old, &self.view.pg);
        if self.view.is_primary() {
            self.watch_standbys(now);
        }
        !same || !answered
    }

    /// What a leader concludes from the rows of its walsenders.
    fn watch_standbys(&mut self, now: Time) {
        let leading = &mut self.view.leading;
        leading.began.get_or_insert(now);
        let one = self.view.without != Some(crate::view::Guard::OneWalsender);
        let rows = self.view.pg.walsenders.iter();
        for row in rows.filter(|row| row.streaming && (row.owns_slot || !one)) {
            let known = leading.flushed.get(&row.name).copied();
            if known.is_none_or(|known| row.flush > known) || row.flush >= self.view.pg.lsn {
                leading.streamed.insert(row.name.clone(), now);
                leading.flushed.insert(row.name.clone(), row.flush);
            }
        }
        if let Some((end, at)) = leading.landed {
            for row in self.view.pg.walsenders.iter().filter(|row| row.flush >= end) {
                let known = leading.follows.get(&row.name).is_some_and(|(known, _)| *known == end);
                if !known {
                    leading.follows.insert(row.name.clone(), (end, now.since(at)));
                }
            }
        }
        let Some(term) = self.view.led_term() else { return };
        let names = self.view.pg.sync_names.clone();
        let raising = term.current().k < term.target.k;
        let written = term.open || self.view.leading.barrier == Some(term.epoch);
        let follow = leader::rows_follow(&self.view, &term.target, raising);
        let here = self.view.pg.lsn;
        // An older record is worth less and is held earlier: a standby that is always behind the
        // newest one vouches by those.
        let holding = term.target.members.iter().filter_map(|m| self.view.walsender(m));
        let flushed = holding.map(|row| (row.name.clone(), row.flush)).collect();
        let proven = minder::proven(&self.view.leading.records, &flushed, &upkeep::vouching(term));
        let known = self.view.leading.observed.as_ref().map(|(shown, _)| shown) == names.as_ref();
        let unseen = !follow && self.view.has(crate::view::Guard::Observed);
        if !known && written && !unseen {
            self.view.leading.observed = names.map(|names| (names, here));
        }
        let leading = &mut self.view.leading;
        leading.proven = leading.proven.max(proven);
        leading
            .records
            .retain(|(at, _)| Some(*at) > leading.proven && now.since(*at) < policy::EVIDENCE_MS);
    }

    fn persisted(
        &mut self,
        now: Time,
        id: u64,
        result: Result<(), String>,
        out: &mut Vec<Command>,
    ) -> bool {
        let Some((_, durable, intent)) = self.persisting.take_if(|(own, ..)| *own == id) else {
            return false;
        };
        self.count(now, "persist", result.as_ref().err(), out);
        if result.is_ok() {
            self.view.durable = *durable;
            match intent {
                Intent::Plain => {}
                Intent::Promote(epoch) => self.view.promoting = Some(epoch),
                Intent::Rejoin(plan) => self.view.rejoin = Some(plan),
            }
            // A campaigner that was parked before it campaigned is a witness as the others are.
            self.collect_own();
        }
        true
    }

    fn pg_done(
        &mut self,
        now: Time,
        id: u64,
        result: Result<PgOutcome, String>,
        facts: PgFacts,
        out: &mut Vec<Command>,
    ) -> bool {
        let Some(lane) = self.running.iter().find(|(_, r)| r.id == id).map(|(lane, _)| *lane)
        else {
            return false;
        };
        let Some(running) = self.running.remove(&lane) else { return false };
        if lane == Lane::Local {
            self.generation += 1;
        }
        if let (PgAction::Start { .. }, Ok(_)) = (&running.action, &result) {
            let failed = self.view.failures.get("start").map_or(0, |failure| failure.times);
            self.started = Some((now, failed));
        }
        self.count(now, pg_name(&running.action), result.as_ref().err(), out);
        let stopped = matches!(running.action, PgAction::Stop { .. }) && result.is_ok();
        if stopped {
            self.server_left(Process::Down);
        }
        match result {
            Ok(outcome) => self.concluded(now, &running, outcome, out),
            Err(_) => self.failed(&running),
        }
        self.looked(now, facts);
        true
    }

    fn concluded(
        &mut self,
        now: Time,
        running: &Running,
        outcome: PgOutcome,
        out: &mut Vec<Command>,
    ) {
        match (&running.action, outcome) {
            (PgAction::Park, PgOutcome::Parked { end, tli }) => {
                self.view.parked = Some((end, tli));
                self.collect_own();
            }
            (PgAction::Trim { line }, PgOutcome::Trimmed { restarted }) => {
                self.view.trimmed = Some(line.clone());
                if restarted {
                    self.view.parked = None;
                }
            }
            (PgAction::Promote { branch, .. }, PgOutcome::Promoted { tli, parent, fork }) => {
                self.view.parked = None;
                self.view.promoting = None;
                self.view.seen_tli = self.view.seen_tli.max(tli);
                let as_published = (tli, parent, fork) == (branch.tli, branch.parent, branch.fork);
                self.view.misbranched = !as_published;
                if !as_published {
                    let text = format!("promoted to {tli} from {parent} at {fork}, not {branch:?}");
                    self.view.failures.insert("promote".to_string(), failure(now, text));
                }
            }
            (PgAction::SetSource { source } | PgAction::Start { source, .. }, _) => {
                self.source = Some(source.clone());
            }
            (PgAction::SetSync { .. }, _) => self.view.leading.observed = None,
            (PgAction::Barrier { epoch }, _) => {
                self.view.leading.barrier = Some(*epoch);
                self.view.leading.observed = None;
            }
            (PgAction::Checkpoint, _) => {
                // A place read before the proof may lie before a commit that nobody waited for.
                if self.view.leading.checkpointed != running.names {
                    self.view.leading.observed = None;
                }
                self.view.leading.checkpointed.clone_from(&running.names);
            }
            (PgAction::Evidence, PgOutcome::Evidence { end }) => {
                let leading = &mut self.view.leading;
                let slow = now.since(running.began) >= policy::SLOW_FLUSH_MS;
                leading.slow = slow.then(|| leading.slow.unwrap_or(running.began));
                leading.landed = Some((end, now));
                leading.evidence = Some((running.began, end));
                if leading.records.len() == policy::EVIDENCE_RECORDS_MAX {
                    leading.records.remove(0);
                }
                leading.records.push((running.began, end));
            }
            (PgAction::Bootstrap, PgOutcome::Bootstrapped { sysid }) => {
                let root = Branch { tli: 1, epoch: 0, parent: 0, fork: Lsn(0) };
                let durable = Durable {
                    promise: 1,
                    incarnation: 1,
                    data: Data::Ok,
                    sysid: Some(sysid),
                    line: vec![root],
                    ..Durable::default()
                };
                self.persist(durable, Intent::Plain, out);
            }
            (PgAction::Rewind { epoch, source, .. } | PgAction::Clone { epoch, source, .. }, _) => {
                // The source is still the leader it was, or this copy is of no use.
                let valid = self
                    .view
                    .term()
                    .is_some_and(|term| term.leader == source.member && term.epoch >= *epoch);
                match rejoin::copied(&self.view, now).filter(|_| valid) {
                    Some(crate::decide::Action::Persist { durable, intent }) => {
                        self.view.rejoin = None;
                        self.persist(*durable, intent, out);
                    }
                    Some(_) | None => self.view.rejoin = Some(Rejoin::Clone { fork: None }),
                }
            }
            (PgAction::PutBack { .. }, PgOutcome::NotPutBack { why }) => {
                self.view.failures.insert("put-back".to_string(), failure(now, why));
                if let Some(durable) = put_back::taken_back(&self.view) {
                    self.persist(durable, Intent::Plain, out);
                }
            }
            (PgAction::PutBack { id, .. }, _) => self.view.put_back = Some(id.clone()),
            (_, _) => {}
        }
    }

    fn failed(&mut self, running: &Running) {
        match &running.action {
            // A rewind that failed leaves garbage; a clone makes it whole.
            PgAction::Rewind { fork, .. } => {
                self.view.rejoin = Some(Rejoin::Clone { fork: Some(*fork) });
            }
            // Half promoted, perhaps: it is not tried twice.
            PgAction::Promote { .. } => self.view.promoting = None,
            PgAction::Evidence => self.view.leading.evidence = None,
            PgAction::SetSource { .. } => self.source = None,
            _ => {}
        }
    }

    /// Counts failures of an action in a row; a success ends the count.
    fn count(&mut self, now: Time, name: &str, error: Option<&String>, out: &mut Vec<Command>) {
        let failed_before = self.view.failures.contains_key(name);
        match error {
            None => {
                self.view.failures.remove(name);
            }
            Some(text) => {
                let times = self.view.failures.get(name).map_or(0, |f| f.times) + 1;
                self.view
                    .failures
                    .insert(name.to_string(), Failure { times, ..failure(now, text.clone()) });
            }
        }
        if self.journals && (error.is_some() || failed_before) {
            let event = Event::Ended {
                action: name.to_string(),
                ok: error.is_none(),
                text: error.cloned().unwrap_or_default(),
            };
            out.push(Command::Journal { event: Box::new(event) });
        }
    }

    fn written(
        &mut self,
        now: Time,
        id: u64,
        result: Result<TxnOutcome, String>,
        out: &mut Vec<Command>,
    ) -> bool {
        let Some((_, write, txn, began)) = self.writing.take_if(|(own, ..)| *own == id) else {
            return false;
        };
        match result {
            Ok(TxnOutcome::Done { rev }) => {
                self.view.store.reachable = true;
                for op in &txn.ops {
                    let kv = match op {
                        Op::Put { key, value, .. } => {
                            Some(Kv { key: key.clone(), value: value.clone(), rev })
                        }
                        Op::Delete { .. } => None,
                    };
                    self.keys.learn(&mut self.view.store, op.key(), kv.as_ref(), now);
                }
                self.wrote(now, &write, began);
            }
            Ok(TxnOutcome::Refused { current }) => {
                self.view.store.reachable = true;
                for guard in &txn.guards {
                    let kv = current.iter().find(|kv| kv.key == guard.key);
                    self.keys.learn(&mut self.view.store, &guard.key, kv, now);
                }
            }
            Err(_) => {
                // It may have happened or may yet: everything is read before the next write.
                self.view.store.reachable = false;
                self.unread = true;
                out.push(Command::Read);
            }
        }
        true
    }

    fn wrote(&mut self, now: Time, write: &Write, began: Time) {
        match write {
            Write::Open { record, cause, .. } => {
                let switchover = matches!(cause, Cause::Switchover { .. });
                // Whoever covered the sets of this term has promised more than it.
                let rev = self.view.store.term.as_ref().map(|record| record.rev);
                self.view.campaign = Some(Campaign {
                    epoch: record.epoch,
                    cause: cause.clone(),
                    opened: now,
                    covered: None,
                    fenced: put_back::under_way(&self.view).and(rev),
                    renewed: now,
                    beat: 0,
                    summons: if switchover { Summons::Leader } else { Summons::All },
                    reports: Default::default(),
                    fast_forward: None,
                });
            }
            Write::Publish { .. } => self.view.campaign = None,
            Write::Renew { record, .. } => {
                if let Some(campaign) = &mut self.view.campaign {
                    campaign.renewed = now;
                    campaign.beat = record.beat;
                }
            }
            Write::GiveUp { .. } => {
                self.view.campaign = None;
                self.view.campaign_pause = Some(now.plus(policy::CAMPAIGN_TTL_MS));
            }
            Write::Lease { record, .. } => {
                self.view.leading.leased = Some(began);
                self.view.leading.lease_beat = record.beat;
            }
            Write::Confirm { term_rev } => self.view.confirmed = Some(*term_rev),
            Write::Lead { .. } | Write::Regrant { .. } => {}
        }
    }

    /// Keeps a report of the campaign under way. It stays true: the promise in it is durable.
    pub(super) fn collect(&mut self, report: Report) {
        let Some(campaign) = &mut self.view.campaign else { return };
        let term = self.view.store.term.as_ref();
        let foreign = term.is_some_and(|term| term.value.sysid != report.sysid);
        if report.epoch != campaign.epoch || foreign {
            return;
        }
        let known = campaign.reports.get(&report.member.node);
        if known.is_none_or(|old| old.member != report.member || old.end < report.end) {
            campaign.reports.insert(report.member.node.clone(), report);
        }
    }

    fn collect_own(&mut self) {
        if let Some(report) = self.view.report() {
            self.collect(report);
        }
    }

    /// Why there should be a campaign, and since when.
    pub(super) fn reconsider(&mut self, now: Time) {
        let cause = campaign::reason(&self.view, now);
        let same = match (&cause, &self.view.reason) {
            (Some(new), Some((old, _))) => new == old,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            self.view.reason = cause.map(|cause| (cause, now));
        }
    }
}

/// Nothing but places in the log, and ages, differs.
fn only_moved(mut old: PgFacts, new: &PgFacts) -> bool {
    old.lsn = new.lsn;
    if let (Some(old), Some(new)) = (&mut old.replay_lag_ms, new.replay_lag_ms) {
        *old = new;
    }
    if let (Some(old), Some(new)) = (&mut old.receiver, &new.receiver) {
        (old.message_ms_ago, old.flushed) = (new.message_ms_ago, new.flushed);
    }
    for (old, new) in old.walsenders.iter_mut().zip(&new.walsenders) {
        old.flush = new.flush;
    }
    old == *new
}

fn failure(now: Time, text: String) -> Failure {
    Failure { times: 1, last: now, text }
}
