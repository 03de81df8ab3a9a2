//! What this node does with its own PostgreSQL: seal, start, stop, follow, promote.
//!
//! Each step is derived from what is found, so a plan goes on after a restart in the middle of it.

use super::{Action, Intent, Verdict, backing_off, pg_name, put_back, rejoin, replace};
use crate::durable::{Data, Durable, Grant};
use crate::ids::{Epoch, Time, Tli};
use crate::policy;
use crate::postgres::{PgAction, Process, Source, StopMode};
use crate::status::{State, Status, Summons};
use crate::term::{Term, lies_on, line_to};
use crate::view::{Cause, Guard, View};

/// Decides the next step on the local server.
pub fn decide(view: &View, now: Time) -> Verdict {
    let verdict = step(view, now);
    let Verdict::Act { rule, actions, .. } = &verdict else { return verdict };
    let held = actions.iter().find_map(|action| match action {
        Action::Persist { .. } => backing_off(view, now, "persist", rule),
        Action::Pg { action } => paced(view, now, action, rule),
        Action::Store { .. }
        | Action::Probe { .. }
        | Action::EndCampaign
        | Action::SummonAll
        | Action::FastForward { .. }
        | Action::HandOver { .. }
        | Action::EndWish { .. }
        | Action::Mind { .. } => None,
    });
    held.unwrap_or(verdict)
}

/// What failed is not tried again at once. A stop is: nothing may hold it up.
fn paced(view: &View, now: Time, action: &PgAction, rule: &str) -> Option<Verdict> {
    let failed = |name: &str| backing_off(view, now, name, rule);
    match action {
        PgAction::Stop { .. } | PgAction::Observe => None,
        // It ends in a record. While none can be written, the whole database is not copied again.
        PgAction::Bootstrap
        | PgAction::Rewind { .. }
        | PgAction::Clone { .. }
        | PgAction::PutBack { .. } => failed("persist").or_else(|| failed(pg_name(action))),
        PgAction::Start { .. }
        | PgAction::SetSource { .. }
        | PgAction::Park
        | PgAction::Trim { .. }
        | PgAction::Promote { .. }
        | PgAction::SetSync { .. }
        | PgAction::Barrier { .. }
        | PgAction::Evidence
        | PgAction::Checkpoint
        | PgAction::Slots { .. } => failed(pg_name(action)),
    }
}

fn step(view: &View, now: Time) -> Verdict {
    if let Some(why) = &view.store.unreadable {
        return Verdict::hold_for_operator(
            "unreadable-record",
            why.clone(),
            "run a version that can read it, on all nodes",
        );
    }
    if let Some(epoch) = summoned(view, now)
        && epoch > view.durable.promise
    {
        let why = format!("campaign for epoch {epoch}");
        let promise = Durable { promise: epoch, ..view.durable.clone() };
        return Verdict::persist("seal", why, promise, Intent::Plain);
    }
    match view.pg.process {
        Process::Unknown => Verdict::hold("look", "PostgreSQL was not looked at yet", "a look"),
        Process::Remains => stop(StopMode::Immediate, "remains", "processes outlived postmaster"),
        Process::Down => down(view, now),
        Process::Starting => starting(view, now),
        Process::Running => match view.pg.in_recovery {
            Some(false) => primary(view, now),
            Some(true) => standby(view, now),
            None => frozen(view, now),
        },
    }
}

/// The epoch of a campaign that asks this node to be sealed, if it is asked rightly: a late call
/// for an epoch below the store's is refused.
fn summoned(view: &View, now: Time) -> Option<Epoch> {
    let own = view.campaign.as_ref().map(|c| (c.epoch, c.summons, view.me.as_str()));
    let told = view.others().filter_map(|node| {
        let call = view.fresh(node, now)?.call.as_ref()?;
        Some((call.epoch, call.summons, node))
    });
    let leader = view.term().map(|term| term.leader.node.as_str());
    own.into_iter()
        .chain(told)
        .filter(|(epoch, ..)| *epoch >= view.store_epoch())
        .filter(|(epoch, ..)| view.term().is_none_or(|term| *epoch > term.epoch))
        .filter(|(_, summons, _)| *summons == Summons::All || leader == Some(view.me.as_str()))
        .map(|(epoch, ..)| epoch)
        .max()
}

