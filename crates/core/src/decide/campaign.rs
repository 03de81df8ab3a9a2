//! Campaigns: when to begin one, and how it goes from the open epoch to the published term.

use super::{Action, Verdict, Write, put_back, rot};
use crate::durable::{Data, PutBack};
use crate::ids::{Epoch, Time};
use crate::policy::{self, Policy};
use crate::postgres::Restored;
use crate::status::{FastForward, State, Status, Summons};
use crate::term::{
    Choice, Preference, Report, Reports, Set, Term, Uncovered, choose, covered_but,
    first_uncovered, lies_on, line_to, most_advanced, published,
};
use crate::view::{Campaign, CampaignRecord, Cause, Guard, View, Wish};
use std::collections::{BTreeMap, BTreeSet};

/// Decides what this node does as a campaigner.
pub fn decide(view: &View, now: Time) -> Verdict {
    if view.store.unreadable.is_some() {
        return Verdict::Steady;
    }
    if let Some(campaign) = &view.campaign {
        return run(view, now, campaign);
    }
    let Some(term) = view.term() else { return first_term(view, now) };
    if let Some(verdict) = wish_ended(view, now, term) {
        return verdict;
    }
    let Some((cause, since)) = &view.reason else { return Verdict::Steady };
    begin(view, now, term, cause, *since)
}

/// A wish ends with the next term, whoever made that, or when it has taken too long.
fn wish_ended(view: &View, now: Time, term: &Term) -> Option<Verdict> {
    let wish = view.wish.as_ref()?;
    let within = match &wish.cause {
        Cause::Switchover { .. } | Cause::Force { .. } => policy::WISH_MS,
        Cause::Restore { .. } => policy::RESTORE_MS,
        Cause::LeaderFell | Cause::LeaderMissed | Cause::LeaderReplaced | Cause::NeverOpened => {
            return None;
        }
    };
    let late = now.since(wish.since) > within;
    let undone = put_back::undone(view);
    if term.epoch <= wish.epoch && !late && undone.is_none() {
        return None;
    }
    let leader = &term.leader.node;
    let refused = if term.epoch <= wish.epoch {
        let late = match put_back::under_way(view) {
            Some(_) => "it is not in its place yet, and goes on by itself; see `everhold status`",
            None => "no new term came of it in time; `everhold status` says what is waited for",
        };
        Some(undone.unwrap_or_else(|| late.to_string()))
    } else {
        let other = || format!("{leader} leads now: it held what the node asked for did not");
        let first = || format!("another term came first, led by {leader}; nothing was put back");
        match &wish.cause {
            Cause::Switchover { to } | Cause::Force { to } => {
                to.as_ref().is_some_and(|to| to != leader).then(other)
            }
            // Whose the term is says nothing: it may lead what it had before.
            Cause::Restore { restored, .. } => {
                let own = view.is_me(&term.leader) && view.put_back.as_ref() == Some(&restored.id);
                (!own).then(first)
            }
            Cause::LeaderFell
            | Cause::LeaderMissed
            | Cause::LeaderReplaced
            | Cause::NeverOpened => None,
        }
    };
    let why = format!("epoch {} is led by {leader}", term.epoch);
    Some(Verdict::act("wish-ended", why, Action::EndWish { refused }))
}

