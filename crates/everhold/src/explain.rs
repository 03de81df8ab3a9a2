//! An entry of the journal in words, and the decision in it made again from its facts. Pure.

use crate::journal::Entry;
use everhold_core::decide::{Action, Verdict};
use everhold_core::ids::Time;
use everhold_core::journal::{Decision, Event, RULES};
use everhold_core::postgres::Process;
use everhold_core::status::Status;
use everhold_core::term::{Set, Term};
use everhold_core::view::{Campaign, Cause, View};
use serde_json::{Value, json};

/// What kind of entry it is.
pub fn kind(event: &Event) -> &'static str {
    match event {
        Event::Decided(_) => "decided",
        Event::Ended { .. } => "ended",
        Event::Released { .. } => "released",
        Event::Asked { .. } => "asked",
        Event::Noted { .. } => "noted",
    }
}

/// One line about an entry.
pub fn line(event: &Event) -> String {
    match event {
        Event::Decided(decision) => match &decision.verdict {
            Verdict::Act { rule, why, actions } => {
                let names: Vec<&str> = actions.iter().map(Action::name).collect();
                format!("{rule}: {} — {why}", names.join(", "))
            }
            Verdict::Hold { rule, why, .. } => format!("{rule}: holds — {why}"),
            Verdict::Steady => "steady".to_string(),
        },
        Event::Ended { action, ok: true, .. } => format!("{action} works again"),
        Event::Ended { action, ok: false, text } => format!("{action} failed: {text}"),
        Event::Released { rule, held_ms, .. } => {
            format!("{rule}: waits no more, after {held_ms} ms")
        }
        Event::Asked { who, what } => format!("{who}: {what}"),
        Event::Noted { text } => text.clone(),
    }
}

/// Facts, rule and verdict of an entry, and whether the same facts give the same verdict.
pub fn explain(entry: &Entry, intact: bool) -> Value {
    let mut answer = json!({
        "id": entry.id, "at": entry.at, "service": entry.service, "kind": kind(&entry.event),
        "text": line(&entry.event), "intact": intact,
    });
    let Event::Decided(decision) = &entry.event else { return answer };
    let replayed = decision.replay();
    answer["controller"] = json!(decision.controller);
    answer["epoch"] = json!(decision.epoch);
    answer["rules"] = json!(decision.rules);
    answer["rules_here"] = json!(RULES);
    answer["rule"] = json!(decision.verdict.rule());
    answer["facts"] = json!(facts(decision));
    answer["verdict"] = json!(decision.verdict);
    answer["replayed"] = json!(replayed);
    answer["same"] = json!(replayed.as_ref() == Some(&decision.verdict));
    answer
}

/// What was known when it was decided, a fact per line, nearest first.
fn facts(decision: &Decision) -> Vec<String> {
    let (view, now) = (&*decision.view, decision.now);
    let mut facts: Vec<String> = held(decision).into_iter().collect();
    facts.extend([own(view, now), server(view)]);
    facts.extend(view.store.unreadable.iter().map(|why| format!("can't be read: {why}")));
    facts.push(store(view));
    facts.extend(view.term().map(term));
    facts.extend(view.store.lease.as_ref().map(|lease| {
        let ms = now.since(lease.seen);
        format!("the lease of epoch {} was last seen to move {ms} ms ago", lease.value.epoch)
    }));
    facts.extend(view.peers.iter().map(|(node, peer)| {
        let heard = peer.detector.last().map(|at| now.since(at));
        peer_fact(node, peer.status.as_deref(), heard)
    }));
    if let Some((cause, since)) = &view.reason {
        let ms = now.since(*since);
        facts.push(format!("there has been a reason to campaign for {ms} ms: {}", reason(cause)));
    }
    if let Some(wish) = &view.wish {
        let ms = now.since(wish.since);
        facts.push(format!("asked {ms} ms ago: {}", reason(&wish.cause)));
    }
    facts.extend(view.campaign.as_ref().map(|campaign| own_campaign(campaign, now)));
    facts.extend(view.store.campaign.as_ref().map(|record| {
        let ms = now.since(record.seen);
        let (owner, epoch) = (&record.value.owner, record.value.epoch);
        format!("{owner} campaigns for epoch {epoch}; its record moved {ms} ms ago")
    }));
    let failures = view.failures.iter().map(|(action, failure)| {
        let ms = now.since(failure.last);
        format!("{action} failed {} times, last {ms} ms ago: {}", failure.times, failure.text)
    });
    facts.extend(failures);
    facts
}

