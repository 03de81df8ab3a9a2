//! `backup`: made now, proven now, and listed.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::follow::{Seen, follow};
use super::output::{bytes, plain, print, print_json, table};
use crate::code::Code;
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a backup now, on the node that is best for it
    Now {
        service: String,
        /// Read every byte, also of what seems unchanged
        #[arg(long)]
        full: bool,
        /// Don't wait until it is done
        #[arg(long)]
        no_wait: bool,
    },
    /// Forget backups and log that nothing needs any more, which also happens by itself each day
    Prune {
        service: String,
        /// Only show what would go, and why the rest stays
        #[arg(long)]
        dry_run: bool,
        /// This backup goes whatever the rules say
        #[arg(long, value_name = "ID")]
        drop: Vec<String>,
    },
    /// Restore a backup into a sandbox now, and look whether all is there
    Prove {
        service: String,
        /// The newest one, if none is named
        id: Option<String>,
        /// Don't wait until it is done
        #[arg(long)]
        no_wait: bool,
    },
    /// Show what the repositories hold
    List { service: String },
}

pub fn run(client: &Client, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Now { service, full, no_wait } => now(client, service, *full, *no_wait),
        Command::Prune { service, dry_run: true, drop } => plan(client, service, drop),
        Command::Prune { service, dry_run: false, drop } => prune(client, service, drop),
        Command::Prove { service, id, no_wait } => prove(client, service, id.as_deref(), *no_wait),
        Command::List { service } => list(client, service),
    }
}

fn now(client: &Client, service: &str, full: bool, no_wait: bool) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/backups", segment(service));
    let before = ended(&client.get("/v1/status")?, service, None);
    let kind = if full { "full" } else { "incremental" };
    let answer = client.post(&path, &json!({ "kind": kind }))?;
    let node = plain(&answer["node"]);
    if no_wait {
        return match client.json {
            true => print_json(&answer),
            false => print(&format!("{node} makes it; `everhold status` shows how far it is")),
        };
    }
    say(&format!("{node} makes it; Ctrl-C ends the waiting, not the act."));
    let lost = || {
        let text = format!("the agent of {node} knows of no backup any more");
        Failure::new(Code::BackupFailed, text, Code::BackupFailed.next())
    };
    let end = follow(client, lost, |status| {
        let backup = &status["services"][service]["backup"];
        if let Some(running) = backup["running"].as_object() {
            let count = |key: &str| running.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (done, of) = (count("done_bytes"), count("of_bytes").max(1));
            return Ok(Seen::Doing(Some(format!("{} %", done.min(of) * 100 / of))));
        }
        let end = ended(status, service, Some(&node));
        let new = end.filter(|_| ended(status, service, None) != before);
        Ok(new.map_or(Seen::Unknown, Seen::Ended))
    })?;
    match (end["id"].as_str(), client.json) {
        (Some(_), true) => print_json(&end),
        (Some(id), false) => print(&format!("backup {id} is made")),
        (None, _) => Err(Failure::of_text_or(&plain(&end["failed"]), Code::BackupFailed)),
    }
}

fn prove(client: &Client, service: &str, id: Option<&str>, no_wait: bool) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/proofs", segment(service));
    let last = |status: &Value| status["services"][service]["backup"]["last_proof"].clone();
    let before = last(&client.get("/v1/status")?);
    let answer = client.post(&path, &json!({ "backup": id }))?;
    let (node, id) = (plain(&answer["node"]), plain(&answer["backup"]));
    if no_wait {
        return match client.json {
            true => print_json(&answer),
            false => print(&format!("{node} proves {id}; `everhold status` shows how far it is")),
        };
    }
    say(&format!("{node} proves {id}; Ctrl-C ends the waiting, not the act."));
    let lost = || {
        let text = format!("the agent of {node} knows of no proof any more");
        Failure::new(Code::NotProven, text, Code::NotProven.next())
    };
    let end = follow(client, lost, |status| {
        let trial = &status["services"][service]["backup"]["proving"];
        if trial.is_object() {
            return Ok(Seen::Doing(Some(step(trial))));
        }
        let end = last(status);
        let own = end["node"] == node.as_str() && end["id"] == id.as_str() && end != before;
        Ok(if own { Seen::Ended(end) } else { Seen::Unknown })
    })?;
    match (end["failed"].as_str(), end["not_done"].as_str()) {
        (Some(why), _) => {
            let text = format!("backup {id}: {why}");
            Err(Failure::new(Code::ProofFailed, text, Code::ProofFailed.next()))
        }
        (None, Some(why)) => Err(Failure::of_text_or(why, Code::NotProven)),
        (None, None) if client.json => print_json(&end),
        (None, None) => {
            let rto = plain(&end["rto_ms"]);
            print(&format!("backup {id} is proven; it took {rto} ms to its first write"))
        }
    }
}

/// What a proof does now.
fn step(trial: &Value) -> String {
    let (step, done) = (plain(&trial["step"]), trial["done_bytes"].as_u64().unwrap_or(0));
    match (step.as_str(), trial["of_bytes"].as_u64()) {
        ("restore", Some(of @ 1..)) => format!("restore, {} %", done.min(of) * 100 / of),
        _ => step,
    }
}