/// Why the term's leader should be replaced, if it should.
pub fn reason(view: &View, now: Time) -> Option<Cause> {
    let term = view.term()?;
    // What another restore has begun ends first, unless it can't.
    let waits = |cause: &Cause| {
        matches!(cause, Cause::Restore { .. })
            && put_back::under_way(view).is_some()
            && !view.failures.contains_key("put-back")
    };
    let wish = view.wish.as_ref().filter(|it| it.epoch >= term.epoch && !waits(&it.cause));
    if let Some(wish) = wish {
        return Some(wish.cause.clone());
    }
    // Begun before this agent was, or the wish was given up meanwhile.
    if let Some(PutBack { restored, force, .. }) = put_back::under_way(view) {
        return Some(Cause::Restore { restored: restored.clone(), force: *force });
    }
    if view.store.maintenance {
        return None;
    }
    let mine = term.leader.node == view.me;
    let told = view.fresh(&term.leader.node, now);
    let (same, fell) = if mine {
        (view.is_me(&term.leader), fell(view) == Some(term.epoch))
    } else {
        // What it said before it heard of this term may be of an incarnation that led to it.
        let older = |status: &Status| status.term < term.epoch && status.data != Data::Empty;
        let same = told.is_none_or(|status| status.member == term.leader || older(status));
        (same, told.is_some_and(|s| s.fell == Some(term.epoch)))
    };
    if !same {
        return Some(Cause::LeaderReplaced);
    }
    if fell {
        return Some(Cause::LeaderFell);
    }
    if misses(view, now) {
        return Some(Cause::LeaderMissed);
    }
    let seen = view.store.term.as_ref().map_or(now, |record| record.seen);
    let leads =
        if mine { view.led_term().is_some() } else { told.is_some_and(|s| s.primary.is_some()) };
    let waited = now.since(seen.max(view.awake)) > policy::UNOPENED_MS;
    (!term.open && !leads && waited).then_some(Cause::NeverOpened)
}

/// The epoch this node was granted, if its PostgreSQL doesn't lead it (any more).
pub fn fell(view: &View) -> Option<Epoch> {
    let term = view.my_term()?;
    // An open term was led, even if a re-grant of it did not reach this disk.
    let granted = term.open || view.durable.grant?.epoch >= term.epoch;
    let begun = view.promoting == Some(term.epoch) && view.is_standby();
    let runs = view.pg.process == crate::postgres::Process::Running && !view.is_standby();
    let unknown = view.pg.process == crate::postgres::Process::Unknown;
    (granted && !begun && !runs && !unknown).then_some(term.epoch)
}

/// First-hand: no heartbeat of the leader's agent, no answer of its PostgreSQL, no WAL from it.
pub fn misses(view: &View, now: Time) -> bool {
    let Some(term) = view.term() else { return false };
    let node = &term.leader.node;
    if *node == view.me {
        return false;
    }
    // Silence counts from when this agent was itself awake.
    let peer = view.peers.get(node);
    let heard = peer.and_then(|p| p.detector.last()).unwrap_or(view.awake);
    let silent = now.since(heard.max(view.awake));
    if silent < policy::SILENCE_MS {
        return false;
    }
    let improbable =
        peer.is_none_or(|p| p.detector.last().is_none() || p.detector.phi(now) >= policy::PHI);
    if !improbable {
        return false;
    }
    let recent = |at: Option<Time>| at.is_some_and(|at| now.since(at) < policy::SILENCE_MS);
    let asked = view.probe.epoch == term.epoch && recent(view.probe.failed);
    let wal = view.pg.receiver.as_ref().filter(|r| r.streaming).and_then(|r| r.message_ms_ago);
    asked && !recent(view.probe.answered) && wal.is_none_or(|ms| ms >= policy::SILENCE_MS)
}

/// The campaign that makes the cluster: the first node, with nothing in force to be covered.
fn first_term(view: &View, now: Time) -> Verdict {
    if !view.store.read {
        return Verdict::Steady;
    }
    if let Some(why) = first_refused(view, now) {
        let refused = Some(why.clone());
        return Verdict::act("wish-ended", why, Action::EndWish { refused });
    }
    let (Some(report), None) = (view.report(), &view.store.epoch) else { return Verdict::Steady };
    let restored = put_back::wanted(view).filter(|_| put_back::is_done(view));
    let makes = report.epoch == 1 && view.policy.nodes.first() == Some(&view.me);
    if !makes && restored.is_none() {
        return Verdict::Steady;
    }
    let reports = Reports::from([(view.me.clone(), report.clone())]);
    let Policy { redundancy, domains, .. } = &view.policy;
    let mut term = published(None, report.epoch, &report, &reports, *redundancy, domains);
    if let (Some(restored), Some(mut branch)) = (restored, term.branches.pop()) {
        branch.tli = restored.tli + 1;
        term.branches = view.durable.line.clone();
        term.branches.push(branch);
    }
    let write = Write::Publish { term, term_rev: 0, guarded: true };
    Verdict::store("bootstrap", "the first term", write)
}