/// Of a hold: how long it had lasted, and what would end it.
fn held(decision: &Decision) -> Option<String> {
    let Verdict::Hold { unblocks, operator, until, .. } = &decision.verdict else { return None };
    let lasted = decision.since.map(|since| decision.now.since(since));
    let lasted = lasted.map(|ms| format!("it had waited for {ms} ms; ")).unwrap_or_default();
    let who = if *operator { ", which only a person does" } else { "" };
    let until = until.map(|at| format!(", or {} ms later", at.since(decision.now)));
    Some(format!("{lasted}it ends with: {unblocks}{who}{}", until.unwrap_or_default()))
}

fn own(view: &View, now: Time) -> String {
    let durable = &view.durable;
    let grant = durable.grant.map(|g| format!(", granted epoch {} once", g.epoch));
    let data = serde_json::to_value(durable.data).unwrap_or_default();
    let data = data.as_str().map_or_else(|| data.to_string(), str::to_string);
    format!(
        "this is {}, awake for {} ms, promised epoch {}, data {data}{}",
        view.member(),
        now.since(view.awake),
        durable.promise,
        grant.unwrap_or_default(),
    )
}

fn server(view: &View) -> String {
    let pg = &view.pg;
    let process = match pg.process {
        Process::Unknown => "not looked at yet",
        Process::Down => "not running",
        Process::Remains => "ending, or dead with something left of it",
        Process::Starting => "starting",
        Process::Running => "running",
    };
    let role = match pg.in_recovery {
        Some(true) => " as a standby",
        Some(false) => " as a primary",
        None => "",
    };
    let mut text = format!("its PostgreSQL is {process}{role}");
    if pg.process == Process::Running {
        text += &format!(" on timeline {} at {}", pg.tli, pg.lsn);
    }
    if let Some(source) = &pg.source {
        let streaming = pg.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
        let how = if streaming { "streaming" } else { "not streaming" };
        text += &format!(", {how} from {}", source.member);
    }
    if let Some((end, tli)) = view.parked {
        text += &format!(", parked at {end} of timeline {tli}");
    }
    text
}

fn store(view: &View) -> String {
    let store = &view.store;
    let reach = match (store.reachable, store.read) {
        (true, true) => "answers",
        (true, false) => "answers and was not read yet",
        (false, _) => "is out of reach",
    };
    let maintenance = if store.maintenance { "; the service is in maintenance" } else { "" };
    format!("the store {reach}, epoch {}{maintenance}", view.store_epoch())
}

fn term(term: &Term) -> String {
    let sets: Vec<String> = term.inforce.iter().map(Set::to_string).collect();
    let open = if term.open { "open" } else { "not open" };
    let change = match term.is_changing() {
        true => format!(", on the way to {}", term.target),
        false => String::new(),
    };
    format!(
        "epoch {} is led by {}, {open}; in force: {}{change}",
        term.epoch,
        term.leader,
        sets.join("; ")
    )
}

fn peer_fact(node: &str, status: Option<&Status>, heard_ms: Option<u64>) -> String {
    let (Some(status), Some(ms)) = (status, heard_ms) else {
        return format!("{node} was never heard");
    };
    let mut text = format!(
        "{} was heard {ms} ms ago: {}, promised epoch {}, at {}",
        status.member,
        crate::status::word(&status.state),
        status.promise,
        status.lsn
    );
    if let Some(epoch) = status.serving {
        text += &format!(", serving epoch {epoch}");
    }
    if let Some(epoch) = status.misses {
        text += &format!(", missing the leader of epoch {epoch}");
    }
    if let Some(epoch) = status.fell {
        text += &format!(", saying that it leads epoch {epoch} no more");
    }
    if let Some(report) = &status.report {
        text += &format!(", sealed at epoch {} with history to {}", report.epoch, report.end);
    }
    text
}

fn own_campaign(campaign: &Campaign, now: Time) -> String {
    let sealed: Vec<String> = campaign
        .reports
        .values()
        .map(|report| format!("{} to {}", report.member, report.end))
        .collect();
    let sealed = if sealed.is_empty() { "nobody".to_string() } else { sealed.join(", ") };
    let (epoch, ms) = (campaign.epoch, now.since(campaign.opened));
    format!("its own campaign for epoch {epoch} is {ms} ms old; sealed: {sealed}")
}

fn reason(cause: &Cause) -> String {
    match cause {
        Cause::LeaderFell => "the leader's own agent says that it leads no more".to_string(),
        Cause::LeaderMissed => "nothing is heard of the leader".to_string(),
        Cause::LeaderReplaced => "the leader's node has other data".to_string(),
        Cause::NeverOpened => "the term was never opened".to_string(),
        Cause::Switchover { to } => format!("switchover to {}", to.as_deref().unwrap_or("any")),
        Cause::Restore { restored, .. } => {
            format!("recovery to {}, from {}", restored.end, restored.id)
        }
        Cause::Force { to } => format!("forced failover to {}", to.as_deref().unwrap_or("any")),
    }
}
