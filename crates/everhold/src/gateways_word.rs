//! What gateways say of instances of HTTP services, from their word in the store. Pure.

use crate::cluster::StoreWord;
use crate::gateway::{Presence, presence_prefix};
use crate::supervisor::GATEWAY;
use everhold_core::finds::{Finds, Word};
use everhold_core::ids::Time;
use everhold_core::kv::Snapshot;
use everhold_core::records::decode;
use everhold_core::spec::{HttpSpec, Spec};
use std::collections::BTreeMap;

/// What gateways say, as the store has it at one moment.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// When it was asked, and its revision then.
    pub asked: Time,
    pub rev: u64,
    /// By name, each with the revision at which it was said.
    gateways: BTreeMap<String, (Presence, u64)>,
}

impl Said {
    pub fn new(cluster: &str, snapshot: &Snapshot, asked: Time) -> Said {
        let prefix = presence_prefix(cluster);
        let said = snapshot.kvs.iter().filter_map(|kv| {
            let name = name(kv.key.strip_prefix(&prefix)?).to_string();
            Some((name, (decode(&kv.value).ok()?, kv.rev)))
        });
        Said { asked, rev: snapshot.rev, gateways: said.collect() }
    }

    /// Whether all gateways said after `since` that they have left an instance and have nothing on its
    /// way there. Who should be there and says nothing may have.
    pub fn have_left(&self, spec: &Spec, since: u64, service: &str, instance: &str) -> bool {
        let has_left = |(presence, rev): &(Presence, u64)| {
            let services = presence.snapshot["services"].as_object();
            let none = services.is_some_and(|it| {
                let told = it.get(service).and_then(|of| of.get(instance));
                told.is_none_or(|it| it["is"] == "left" && it["requests"] == 0)
            });
            let others = presence.draining.iter().all(|it| it.has_left(service, instance));
            none && others && *rev > since
        };
        expected(spec).iter().all(|name| self.gateways.contains_key(name))
            && self.gateways.values().all(has_left)
    }

    /// Whether all that should be there find that its checks fail, and none that drains has a request
    /// on its way to it.
    pub fn is_dead(&self, spec: &Spec, service: &str, instance: &str) -> bool {
        let told = self.gateways.iter().map(|(name, (presence, _))| (name, presence));
        let drained = |(presence, _): &(Presence, u64)| {
            presence.draining.iter().all(|it| it.has_left(service, instance))
        };
        expected(spec).iter().all(|name| self.gateways.contains_key(name))
            && self.gateways.values().all(drained)
            && found(told, service, instance).is_dead()
    }
}

/// On many machines each one's gateway is known by its node.
pub fn name(full: &str) -> &str {
    full.strip_prefix(GATEWAY).and_then(|it| it.strip_prefix('.')).unwrap_or(full)
}

/// The gateways that should be there, by name.
pub fn expected(spec: &Spec) -> Vec<String> {
    if !spec.is_spread() {
        return vec![GATEWAY.to_string()];
    }
    let is_lost = |node: &str| spec.nodes.get(node).is_some_and(|it| it.lost.is_some());
    spec.gateway.nodes.iter().filter(|node| !is_lost(node)).cloned().collect()
}

/// How the gateways find an instance that tell of its service.
pub fn finds(word: &StoreWord, service: &str, instance: &str) -> Finds {
    found(word.gateways.iter(), service, instance)
}

fn found<'g>(
    gateways: impl Iterator<Item = (&'g String, &'g Presence)>,
    service: &str,
    instance: &str,
) -> Finds {
    let told = gateways.filter_map(|(gateway, presence)| {
        let of = presence.snapshot["services"][service].as_object()?;
        let word = match of.get(instance).map(|told| told["is"].as_str()) {
            Some(Some("healthy")) => Word::Healthy,
            Some(Some("unhealthy")) => Word::Unhealthy,
            Some(Some("ejected")) => Word::Ejected,
            Some(Some("left")) | None => Word::Unnamed,
            Some(_) => Word::Unknown,
        };
        Some((gateway.clone(), word))
    });
    Finds(told.collect())
}

