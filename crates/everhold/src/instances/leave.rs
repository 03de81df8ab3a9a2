//! How an instance that goes is left: gateways tell in the store whether requests are on their way to
//! it, and are asked for while one goes.

use crate::clock;
use crate::gateway::presence_prefix;
use crate::gateways_word::Said;
use everhold_core::ids::Time;
use everhold_core::spec::Spec;
use everhold_store::{Etcd, Store};
use std::time::Duration;
use tokio::sync::watch;

/// Between two questions.
const LOOK: Duration = Duration::from_millis(250);

/// One that goes.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    pub since: Time,
    /// The store's revision when gateways had been told: what they said until then was said before.
    rev: Option<u64>,
    /// They found it dead by then: nothing that is on its way there arrives.
    dead: bool,
}

impl Leaving {
    pub fn new(since: Time) -> Leaving {
        Leaving { since, rev: None, dead: false }
    }

    /// Takes in what gateways say; whether it is left.
    pub fn look(&mut self, said: &Said, spec: &Spec, (service, instance): (&str, &str)) -> bool {
        if self.rev.is_none() && said.asked >= self.since {
            self.rev = Some(said.rev);
            self.dead = said.is_dead(spec, service, instance);
        }
        let left = |rev: u64| said.have_left(spec, rev, service, instance);
        self.dead || self.rev.is_some_and(left)
    }
}

/// Asks for what gateways say while it is wanted.
pub async fn ask(
    cluster: String,
    store: Etcd,
    mut wanted: watch::Receiver<bool>,
    said: watch::Sender<Said>,
) {
    let prefix = presence_prefix(&cluster);
    while wanted.wait_for(|it| *it).await.is_ok() {
        let asked = clock::now();
        match store.get_prefix(&prefix).await {
            Ok(snapshot) => drop(said.send_replace(Said::new(&cluster, &snapshot, asked))),
            Err(error) => tracing::debug!(%error, "what gateways say is not known"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Presence;
    use everhold_core::kv::{Kv, Snapshot};
    use everhold_core::records::encode;
    use serde_json::json;

    /// The gateway's word of a.1 at a revision, as asked for at a time.
    #[test]
    fn what_was_said_before_gateways_were_told_says_nothing_but_that_it_was_dead() {
        let spec = Spec::default_for_one_machine();
        let said = |asked: u64, rev: u64, is: &str| {
            let told = json!({ "is": is, "requests": 1 });
            let of = if is.is_empty() { json!({}) } else { json!({ "a.1": told }) };
            let snapshot = json!({ "services": { "api": of } });
            let presence = Presence { pid: 1, snapshot, ..Presence::default() };
            let key = format!("{}gateway", presence_prefix("local"));
            let kvs = vec![Kv { key, value: encode(&presence), rev }];
            Said::new("local", &Snapshot { rev, kvs }, Time(asked))
        };
        let check = |all: &[(u64, u64, &str)], left: bool| {
            let mut leaving = Leaving::new(Time(10));
            let look = |(asked, rev, is): &(u64, u64, &str)| {
                leaving.look(&said(*asked, *rev, is), &spec, ("api", "a.1"))
            };
            assert_eq!(all.iter().map(look).last(), Some(left), "{all:?}");
        };
        check(&[(9, 5, "")], false);
        check(&[(10, 5, "")], false);
        check(&[(10, 5, ""), (11, 5, "")], false);
        check(&[(10, 5, "healthy"), (11, 6, "")], true);
        check(&[(10, 5, "healthy"), (11, 6, "left")], false);
        // Whoever is dead has nothing to lose, and whoever died since has.
        check(&[(10, 5, "unhealthy")], true);
        check(&[(10, 5, "unhealthy"), (11, 6, "left")], true);
        check(&[(9, 4, "unhealthy"), (10, 5, "left")], false);
        check(&[(10, 5, "healthy"), (11, 6, "unhealthy")], false);
    }
}
