//! How what was restored from a repository takes the place of a node's data.
//!
//! With a term, a campaign fences everybody first: once all sets in force are covered, nothing older
//! than its epoch is acknowledged any more. Then this node's directory is replaced, in a new
//! incarnation, and what stands there now is published as the leader's. All others are off its line
//! and come back as after any failover. Ended before the publication, the service goes on with what
//! it had, and this node is copied anew. Without a term, what was restored begins the service again.

use super::{Intent, Verdict, backing_off, campaign, rejoin};
use crate::durable::{Data, Durable};
use crate::ids::Time;
use crate::policy;
use crate::postgres::{PgAction, Restored};
use crate::term::{Term, last_written};
use crate::view::{Campaign, Cause, Guard, Rejoin, View};

/// What is to take the place of this node's data.
pub fn wanted(view: &View) -> Option<&Restored> {
    let cause = match (&view.campaign, view.term()) {
        (Some(campaign), Some(_)) => &campaign.cause,
        (None, None) if view.store.read => &view.wish.as_ref()?.cause,
        (Some(_) | None, Some(_) | None) => return None,
    };
    match cause {
        Cause::Restore { restored, .. } => Some(restored),
        Cause::LeaderFell
        | Cause::LeaderMissed
        | Cause::LeaderReplaced
        | Cause::NeverOpened
        | Cause::Switchover { .. }
        | Cause::Force { .. } => None,
    }
}

/// It stands in its place, and the record says so.
pub fn is_done(view: &View) -> bool {
    let placed = wanted(view).is_some_and(|it| view.put_back.as_ref() == Some(&it.id));
    placed && view.durable.data == Data::Ok
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
    let restored = wanted(view)?;
    let fenced = match &view.campaign {
        Some(campaign) => {
            let promised = campaign.epoch == view.durable.promise;
            promised && is_fenced(view, campaign) && parked(view)
        }
        None => true,
    };
    if !fenced || is_begun(view) {
        return None;
    }
    let why = format!("{} takes its place", restored.id);
    let intent = Intent::Rejoin(Rejoin::PutBack);
    Some(Verdict::persist("put-back", why, rejoin::destroying(view), intent))
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

/// This node's data may be gone already.
pub fn is_begun(view: &View) -> bool {
    let placed = wanted(view).is_some_and(|it| view.put_back.as_ref() == Some(&it.id));
    placed || (view.durable.data == Data::Destroying && view.rejoin == Some(Rejoin::PutBack))
}

/// Its own report, if it had one to give, was counted.
fn parked(view: &View) -> bool {
    view.parked.is_some() || view.durable.data != Data::Ok
}

/// The step itself, and the record after it.
pub fn take_place(view: &View, now: Time) -> Option<Verdict> {
    let restored = wanted(view).filter(|_| view.rejoin == Some(Rejoin::PutBack))?;
    if view.put_back.as_ref() != Some(&restored.id) {
        let hold = backing_off(view, now, "put-back", "put-back");
        let epoch = view.durable.promise;
        let action = PgAction::PutBack { id: restored.id.clone(), epoch };
        let why = format!("{} takes its place", restored.id);
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
