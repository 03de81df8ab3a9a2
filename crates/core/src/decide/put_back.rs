//! How what was restored from a repository takes the place of a node's data.
//!
//! With a term, a campaign fences everybody first: once all sets in force are covered, nothing older
//! than its epoch is acknowledged any more. Then this node's directory is replaced, in a new
//! incarnation, and what stands there now is published as the leader's. All others are off its line
//! and come back as after any failover. Without a term, what was restored begins the service again.
//!
//! This node's own data may be all that covers a set, so what was begun does not end with its agent:
//! the record says what is put back, and it goes on while the term stays as it is. If the term is
//! another by then, somebody did without, and this node follows as after any failover.

use super::{Intent, Verdict, backing_off, campaign, rejoin};
use crate::durable::{Data, Durable, PutBack};
use crate::ids::Time;
use crate::policy;
use crate::postgres::{PgAction, Restored};
use crate::term::{Term, last_written};
use crate::view::{Campaign, Cause, Guard, Rejoin, View};

/// What is to take the place of this node's data, and whether nodes that can't be asked are given up
/// for it.
fn asked(view: &View) -> Option<(&Restored, bool)> {
    let cause = match (&view.campaign, view.term()) {
        // Its own term is told of before its publication is answered.
        (Some(campaign), Some(term)) if term.epoch < campaign.epoch => Some(&campaign.cause),
        (None, None) if view.store.read => view.wish.as_ref().map(|wish| &wish.cause),
        (Some(_) | None, Some(_) | None) => return None,
    };
    match cause {
        Some(Cause::Restore { restored, force }) => Some((restored, *force)),
        None => under_way(view).map(|plan| (&plan.restored, plan.force)),
        Some(
            Cause::LeaderFell
            | Cause::LeaderMissed
            | Cause::LeaderReplaced
            | Cause::NeverOpened
            | Cause::Switchover { .. }
            | Cause::Force { .. },
        ) => None,
    }
}

pub fn wanted(view: &View) -> Option<&Restored> {
    asked(view).map(|(restored, _)| restored)
}

/// What was begun and can still be ended: the term is the one whose sets were covered, or there is
/// still none.
pub fn under_way(view: &View) -> Option<&PutBack> {
    let now = view.store.term.as_ref().map(|record| (record.rev, record.value.epoch));
    view.durable.put_back.as_ref().filter(|plan| view.store.read && plan.term == now)
}

/// This node's data may be gone already.
pub fn is_begun(view: &View) -> bool {
    wanted(view).is_some_and(|it| under_way(view).is_some_and(|plan| plan.restored.id == it.id))
}

/// It stands in its place, and the record says so.
pub fn is_done(view: &View) -> bool {
    is_begun(view) && view.durable.data == Data::Ok
}

/// Why it can't become the service's data.
pub fn unfit(term: &Term, restored: &Restored) -> Option<String> {
    if restored.sysid != term.sysid {
        return Some(format!(
            "what was restored is of system {}, the service's data of {}: it can only begin a \
             service that has no data",
            restored.sysid, term.sysid
        ));
    }
    let unknown = |it: &&crate::term::Branch| !term.branches.contains(it);
    if let Some(branch) = restored.line.iter().find(unknown) {
        return Some(format!(
            "timeline {} of epoch {}, which was restored, is not one of this service",
            branch.tli, branch.epoch
        ));
    }
    last_written(&restored.line, restored.end)
        .is_none()
        .then(|| "what was restored has no history".to_string())
}

/// The record before anything is replaced. From the next incarnation on nobody counts on what this
/// node held.
pub fn begin(view: &View) -> Option<Verdict> {
    let (restored, force) = asked(view)?;
    let may = match &view.campaign {
        Some(campaign) => {
            let promised = campaign.epoch == view.durable.promise;
            promised && is_fenced(view, campaign) && parked(view)
        }
        None => force || unasked(view).is_none(),
    };
    if !may || is_begun(view) || undone(view).is_some() {
        return None;
    }
    let plan = PutBack {
        restored: restored.clone(),
        force,
        term: view.store.term.as_ref().map(|record| (record.rev, record.value.epoch)),
        epoch: view.durable.promise,
        was: (view.durable.data == Data::Ok).then_some(view.durable.incarnation),
    };
    let durable = Durable { put_back: Some(plan), ..rejoin::destroying(view) };
    let why = format!("{} takes its place", restored.id);
    // If it comes to nothing, this node is copied anew.
    let intent = Intent::Rejoin(Rejoin::Clone { fork: None });
    Some(Verdict::persist("put-back", why, durable, intent))
}