/// How the last backup ended, as status tells it.
fn ended(status: &Value, service: &str, node: Option<&str>) -> Option<Value> {
    let last = &status["services"][service]["backup"]["last"];
    (last.is_object() && node.is_none_or(|node| last["node"] == node)).then(|| last.clone())
}

fn list(client: &Client, service: &str) -> Result<(), Failure> {
    let answer = client.get(&format!("/v1/services/{}/backups", segment(service)))?;
    for absent in answer["absent"].as_array().into_iter().flatten() {
        let (name, error) = (plain(&absent["repository"]), plain(&absent["error"]));
        say(&format!("{name} does not answer: {error}"));
    }
    if client.json {
        return print_json(&answer);
    }
    let wanted = plain(&answer["copies_wanted"]);
    let head = ["id", "kind", "ended", "size", "added", "copies", "node", "took", "proven", "rto"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    let mut failed = Vec::new();
    for backup in answer["backups"].as_array().into_iter().flatten() {
        let size = |key: &str| bytes(backup[key].as_u64().unwrap_or(0));
        rows.push(vec![
            plain(&backup["id"]),
            plain(&backup["kind"]),
            plain(&backup["ended_at"]),
            size("bytes"),
            size("bytes_added"),
            format!("{}/{wanted}", plain(&backup["copies"])),
            plain(&backup["node"]),
            format!("{} s", plain(&backup["took_s"])),
            match (&backup["proof"]["failed"], &backup["proof"]["at"]) {
                (Value::String(_), at) => format!("FAILED {}", plain(at)),
                (_, Value::String(at)) => at.clone(),
                _ => "no".to_string(),
            },
            match backup["proof"]["rto_ms"].as_u64() {
                Some(ms) => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
                None => "-".to_string(),
            },
        ]);
        if let Some(why) = backup["proof"]["failed"].as_str() {
            failed.push(format!("{}: {why}", plain(&backup["id"])));
        }
    }
    print(&table("", &rows))?;
    // Behind the table, since they are long.
    failed.iter().try_for_each(|line| print(line))
}

fn prune_path(service: &str) -> String {
    format!("/v1/services/{}/backups/prune", segment(service))
}

/// What would go and what stays.
fn plan(client: &Client, service: &str, drop: &[String]) -> Result<(), Failure> {
    let drop: Vec<String> = drop.iter().map(|id| segment(id)).collect();
    let answer = client.get(&format!("{}?drop={}", prune_path(service), drop.join(",")))?;
    if client.json {
        return print_json(&answer);
    }
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let mut rows = vec![["id", "kind", "ended", "stays for"].map(str::to_string).to_vec()];
    let (mut goes, mut log) = (0, 0);
    for database in all(&answer["databases"]) {
        log += count(&database["log_bytes"]);
        for backup in all(&database["backups"]) {
            let why: Vec<String> = all(&backup["kept_for"]).iter().map(plain).collect();
            goes += usize::from(why.is_empty());
            let why = if why.is_empty() { "goes".to_string() } else { why.join(", ") };
            rows.push(vec![
                plain(&backup["id"]),
                plain(&backup["kind"]),
                plain(&backup["ended_at"]),
                why,
            ]);
        }
    }
    print(&table("", &rows))?;
    let waits = all(&answer["waiting_for"]).iter().map(plain).collect::<Vec<_>>().join(", ");
    if !waits.is_empty() {
        say(&format!("Packs and log would wait until backup {waits} has ended."));
    }
    say(&format!(
        "Kept: {}. {goes} backups would go, with {} packs ({}) and {} of the log.",
        plain(&answer["keep"]),
        count(&answer["packs"]),
        bytes(count(&answer["bytes"])),
        bytes(log)
    ));
    Ok(())
}

fn prune(client: &Client, service: &str, drop: &[String]) -> Result<(), Failure> {
    let run = client.post(&prune_path(service), &json!({ "drop": drop }))?["run"].clone();
    say("Ctrl-C ends the waiting, not the act.");
    let lost = || {
        let text = "nobody knows how it ended";
        Failure::new(Code::NotForgotten, text, Code::NotForgotten.next())
    };
    let end = follow(client, lost, |status| {
        let backup = &status["services"][service]["backup"];
        let (running, end) = (&backup["forgetting"], &backup["forgotten"]);
        if running["run"] == run {
            let (done, of) = (plain(&running["done"]), plain(&running["of"]));
            let text = format!("{}: {done} of {of}", plain(&running["what"]));
            return Ok(Seen::Doing((running["of"] != 0).then_some(text)));
        }
        Ok(if end["run"] == run { Seen::Ended(end.clone()) } else { Seen::Unknown })
    })?;
    if let Some(why) = end["error"].as_str() {
        return Err(Failure::of_text_or(why, Code::NotForgotten));
    }
    let waits = end["waiting_for"].as_array().cloned().unwrap_or_default();
    if let Some(id) = waits.first() {
        say(&format!("Packs and log wait until backup {} has ended.", plain(id)));
    }
    match client.json {
        true => print_json(&end),
        false => print(&format!(
            "{} backups are forgotten, with {} packs ({}) and {} pieces of the log",
            plain(&end["dropped"]),
            plain(&end["packs"]),
            bytes(end["bytes"].as_u64().unwrap_or(0)),
            plain(&end["log_pieces"])
        )),
    }
}
