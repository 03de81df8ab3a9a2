//! Who serves a service, and when that changed: from the reports of all agents to the record
//! `last-failover`. Pure but for nothing: whoever hears the reports keeps and writes it.

use crate::journal::Entry;
use everhold_core::agent::Input;
use everhold_core::decide::{Action, Verdict, Write};
use everhold_core::ids::Epoch;
use everhold_core::journal::{Decision, Event};
use everhold_core::kv::Kv;
use everhold_core::records::decode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How its key ends.
const KEY: &str = "/last-failover";

/// How a service came to its present leader, as `status` shows it and the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailover {
    pub at: String,
    pub kind: Kind,
    /// `None`: nobody led before, or it isn't known.
    pub from: Option<String>,
    pub to: String,
    pub epoch: Epoch,
    /// Of the campaign; `None` while its journal can't be read.
    pub rule: Option<String>,
    /// As the agents' reports show it; `None` when nobody watched.
    pub outage_ms: Option<u64>,
    pub journal: Option<String>,
    #[serde(default)]
    pub lost: Lost,
}

/// What the change cost. `None`: not known, or not known yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Commits that clients were told of.
    pub acknowledged: Option<u64>,
    /// WAL of the old leader that nobody else has.
    pub unacknowledged_bytes: Option<u64>,
    /// Where that is kept: NODE:diverged/EPOCH.
    pub kept_at: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Bootstrap,
    Switchover,
    Failover,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Bootstrap => "bootstrap",
            Kind::Switchover => "switchover",
            Kind::Failover => "failover",
        }
    }
}

/// A leader that was seen to serve.
#[derive(Clone, Debug)]
struct Leader {
    node: String,
    epoch: Epoch,
    heard_ms: u64,
    /// Since when it has said itself that it serves no more.
    stopped_ms: Option<u64>,
}

/// Somebody serves that didn't before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub service: String,
    pub from: Option<String>,
    pub to: String,
    pub epoch: Epoch,
    pub outage_ms: Option<u64>,
}

/// The leader of each service as last heard.
#[derive(Debug, Default)]
pub struct Leaders {
    of: BTreeMap<String, Leader>,
}

impl Leaders {
    /// Takes in what a node says about itself: which epoch of the service it serves, if any.
    ///
    /// A leader that takes a higher epoch without having stopped was only re-granted: no change.
    pub fn hear(
        &mut self,
        service: &str,
        node: &str,
        serving: Option<Epoch>,
        now_ms: u64,
    ) -> Option<Change> {
        let Some(known) = self.of.get_mut(service) else {
            let epoch = serving?;
            let leader =
                Leader { node: node.to_string(), epoch, heard_ms: now_ms, stopped_ms: None };
            self.of.insert(service.to_string(), leader);
            return Some(change(service, None, node, epoch, None));
        };
        let same = known.node == node;
        let Some(epoch) = serving else {
            if same && known.stopped_ms.is_none() {
                known.stopped_ms = Some(now_ms);
            }
            return None;
        };
        if epoch < known.epoch || (epoch == known.epoch && !same) {
            return None;
        }
        let regranted = same && known.stopped_ms.is_none();
        let raised = epoch > known.epoch;
        let ended_ms = known.stopped_ms.unwrap_or(known.heard_ms);
        let from = std::mem::replace(&mut known.node, node.to_string());
        (known.epoch, known.heard_ms, known.stopped_ms) = (epoch, now_ms, None);
        (raised && !regranted).then(|| {
            change(service, Some(from), node, epoch, Some(now_ms.saturating_sub(ended_ms)))
        })
    }
}

fn change(
    service: &str,
    from: Option<String>,
    to: &str,
    epoch: Epoch,
    outage_ms: Option<u64>,
) -> Change {
    Change { service: service.to_string(), from, to: to.to_string(), epoch, outage_ms }
}

/// The record, if that is what the agent of a service was handed from the store.
pub fn told(input: &Input) -> Option<LastFailover> {
    told_of(input, KEY)
}

/// What the store says of the service under a key that ends so, if it says anything new.
pub fn told_of<T: DeserializeOwned>(input: &Input, key: &str) -> Option<T> {
    let find = |kvs: &[Kv]| {
        let kv = kvs.iter().find(|kv| kv.key.ends_with(key))?;
        decode(&kv.value).ok()
    };
    match input {
        Input::Store { kvs } => find(kvs),
        Input::StoreChanged { kv: Some(kv), .. } => find(std::slice::from_ref(kv)),
        Input::StoreChanged { kv: None, .. }
        | Input::Tick
        | Input::Pg { .. }
        | Input::PgDied
        | Input::Persisted { .. }
        | Input::PgDone { .. }
        | Input::Written { .. }
        | Input::StoreLost
        | Input::Heard { .. }
        | Input::Probed { .. }
        | Input::Wished { .. }
        | Input::Restart
        | Input::Scrubbed { .. }
        | Input::Policy { .. } => None,
    }
}