/// Why the operator's wish can't make the first term.
fn first_refused(view: &View, now: Time) -> Option<String> {
    let Wish { cause, since, .. } = view.wish.as_ref()?;
    let late = "no first term came of it in time; `everhold status` says what is waited for";
    let late = || (now.since(*since) > policy::RESTORE_MS).then(|| late.to_string());
    let unasked = || match cause {
        Cause::Restore { force: false, .. } if !put_back::is_begun(view) => put_back::unasked(view),
        Cause::Restore { .. }
        | Cause::LeaderFell
        | Cause::LeaderMissed
        | Cause::LeaderReplaced
        | Cause::NeverOpened
        | Cause::Switchover { .. }
        | Cause::Force { .. } => None,
    };
    put_back::undone(view).or_else(unasked).or_else(late)
}

fn begin(view: &View, now: Time, term: &Term, cause: &Cause, since: Time) -> Verdict {
    let asked =
        matches!(cause, Cause::Switchover { .. } | Cause::Force { .. } | Cause::Restore { .. });
    let say = explain(cause, term);
    if !view.store.reachable {
        return Verdict::hold("store-gone", format!("{say}, and the store is gone"), "the store");
    }
    if let Some(rival) = view.rival(now) {
        let why = format!("{} campaigns for epoch {}", rival.owner, rival.epoch);
        let seen = view.store.campaign.as_ref().map_or(now, |record| record.seen);
        return Verdict::hold("rival", why, "its end")
            .until(seen.plus(policy::CAMPAIGN_TTL_MS), now);
    }
    // Whoever finds cover without what is put back here goes on without it.
    let waits = !asked || view.wish.is_none();
    if let Some(until) = view.campaign_pause.filter(|until| *until > now && waits) {
        return Verdict::hold("no-cover", say, "the next try").until(until, now);
    }
    if let Cause::Switchover { to } = cause
        && let Some(refused) = unfit(view, now, term, to.as_deref())
    {
        let action = Action::EndWish { refused: Some(refused.clone()) };
        return Verdict::act("switchover-refused", refused, action);
    }
    if let Cause::Restore { restored, .. } = cause
        && let Some(refused) = put_back::unfit(term, restored)
    {
        let action = Action::EndWish { refused: Some(refused.clone()) };
        return Verdict::act("switchover-refused", refused, action);
    }
    if !asked && view.has(Guard::PreVote) && !agreed(view, now, term, cause) {
        return Verdict::hold("pre-vote", say, "enough others miss the leader too");
    }
    let wait = rank(view, term, cause) * policy::RANK_MS;
    if now.since(since) < wait && !asked {
        return Verdict::hold("rank", say, "a moment, so that campaigners don't duel")
            .until(since.plus(wait), now);
    }
    let epoch = view.highest_promise().max(view.store_epoch()) + 1;
    let record = CampaignRecord { epoch, owner: view.me.clone(), beat: 0 };
    let write = Write::Open {
        epoch_rev: view.store.epoch.as_ref().map_or(0, |record| record.rev),
        campaign_rev: view.store.campaign.as_ref().map_or(0, |record| record.rev),
        term_rev: view.store.term.as_ref().map_or(0, |record| record.rev),
        record,
        cause: cause.clone(),
    };
    Verdict::store(rule(cause), say, write)
}

/// The name under which journal, metrics and `status` show why there was a campaign.
pub fn rule(cause: &Cause) -> &'static str {
    match cause {
        Cause::LeaderFell => "leader-down",
        Cause::LeaderMissed => "leader-missed",
        Cause::LeaderReplaced => "leader-replaced",
        Cause::NeverOpened => "never-opened",
        Cause::Switchover { .. } => "switchover",
        Cause::Force { .. } => "force",
        Cause::Restore { .. } => "restore",
    }
}