fn stop(mode: StopMode, rule: &str, why: impl Into<String>) -> Verdict {
    Verdict::pg(rule, why, PgAction::Stop { mode })
}

fn frozen(view: &View, now: Time) -> Verdict {
    let silent = now.since(view.pg_alive.max(view.awake));
    if silent < policy::FROZEN_MS {
        let at = view.pg_alive.max(view.awake).plus(policy::FROZEN_MS);
        return Verdict::hold("frozen", "PostgreSQL does not answer", "an answer").until(at, now);
    }
    stop(StopMode::Immediate, "frozen", format!("PostgreSQL answered nothing for {silent} ms"))
}

fn down(view: &View, now: Time) -> Verdict {
    if let Some(verdict) = put_back::begin(view) {
        return verdict;
    }
    match view.durable.data {
        Data::Empty | Data::Destroying => rejoin::decide(view, now),
        Data::CatchUp { .. } => match leader_source(view, now) {
            // It would wait for what nobody has.
            Some((term, _)) if !term.is_along(&view.durable.line) => {
                rejoin::again(view, "the leader changed before the copy was whole")
            }
            Some((term, source)) => start(view, now, &term.line(), Some(source)),
            None => Verdict::hold("catch-up", "no leader to catch up from", "a running leader"),
        },
        Data::Ok => match makes_way(view, now) {
            Some(until) => Verdict::hold(
                "make-way",
                "the others may elect without this node's history",
                "a leader that is open, or a moment without one",
            )
            .until(until, now),
            None => start(view, now, &view.durable.line, None),
        },
    }
}

/// A fallen leader's recovery would compete for disk and processor with the promotion of another,
/// and is needed only if the others find no cover among themselves: until when it waits for them.
fn makes_way(view: &View, now: Time) -> Option<Time> {
    let record = view.store.term.as_ref()?;
    let others = view.others().any(|node| {
        view.fresh(node, now).is_some_and(|status| {
            matches!(status.state, State::Streaming | State::Parking | State::Sealed)
                || status.primary.is_some()
                || status.state == State::Promoting
        })
    });
    if record.value.leader.node == view.me {
        let (_, since) = view.reason.as_ref().filter(|(cause, since)| {
            *cause == Cause::LeaderFell && now.since(*since) < policy::MAKE_WAY_MS
        })?;
        let alone = record.value.inforce.iter().any(|set| set.is_alone() || set.is_closed());
        let waits = others && !alone && view.store.reachable;
        return waits.then(|| since.plus(policy::MAKE_WAY_MS));
    }
    let waits = !record.value.open && now.since(record.seen) < policy::MAKE_WAY_MS && others;
    waits.then(|| record.seen.plus(policy::MAKE_WAY_MS))
}

/// A copy that isn't whole comes up only with what its leader sends, and a new one has another
/// history for it.
fn starting(view: &View, now: Time) -> Verdict {
    let whole = !matches!(view.durable.data, Data::CatchUp { .. });
    match leader_source(view, now) {
        Some((term, _)) if !whole && !term.is_along(&view.durable.line) => {
            let why = "the leader changed before the copy was whole";
            stop(StopMode::Immediate, "rejoin-stop", why)
        }
        Some(_) | None => Verdict::hold("starting", "PostgreSQL is starting", "wait for it"),
    }
}

