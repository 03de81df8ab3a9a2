//! What gateways say of instances of HTTP services, from their word in the store. Pure.

use crate::cluster::StoreWord;
use everhold_core::finds::{Finds, Word};
use everhold_core::spec::{HttpSpec, Spec};

/// How the gateways find an instance that tell of its service.
pub fn finds(word: &StoreWord, service: &str, instance: &str) -> Finds {
    let told = word.gateways.iter().filter_map(|(gateway, presence)| {
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
    use crate::gateway::Presence;
    use serde_json::{Value, json};

    #[test]
    fn who_tells_of_a_service_is_asked_how_it_finds_the_instance() {
        let told = |snapshots: &[Value]| {
            let presence = |snapshot: &Value| Presence {
                pid: 1,
                snapshot: snapshot.clone(),
                holds: Vec::new(),
                draining: Vec::new(),
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
}