fn explain(cause: &Cause, term: &Term) -> String {
    let leader = &term.leader;
    match cause {
        Cause::LeaderFell => format!("{leader} says that its PostgreSQL does not lead any more"),
        Cause::LeaderMissed => format!("no heartbeat, answer or WAL of {leader}"),
        Cause::LeaderReplaced => format!("{leader} is gone for good: its node has other data"),
        Cause::NeverOpened => format!("{leader} did not open epoch {}", term.epoch),
        Cause::Switchover { .. } => "the operator asks for another leader".to_string(),
        Cause::Force { .. } => "the operator forces a leader".to_string(),
        Cause::Restore { restored, .. } => {
            format!("the operator puts {} back, as of {}", restored.id, restored.end)
        }
    }
}

/// Pre-vote: those who miss the leader themselves would cover every set in force.
fn agreed(view: &View, now: Time, term: &Term, cause: &Cause) -> bool {
    match cause {
        // The leader's own agent says so, or the leader's data is gone, or nobody leads.
        Cause::LeaderFell | Cause::LeaderReplaced | Cause::NeverOpened => return true,
        Cause::Switchover { .. } | Cause::Force { .. } | Cause::Restore { .. } => return true,
        Cause::LeaderMissed => {}
    }
    let mut yes: BTreeMap<String, crate::ids::Member> = view
        .others()
        .filter_map(|node| {
            let status = view.fresh(node, now)?;
            (status.misses == Some(term.epoch)).then(|| (node.to_string(), status.member.clone()))
        })
        .collect();
    if misses(view, now) {
        yes.insert(view.me.clone(), view.member());
    }
    term.inforce.iter().all(|set| {
        let said = set.members.iter().filter(|m| yes.get(&m.node) == Some(m)).count() as u32;
        set.is_closed() || (!set.is_alone() && said >= set.cover_needed())
    })
}

/// The leader's own agent first, if it can speak, then the others in the order of the spec.
fn rank(view: &View, term: &Term, cause: &Cause) -> u64 {
    let leader = &term.leader.node;
    if *leader == view.me {
        return 0;
    }
    let before = view.policy.nodes.iter().take_while(|node| **node != view.me);
    let place = before.filter(|node| *node != leader).count() as u64;
    place + u64::from(*cause == Cause::LeaderFell)
}

/// Why a switchover can't be done now.
fn unfit(view: &View, now: Time, term: &Term, to: Option<&str>) -> Option<String> {
    if !term.open || term.is_changing() {
        return Some("the term is not open, or its set is being changed; try again".to_string());
    }
    if view.led_term().is_none() {
        return Some(format!("{} leads, not {}", term.leader, view.me));
    }
    let ready = |node: &str| {
        let status = view.fresh(node, now);
        let set = &term.target.members;
        status.is_some_and(|s| {
            s.streaming && set.contains(&s.member) && view.may_take_over(&s.member)
        })
    };
    match to {
        Some(node) if node == view.me => Some(format!("{node} leads already")),
        Some(node) if !view.policy.nodes.iter().any(|n| n == node) => {
            Some(format!("{node} is not a node of this service"))
        }
        Some(node) if !ready(node) => Some(format!(
            "{node} is not a streaming member of the synchronous set that may lead and has \
                 no bad pages"
        )),
        None if !view.others().any(ready) => {
            let why = "no streaming member of the synchronous set without bad pages may lead";
            Some(why.to_string())
        }
        Some(_) | None => None,
    }
}