/// The record of a change; `entry` is the one that began the campaign, if it was found.
pub fn record(change: &Change, entry: Option<&Entry>, at: String) -> LastFailover {
    let rule = entry.and_then(|entry| match &entry.event {
        Event::Decided(decision) => Some(decision.verdict.rule().to_string()),
        Event::Ended { .. }
        | Event::Released { .. }
        | Event::Asked { .. }
        | Event::Noted { .. } => None,
    });
    let kind = match (rule.as_deref(), change.epoch) {
        (_, 1) => Kind::Bootstrap,
        (Some("switchover"), _) => Kind::Switchover,
        (Some(_) | None, _) => Kind::Failover,
    };
    let lost = Lost { acknowledged: acknowledged(kind, rule.as_deref()), ..Lost::default() };
    LastFailover {
        at,
        kind,
        lost,
        from: change.from.clone(),
        to: change.to.clone(),
        epoch: change.epoch,
        rule,
        outage_ms: change.outage_ms,
        journal: entry.map(|entry| entry.id.clone()),
    }
}

/// Covering sets hold every acknowledged commit; who forces a leader does without them, and a recovery
/// gives some up. Without word of the campaign it may have been either.
fn acknowledged(kind: Kind, rule: Option<&str>) -> Option<u64> {
    match (rule, kind) {
        (Some("force" | "restore"), _) | (None, Kind::Switchover | Kind::Failover) => None,
        (Some(_), _) | (None, Kind::Bootstrap) => Some(0),
    }
}

/// The entry by which the campaign for `epoch` was begun.
pub fn beginning<'a>(entries: &'a [Entry], service: &str, epoch: Epoch) -> Option<&'a Entry> {
    let begins = |decision: &Decision| match &decision.verdict {
        Verdict::Act { actions, .. } => actions.iter().any(|action| opens(action, epoch)),
        Verdict::Steady | Verdict::Hold { .. } => false,
    };
    entries.iter().rev().find(|entry| {
        let decided = matches!(&entry.event, Event::Decided(decision) if begins(decision));
        entry.service == service && decided
    })
}

fn opens(action: &Action, epoch: Epoch) -> bool {
    let Action::Store { write } = action else { return false };
    match &**write {
        Write::Open { record, .. } => record.epoch == epoch,
        // The first term is published without a campaign.
        Write::Publish { term, .. } => epoch == 1 && term.epoch == 1,
        Write::Lead { .. }
        | Write::Regrant { .. }
        | Write::Renew { .. }
        | Write::Confirm { .. }
        | Write::GiveUp { .. }
        | Write::Lease { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of `at node epoch|-`; the changes as `from>to@epoch outage`.
    fn check(heard: &str, expected: &[&str]) {
        let mut leaders = Leaders::default();
        let mut changes = Vec::new();
        for line in heard.split(',').map(str::trim) {
            let words: Vec<&str> = line.split(' ').collect();
            let at = words[0].parse().expect("a time");
            if let Some(change) = leaders.hear("main", words[1], words[2].parse().ok(), at) {
                let from = change.from.as_deref().unwrap_or("?");
                let outage = change.outage_ms.map_or("?".to_string(), |ms| ms.to_string());
                changes.push(format!("{from}>{}@{} {outage}", change.to, change.epoch));
            }
        }
        assert_eq!(changes, expected, "{heard}");
    }

    #[test]
    fn outages_count_from_the_last_word_of_the_old_leader() {
        // It says itself that it has stopped.
        check("0 a 1, 100 a -, 190 b 2", &["?>a@1 ?", "a>b@2 90"]);
        // It says nothing any more.
        check("0 a 1, 100 a 1, 1100 b 2", &["?>a@1 ?", "a>b@2 1000"]);
        // It says so again and again, and others say nothing of interest.
        check("0 a 1, 100 a -, 150 c -, 200 a -, 300 b 2, 400 b 2", &["?>a@1 ?", "a>b@2 200"]);
        // It stopped and led again within its epoch: no failover, and no outage left over.
        check("0 a 1, 100 a -, 150 a 1, 200 b 2", &["?>a@1 ?", "a>b@2 50"]);
        // Led again by the same node after a stop.
        check("0 a 1, 100 a -, 500 a 2", &["?>a@1 ?", "a>a@2 400"]);
        // Re-granted without a stop.
        check("0 a 1, 100 a 3, 200 b 4", &["?>a@1 ?", "a>b@4 100"]);
        // An old leader that doesn't know better changes nothing.
        check("0 b 2, 10 a 1, 20 c 2, 30 b 2", &["?>b@2 ?"]);
    }

    #[test]
    fn kinds_follow_from_epoch_and_rule() {
        let change = |epoch| change("main", Some("a".into()), "b", epoch, Some(7));
        assert_eq!(record(&change(1), None, String::new()).kind, Kind::Bootstrap);
        let unknown = record(&change(2), None, String::new());
        assert_eq!(
            (unknown.kind, unknown.rule, unknown.outage_ms),
            (Kind::Failover, None, Some(7))
        );
        #[rustfmt::skip]
        let cases = [
            (Kind::Failover,   Some("leader-down"), Some(0)),
            (Kind::Switchover, Some("switchover"),  Some(0)),
            (Kind::Bootstrap,  None,                Some(0)),
            (Kind::Failover,   Some("force"),       None),
            (Kind::Failover,   Some("restore"),     None),
            // Nobody says that it was not forced.
            (Kind::Failover,   None,                None),
        ];
        for (kind, rule, expected) in cases {
            assert_eq!(acknowledged(kind, rule), expected, "{rule:?}");
        }
        assert_eq!(unknown.lost.acknowledged, None);
    }
}
