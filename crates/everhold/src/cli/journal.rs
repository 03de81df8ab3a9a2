//! `journal` and `explain`.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::output::{plain, print, print_json, table};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two looks for new entries.
const FOLLOW: Duration = Duration::from_millis(500);
/// New entries asked for at each look: a failover writes some dozens.
const FOLLOW_LIMIT: usize = 300;

fn entries(client: &Client, limit: usize, service: Option<&str>) -> Result<Vec<Value>, Failure> {
    let service = service.map(|name| format!("&service={}", segment(name))).unwrap_or_default();
    let answer = client.get(&format!("/v1/journal?limit={limit}{service}"))?;
    Ok(answer["entries"].as_array().cloned().unwrap_or_default())
}

pub fn journal(
    client: &Client,
    limit: usize,
    service: Option<&str>,
    follow: bool,
) -> Result<(), Failure> {
    let first = entries(client, limit, service)?;
    if client.json && !follow {
        return print_json(&serde_json::json!({ "entries": first }));
    }
    tell(client, &first)?;
    let mut seen: BTreeSet<String> = first.iter().map(|entry| plain(&entry["id"])).collect();
    if !follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(FOLLOW);
        let newest = entries(client, FOLLOW_LIMIT.max(limit).min(1_000), service)?;
        // Those below the first look were left out by its limit, not written since.
        let oldest = first.first().map(|entry| plain(&entry["at"])).unwrap_or_default();
        let new: Vec<Value> = newest
            .iter()
            .filter(|entry| plain(&entry["at"]) >= oldest && !seen.contains(&plain(&entry["id"])))
            .cloned()
            .collect();
        tell(client, &new)?;
        seen = newest.iter().map(|entry| plain(&entry["id"])).collect();
    }
}

fn tell(client: &Client, entries: &[Value]) -> Result<(), Failure> {
    if client.json {
        return entries.iter().try_for_each(|entry| print(&entry.to_string()));
    }
    if entries.is_empty() {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let at = plain(&entry["at"]);
            let time = at
                .split_once('T')
                .map_or(at.clone(), |(day, time)| format!("{day} {}", time.trim_end_matches('Z')));
            let epoch = entry["epoch"].as_u64().map(|epoch| format!("epoch {epoch}"));
            let epoch = epoch.unwrap_or_default();
            vec![time, plain(&entry["id"]), plain(&entry["service"]), epoch, plain(&entry["text"])]
        })
        .collect();
    print(&table("", &rows))
}

pub fn verify(client: &Client) -> Result<(), Failure> {
    let answer = client.get("/v1/journal/verify")?;
    if client.json {
        print_json(&answer)?;
    } else {
        let nodes = answer["nodes"].as_object().cloned().unwrap_or_default();
        for (node, found) in nodes {
            print(&match found["ok"].as_bool() {
                Some(true) => format!("{node}: whole, {} entries", plain(&found["entries"])),
                Some(false) => format!("{node}: not whole: {}", plain(&found["fault"])),
                None => format!("{node}: not known: {}", plain(&found["fault"])),
            })?;
        }
    }
    if answer["ok"] == true { Ok(()) } else { Err(Failure::Told { exit: 1 }) }
}

pub fn explain(client: &Client, id: &str) -> Result<(), Failure> {
    let answer = client.get(&format!("/v1/explain/{}", segment(id)))?;
    let decided = answer["kind"] == "decided";
    let good = answer["intact"] == true && (!decided || answer["same"] == true);
    if client.json {
        print_json(&answer)?;
    } else {
        print(&text(&answer))?;
    }
    if !decided {
        say("this is no decision, so there is nothing to decide again");
    }
    if good { Ok(()) } else { Err(Failure::Told { exit: 1 }) }
}

fn text(answer: &Value) -> String {
    let mut lines = vec![
        format!(
            "{}  {}  {}",
            plain(&answer["id"]),
            plain(&answer["at"]),
            plain(&answer["service"])
        ),
        plain(&answer["text"]),
    ];
    if answer["intact"] == false {
        lines.push("CHANGED after it was written: its hash is not that of its text".to_string());
    }
    if answer["kind"] != "decided" {
        return lines.join("\n");
    }
    lines.push("Facts:".to_string());
    let facts = answer["facts"].as_array().cloned().unwrap_or_default();
    lines.extend(facts.iter().map(|fact| format!("  - {}", plain(fact))));
    let (controller, rule) = (plain(&answer["controller"]), plain(&answer["rule"]));
    lines
        .push(format!("Rule {rule} of controller {controller}, rules {}", plain(&answer["rules"])));
    lines.push(match answer["same"] == true {
        true => "Decided again from these facts: the same verdict".to_string(),
        false => format!(
            "Decided again from these facts, with rules {}: ANOTHER verdict: {}",
            plain(&answer["rules_here"]),
            answer["replayed"]
        ),
    });
    lines.join("\n")
}
