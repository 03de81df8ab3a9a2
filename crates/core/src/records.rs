//! The records of a service in the store: their keys, their form, and the guards of each write.

use crate::decide::Write;
use crate::ids::{Epoch, Time};
use crate::kv::{Expect, Kv, Txn};
use crate::view::{Record, StoreView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The form of every record this code writes, in the store and on disk, and the newest it reads.
pub const VERSION: u32 = 1;

/// A record with the version of its form beside it, so that two versions can run side by side.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    record: T,
}

/// Why a record could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error(
        "it was written by a newer version of Everhold (form {found}, this one reads {VERSION})"
    )]
    Newer { found: u32 },
    #[error("it is torn or not ours: {0}")]
    Torn(String),
}

/// The text of a record.
pub fn encode<T: Serialize>(record: &T) -> String {
    // Our own types have string keys only, so this cannot fail.
    serde_json::to_string(&Versioned { version: VERSION, record }).unwrap_or_default()
}

/// A record from its text.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Unreadable> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let torn = |error: serde_json::Error| Unreadable::Torn(error.to_string());
    let head: Head = serde_json::from_str(text).map_err(torn)?;
    if head.version > VERSION {
        return Err(Unreadable::Newer { found: head.version });
    }
    serde_json::from_str::<Versioned<T>>(text).map(|v| v.record).map_err(torn)
}

/// The keys of one service.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Ends in `/`.
    pub prefix: String,
}

impl Keys {
    pub fn new(cluster: &str, service: &str) -> Keys {
        Keys { prefix: format!("/everhold/{cluster}/service/{service}/") }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn maintenance(&self) -> String {
        self.key("maintenance")
    }

    /// The transaction of a write, with the guards that make it safe.
    pub fn txn(&self, write: &Write) -> Txn {
        let (epoch, term) = (self.key("epoch"), self.key("term"));
        let (campaign, lease) = (self.key("campaign"), self.key("lease"));
        match write {
            Write::Open { epoch_rev, campaign_rev, term_rev, record, .. } => Txn::new()
                .guard(&epoch, Expect::Rev(*epoch_rev))
                .guard(&campaign, Expect::Rev(*campaign_rev))
                .guard(&term, Expect::Rev(*term_rev))
                .put(&epoch, encode(&record.epoch))
                .put(&campaign, encode(record)),
            Write::Publish { term: value, term_rev, guarded } => {
                let mut txn = Txn::new().put(&term, encode(value)).delete(&campaign);
                if *guarded && *term_rev == 0 {
                    txn = txn
                        .guard(&epoch, Expect::Absent)
                        .guard(&term, Expect::Absent)
                        .put(&epoch, encode(&value.epoch));
                } else if *guarded {
                    txn = txn
                        .guard(&epoch, Expect::Value(encode(&value.epoch)))
                        .guard(&term, Expect::Rev(*term_rev));
                }
                txn
            }
            Write::Lead { term: value, term_rev } => {
                Txn::new().guard(&term, Expect::Rev(*term_rev)).put(&term, encode(value))
            }
            Write::Regrant { term: value, term_rev, epoch_rev, campaign_rev } => Txn::new()
                .guard(&term, Expect::Rev(*term_rev))
                .guard(&epoch, Expect::Rev(*epoch_rev))
                .guard(&campaign, Expect::Rev(*campaign_rev))
                .put(&term, encode(value))
                .put(&epoch, encode(&value.epoch))
                .delete(&campaign),
            Write::Confirm { term_rev } => Txn::new().guard(&term, Expect::Rev(*term_rev)),
            Write::Renew { record, campaign_rev } => Txn::new()
                .guard(&campaign, Expect::Rev(*campaign_rev))
                .put(&campaign, encode(record)),
            Write::GiveUp { campaign_rev } => {
                Txn::new().guard(&campaign, Expect::Rev(*campaign_rev)).delete(&campaign)
            }
            Write::Lease { record, term_rev } => {
                Txn::new().guard(&term, Expect::Rev(*term_rev)).put(&lease, encode(record))
            }
        }
    }

    /// Takes a changed key (`None`: it is gone) into the view. Older revisions change nothing.
    pub fn learn(&self, view: &mut StoreView, key: &str, kv: Option<&Kv>, now: Time) {
        let Some(name) = key.strip_prefix(&self.prefix) else { return };
        let mut fault = None;
        match name {
            "epoch" => fault = take(&mut view.epoch, kv, now),
            "term" => fault = take(&mut view.term, kv, now),
            "campaign" => fault = take(&mut view.campaign, kv, now),
            "lease" => fault = take(&mut view.lease, kv, now),
            "maintenance" => view.maintenance = kv.is_some(),
            // A newer version may keep more here.
            _ => {}
        }
        if let Some(why) = fault {
            view.unreadable = Some(format!("the record {key}: {why}"));
        }
    }

    /// Takes all keys of the service as they stand. A record that went back in time, as after the
    /// store was restored from a copy, is taken as it is: promises on disk keep the order.
    pub fn learn_all(&self, view: &mut StoreView, kvs: &[Kv], now: Time) {
        let old = std::mem::take(view);
        let known = |name: &str| kvs.iter().find(|kv| kv.key == self.key(name));
        *view = StoreView { reachable: true, read: true, ..StoreView::default() };
        view.epoch = kept(old.epoch, known("epoch"));
        view.term = kept(old.term, known("term"));
        view.campaign = kept(old.campaign, known("campaign"));
        view.lease = kept(old.lease, known("lease"));
        for kv in kvs {
            self.learn(view, &kv.key, Some(kv), now);
        }
    }
}

/// What didn't change keeps the instant at which it was first seen. Of what can't be read any more
/// the last form that could stays: a leader goes on as it is, and writes nothing.
fn kept<T: DeserializeOwned>(old: Option<Record<T>>, kv: Option<&Kv>) -> Option<Record<T>> {
    let kv = kv?;
    old.filter(|record| kv.rev == record.rev || decode::<T>(&kv.value).is_err())
}

fn take<T: DeserializeOwned>(
    slot: &mut Option<Record<T>>,
    kv: Option<&Kv>,
    now: Time,
) -> Option<Unreadable> {
    let Some(kv) = kv else {
        *slot = None;
        return None;
    };
    if slot.as_ref().is_some_and(|old| old.rev >= kv.rev) {
        return None;
    }
    match decode(&kv.value) {
        Ok(value) => {
            *slot = Some(Record { value, rev: kv.rev, seen: now });
            None
        }
        Err(why) => Some(why),
    }
}

/// The epoch in the text of an `epoch` record.
pub fn epoch_of(text: &str) -> Result<Epoch, Unreadable> {
    decode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_and_torn_records_are_told_apart() {
        assert_eq!(decode::<Epoch>(&encode(&7_u64)), Ok(7));
        let newer = "{\"version\":99,\"record\":{\"unheard\":1}}";
        assert_eq!(decode::<Epoch>(newer), Err(Unreadable::Newer { found: 99 }));
        for torn in ["", "{\"version\":1", "7", "{\"version\":1,\"record\":\"x\"}"] {
            assert!(matches!(decode::<Epoch>(torn), Err(Unreadable::Torn(_))), "{torn}");
        }
    }
}