fn run(view: &View, now: Time, campaign: &Campaign) -> Verdict {
    let term = view.term();
    let ended = term.is_some_and(|term| term.epoch >= campaign.epoch);
    if ended || view.store_epoch() > campaign.epoch {
        let why = format!("epoch {} was decided", campaign.epoch);
        return Verdict::act("campaign-ended", why, Action::EndCampaign);
    }
    let (Some(term), Some(record)) = (term, &view.store.campaign) else {
        return Verdict::hold("campaign", "the store's records are not read", "the store");
    };
    if record.value.epoch != campaign.epoch || record.value.owner != view.me {
        let why = format!("{} campaigns now", record.value.owner);
        return Verdict::act("campaign-ended", why, Action::EndCampaign);
    }
    if campaign.summons == Summons::Leader && leader_sealed(view, now, term, campaign) {
        return Verdict::act("switchover", "the leader has stopped", Action::SummonAll);
    }
    let reports = &campaign.reports;
    if let Some(restored) = put_back::wanted(view)
        && (put_back::is_fenced(view, campaign) || put_back::is_begun(view))
    {
        return restore(view, now, campaign, term, restored, record.rev);
    }
    if let Some(uncovered) = uncovered(view, term, reports) {
        return wait_for_cover(view, now, term, campaign, &uncovered, record.rev);
    }
    if let Some(order) = &campaign.fast_forward
        && reports.get(&order.node).is_none_or(|report| report.end < order.end)
        && now.since(campaign.opened) < policy::CAMPAIGN_GIVE_UP_MS
    {
        return renew(view, now, campaign, record.rev).unwrap_or_else(|| {
            Verdict::hold("fast-forward", format!("{} streams what it lacks", order.node), "it")
                .until(campaign.opened.plus(policy::CAMPAIGN_GIVE_UP_MS), now)
        });
    }
    let able = able(term, reports);
    if let Some((late, at)) = late(view, now, campaign, &able) {
        return renew(view, now, campaign, record.rev).unwrap_or_else(|| {
            Verdict::hold("late-report", format!("{late} is alive and not sealed yet"), late)
                .until(at, now)
        });
    }
    let wanted = match &campaign.cause {
        Cause::Switchover { to } | Cause::Force { to } => to.as_deref(),
        Cause::LeaderFell
        | Cause::LeaderMissed
        | Cause::LeaderReplaced
        | Cause::NeverOpened
        | Cause::Restore { .. } => None,
    };
    let tried = now.since(campaign.opened) >= policy::CAMPAIGN_GIVE_UP_MS;
    let mut preferences = preferences(view, campaign, term);
    let last_resort = last_resort(&preferences, term);
    if !tried {
        rot::prefer_sound(view, &able, wanted, &mut preferences);
    }
    let choice = match choose(&able, &preferences, wanted.filter(|_| !tried)) {
        Choice::Nobody => choose(&able, &last_resort, None),
        found => found,
    };
    let leader = match (choice, view.has(Guard::HistoryOrder)) {
        (Choice::Lead(leader), true) => leader,
        (Choice::FastForward { node, from }, true) => {
            let order = FastForward {
                node: node.member.node.clone(),
                from: from.member.node.clone(),
                end: from.end,
            };
            let why = format!("{} shall lead and lacks what {} holds", order.node, order.from);
            if tried {
                let write = Write::GiveUp { campaign_rev: record.rev };
                return Verdict::store("fast-forward", why, write);
            }
            return Verdict::act("fast-forward", why, Action::FastForward { order });
        }
        (Choice::Nobody, true) => {
            return Verdict::hold_for_operator(
                "nobody-may-lead",
                "no sealed node is allowed to lead",
                "set instance.NODE.failover = true for one of them",
            );
        }
        (_, false) => match reports.values().max_by_key(|r| (r.end, r.member.clone())) {
            Some(longest) => longest,
            None => return Verdict::Steady,
        },
    };
    publish(view, campaign, term, leader)
}

/// Once nobody acknowledges anything below this epoch any more, this node's data may go, and what was
/// restored leads, however old it is.
fn restore(
    view: &View,
    now: Time,
    campaign: &Campaign,
    term: &Term,
    restored: &Restored,
    rev: u64,
) -> Verdict {
    let own = campaign.reports.get(&view.me).filter(|report| report.member == view.member());
    let fenced = put_back::is_fenced(view, campaign);
    if let Some(own) = own.filter(|_| fenced && put_back::is_done(view)) {
        return publish(view, campaign, term, own);
    }
    let why = format!("{} takes the place of what this node has", restored.id);
    let late = now.since(campaign.opened) >= policy::RESTORE_MS;
    if late || !fenced || put_back::undone(view).is_some() {
        return Verdict::store("restore", why, Write::GiveUp { campaign_rev: rev });
    }
    renew(view, now, campaign, rev).unwrap_or_else(|| {
        Verdict::hold("restore", why, "it is in its place, started, and parked")
            .until(campaign.opened.plus(policy::RESTORE_MS), now)
    })
}