fn start(view: &View, now: Time, line: &[crate::term::Branch], source: Option<Source>) -> Verdict {
    if let Some((_, failure)) = view.retry_at("start", now)
        && let Some(hold) = backing_off(view, now, "start", "start")
    {
        // One that ended by itself after its start left its reason in its log.
        let said = view.pg.said.as_ref().filter(|said| !failure.text.contains(*said));
        let hold = match said {
            Some(said) => hold.because(|why| format!("{why}; it said: {said}")),
            None => hold,
        };
        let Some(full) = full(view) else { return hold };
        return match &hold {
            Verdict::Hold { why: reason, .. } => full.because(|why| format!("{why}; {reason}")),
            Verdict::Steady | Verdict::Act { .. } => full,
        };
    }
    let action = PgAction::Start { line: line.to_vec(), source };
    Verdict::pg("start", "PostgreSQL is down; it starts as a standby", action)
}

/// The running leader of a term this node may follow, and how to reach it.
pub(super) fn leader_source(view: &View, now: Time) -> Option<(&Term, Source)> {
    let term = view.term()?;
    let branch = term.branch()?;
    let leader = view.leader_status(now)?;
    let runs = leader.primary == Some(branch.tli) && leader.promise == term.epoch;
    let allowed = term.epoch >= view.durable.promise || !view.has(Guard::FollowGuard);
    (runs && allowed && term.leader.node != view.me).then(|| (term, source_at(view, leader)))
}

fn source_at(view: &View, leader: &Status) -> Source {
    // Without a slot, a second connection of this node would not be refused while the first lingers.
    let one = view.has(Guard::OneWalsender);
    Source {
        member: leader.member.clone(),
        host: leader.host.clone(),
        port: leader.port,
        slot: if one { view.member().slot() } else { String::new() },
    }
}

fn primary(view: &View, now: Time) -> Verdict {
    let granted = view.durable.grant.map_or(0, |grant| grant.epoch);
    if view.durable.promise > granted {
        let handover = view.campaign.as_ref().is_some_and(|campaign| {
            campaign.epoch == view.durable.promise
                && matches!(campaign.cause, Cause::Switchover { .. })
        });
        let mode = if handover { StopMode::Fast } else { StopMode::Immediate };
        if view.has(Guard::StoppedLeader) {
            let why = format!("sealed at epoch {}", view.durable.promise);
            return stop(mode, "seal-leader", why);
        }
    }
    if let Some(term) = view.term()
        && term.epoch > granted
    {
        let same = view.my_term().is_some()
            && term.branch().map(|b| b.tli) == view.durable.grant.map(|grant| grant.tli);
        if same {
            return regranted(view, term);
        }
        let why = format!("epoch {} is led by {}", term.epoch, term.leader);
        return stop(StopMode::Immediate, "superseded", why);
    }
    if view.misbranched || view.durable.grant.is_some_and(|grant| grant.tli != view.pg.tli) {
        let why = format!("it runs on timeline {}, not on what was published", view.pg.tli);
        return stop(StopMode::Immediate, "wrong-branch", why);
    }
    let written = view.leading.evidence.map_or(now, |(at, end)| if end.0 == 0 { at } else { now });
    let stalled = now.since(written.max(view.awake));
    if stalled > policy::FLUSH_STALLED_MS && another_streams(view, now) {
        let why = format!("a record was not flushed in {stalled} ms");
        return stop(StopMode::Immediate, "stalled", why);
    }
    match full(view) {
        Some(_) if another_has_room(view, now) => {
            let why = "its disk is full, and another member of the set has room";
            stop(StopMode::Immediate, "stalled", why)
        }
        Some(hold) => hold,
        None => Verdict::Steady,
    }
}

/// Nothing is stopped for it, except where that wins something.
fn full(view: &View) -> Option<Verdict> {
    let why = "the disk of its data directory is full: there is no room for more WAL";
    view.pg.full.then(|| Verdict::hold_for_operator("stalled", why, "space is freed on that disk"))
}

/// Somebody would take over at once, with everything that was acknowledged.
fn another_has_room(view: &View, now: Time) -> bool {
    let Some(term) = view.led_term().filter(|term| term.open && !term.target.is_alone()) else {
        return false;
    };
    let has_room =
        |node: &str| view.fresh(node, now).is_some_and(|status| status.streaming && !status.full);
    let covered = term.target.members.iter().filter(|m| has_room(&m.node)).count();
    view.store.reachable
        && !view.store.maintenance
        && covered >= term.target.cover_needed() as usize
        && term.target.members.iter().any(|m| view.may_take_over(m) && has_room(&m.node))
}

