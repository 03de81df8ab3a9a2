//! Health paths: which service and which check a path means, and the document in Patroni's keys.

use crate::clock;
use crate::status::word;
use everhold_core::health::{Check, Facts};
use everhold_core::ids::Time;
use everhold_core::status::State;
use serde_json::{Value, json};

/// Finds the service of a path, and what is asked of it. `Err`: why there is nothing there.
///
/// `/main/primary`, and `/primary` where the node keeps one service.
pub fn find<'a>(path: &'a str, services: &[&'a str]) -> Result<(&'a str, Check), String> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let prefixes = || {
        let all: Vec<String> = services.iter().map(|service| format!("/{service}/")).collect();
        if all.is_empty() { "none".to_string() } else { all.join(", ") }
    };
    let (service, name) = match (parts.as_slice(), services) {
        ([name], [only]) if Check::named(name).is_some() => (*only, *name),
        ([name], _) if Check::named(name).is_some() => {
            let count = services.len();
            let text = format!("this node keeps {count} services; prefixes: {}", prefixes());
            return Err(text);
        }
        ([service], _) => (*service, ""),
        ([service, name], _) => (*service, *name),
        _ => return Err(format!("there is nothing at {path}; prefixes: {}", prefixes())),
    };
    let known = services.iter().find(|known| **known == service);
    match (known, Check::named(name)) {
        (Some(service), Some(check)) => Ok((service, check)),
        _ => Err(format!("there is nothing at {path}; prefixes: {}", prefixes())),
    }
}

/// What is known of an instance, in Patroni's keys; those that aren't known are left out.
pub fn document(service: &str, node: &str, facts: &Facts, now: Time) -> Value {
    let status = &facts.status;
    let leads = status.primary.is_some();
    let follows = !leads && facts.runs(now);
    let mut body = json!({
        "state": patroni_state(status.state),
        "patroni": { "scope": service, "name": node },
        "everhold": {
            "version": env!("CARGO_PKG_VERSION"),
            "state": word(&status.state),
            "epoch": status.term,
            "serving": facts.leads(now),
            "lag_bytes": facts.lag(false).filter(|_| follows),
            "lag_ms": status.lag_ms.filter(|_| follows),
        },
    });
    if leads {
        body["role"] = json!("primary");
        body["xlog"] = json!({ "location": status.lsn.0 });
    } else if follows {
        body["role"] = json!("replica");
        body["xlog"] = json!({ "replayed_location": status.lsn.0 });
        if let Some(received) = facts.received {
            body["xlog"]["received_location"] = json!(received.0);
        }
        if status.streaming {
            body["replication_state"] = json!("streaming");
        }
        if facts.synchronous == Some(true) {
            body["sync_standby"] = json!(true);
        }
    }
    if status.tli > 0 {
        body["timeline"] = json!(status.tli);
    }
    if let Some(sysid) = status.sysid {
        body["database_system_identifier"] = json!(sysid.to_string());
    }
    if let Some(seen) = facts.store_seen {
        body["dcs_last_seen"] = json!(clock::unix_at(seen));
    }
    if facts.maintenance {
        body["pause"] = json!(true);
    }
    body
}

/// A state in Patroni's words, where it has one.
fn patroni_state(state: State) -> &'static str {
    match state {
        State::Parking
        | State::Sealed
        | State::Connecting
        | State::CatchingUp
        | State::Streaming
        | State::Promoting
        | State::Closed
        | State::Open => "running",
        State::Starting => "starting",
        State::Stopped => "stopped",
        State::Bootstrapping => "initializing new cluster",
        State::Cloning => "creating replica",
        State::Rewinding => "rewinding",
        State::Frozen => "frozen",
        State::Empty => "uninitialized",
        State::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let one = ["main"];
        let two = ["main", "replica"];
        #[rustfmt::skip]
        let cases: [(&str, &[&str], &str); 17] = [
            ("/",                   &one, "main Primary"),
            ("/primary",            &one, "main Primary"),
            ("/leader/",            &one, "main Primary"),
            ("/main",               &one, "main Primary"),
            ("/main/",              &one, "main Primary"),
            ("/main/replica",       &one, "main Replica"),
            ("/patroni",            &one, "main Status"),
            ("/shop/replica",       &one, "there is nothing at /shop/replica; prefixes: /main/"),
            ("/primarily",          &one, "there is nothing at /primarily; prefixes: /main/"),
            ("/main/replica/x",     &one, "there is nothing at /main/replica/x; prefixes: /main/"),
            ("//main//replica",     &one, "there is nothing at //main//replica; prefixes: /main/"),
            ("/",                   &two, "this node keeps 2 services; prefixes: /main/, /replica/"),
            ("/replica",            &two, "this node keeps 2 services; prefixes: /main/, /replica/"),
            ("/replica/replica",    &two, "replica Replica"),
            ("/main/sync",          &two, "main Synchronous"),
            ("/primary",            &[],  "this node keeps 0 services; prefixes: none"),
            ("/main/primary",       &[],  "there is nothing at /main/primary; prefixes: none"),
        ];
        for (path, services, expected) in cases {
            let found = find(path, services);
            let shown = found.map_or_else(|why| why, |(name, check)| format!("{name} {check:?}"));
            assert_eq!(shown, expected, "{path}");
        }
    }
}
