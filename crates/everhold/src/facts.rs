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
        // Who served before a newer term may not any more, and its last word may be an old one.
        .filter(|_| telling.iter().all(|(_, word)| word.status.term <= epoch))
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
                && word.status.bad_pages == 0
                && word.ms_ago <= SILENCE_MS;
            let lag_ms = word.status.lag_ms.filter(|_| word.ms_ago <= SILENCE_MS);
            Some(Standby { instance: instance(name, word)?, lag_ms, readable })
        })
        .collect();
    let all = words.values().filter_map(|word| resolve(&word.status)).collect();
    Some(ServiceFacts { epoch, primary, standbys, all })
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::durable::Data;
    use everhold_core::ids::{Lsn, Member};

    /// `NODE:STATE:TERM:SERVING:MS_AGO`, 0 for not serving.
    fn word(text: &str) -> (String, Word) {
        let parts: Vec<&str> = text.split(':').collect();
        let number = |i: usize| parts[i].parse::<u64>().expect("a number");
        let state = match parts[1] {
            "open" => State::Open,
            "streaming" | "rotten" => State::Streaming,
            _ => State::Unknown,
        };
        let status = Status {
            member: Member::new(parts[0], 1),
            host: "127.0.0.1".to_string(),
            port: u16::from(parts[0].as_bytes()[0]),
            pid: None,
            state,
            data: Data::Ok,
            promise: number(2),
            sysid: None,
            term: number(2),
            report: None,
            misses: None,
            fell: None,
            primary: None,
            serving: Some(number(3)).filter(|epoch| *epoch > 0),
            checkpoint: 1,
            lsn: Lsn(0),
            tli: 1,
            seen_tli: 0,
            streaming: state == State::Streaming,
            lag_ms: Some(0),
            call: None,
            overrides: Vec::new(),
            full: false,
            bad_pages: u64::from(parts[1] == "rotten"),
            log_from: None,
        };
        (parts[0].to_string(), Word { status: Arc::new(status), ms_ago: number(4) })
    }

    #[test]
    fn the_highest_serving_epoch_leads_and_silence_changes_nothing() {
        #[rustfmt::skip]
        let cases = [
            // words                                               epoch, primary, readable standbys
            ("a:open:1:1:10 b:streaming:1:0:10 c:streaming:1:0:10", "1 a b,c"),
            // A dead agent's last word stays; a higher epoch takes its place.
            ("a:open:1:1:9000 b:streaming:1:0:10",                  "1 a b"),
            ("a:open:1:1:9000 b:open:2:2:10 c:streaming:2:0:10",    "2 b c"),
            // A newer term without a leader that serves: nobody is sent to the old one.
            ("a:open:1:1:9000 b:streaming:2:0:10",                  "1 - -"),
            // A silent standby's lag is unknown.
            ("a:open:1:1:10 b:streaming:1:0:9000",                  "1 a -"),
            ("a:unknown:1:0:10 b:streaming:1:0:10",                 "1 - b"),
            // Nobody reads from a copy with bad pages.
            ("a:open:1:1:10 b:rotten:1:0:10 c:streaming:1:0:10",    "1 a c"),
            // An agent that has just begun knows nothing; with all silent nothing is doubted.
            ("a:unknown:0:0:10",                                    "nothing"),
            ("a:open:1:1:9000 b:streaming:1:0:9000",                "nothing"),
        ];
        for (words, expected) in cases {
            let words = words.split(' ').map(word).collect();
            let resolve = |s: &Status| format!("{}:{}", s.host, s.port).parse().ok();
            let shown = facts(&words, resolve).map_or("nothing".to_string(), |facts| {
                let readable = facts.standbys.iter().filter(|s| s.readable && s.lag_ms.is_some());
                let names: Vec<&str> = readable.map(|s| s.instance.name.as_str()).collect();
                let primary = facts.primary.map_or("-".to_string(), |p| p.name);
                let names = if names.is_empty() { "-".to_string() } else { names.join(",") };
                format!("{} {primary} {names}", facts.epoch)
            });
            assert_eq!(shown, expected);
        }
    }
}