/// The disk of another node may be better: without one there is nothing to win by stopping.
fn another_streams(view: &View, now: Time) -> bool {
    view.others().any(|node| view.fresh(node, now).is_some_and(|status| status.streaming))
}

/// The store says that this running leader leads a higher epoch: the disk must say so too.
fn regranted(view: &View, term: &Term) -> Verdict {
    let Some(branch) = term.branch() else { return Verdict::Steady };
    let durable = Durable {
        promise: term.epoch,
        grant: Some(Grant { epoch: term.epoch, tli: branch.tli }),
        ..view.durable.clone()
    };
    let why = format!("re-granted epoch {}", term.epoch);
    Verdict::persist("re-grant-kept", why, durable, Intent::Plain)
}

fn standby(view: &View, now: Time) -> Verdict {
    if let Some(verdict) = put_back::begin(view) {
        return verdict;
    }
    if let Data::CatchUp { until } = view.durable.data {
        return catching_up(view, now, until);
    }
    if view.durable.data != Data::Ok {
        return stop(StopMode::Fast, "rejoin-stop", "the data directory is to be replaced");
    }
    // Nothing hangs on a standby that streams but one acknowledgement, as when it falls.
    if view.restart && view.pg.source.is_some() {
        return stop(StopMode::Fast, "restart", "the standby was asked to start anew");
    }
    if let (Some(tli), Some(term)) = (view.unknown_branch(), view.term()) {
        return branch_learned(view, now, term, tli);
    }
    if let Some(verdict) = fast_forward(view, now) {
        return verdict;
    }
    let Some(term) = view.term() else { return quiet(view, now, "no term yet") };
    let leads = term.leader.node == view.me;
    let guard = if leads { Guard::PromoteGuard } else { Guard::FollowGuard };
    let below = term.epoch < view.durable.promise && view.has(guard);
    if below {
        return quiet(view, now, "promised a higher epoch than the term's");
    }
    if leads {
        return promote(view, now, term);
    }
    follow(view, now, term)
}

/// It streamed on through a promotion. Numbers of timelines are reserved in the store, so the number
/// says which branch it is.
///
/// Unless it was this node itself that was promoted, to a number nobody reserved: then the same
/// number may stand in the store for what another wrote.
fn branch_learned(view: &View, now: Time, term: &Term, tli: Tli) -> Verdict {
    let led = view.durable.line.last().map(|branch| branch.tli);
    if led.is_some() && view.durable.grant.map(|grant| grant.tli) == led {
        return rejoin::astray(view, now, tli);
    }
    let line = line_to(&term.branches, tli);
    let leads = |s: &Status| s.term == term.epoch && s.primary == term.branch().map(|b| b.tli);
    if line.is_empty() && view.leader_status(now).is_some_and(leads) {
        // A branch is published before anybody is on it.
        return rejoin::astray(view, now, tli);
    }
    if line.is_empty() {
        return Verdict::hold(
            "branch-learned",
            format!("this data is on timeline {tli}, which no term has published"),
            "the term that did",
        );
    }
    let durable = Durable { line, ..view.durable.clone() };
    let why = format!("it went along to timeline {tli}");
    Verdict::persist("branch-learned", why, durable, Intent::Plain)
}

/// No source, nothing received, everything replayed: then the report is true.
fn quiet(view: &View, now: Time, why: &str) -> Verdict {
    if view.pg.source.is_some() {
        return Verdict::pg("park", why, PgAction::SetSource { source: None });
    }
    if view.parked.is_none() {
        if let Some(hold) = backing_off(view, now, "park", "park") {
            return hold;
        }
        return Verdict::pg("park", why, PgAction::Park);
    }
    Verdict::hold("sealed", why, "a term, or a re-grant to the leader")
}

