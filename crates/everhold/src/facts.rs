//! From what agents say to what a gateway needs to know of a service. Pure.

use everhold_core::ids::Epoch;
use everhold_core::route::{Instance, ServiceFacts, Standby};
use everhold_core::status::{State, Status};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// A standby whose agent is silent for longer is not read from: its lag is unknown.
const SILENCE_MS: u64 = 2_000;

/// The last word of a node's agent about a service.
#[derive(Clone, Debug)]
pub struct Word {
    pub status: Arc<Status>,
    /// Since it was heard. The word of an agent that is gone stays: its PostgreSQL may run on.
    pub ms_ago: u64,
}

/// What is known of a service from the words of its nodes. `None`: nothing at all.
pub fn facts(
    words: &BTreeMap<String, Word>,
    resolve: impl Fn(&Status) -> Option<SocketAddr>,
) -> Option<ServiceFacts> {
    // An agent that has just begun knows less than the table does.
    let telling: Vec<(&String, &Word)> =
        words.iter().filter(|(_, word)| word.status.term > 0).collect();
    let epoch: Epoch = telling
        .iter()
        .filter_map(|(_, word)| word.status.serving)
        .max()
        .or_else(|| telling.iter().map(|(_, word)| word.status.term).max())?;
    let instance = |name: &String, word: &Word| {
        resolve(&word.status).map(|address| Instance { name: name.clone(), address })
    };
    let primary = telling
        .iter()
        .find(|(_, word)| word.status.serving == Some(epoch))
        .and_then(|(name, word)| instance(name, word));
    // With every agent gone there is nobody to doubt anything: the table stays as it is.
    if words.values().all(|word| word.ms_ago > SILENCE_MS) {
        return None;
    }
    let standbys = telling
        .iter()
        .filter(|(_, word)| word.status.serving.is_none())
        .filter_map(|(name, word)| {
            let readable = word.status.state == State::Streaming
                && word.status.term <= epoch
                && word.ms_ago <= SILENCE_MS;
            let lag_ms = word.status.lag_ms.filter(|_| word.ms_ago <= SILENCE_MS);
            Some(Standby { instance: instance(name, word)?, lag_ms, readable })
        })
        .collect();
    let all = words.values().filter_map(|word| resolve(&word.status)).collect();
    Some(ServiceFacts { epoch, primary, standbys, all })
}