/// Those whose history is a part of the newest one: nobody else can lead, even after streaming what
/// it lacks.
fn able(term: &Term, reports: &Reports) -> Reports {
    let newest = most_advanced(reports).first().map_or(0, |report| report.last.tli);
    let line = line_to(&term.branches, newest);
    let on_line = reports.iter().filter(|(_, report)| lies_on(report.last, report.end, &line));
    on_line.map(|(node, report)| (node.clone(), report.clone())).collect()
}

/// A switchover away from a node must not choose it again while another is as good.
fn preferences(view: &View, campaign: &Campaign, term: &Term) -> BTreeMap<String, Preference> {
    let mut preferences = view.policy.preferences.clone();
    if matches!(campaign.cause, Cause::Switchover { .. }) {
        let others = most_advanced(&campaign.reports)
            .iter()
            .any(|report| report.member.node != term.leader.node);
        if others {
            let away = preferences
                .entry(term.leader.node.clone())
                .or_insert(Preference { priority: 0, failover: true });
            away.priority = i32::MIN;
        }
    }
    preferences
}

/// What was published, or acknowledged alone, may be held by its leader only, as after a recovery: then
/// it leads, whatever is declared, rather than nobody.
fn last_resort(
    preferences: &BTreeMap<String, Preference>,
    term: &Term,
) -> BTreeMap<String, Preference> {
    let mut preferences = preferences.clone();
    if let Some(last) = preferences.get_mut(&term.leader.node)
        && (!term.open || term.current().is_alone())
    {
        last.failover = true;
    }
    preferences
}

fn publish(view: &View, campaign: &Campaign, term: &Term, leader: &Report) -> Verdict {
    let Policy { redundancy, domains, .. } = &view.policy;
    let reports = &campaign.reports;
    let mut next = published(Some(term), campaign.epoch, leader, reports, *redundancy, domains);
    // A number that somebody is on and no term has published went astray: what is there must not be
    // taken for what this leader will write. A leader whose promotion went astray never opens its
    // term, and may be gone with the number that it took: the next one stays free for that.
    if let Some(branch) = next.branches.last_mut() {
        let restored = put_back::wanted(view).map_or(0, |restored| restored.tli);
        let free = branch.tli + u32::from(!term.open);
        branch.tli = free.max(view.highest_timeline() + 1).max(restored + 1);
    }
    // What the older sets acknowledged past the fork was given up; until the open nobody but this
    // leader has what it leads with.
    if matches!(campaign.cause, Cause::Restore { .. }) {
        let own = Set { leader: next.leader.clone(), members: BTreeSet::new(), k: 0 };
        next.inforce = vec![own, next.target.clone()];
    }
    if !view.has(Guard::OldSetsStay) {
        next.inforce = vec![next.target.clone()];
    }
    let rotten = if view.is_rotten(&leader.member) {
        ", with bad pages: nobody without can hold what it holds"
    } else {
        ""
    };
    let why = format!("{} leads epoch {}{rotten}: {}", leader.member, campaign.epoch, next.target);
    let term_rev = view.store.term.as_ref().map_or(0, |record| record.rev);
    let guarded = view.has(Guard::PublishGuard);
    Verdict::store("publish", why, Write::Publish { term: next, term_rev, guarded })
}

fn uncovered(view: &View, term: &Term, reports: &Reports) -> Option<Uncovered> {
    if view.has(Guard::Cover) {
        return first_uncovered(&term.inforce, reports);
    }
    let all = !reports.is_empty() && term.inforce.iter().all(|set| covered_but(1, set, reports));
    if all { None } else { first_uncovered(&term.inforce, reports) }
}