/// Streams a missing tail from another sealed node, as the campaign orders.
fn fast_forward(view: &View, now: Time) -> Option<Verdict> {
    let own = view.campaign.as_ref().and_then(|c| Some((c.epoch, c.fast_forward.as_ref()?)));
    let told = view.others().find_map(|node| {
        let call = view.fresh(node, now)?.call.as_ref()?;
        Some((call.epoch, call.fast_forward.as_ref()?))
    });
    let (epoch, order) = own.or(told)?;
    if epoch != view.durable.promise || order.node != view.me || view.pg.lsn >= order.end {
        return None;
    }
    if view.pg.source.is_some() {
        let why = format!("receiving up to {} from {}", order.end, order.from);
        return Some(Verdict::hold("fast-forward", why, "the rest of the tail"));
    }
    view.parked?;
    let from = view.fresh(&order.from, now)?;
    let report = from.report.as_ref().filter(|report| report.epoch == epoch)?;
    let line = line_to(&view.term()?.branches, report.last.tli);
    let (end, _) = view.parked?;
    if !view.durable.last_record(end).is_some_and(|last| lies_on(last, end, &line)) {
        let why = format!("this history is not a part of that of {}", order.from);
        return Some(Verdict::hold("fast-forward", why, "another leader is chosen"));
    }
    if view.durable.line != line {
        let durable = Durable { line, ..view.durable.clone() };
        let why = format!("{} holds more, on another branch", order.from);
        return Some(Verdict::persist("fast-forward", why, durable, Intent::Plain));
    }
    let action = PgAction::SetSource { source: Some(source_at(view, from)) };
    Some(Verdict::pg("fast-forward", format!("{} holds more", order.from), action))
}

fn promote(view: &View, now: Time, term: &Term) -> Verdict {
    let Some(branch) = term.branch() else { return quiet(view, now, "the term has no branch") };
    if term.leader != view.member() {
        return quiet(view, now, "the term names an older incarnation of this node");
    }
    let granted = view.durable.grant.is_some_and(|grant| grant.epoch >= term.epoch);
    if granted && view.promoting != Some(term.epoch) {
        return quiet(view, now, "the promotion of this epoch was begun before and did not end");
    }
    if view.pg.source.is_some() || view.parked.is_none() {
        return quiet(view, now, "to be promoted");
    }
    if view.durable.promise != term.epoch && view.has(Guard::PromoteGuard) {
        return quiet(view, now, "the promise is not the term's epoch");
    }
    if view.parked.is_some_and(|(end, _)| end != branch.fork) {
        return quiet(view, now, "the published fork is not the end of this history");
    }
    if let Some(hold) = backing_off(view, now, "promote", "promote") {
        return hold;
    }
    let line = line_to(&term.branches, branch.parent);
    if view.trimmed.as_ref() != Some(&line) {
        return Verdict::pg("promote", "history files of other paths go", PgAction::Trim { line });
    }
    if !granted {
        let durable = Durable {
            grant: Some(Grant { epoch: term.epoch, tli: branch.tli }),
            line: term.line(),
            promise: view.durable.promise.max(term.epoch),
            put_back: None,
            ..view.durable.clone()
        };
        let intent = Intent::Promote(term.epoch);
        return Verdict::persist("promote", format!("leads epoch {}", term.epoch), durable, intent);
    }
    let reserved = (branch.parent + 1..branch.tli).collect();
    let action = PgAction::Promote {
        branch: branch.clone(),
        reserved,
        slots: super::upkeep::slots_wanted(view),
    };
    Verdict::pg("promote", format!("leads epoch {}", term.epoch), action)
}