/// Whether what gateways find says how its instances are: requests come to it, or it has a path to be
/// asked. Else it may be a program that listens nowhere, and there is only its process to go by.
pub fn judge(spec: &Spec, service: &str, http: &HttpSpec) -> bool {
    http.health.path.is_some() || spec.routes.values().any(|route| route.service == service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::draining::Draining;
    use everhold_core::kv::Kv;
    use everhold_core::records::encode;
    use serde_json::{Value, json};

    #[test]
    fn who_tells_of_a_service_is_asked_how_it_finds_the_instance() {
        let told = |snapshots: &[Value]| {
            let presence = |snapshot: &Value| Presence {
                pid: 1,
                snapshot: snapshot.clone(),
                ..Presence::default()
            };
            let gateways = ('a'..).map(String::from).zip(snapshots.iter().map(presence));
            let word = StoreWord { gateways: gateways.collect(), ..StoreWord::default() };
            finds(&word, "api", "a.1").0.into_iter().collect::<Vec<_>>()
        };
        let of = |is: &str| json!({ "services": { "api": { "a.1": { "is": is } } } });
        let all = ["healthy", "unhealthy", "ejected", "unknown", "left", "tired"].map(of);
        let words: Vec<Word> = told(&all).into_iter().map(|(_, word)| word).collect();
        use Word::{Ejected, Healthy, Unhealthy, Unknown, Unnamed};
        assert_eq!(words, [Healthy, Unhealthy, Ejected, Unknown, Unnamed, Unknown]);
        // Its table has the service, and not this instance.
        let without = json!({ "services": { "api": {} } });
        assert_eq!(told(&[without]), [("a".to_string(), Unnamed)]);
        // The others say nothing of it: an older version, or a table without the service.
        assert_eq!(told(&[json!({}), json!({ "services": { "web": {} } })]), []);
    }

    /// `GATEWAY@REV:WORD`, where the word is what it tells of a.1: `healthy`, `left3`, `none`; of a
    /// service that its table doesn't have: `gone`; it is of a version that tells nothing: `old`. With
    /// `+N` or `+?` a process that it succeeded drains with so many requests there, or doesn't tell.
    #[test]
    fn an_instance_is_left_when_all_say_so_that_should_be_there() {
        let mut spec = Spec::default_for_one_machine();
        // Answers whether it is found dead.
        let mut check = |nodes: &str, text: &str, left: bool| -> bool {
            let at = if nodes.is_empty() { "127.0.0.1" } else { "10.0.0.1" };
            spec.nodes.values_mut().for_each(|it| it.address = at.parse().expect("an address"));
            spec.gateway.nodes = nodes.split_whitespace().map(str::to_string).collect();
            let kv = |text: &str| {
                let (name, text) = text.split_once('@').expect("a revision");
                let (rev, word) = text.split_once(':').expect("a word");
                let (word, drains) = word.split_once('+').unwrap_or((word, ""));
                let of = |is: &str, requests: u32| json!({ "a.1": { "is": is, "in_route": false, "requests": requests } });
                let snapshot = match word {
                    "old" => json!({}),
                    "gone" => json!({ "services": {} }),
                    "none" => json!({ "services": { "api": { "b.1": { "is": "healthy" } } } }),
                    "healthy" | "unhealthy" => json!({ "services": { "api": of(word, 0) } }),
                    left => {
                        let count = left.strip_prefix("left").and_then(|it| it.parse().ok());
                        json!({ "services": { "api": of("left", count.expect("a count")) } })
                    }
                };
                let requests = drains.parse().ok().map(|count: u32| {
                    let of = [("a.1".to_string(), count)].into_iter().filter(|it| it.1 > 0);
                    [("api".to_string(), of.collect())].into()
                });
                let old = Draining {
                    pid: 2,
                    since: String::new(),
                    connections: 1,
                    requests,
                    purged: None,
                };
                let draining = if drains.is_empty() { Vec::new() } else { vec![old] };
                let presence = Presence { pid: 1, snapshot, draining, ..Presence::default() };
                let key = format!("{}{name}", presence_prefix("shop"));
                Kv { key, value: encode(&presence), rev: rev.parse().expect("a revision") }
            };
            let kvs = text.split_whitespace().map(kv).collect();
            let said = Said::new("shop", &Snapshot { rev: 9, kvs }, Time(0));
            assert_eq!(said.have_left(&spec, 5, "api", "a.1"), left, "{nodes}: {text}");
            said.is_dead(&spec, "api", "a.1")
        };
        for (word, left) in [
            ("none", true),
            ("gone", true),
            ("left0", true),
            ("left3", false),
            ("healthy", false),
            ("old", false),
            ("none+0", true),
            ("none+2", false),
            ("none+?", false),
        ] {
            check("", &format!("gateway@6:{word}"), left);
            check("a b", &format!("gateway.a@6:none gateway.b@6:{word}"), left);
        }
        // What was said before it was to go is not said of that.
        check("", "gateway@5:none", false);
        check("a b", "gateway.a@6:none gateway.b@5:none", false);
        check("", "", false);
        check("a b", "gateway.a@6:none", false);
        // One that nobody wants any more has its clients still.
        check("a", "gateway.a@6:none gateway.b@6:left1", false);
        check("a", "gateway.a@6:none gateway.b@6:left0", true);
        // Whoever says nothing, and one that drains, may have requests there that are answered.
        for (nodes, text, dead) in [
            ("", "gateway@6:unhealthy", true),
            ("", "gateway@6:unhealthy+0", true),
            ("", "gateway@6:unhealthy+2", false),
            ("a b", "gateway.a@6:unhealthy gateway.b@6:unhealthy", true),
            ("a b", "gateway.a@6:unhealthy gateway.b@6:healthy", false),
            ("a b", "gateway.a@6:unhealthy", false),
        ] {
            assert_eq!(check(nodes, text, false), dead, "{nodes}: {text}");
        }
    }
}