/// A node that is alive and will report in a moment belongs into the new set: who, and until when it
/// is waited for. Where only copies with bad pages could lead, one without is worth waiting longer.
fn late<'a>(
    view: &'a View,
    now: Time,
    campaign: &Campaign,
    able: &Reports,
) -> Option<(&'a str, Time)> {
    let sealing = |node: &&str| {
        let status = view.fresh(node, now)?;
        let soon = matches!(status.state, State::Streaming | State::Connecting | State::Parking);
        (soon && !campaign.reports.contains_key(*node)).then_some(&status.member)
    };
    let soon = campaign.covered.unwrap_or(now).plus(policy::LATE_REPORT_MS);
    let any = view.others().find(|node| sealing(node).is_some());
    if let Some(node) = any.filter(|_| now < soon) {
        return Some((node, soon));
    }
    let last = campaign.opened.plus(policy::CAMPAIGN_GIVE_UP_MS);
    let mut leaders = able.values().map(|report| &report.member);
    let rotten = leaders.clone().any(|member| view.is_rotten(member))
        && !leaders.any(|member| view.may_take_over(member));
    let sound = |node: &&str| sealing(node).is_some_and(|member| view.may_take_over(member));
    let worth = rotten && now < last && view.has(Guard::SoundLeads);
    worth.then(|| view.others().find(sound)).flatten().map(|node| (node, last))
}

fn leader_sealed(view: &View, now: Time, term: &Term, campaign: &Campaign) -> bool {
    if now.since(campaign.opened) > policy::CAMPAIGN_GIVE_UP_MS {
        return true;
    }
    if term.leader.node == view.me {
        // Down is proven; a stop that was only begun leaves it `Remains`.
        let stopped = view.pg.process == crate::postgres::Process::Down || view.is_standby();
        return view.durable.promise >= campaign.epoch && stopped;
    }
    campaign.reports.contains_key(&term.leader.node)
}

fn wait_for_cover(
    view: &View,
    now: Time,
    term: &Term,
    campaign: &Campaign,
    missing: &Uncovered,
    rev: u64,
) -> Verdict {
    let why = format!("epoch {}: the set {} is not covered", campaign.epoch, missing.set);
    if matches!(campaign.cause, Cause::Force { .. })
        && !campaign.reports.is_empty()
        && lease_ended(view, now)
        && now.since(campaign.opened) >= policy::UNOPENED_MS
        && let Some(leader) = forced_choice(view, campaign)
    {
        return publish(view, campaign, term, leader);
    }
    let forced = matches!(campaign.cause, Cause::Force { .. });
    if now.since(campaign.opened) >= policy::CAMPAIGN_GIVE_UP_MS && !forced {
        return Verdict::store("no-cover", why, Write::GiveUp { campaign_rev: rev });
    }
    renew(view, now, campaign, rev).unwrap_or_else(|| {
        let hold = Verdict::hold("cover", why, missing.to_string());
        if forced {
            hold
        } else {
            hold.until(campaign.opened.plus(policy::CAMPAIGN_GIVE_UP_MS), now)
        }
    })
}

fn forced_choice<'a>(view: &View, campaign: &'a Campaign) -> Option<&'a Report> {
    let mut sound = view.policy.preferences.clone();
    rot::prefer_sound(view, &campaign.reports, None, &mut sound);
    let mut choices = [&sound, &view.policy.preferences].into_iter();
    choices.find_map(|preferences| match choose(&campaign.reports, preferences, None) {
        Choice::Lead(leader) => Some(leader),
        Choice::FastForward { .. } | Choice::Nobody => None,
    })
}

/// The old leader's right to run has ended by this node's own clock.
pub(super) fn lease_ended(view: &View, now: Time) -> bool {
    view.store.lease.as_ref().is_none_or(|lease| {
        now.since(lease.seen.max(view.awake)) > policy::LEASE_MS + policy::LEASE_MARGIN_MS
    })
}

fn renew(view: &View, now: Time, campaign: &Campaign, rev: u64) -> Option<Verdict> {
    if now.since(campaign.renewed) < policy::CAMPAIGN_RENEW_MS {
        return None;
    }
    let record =
        CampaignRecord { epoch: campaign.epoch, owner: view.me.clone(), beat: campaign.beat + 1 };
    let write = Write::Renew { record, campaign_rev: rev };
    Some(Verdict::store("campaign", "still under way", write))
}

#[cfg(test)]
mod tests;
