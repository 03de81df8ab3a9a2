//! How verdicts become commands: each lane takes one at a time, a stop comes before everything.

use super::{Agent, Command, Lane, Running, is_routine, lane};
use crate::check;
use crate::decide::{Action, CONTROLLERS, Intent, Verdict, put_back};
use crate::durable::Durable;
use crate::ids::{Lsn, Time};
use crate::journal::{Decision, Event, RULES};
use crate::minder::Right;
use crate::postgres::{PgAction, Process};
use crate::status::Summons;
use crate::term::first_uncovered;
use crate::view::{Cause, Wish};

/// Rounds of deciding in one step: each begins something, and there are fewer lanes than this.
const ROUNDS: usize = 8;
/// The least time between two looks while something is waited for.
const LOOK_MS: u64 = 5;
/// Refusals of the checker that are remembered.
const REFUSED: usize = 20;

impl Agent {
    pub(super) fn act(&mut self, now: Time, out: &mut Vec<Command>) {
        for _ in 0..ROUNDS {
            self.reconsider(now);
            self.note_cover(now);
            let mut began = false;
            for (name, decide) in CONTROLLERS {
                let verdict = decide(&self.view, now);
                if let Verdict::Act { actions, .. } = &verdict {
                    for action in actions.clone() {
                        began |= self.begin(now, name, &verdict, action, out);
                    }
                }
                self.heed(now, name, verdict, out);
            }
            if !began {
                break;
            }
        }
    }

    /// Keeps the verdict, and counts its rule if it is a new one.
    fn heed(
        &mut self,
        now: Time,
        controller: &'static str,
        verdict: Verdict,
        out: &mut Vec<Command>,
    ) {
        let routine = match &verdict {
            Verdict::Act { actions, .. } => actions.iter().all(is_routine),
            Verdict::Hold { .. } | Verdict::Steady => false,
        };
        self.note_hold(now, controller, &verdict, routine, out);
        let known = self.verdicts.get(controller).map(Verdict::rule);
        if known != Some(verdict.rule()) && verdict != Verdict::Steady {
            *self.fired.entry(verdict.rule().to_string()).or_default() += 1;
        }
        self.verdicts.insert(controller, verdict);
    }

    /// When cover was reached, so that late reports are waited for only so long.
    fn note_cover(&mut self, now: Time) {
        let covered = match (&self.view.campaign, self.view.term()) {
            (Some(campaign), Some(term)) => {
                first_uncovered(&term.inforce, &campaign.reports).is_none()
            }
            _ => return,
        };
        let forced = put_back::is_forced(&self.view, now);
        let rev = self.view.store.term.as_ref().map(|record| record.rev);
        if let Some(campaign) = &mut self.view.campaign
            && (covered || forced)
        {
            campaign.covered.get_or_insert(now);
            campaign.fenced = rev;
        }
    }

    /// Begins an action if its lane is free. False: nothing was begun or changed.
    fn begin(
        &mut self,
        now: Time,
        controller: &str,
        verdict: &Verdict,
        action: Action,
        out: &mut Vec<Command>,
    ) -> bool {
        if !self.free(now, &action, out) {
            return false;
        }
        if let Err(invariant) = check::action(&self.view, &action) {
            let text = format!("{}: {invariant}", action.name());
            if !self.refused.contains(&text) {
                if self.refused.len() == REFUSED {
                    self.refused.remove(0);
                }
                self.refused.push(text.clone());
                self.journal(now, controller, verdict, &action, out);
                let event = Event::Ended { action: action.name().to_string(), ok: false, text };
                out.push(Command::Journal { event: Box::new(event) });
            }
            return false;
        }
        self.journal(now, controller, verdict, &action, out);
        match action {
            Action::Persist { durable, intent } => self.persist(*durable, intent, out),
            Action::Pg { action } => self.run(now, action, out),
            Action::Store { write } => {
                let id = self.id();
                let txn = self.keys.txn(&write);
                self.writing = Some((id, write, txn.clone(), now));
                out.push(Command::Write { id, txn });
            }
            Action::Probe { node } => {
                self.view.probe.asked = Some(now);
                let epoch = self.view.term().map_or(0, |term| term.epoch);
                out.push(Command::Probe { node, epoch });
            }
            Action::EndCampaign => self.view.campaign = None,
            Action::SummonAll => {
                if let Some(campaign) = &mut self.view.campaign {
                    campaign.summons = Summons::All;
                }
            }
            Action::FastForward { order } => {
                if let Some(campaign) = &mut self.view.campaign {
                    campaign.fast_forward = Some(order);
                }
            }
            Action::HandOver { to } => {
                self.view.leading.handed = Some(now);
                let epoch = self.view.term().map_or(0, |term| term.epoch);
                self.view.wish = Some(Wish { cause: Cause::Switchover { to }, epoch, since: now });
            }
            Action::EndWish { refused } => {
                self.view.wish = None;
                out.push(Command::WishEnded { refused });
            }
            Action::Mind { epoch, until, k, members } => {
                let right = Right { epoch, until, k, members: members.clone() };
                self.view.leading.minded = Some(right);
                out.push(Command::Mind { epoch, until, k, members });
                return false;
            }
        }
        true
    }