fn follow(view: &View, now: Time, term: &Term) -> Verdict {
    let from_leader = view.pg.source.as_ref().is_some_and(|s| s.member == term.leader);
    if from_leader && term.is_along(&view.durable.line) {
        if view.durable.promise < term.epoch {
            let promise = Durable { promise: term.epoch, ..view.durable.clone() };
            let why = format!("epoch {} of the same leader", term.epoch);
            return Verdict::persist("follow", why, promise, Intent::Plain);
        }
        let more = moved(view, now).or_else(|| full(view)).or_else(|| replace::standby(view, now));
        return more.unwrap_or(Verdict::Steady);
    }
    if view.pg.source.is_some() || view.parked.is_none() {
        return match quiet(view, now, "to follow the leader of a new term") {
            Verdict::Act { actions, why, .. } => {
                Verdict::Act { rule: "follow".to_string(), why, actions }
            }
            other => other,
        };
    }
    if view.durable.sysid.is_some_and(|sysid| sysid != term.sysid) {
        return Verdict::hold_for_operator(
            "foreign-cluster",
            format!(
                "this data is of system {:?}, the term's is {}",
                view.durable.sysid, term.sysid
            ),
            "move this data directory away; a clone follows",
        );
    }
    let line = term.line();
    let Some((end, _)) = view.parked else { return Verdict::Steady };
    let ours = view.durable.last_record(end).is_some_and(|last| lies_on(last, end, &line));
    if !ours && view.has(Guard::HistoryCheck) {
        return rejoin::decide(view, now);
    }
    if let Some(verdict) = replace::parked(view, now) {
        return verdict;
    }
    if view.trimmed.as_ref() != Some(&line) {
        return Verdict::pg("follow", "history files of other paths go", PgAction::Trim { line });
    }
    if view.durable.promise < term.epoch || view.durable.line != line {
        let durable = Durable {
            promise: view.durable.promise.max(term.epoch),
            line,
            put_back: None,
            ..view.durable.clone()
        };
        let why = format!("{} leads epoch {}", term.leader, term.epoch);
        return Verdict::persist("follow", why, durable, Intent::Plain);
    }
    let Some((_, source)) = leader_source(view, now) else {
        return Verdict::hold(
            "follow",
            format!(
                "{} does not lead timeline {} yet",
                term.leader,
                line.last().map_or(0, |b| b.tli)
            ),
            format!("{} is promoted", term.leader),
        );
    };
    let why = format!("{} leads epoch {}", term.leader, term.epoch);
    Verdict::pg("follow", why, PgAction::SetSource { source: Some(source) })
}

/// The leader's address or this node's own slot changed.
fn moved(view: &View, now: Time) -> Option<Verdict> {
    let (_, source) = leader_source(view, now)?;
    let changed = view.pg.source.as_ref().is_some_and(|s| *s != source);
    changed.then(|| {
        Verdict::pg(
            "follow",
            "the leader's address changed",
            PgAction::SetSource { source: Some(source) },
        )
    })
}

fn catching_up(view: &View, now: Time, until: crate::ids::Lsn) -> Verdict {
    let leader = leader_source(view, now);
    let from = view.pg.source.as_ref().map(|source| &source.member);
    match (view.term(), from) {
        (Some(term), Some(from)) if *from == term.leader => {
            if !term.is_along(&view.durable.line) {
                return rejoin::again(view, "the leader changed branch before the copy was whole");
            }
            if view.pg.lsn >= until {
                let durable = Durable { data: Data::Ok, ..view.durable.clone() };
                let why = format!("replayed past {until}");
                return Verdict::persist("caught-up", why, durable, Intent::Plain);
            }
            let why = format!("this copy is whole once it has replayed to {until}");
            Verdict::hold("catch-up", why, format!("replay, now at {}", view.pg.lsn))
        }
        (Some(term), _) if term.leader.node == view.me || !term.is_along(&view.durable.line) => {
            rejoin::again(view, "the leader changed before the copy was whole")
        }
        _ => match leader {
            Some((_, source)) => Verdict::pg("catch-up", "streams from the leader", {
                PgAction::SetSource { source: Some(source) }
            }),
            None => Verdict::hold("catch-up", "no leader to catch up from", "a running leader"),
        },
    }
}
