//! What the store says that agents don't, learnt key by key.

use crate::backup::copies::Copied;
use crate::backup::forget::Forgotten;
use crate::backup::shown::Summary;
use crate::clock;
use crate::failovers::LastFailover;
use crate::gateway::{Presence, presence_prefix};
use crate::lost_nodes::{HELD, Held};
use crate::machine::coordinator::Members;
use crate::spec::record;
use crate::{gateways_word, hung};
use everhold_core::http::cache::purge::Purges;
use everhold_core::kv::{Kv, Snapshot};
use everhold_core::records::decode;
use everhold_core::rollout::Rollout;
use everhold_core::spec::Spec;
use everhold_core::term::Term;
use std::collections::BTreeMap;

/// The store's own word.
#[derive(Clone, Debug, Default)]
pub struct StoreWord {
    /// The newest revision, while the store answers.
    pub revision: Option<u64>,
    /// The newest revision that was ever heard of.
    pub newest: u64,
    pub gateways: BTreeMap<String, Presence>,
    pub last_failover: BTreeMap<String, LastFailover>,
    /// Services in maintenance.
    pub maintenance: BTreeMap<String, bool>,
    pub terms: BTreeMap<String, Term>,
    /// What the coordinator last read of services' backups.
    pub backups: BTreeMap<String, Summary>,
    /// How services' old backups were last forgotten.
    pub forgotten: BTreeMap<String, Forgotten>,
    /// What of spec and store is in the repositories.
    pub copied: Option<Copied>,
    /// The node that coordinates, on many machines.
    pub coordinator: Option<String>,
    /// Nodes that aren't heard, and why they are not lost.
    pub held: Vec<Held>,
    /// Instances that hang, and are not started anew.
    pub held_instances: Vec<hung::Held>,
    /// What gateways are to purge, the newest.
    pub purges: Purges,
    /// The newest rollout and its revision.
    pub rollout: Option<(Rollout, u64)>,
    /// Who keeps the store, on many machines.
    pub members: Option<Members>,
    /// The mirrored heads of the journals by node: id and hash of an entry.
    pub heads: BTreeMap<String, String>,
    /// The revision of the spec; 0 before it was read.
    pub spec_rev: u64,
    /// Records that this version can't read, by key.
    pub unreadable: BTreeMap<String, Unreadable>,
}

/// What can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub why: String,
    /// When this process first saw it.
    pub since: String,
}

impl StoreWord {
    /// Everything anew from a snapshot. What this process knows of failovers and hasn't written yet
    /// stays.
    pub fn of(prefix: &str, snapshot: &Snapshot, old: &StoreWord) -> (StoreWord, Option<Spec>) {
        let mut word =
            StoreWord { last_failover: old.last_failover.clone(), ..StoreWord::default() };
        let mut spec = None;
        for kv in &snapshot.kvs {
            spec = word.learn(prefix, &kv.key, Some(kv)).or(spec);
        }
        for (key, unreadable) in &mut word.unreadable {
            if let Some(known) = old.unreadable.get(key).filter(|it| it.why == unreadable.why) {
                unreadable.since.clone_from(&known.since);
            }
        }
        word.reached(snapshot.rev);
        (word, spec)
    }

    /// The store was read at least once.
    pub fn is_known(&self) -> bool {
        self.newest > 0
    }

    /// Whether more is known than a snapshot of this revision says; `before`: the newest revision
    /// known when its reading began. An older snapshot of which nobody learned more meanwhile is
    /// that of a store that was restored from a copy: it is what is agreed.
    pub fn outruns(&self, rev: u64, before: u64) -> bool {
        rev < self.newest && self.newest != before
    }

    /// The store answered, at this revision.
    pub fn reached(&mut self, rev: u64) {
        self.newest = self.newest.max(rev);
        self.revision = Some(self.newest);
    }