/// Without a term nobody can be fenced: what a node with data acknowledged would be given up unasked.
pub fn unasked(view: &View) -> Option<String> {
    let told = view.peers.iter().filter_map(|(node, peer)| Some((node, peer.status.as_deref()?)));
    let holds = told.filter(|(_, status)| status.data != Data::Empty).map(|(node, _)| node);
    let own = view.durable.data != Data::Empty && view.durable.put_back.is_none();
    let nodes: Vec<&str> =
        own.then_some(&view.me).into_iter().chain(holds).map(String::as_str).collect();
    (!nodes.is_empty()).then(|| {
        format!(
            "the store has no term, and {} holds data of the service: restore the store, or give \
             that data up with --force",
            nodes.join(", ")
        )
    })
}

/// Why what was asked for was not put back, though it was begun: the data is what it was.
pub fn undone(view: &View) -> Option<String> {
    let since = match (&view.campaign, &view.wish) {
        (Some(campaign), _) => campaign.opened,
        (None, wish) => wish.as_ref()?.since,
    };
    let failure = view.failures.get("put-back").filter(|failure| failure.last >= since)?;
    let given_up = view.durable.put_back.is_none();
    given_up.then(|| format!("nothing was put back: {}", failure.text))
}

/// The record of a node whose data stands in its place as it was: nothing was published of the
/// incarnation in which it would have been replaced, nor reported.
pub fn taken_back(view: &View) -> Option<Durable> {
    let plan = view.durable.put_back.as_ref()?;
    let whole = |incarnation| Durable { data: Data::Ok, incarnation, ..view.durable.clone() };
    let before = plan.was.map_or_else(|| view.durable.clone(), whole);
    Some(Durable { put_back: None, ..before })
}

/// Nobody acknowledges anything below the campaign's epoch any more: every set of the term as it
/// stands was covered. That stays so when this node's own report, which it may have taken, is gone.
pub fn is_fenced(view: &View, campaign: &Campaign) -> bool {
    let rev = view.store.term.as_ref().map(|record| record.rev);
    (campaign.fenced.is_some() && campaign.fenced == rev) || !view.has(Guard::RestoreFence)
}

/// The operator gives up whoever can't be reached, and the lease of the last leader has ended: what
/// it acknowledges without one is lost, as after any forced failover.
pub fn is_forced(view: &View, now: Time) -> bool {
    view.campaign.as_ref().is_some_and(|campaign| {
        matches!(campaign.cause, Cause::Restore { force: true, .. })
            && now.since(campaign.opened) >= policy::UNOPENED_MS
            && campaign::lease_ended(view, now)
    })
}

/// Its own report, if it had one to give, was counted.
fn parked(view: &View) -> bool {
    view.parked.is_some() || view.durable.data != Data::Ok
}

/// The step itself, and the record after it.
pub fn take_place(view: &View, now: Time) -> Option<Verdict> {
    let plan = under_way(view)?;
    let restored = &plan.restored;
    let why = format!("{} takes its place", restored.id);
    if !is_begun(view) {
        return Some(Verdict::hold("put-back", why, "this node campaigns"));
    }
    if view.put_back.as_ref() != Some(&restored.id) {
        let hold = backing_off(view, now, "put-back", "put-back");
        let action = PgAction::PutBack { id: restored.id.clone(), epoch: plan.epoch };
        return Some(hold.unwrap_or_else(|| Verdict::pg("put-back", why, action)));
    }
    // Without a term the first one is above all that was ever written.
    let above = view.highest_promise().max(restored.epoch) + 1;
    let promise = if view.term().is_some() { view.durable.promise } else { above };
    let durable = Durable {
        data: Data::Ok,
        line: restored.line.clone(),
        sysid: Some(restored.sysid),
        promise,
        grant: None,
        ..view.durable.clone()
    };
    let why = format!("it is {} now, as of {}", restored.id, restored.end);
    Some(Verdict::persist("put-back", why, durable, Intent::Plain))
}

#[cfg(test)]
mod tests;