    /// Whether the action can begin now. A stop makes way for itself.
    fn free(&mut self, now: Time, action: &Action, out: &mut Vec<Command>) -> bool {
        match action {
            Action::Persist { .. } => {
                let copying = self.running.get(&Lane::Local).is_none_or(|running| {
                    matches!(running.action, PgAction::Rewind { .. } | PgAction::Clone { .. })
                });
                self.persisting.is_none() && copying
            }
            Action::Pg { action: PgAction::Stop { .. } } => match self.running.get(&Lane::Local) {
                Some(running) if matches!(running.action, PgAction::Stop { .. }) => false,
                _ => {
                    for (_, running) in std::mem::take(&mut self.running) {
                        out.push(Command::Cancel { id: running.id });
                    }
                    true
                }
            },
            Action::Pg { action: PgAction::Observe } => {
                if self.running.contains_key(&Lane::Look) {
                    return false;
                }
                let due = self.last_look.plus(LOOK_MS);
                if now < due {
                    out.push(Command::Wake { at: due });
                }
                now >= due
            }
            Action::Pg { action } => {
                let lane = lane(action);
                let idle = !self.running.contains_key(&lane);
                let local = lane == Lane::Local;
                idle && !(local && self.persisting.is_some()) && (local || !self.stopping())
            }
            Action::Store { .. } => {
                // Over a record that can't be read nothing is written, whatever its guards would say.
                self.writing.is_none() && !self.unread && self.view.store.unreadable.is_none()
            }
            Action::Probe { .. }
            | Action::EndCampaign
            | Action::SummonAll
            | Action::FastForward { .. }
            | Action::HandOver { .. }
            | Action::EndWish { .. }
            | Action::Mind { .. } => true,
        }
    }

    fn stopping(&self) -> bool {
        let local = self.running.get(&Lane::Local);
        local.is_some_and(|running| matches!(running.action, PgAction::Stop { .. }))
    }

    pub(super) fn persist(&mut self, durable: Durable, intent: Intent, out: &mut Vec<Command>) {
        let id = self.id();
        let durable = Box::new(durable);
        self.persisting = Some((id, durable.clone(), intent));
        out.push(Command::Persist { id, durable });
        if !self.view.has(crate::view::Guard::DurablePromise) {
            // A broken agent believes its disk before it has written.
            self.view.durable.promise = self.persisting.as_ref().map_or(0, |p| p.1.promise);
        }
    }

    fn run(&mut self, now: Time, action: PgAction, out: &mut Vec<Command>) {
        let id = self.id();
        let lane = lane(&action);
        match &action {
            PgAction::SetSource { source: Some(_) } => {
                self.view.confirmed = None;
                self.view.parked = None;
                self.view.trimmed = None;
            }
            PgAction::Stop { .. } => self.server_left(Process::Remains),
            PgAction::Start { .. }
            | PgAction::Rewind { .. }
            | PgAction::Clone { .. }
            | PgAction::PutBack { .. } => {
                self.view.confirmed = None;
                self.view.parked = None;
                self.view.trimmed = None;
            }
            PgAction::Promote { .. } => self.view.parked = None,
            PgAction::SetSync { .. } => {
                // What was proven of these names was proven before: they may have been others since.
                self.view.leading.observed = None;
                self.view.leading.checkpointed = None;
                if let Some(checkpoint) = self.running.get_mut(&Lane::Checkpoint) {
                    checkpoint.names = None;
                }
            }
            PgAction::Evidence => self.view.leading.evidence = Some((now, Lsn(0))),
            PgAction::Observe => self.last_look = now,
            PgAction::Slots { .. } => self.view.slots_kept = Some(now),
            PgAction::Bootstrap
            | PgAction::SetSource { source: None }
            | PgAction::Park
            | PgAction::Trim { .. }
            | PgAction::Barrier { .. }
            | PgAction::Checkpoint => {}
        }
        if lane == Lane::Local {
            self.generation += 1;
        }
        let names = self.view.pg.sync_names.clone();
        self.running.insert(lane, Running { id, action: action.clone(), began: now, names });
        out.push(Command::Run { id, action });
    }

    fn journal(
        &self,
        now: Time,
        controller: &str,
        verdict: &Verdict,
        action: &Action,
        out: &mut Vec<Command>,
    ) {
        if self.journals && !is_routine(action) {
            out.push(self.decided(now, controller, verdict, None));
        }
    }

    /// An entry with the facts as they are.
    pub(super) fn decided(
        &self,
        now: Time,
        controller: &str,
        verdict: &Verdict,
        since: Option<Time>,
    ) -> Command {
        let decision = Decision {
            controller: controller.to_string(),
            rules: RULES,
            epoch: self.view.term().map_or(0, |term| term.epoch),
            now,
            since,
            verdict: verdict.clone(),
            view: Box::new(self.view.clone()),
        };
        Command::Journal { event: Box::new(Event::Decided(decision)) }
    }
}
