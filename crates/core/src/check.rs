//! The checker of invariants: it refuses an action that would break one, whoever decided it.
//!
//! It is written against the record of facts alone and shares no code with the decisions, so that a
//! mistake there is not repeated here. It runs before every action, in tests and in production.

use crate::decide::{Action, Intent, Write};
use crate::durable::{Data, Durable};
use crate::postgres::{PgAction, Process};
use crate::term::{Branch, Term};
use crate::view::{Cause, View};

/// Refuses, with the invariant that would be broken.
pub fn action(view: &View, action: &Action) -> Result<(), String> {
    match action {
        Action::Persist { durable, intent } => persist(view, durable, *intent),
        Action::Pg { action } => local(view, action),
        Action::Store { write } => store(view, write),
        Action::Probe { .. }
        | Action::EndCampaign
        | Action::SummonAll
        | Action::FastForward { .. }
        | Action::HandOver { .. }
        | Action::EndWish { .. }
        | Action::Mind { .. } => Ok(()),
    }
}

fn ensure(holds: bool, invariant: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(invariant.to_string()) }
}

fn persist(view: &View, next: &Durable, intent: Intent) -> Result<(), String> {
    let old = &view.durable;
    ensure(next.promise >= old.promise, "a promise only rises")?;
    ensure(next.incarnation >= old.incarnation, "an incarnation only rises")?;
    let destroys = next.data == Data::Destroying && old.data != Data::Destroying;
    ensure(
        !destroys || next.incarnation > old.incarnation,
        "a new incarnation comes before the first destructive byte",
    )?;
    let old_grant = old.grant.map_or(0, |grant| grant.epoch);
    let raised = next.grant.is_some_and(|grant| grant.epoch > old_grant);
    if raised {
        let term = view.term();
        let named = term.is_some_and(|term| {
            term.leader == view.member()
                && next.grant.is_some_and(|grant| grant.epoch == term.epoch)
                && next.promise == term.epoch
        });
        ensure(named, "only the leader of the term is granted its epoch")?;
    }
    ensure(
        !matches!(intent, Intent::Promote(_)) || (view.parked.is_some() && next.grant.is_some()),
        "only a parked node is promoted, and only with a grant on disk",
    )
}

fn local(view: &View, action: &PgAction) -> Result<(), String> {
    let durable = &view.durable;
    match action {
        PgAction::Promote { branch, .. } => {
            let term = view.term().ok_or("no promotion without a term")?;
            let granted =
                durable.grant.is_some_and(|g| g.epoch == term.epoch && g.tli == branch.tli);
            ensure(durable.promise == term.epoch, "promotes only at the epoch it promised")?;
            ensure(term.leader == view.member() && granted, "promotes only where it was granted")?;
            ensure(durable.data == Data::Ok, "promotes only whole data")?;
            ensure(
                view.parked.is_some_and(|(end, _)| end == branch.fork),
                "promotes only at the published fork",
            )
        }
        PgAction::SetSource { source: Some(source) } => {
            let leads = view
                .term()
                .is_some_and(|term| term.leader == source.member && term.epoch >= durable.promise);
            let ordered = view.peers.get(&source.member.node).is_some_and(|peer| {
                peer.status.as_ref().and_then(|s| s.report.as_ref()).is_some_and(|report| {
                    report.epoch == durable.promise && report.member == source.member
                })
            });
            ensure(leads || ordered, "follows no term below its promise")
        }
        PgAction::SetSync { names } => {
            let term = view.my_term().ok_or("only the leader sets who acknowledges")?;
            ensure(
                !names.is_empty() || term.current().is_alone(),
                "goes alone only after the store says so",
            )
        }
        PgAction::Rewind { .. } | PgAction::Clone { .. } => {
            ensure(durable.data == Data::Destroying, "destroys only what is marked so on disk")?;
            let named = view.term().is_some_and(|term| {
                let me = view.member();
                term.inforce.iter().any(|set| set.leader == me || set.members.contains(&me))
            });
            ensure(!named, "destroys no incarnation that stands in a set in force")
        }
        PgAction::PutBack { id, .. } => {
            ensure(durable.data == Data::Destroying, "replaces only what is marked so on disk")?;
            let asked = durable.put_back.as_ref().is_some_and(|plan| plan.restored.id == *id);
            ensure(asked, "puts back only what the record says")?;
            let Some(record) = &view.store.term else {
                let mut told = view.peers.values().filter_map(|peer| peer.status.as_ref());
                let nobody = told.all(|status| status.data == Data::Empty);
                let forced = durable.put_back.as_ref().is_some_and(|plan| plan.force);
                return ensure(nobody || forced, "gives no node's data up unasked");
            };
            let fenced = view.campaign.as_ref().is_some_and(|campaign| {
                let own = campaign.epoch == durable.promise;
                own && campaign.fenced == Some(record.rev) && record.value.epoch < campaign.epoch
            });
            ensure(fenced, "puts nothing back while anybody may acknowledge")
        }
        PgAction::Start { .. } => ensure(
            matches!(durable.data, Data::Ok | Data::CatchUp { .. }),
            "starts only whole data",
        ),
        PgAction::Bootstrap => {
            ensure(view.term().is_none() && durable.is_new(), "makes no second cluster")
        }
        PgAction::Barrier { .. } | PgAction::Evidence => ensure(
            view.pg.process == Process::Running && view.pg.in_recovery == Some(false),
            "writes only on a primary",
        ),
        PgAction::Stop { .. }
        | PgAction::SetSource { source: None }
        | PgAction::Park
        | PgAction::Trim { .. }
        | PgAction::Checkpoint
        | PgAction::Slots { .. }
        | PgAction::Observe => Ok(()),
    }
}

