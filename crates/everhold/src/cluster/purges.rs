//! Answers that are kept, purged over all gateways.

use super::{Cluster, ClusterError, StoreWord};
use crate::gateway::{Presence, purges};
use crate::{clock, gateways_word, secrets};
use everhold_core::http::cache::purge::{Purged, Purges, What};
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_core::records::{decode, encode};
use everhold_core::spec::Spec;
use std::collections::BTreeMap;

/// Others may purge at the same time, and each has to come after the other.
const TRIES: usize = 20;

impl Cluster {
    /// Adds a purge to those that gateways carry out.
    pub async fn purge(&self, who: &str, what: &[What]) -> Result<Purged, ClusterError> {
        let key = purges::key(&self.name);
        let id = secrets::fresh().map_err(|error| ClusterError::Unreadable(error.to_string()))?;
        for _ in 0..TRIES {
            let snapshot = self.store.get_prefix(&key).await?;
            let kv = snapshot.get(&key);
            let known: Result<Option<Purges>, _> = kv.map(|kv| decode(&kv.value)).transpose();
            let unreadable =
                |why| ClusterError::Unreadable(format!("E104 the record {key}: {why}"));
            let mut purges = known.map_err(unreadable)?.unwrap_or_default();
            let purged = purges.add(id.clone(), (who.to_string(), clock::wall()), what.to_vec());
            let rev = kv.map_or(0, |kv| kv.rev);
            let txn = Txn::new().guard(&key, Expect::Rev(rev)).put(&key, encode(&purges));
            if let TxnOutcome::Done { .. } = self.store.txn(&txn).await? {
                return Ok(purged);
            }
        }
        let text = "others purge all the time, and this one did not get its turn";
        Err(ClusterError::Unreached(text.to_string()))
    }
}

/// How far a purge is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The gateways that have carried it out.
    pub done: Vec<String>,
    /// The others that are there or should be, and what they say.
    pub missing: BTreeMap<String, String>,
}

/// How far a purge is. Who should be there and says nothing may serve clients all the same.
pub fn spread(spec: &Spec, word: &StoreWord, wanted: &Purged) -> Spread {
    let mut names = gateways_word::expected(spec);
    names.extend(word.gateways.keys().cloned());
    names.sort_unstable();
    names.dedup();
    let mut spread = Spread::default();
    for name in names {
        match word.gateways.get(&name).map(|it| lacks(it, &word.purges, wanted)) {
            Some(None) => spread.done.push(name),
            Some(Some(why)) => drop(spread.missing.insert(name, why)),
            None => drop(spread.missing.insert(name, "it is not heard".to_string())),
        }
    }
    spread
}

fn lacks(gateway: &Presence, purges: &Purges, wanted: &Purged) -> Option<String> {
    let has = |it: &Option<Purged>| it.as_ref().is_some_and(|it| purges.includes(it, wanted));
    if !has(&gateway.purged) {
        return Some("it is there, and has not said so".to_string());
    }
    let old = gateway.draining.iter().find(|it| it.connections > 0 && !has(&it.purged))?;
    Some(format!("its process {}, which drains, has not said so", old.pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::draining::Draining;

    /// `GATEWAY:NUMBER`, with `+N` a process of it that drains and has purged up to N; `?`: it can't
    /// say; a number with `!` is of another history.
    #[test]
    fn a_purge_is_done_when_all_say_so_that_should_be_there() {
        let mut spec = Spec::default_for_one_machine();
        let mut purges = Purges::default();
        for number in 1..=3 {
            purges.add(number.to_string(), (String::new(), String::new()), vec![What::ALL]);
        }
        let wanted = Purged { number: 2, id: "2".to_string() };
        let purged = |text: &str| {
            let number = text.trim_end_matches('!').parse().ok()?;
            Some(Purged { number, id: text.to_string() })
        };
        let mut check = |nodes: &str, text: &str, missing: &str| {
            let at = if nodes.is_empty() { "127.0.0.1" } else { "10.0.0.1" };
            spec.nodes.values_mut().for_each(|it| it.address = at.parse().expect("an address"));
            spec.gateway.nodes = nodes.split_whitespace().map(str::to_string).collect();
            let gateways = text.split_whitespace().map(|one| {
                let (name, said) = one.split_once(':').expect("a name");
                let (own, old) = said.split_once('+').unwrap_or((said, ""));
                let old = Draining {
                    pid: 7,
                    since: String::new(),
                    connections: usize::from(!old.is_empty()),
                    requests: None,
                    purged: purged(old),
                };
                let (draining, purged) = (vec![old], purged(own));
                let presence = Presence { draining, purged, ..Presence::default() };
                (name.to_string(), presence)
            });
            let word = StoreWord {
                gateways: gateways.collect(),
                purges: purges.clone(),
                ..StoreWord::default()
            };
            let is = spread(&spec, &word, &wanted).missing;
            let is: Vec<_> = is.keys().map(String::as_str).collect();
            assert_eq!(is.join(" "), missing, "{nodes}: {text}");
        };
        check("", "gateway:2", "");
        check("", "", "gateway");
        #[rustfmt::skip]
        let cases = [
            ("a:2 b:3",       ""),
            ("a:2 b:1",       "b"),
            ("a:? b:2",       "a"),
            ("a:2",           "b"),
            ("a:2 b:3!",      "b"),
            ("a:2 b:2 c:1",   "c"),
            ("a:2+1 b:2",     "a"),
            ("a:2+? b:2",     "a"),
            ("a:2+3 b:2",     ""),
        ];
        for (text, missing) in cases {
            check("a b", text, missing);
        }
    }
}