    /// Takes in a key as it stands; `None`: it is gone. A new spec is handed back.
    pub fn learn(&mut self, prefix: &str, key: &str, kv: Option<&Kv>) -> Option<Spec> {
        let rest = key.strip_prefix(prefix)?;
        self.unreadable.remove(key);
        let cluster = prefix.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if let Some(name) = key.strip_prefix(&presence_prefix(cluster)) {
            self.learn_gateway(name, kv);
        } else if let Some(node) = rest.strip_prefix("journal/") {
            match kv {
                Some(kv) => self.heads.insert(node.to_string(), kv.value.clone()),
                None => self.heads.remove(node),
            };
        } else if let Some(rest) = rest.strip_prefix("service/") {
            let (service, name) = rest.split_once('/')?;
            self.learn_of_service(service, name, kv);
        } else if rest == "copied" {
            self.copied = kv.and_then(|kv| decode(&kv.value).ok());
        } else if rest == "coordinator" {
            self.coordinator = kv.map(|kv| kv.value.clone());
        } else if rest == HELD {
            self.held = kv.and_then(|kv| decode(&kv.value).ok()).unwrap_or_default();
        } else if rest == hung::HELD {
            self.held_instances = kv.and_then(|kv| decode(&kv.value).ok()).unwrap_or_default();
        } else if rest == "purge" {
            self.purges = kv.and_then(|kv| decode(&kv.value).ok()).unwrap_or_default();
        } else if rest == "rollout" {
            self.rollout = None;
            match kv.map(|kv| (kv, decode(&kv.value))) {
                Some((kv, Ok(rollout))) => self.rollout = Some((rollout, kv.rev)),
                Some((kv, Err(why))) => self.misread(kv, why.to_string()),
                None => {}
            }
        } else if rest == "members" {
            self.members = kv.and_then(|kv| decode(&kv.value).ok());
        } else if rest == "spec" {
            return self.learn_spec(kv?);
        }
        None
    }

    fn learn_spec(&mut self, kv: &Kv) -> Option<Spec> {
        match record::from_json(&kv.value) {
            Ok(spec) => {
                self.spec_rev = kv.rev;
                Some(spec)
            }
            Err(error) => {
                self.misread(kv, error.to_string());
                None
            }
        }
    }

    fn learn_gateway(&mut self, name: &str, kv: Option<&Kv>) {
        let name = gateways_word::name(name);
        match kv.and_then(|kv| decode(&kv.value).ok()) {
            Some(presence) => self.gateways.insert(name.to_string(), presence),
            None => self.gateways.remove(name),
        };
    }

    fn learn_of_service(&mut self, service: &str, name: &str, kv: Option<&Kv>) {
        match (name, kv) {
            ("maintenance", Some(_)) => {
                self.maintenance.insert(service.to_string(), true);
            }
            ("maintenance", None) => {
                self.maintenance.remove(service);
            }
            ("backups", kv) => match kv.and_then(|kv| decode(&kv.value).ok()) {
                Some(summary) => drop(self.backups.insert(service.to_string(), summary)),
                None => drop(self.backups.remove(service)),
            },
            ("forgotten", kv) => match kv.and_then(|kv| decode(&kv.value).ok()) {
                Some(forgotten) => drop(self.forgotten.insert(service.to_string(), forgotten)),
                None => drop(self.forgotten.remove(service)),
            },
            ("last-failover", kv) => self.relearn_failover(service, kv),
            ("term", Some(kv)) => match decode::<Term>(&kv.value) {
                Ok(term) => {
                    self.terms.insert(service.to_string(), term);
                }
                Err(why) => self.misread(kv, why.to_string()),
            },
            ("term", None) => {
                self.terms.remove(service);
            }
            // Records that agents keep among themselves, and those of newer versions.
            (_, _) => {}
        }
    }

    fn misread(&mut self, kv: &Kv, why: String) {
        let unreadable = Unreadable { why, since: clock::wall() };
        self.unreadable.insert(kv.key.clone(), unreadable);
    }

    /// The newer of the two epochs counts: this process may not have written its own yet.
    pub fn relearn_failover(&mut self, service: &str, kv: Option<&Kv>) {
        let Some(told) = kv.and_then(|kv| decode::<LastFailover>(&kv.value).ok()) else { return };
        let known = self.last_failover.get(service).map_or(0, |known| known.epoch);
        if told.epoch >= known {
            self.last_failover.insert(service.to_string(), told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_late_turns_nothing_back() {
        let at = |newest: u64| StoreWord { newest, ..StoreWord::default() };
        // (known now, of the snapshot, known when its reading began)
        let behind = [(9, 8, 7), (9, 7, 8), (9, 8, 0)];
        let taken = [(9, 9, 7), (9, 10, 7), (9, 10, 9), (0, 1, 0), (9, 3, 9)];
        for (known, rev, before) in behind {
            assert!(at(known).outruns(rev, before), "{known} {rev} {before}");
        }
        for (known, rev, before) in taken {
            assert!(!at(known).outruns(rev, before), "{known} {rev} {before}");
        }
    }
}