fn store(view: &View, write: &Write) -> Result<(), String> {
    match write {
        Write::Publish { term, .. } => {
            let Some(old) = view.term() else {
                let above = |older: &[Branch]| older.iter().all(|it| it.epoch < term.epoch);
                let first = term.epoch == 1 || view.durable.put_back.is_some();
                let after = term.branches.split_last().is_some_and(|(_, older)| above(older));
                return ensure(first && after, "begins at epoch 1, or above what was restored");
            };
            ensure(term.epoch > old.epoch, "epochs only rise")?;
            let rev = view.store.term.as_ref().map(|record| record.rev);
            let given_up = view.campaign.as_ref().is_some_and(|campaign| {
                matches!(campaign.cause, Cause::Restore { .. }) && campaign.fenced == rev
            });
            ensure(
                given_up || old.inforce.iter().all(|set| term.inforce.contains(set)),
                "a publish forgets no set in force",
            )?;
            ensure(!term.open, "a term is not open before its barrier")?;
            ensure(
                old.branches.iter().all(|branch| term.branches.contains(branch)),
                "a publish forgets no branch",
            )
        }
        Write::Lead { term, .. } => led(view, term),
        Write::Regrant { term, .. } => {
            let old = view.my_term().ok_or("only the leader is re-granted")?;
            ensure(term.epoch > old.epoch, "epochs only rise")?;
            ensure(
                term.inforce == old.inforce && term.branches == old.branches,
                "a re-grant changes nothing but the epoch",
            )?;
            ensure(view.is_primary(), "only a running leader is re-granted")
        }
        Write::Open { record, .. } => ensure(record.epoch > view.store_epoch(), "epochs only rise"),
        Write::Confirm { .. }
        | Write::Renew { .. }
        | Write::GiveUp { .. }
        | Write::Lease { .. } => Ok(()),
    }
}

/// A leader's change of its own term: the envelope first, then the target alone.
fn led(view: &View, term: &Term) -> Result<(), String> {
    let old = view.my_term().ok_or("only the leader changes its term")?;
    ensure(
        term.epoch == old.epoch && term.leader == old.leader && term.branches == old.branches,
        "a change of the set changes nothing else",
    )?;
    let begins = term.open == old.open && term.target != old.target;
    if begins {
        let current = term.current();
        let old_members = old.current().members.iter();
        ensure(
            old_members.chain(&term.target.members).all(|m| current.members.contains(m))
                && current.k <= old.current().k.min(term.target.k),
            "a change goes through the envelope of both sets",
        )
    } else {
        ensure(
            term.inforce == [term.target.clone()] && term.target == old.target,
            "a change ends in its target",
        )?;
        ensure(
            view.pg.sync_names.is_some() && view.is_primary(),
            "a change ends only as the leader sees it",
        )
    }
}
