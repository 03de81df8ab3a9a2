//! `node` and `rollout`: asked for, and then watched until they are done.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::output::{plain, print, print_json};
use crate::code::Code;
use clap::Subcommand;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// The API of this machine starts anew in the course of a rollout.
const AWAY: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Subcommand)]
pub enum Node {
    /// Take a node's load: it leads nothing and nobody reads from it, until `resume`
    Drain {
        node: String,
        /// Don't wait until it is done
        #[arg(long)]
        no_wait: bool,
    },
    /// Give a drained node its part again
    Resume { node: String },
    /// Take a node out of the cluster; its data stays on its machine
    Remove {
        node: String,
        /// Don't wait until it is done
        #[arg(long)]
        no_wait: bool,
    },
}

pub fn node(client: &Client, node: &Node) -> Result<(), Failure> {
    let (name, duty, wait) = match node {
        Node::Drain { node, no_wait } => (node, "drained", !no_wait),
        Node::Resume { node } => (node, "active", false),
        Node::Remove { node, no_wait } => (node, "leaving", !no_wait),
    };
    let path = format!("/v1/nodes/{}/duty", segment(name));
    let answer = client.post(&path, &json!({ "duty": duty }))?;
    if wait {
        say("Waiting; Ctrl-C ends the waiting, not the act.");
        watch(client, |status| await_duty(status, name, duty == "leaving"))?;
    }
    if client.json {
        return print_json(&answer);
    }
    print(&match node {
        Node::Drain { .. } => format!("{name} leads nothing and is not read from"),
        Node::Resume { .. } => format!("{name} takes its part again"),
        Node::Remove { .. } => {
            format!("{name} is no node any more; take it out of your spec file too")
        }
    })
}

/// `None`: done; else what is waited for.
fn await_duty(status: &Value, node: &str, leaving: bool) -> Option<String> {
    if leaving && status["nodes"].get(node).is_none() {
        return None;
    }
    let services = status["services"].as_object().into_iter().flatten();
    let led = services.clone().find(|(_, service)| service["leader"] == node);
    let holds = status["holds"].as_array().into_iter().flatten();
    let own = format!("{node}: ");
    let hold = holds
        .filter(|hold| hold["rule"] == "duty")
        .find(|hold| hold["why"].as_str().is_some_and(|why| why.starts_with(&own)));
    match (hold, led) {
        (Some(hold), _) => Some(format!("{}; {}", plain(&hold["why"]), plain(&hold["unblocks"]))),
        (None, Some((service, _))) => Some(format!("{service} is handed over")),
        (None, None) => leaving.then(|| format!("{node} is taken out")),
    }
}

pub fn rollout(
    client: &Client,
    service: Option<&str>,
    stop: bool,
    no_wait: bool,
) -> Result<(), Failure> {
    let answer = match stop {
        true => client.post("/v1/rollouts/stop", &json!({}))?,
        false => client.post("/v1/rollouts", &json!({ "service": service }))?,
    };
    if stop || no_wait {
        return match client.json {
            true => print_json(&answer),
            false => print(if stop { "stopped" } else { "begun; `everhold status` shows it" }),
        };
    }
    say("Waiting; Ctrl-C ends the waiting, `everhold rollout --stop` the rollout.");
    let began = answer["rollout"]["at"].clone();
    let last = watch(client, |status| await_rollout(&status["rollout"], &began))?;
    let rollout = &last["rollout"];
    if let Some(why) = rollout["state"]["why"].as_str() {
        let next = "see to it; a new rollout begins with all of them again";
        return Err(Failure::new(
            Code::RolloutStopped,
            format!("the rollout stopped: {why}"),
            next,
        ));
    }
    match client.json {
        true => print_json(rollout),
        false => {
            let count = rollout["before"].as_object().map_or(0, serde_json::Map::len);
            print(&format!("done: {count} started anew"))
        }
    }
}

fn await_rollout(rollout: &Value, began: &Value) -> Option<String> {
    // An API that has just started anew has not read the store yet.
    if rollout.is_null() {
        return Some("this machine starts anew".to_string());
    }
    if rollout["at"] != *began || rollout["state"]["is"] != "running" {
        return None;
    }
    let doing = rollout["doing"].as_array().into_iter().flatten();
    let doing: Vec<String> = doing.map(plain).collect();
    Some(if doing.is_empty() { "begins".to_string() } else { doing.join(", ") })
}

/// Looks again and again until there is nothing to wait for; says each new thing that there is.
pub(super) fn watch(
    client: &Client,
    mut waits_for: impl FnMut(&Value) -> Option<String>,
) -> Result<Value, Failure> {
    let mut said = String::new();
    let mut heard = Instant::now();
    loop {
        match client.get("/v1/status") {
            Ok(status) => {
                heard = Instant::now();
                let Some(what) = waits_for(&status) else { return Ok(status) };
                if what != said {
                    say(&format!("· {what}"));
                    said = what;
                }
            }
            Err(failure) if heard.elapsed() > AWAY => return Err(failure),
            Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
}
