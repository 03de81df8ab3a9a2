//! `recover`: a service put back to how it was, in its place.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::output::{duration, plain, print, print_json};
use crate::code::Code;
use serde_json::json;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// An agent that started anew has ended it, and doesn't tell of it.
const LOST: Duration = Duration::from_secs(30);
/// From the restored leader to writes: it may wait for a standby to be copied.
const SERVES_WITHIN: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub struct Options {
    service: String,
    /// To the last commit at or before then, in RFC 3339, as in 2026-11-20T10:00:00Z
    #[arg(long, group = "until")]
    time: Option<String>,
    /// To a place in the log, as in 0/5012A8
    #[arg(long, group = "until")]
    lsn: Option<String>,
    /// To a point that pg_create_restore_point() named
    #[arg(long, group = "until")]
    name: Option<String>,
    /// Begin with this backup; without it: the newest that serves
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// The node that is restored and leads afterwards; without it: a standby
    #[arg(long)]
    node: Option<String>,
    /// Also if not every node that may acknowledge can be reached, or none has data any more
    #[arg(long)]
    force: bool,
    /// What the first answer gave: it names what is given up
    #[arg(long)]
    token: Option<String>,
}

pub fn run(client: &Client, options: &Options) -> Result<(), Failure> {
    let service = &options.service;
    let path = format!("/v1/services/{}/recovery", segment(service));
    let body = json!({
        "time": options.time, "lsn": options.lsn, "name": options.name, "node": options.node,
        "backup": options.backup, "force": options.force, "token": options.token,
    });
    let begun = Instant::now();
    let answer = client.post(&path, &body).map_err(|failure| with_token(options, failure))?;
    let node = plain(&answer["node"]);
    say(&format!("{node} restores it; Ctrl-C ends the waiting, not the act."));
    let backup = await_recovery(client, service, &node)?;
    let serves = || -> Result<bool, Failure> {
        let status = client.get("/v1/status")?;
        Ok(status["services"][service]["serving"] == true)
    };
    let until = Instant::now() + SERVES_WITHIN;
    say(&format!("{node} has it; waiting until it takes writes"));
    while !serves()? {
        if Instant::now() > until {
            let text = format!("{service} takes no writes yet");
            return Err(Failure::new(Code::NotInTime, text, "`everhold status` says why"));
        }
        std::thread::sleep(LOOK);
    }
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (took, journal) = (duration(took_ms), plain(&answer["journal"]));
    if client.json {
        return print_json(&json!({
            "service": service, "node": node, "backup": backup, "took_ms": took_ms,
            "journal": journal,
        }));
    }
    print(&format!("{service} is back after {took}, from backup {backup}, led by {node}"))
}

/// The same command with the token is what to run next.
fn with_token(options: &Options, failure: Failure) -> Failure {
    let Some(token) = failure.get("token").map(plain) else { return failure };
    let mut next = format!("everhold recover {}", options.service);
    for (flag, value) in [
        ("time", &options.time),
        ("lsn", &options.lsn),
        ("name", &options.name),
        ("backup", &options.backup),
        ("node", &options.node),
    ] {
        if let Some(value) = value {
            next += &format!(" --{flag} '{value}'");
        }
    }
    if options.force {
        next += " --force";
    }
    next += &format!(" --token '{token}'");
    match failure {
        Failure::Error { mut error, exit } => {
            error.insert("next".to_string(), next.into());
            Failure::Error { error, exit }
        }
        other => other,
    }
}

/// Waits until the node has put it in place; the backup it is from.
fn await_recovery(client: &Client, service: &str, node: &str) -> Result<String, Failure> {
    let mut shown = String::new();
    let mut unknown = Instant::now();
    loop {
        let status = client.get("/v1/status")?;
        let recovery = &status["services"][service]["recovery"];
        if recovery["node"] != node {
            if unknown.elapsed() > LOST {
                let text = format!("the agent of {node} knows of no recovery any more");
                return Err(Failure::new(Code::RecoveryFailed, text, Code::RecoveryFailed.next()));
            }
            std::thread::sleep(LOOK);
            continue;
        }
        unknown = Instant::now();
        if let Some(backup) = recovery["backup"].as_str() {
            return Ok(backup.to_string());
        }
        if let Some(why) = recovery["failed"].as_str() {
            let failure = Failure::of_text(why);
            return Err(match failure {
                Failure::Error { ref error, .. } if error.contains_key("code") => failure,
                _ => Failure::new(Code::RecoveryFailed, why, Code::RecoveryFailed.next()),
            });
        }
        let step = plain(&recovery["step"]);
        if step != shown {
            say(&step);
            shown = step;
        }
        std::thread::sleep(LOOK);
    }
}
