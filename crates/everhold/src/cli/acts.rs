//! `switchover`, `failover`, `maintenance` and `fault`.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::output::{duration, plain, print, print_json};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Fault {
    /// Kill the PostgreSQL server of a service, the leader's unless a node is named
    KillPostgres {
        service: String,
        #[arg(long)]
        node: Option<String>,
        /// Although the service can't spare it now
        #[arg(long)]
        force: bool,
    },
    /// Kill the agent of a node and everything that it runs
    KillNode {
        node: String,
        /// Although a service can't spare it now
        #[arg(long)]
        force: bool,
    },
    /// Freeze a node as a stalled machine would
    FreezeNode {
        node: String,
        /// How long, at most 10m
        #[arg(long = "for", default_value = "20s", value_name = "TIME")]
        lasts: String,
        /// Although a service can't spare it now
        #[arg(long)]
        force: bool,
    },
    /// Undo every fault that lasts
    Heal,
    /// Show the faults that last
    List,
}

pub fn token(client: &Client, node: &str, replace: bool) -> Result<(), Failure> {
    let answer = client.post("/v1/tokens", &json!({ "node": node, "replace": replace }))?;
    if client.json {
        return print_json(&answer);
    }
    print(&format!("everhold join {}", plain(&answer["token"])))?;
    let lasts = duration(answer["expires_in_ms"].as_u64().unwrap_or(0));
    say(&format!("Run this on the machine of {node} within {lasts}; it works once."));
    Ok(())
}

pub fn switchover(client: &Client, service: &str, to: Option<&str>) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/switchover", segment(service));
    let answer = client.post(&path, &json!({ "to": to }))?;
    tell_moved(client, &answer)
}

pub fn failover(
    client: &Client,
    service: &str,
    to: Option<&str>,
    token: Option<&str>,
) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/failover", segment(service));
    let body = json!({ "to": to, "force": true, "token": token });
    let answer = client.post(&path, &body).map_err(|failure| match failure.get("token") {
        // The same command with the token is what to run next; `;` and brackets need the quotes.
        Some(given) => {
            let to = to.map(|node| format!(" --to {node}")).unwrap_or_default();
            let token = plain(given);
            let next = format!("everhold failover {service} --force{to} --token '{token}'");
            match failure {
                Failure::Error { mut error, exit } => {
                    error.insert("next".to_string(), next.into());
                    Failure::Error { error, exit }
                }
                other => other,
            }
        }
        None => failure,
    })?;
    tell_moved(client, &answer)
}

fn tell_moved(client: &Client, answer: &Value) -> Result<(), Failure> {
    if client.json {
        return print_json(answer);
    }
    let outage = match answer["outage_ms"].as_u64() {
        Some(ms) => format!(", {} without a leader", duration(ms)),
        None => String::new(),
    };
    let journal = match answer["journal"].as_str() {
        Some(id) => format!("; `everhold explain {id}` says why"),
        None => String::new(),
    };
    print(&format!(
        "{} is led by {} at epoch {} (before: {}){outage}{journal}",
        plain(&answer["service"]),
        plain(&answer["leader"]),
        plain(&answer["epoch"]),
        plain(&answer["from"]),
    ))
}

pub fn maintenance(client: &Client, service: &str, switch: Switch) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/maintenance", segment(service));
    let answer = client.post(&path, &json!({ "on": switch == Switch::On }))?;
    if client.json {
        return print_json(&answer);
    }
    print(&match switch {
        Switch::On => format!("{service} is in maintenance: nothing is done by itself"),
        Switch::Off => format!("{service} is looked after again"),
    })
}

pub fn fault(client: &Client, fault: &Fault) -> Result<(), Failure> {
    let body = match fault {
        Fault::List => return list(client),
        Fault::KillPostgres { service, node, force } => json!({
            "kind": "kill-postgres", "service": service, "node": node, "force": force,
        }),
        Fault::KillNode { node, force } => {
            json!({ "kind": "kill-node", "node": node, "force": force })
        }
        Fault::FreezeNode { node, lasts, force } => {
            json!({ "kind": "freeze-node", "node": node, "for": lasts, "force": force })
        }
        Fault::Heal => json!({ "kind": "heal" }),
    };
    let answer = client.post("/v1/faults", &body)?;
    if client.json {
        return print_json(&answer);
    }
    print(&match fault {
        Fault::KillPostgres { service, .. } => format!(
            "killed the PostgreSQL of {service} on {}, pid {}",
            plain(&answer["node"]),
            plain(&answer["pid"])
        ),
        Fault::KillNode { node, .. } => {
            format!("killed {} processes of {node}", plain(&answer["processes"]))
        }
        Fault::FreezeNode { node, lasts, .. } => {
            format!("froze {} processes of {node} for {lasts}", plain(&answer["processes"]))
        }
        Fault::Heal | Fault::List => match names(&answer["healed"]) {
            none if none.is_empty() => "nothing was broken".to_string(),
            some => format!("healed {}", some.join(", ")),
        },
    })?;
    say("`everhold status --watch` shows what becomes of it, `everhold journal` why");
    Ok(())
}

fn list(client: &Client) -> Result<(), Failure> {
    let answer = client.get("/v1/faults")?;
    if client.json {
        return print_json(&answer);
    }
    let active = answer["active"].as_array().cloned().unwrap_or_default();
    if active.is_empty() {
        say("no fault lasts");
    }
    for fault in active {
        let lasts = duration(fault["for_ms"].as_u64().unwrap_or_default());
        let (node, at) = (plain(&fault["node"]), plain(&fault["at"]));
        print(&format!("{node} is frozen since {at} for {lasts}"))?;
    }
    Ok(())
}

fn names(value: &Value) -> Vec<String> {
    value.as_array().map(|all| all.iter().map(plain).collect()).unwrap_or_default()
}
