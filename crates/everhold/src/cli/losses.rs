//! `losses`: what the kept logs of old leaders hold that no leader has.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::output::{bytes, plain, print, print_json};
use serde_json::{Value, json};

pub fn losses(client: &Client, service: Option<&str>) -> Result<(), Failure> {
    let services = match service {
        Some(service) => vec![service.to_string()],
        None => {
            let status = client.get("/v1/status")?;
            status["services"].as_object().into_iter().flatten().map(|(it, _)| it.clone()).collect()
        }
    };
    let mut answers = Vec::new();
    for service in services {
        answers.push(client.get(&format!("/v1/services/{}/losses", segment(&service)))?);
    }
    for answer in &answers {
        for absent in answer["absent"].as_array().into_iter().flatten() {
            let (node, error) = (plain(&absent["node"]), plain(&absent["error"]));
            say(&format!("{node} does not answer, what it kept is missing here: {error}"));
        }
    }
    if client.json {
        return print_json(&json!({ "services": answers }));
    }
    print(&answers.iter().map(of_service).collect::<Vec<_>>().join("\n"))
}

fn of_service(answer: &Value) -> String {
    let tails = answer["tails"].as_array().cloned().unwrap_or_default();
    let service = plain(&answer["service"]);
    if tails.is_empty() {
        return format!("service {service}: no node keeps a log that its leader lacks");
    }
    let tails: Vec<String> = tails.iter().map(tail).collect();
    format!("service {service}\n{}", tails.join("\n"))
}

fn tail(tail: &Value) -> String {
    let get = |key: &str| plain(&tail[key]);
    let mut lines = vec![format!(
        "  {} epoch {}, timeline {}: {} from {} to {}, {} commits",
        get("node"),
        get("epoch"),
        get("tli"),
        bytes(tail["bytes"].as_u64().unwrap_or(0)),
        get("fork"),
        get("end"),
        get("commits"),
    )];
    let epochs = |key: &str| {
        let epochs = tail[key].as_array().filter(|epochs| !epochs.is_empty())?;
        Some(epochs.iter().map(plain).collect::<Vec<String>>().join(", "))
    };
    let recovered = epochs("recovered_epochs").map(|epochs| {
        format!("    ACKNOWLEDGED, most of it: the recovery at epoch {epochs} gave it up")
    });
    let forced = epochs("forced_epochs")
        .map(|epochs| format!("    SOME MAY HAVE BEEN ACKNOWLEDGED: forced at epoch {epochs}"));
    if tail["acknowledged"] == 0 {
        let why = "no failover that left it behind was forced";
        lines.push(format!("    none of it was acknowledged: {why}"));
    }
    let unknown = tail["unknown"].as_str();
    let unknown = unknown.map(|why| format!("    NOT KNOWN whether it was acknowledged: {why}"));
    lines.extend([recovered, forced, unknown].into_iter().flatten());
    for transaction in tail["transactions"].as_array().into_iter().flatten() {
        lines.extend(of_transaction(transaction));
    }
    let more = |key: &str, words: &str| {
        let count = tail[key].as_u64().filter(|count| *count > 0);
        count.map(|count| format!("    {count} {words}"))
    };
    lines.extend(more("untold", "more transactions are counted and not listed"));
    lines.extend(more("unlisted", "more rows are counted and not listed"));
    lines.extend(more("uncommitted", "changes of transactions that did not commit"));
    lines.extend(tail["note"].as_str().map(|note| format!("    {note}")));
    lines.join("\n")
}

fn of_transaction(transaction: &Value) -> Vec<String> {
    let get = |key: &str| plain(&transaction[key]);
    let mut lines = vec![format!("    {} at {}, xid {}", get("at"), get("lsn"), get("xid"))];
    for (relation, counts) in transaction["counts"].as_object().into_iter().flatten() {
        let of = |at: usize| plain(&counts[at]);
        let counts = format!("{} inserted, {} updated, {} deleted", of(0), of(1), of(2));
        lines.push(format!("      {relation}: {counts}"));
    }
    for row in transaction["rows"].as_array().into_iter().flatten() {
        let note = row["note"].as_str().map(|note| format!("  ({note})")).unwrap_or_default();
        let shown = if row["row"].is_null() { String::new() } else { row["row"].to_string() };
        lines.push(format!(
            "      {} {} {shown}{note}",
            plain(&row["act"]),
            plain(&row["relation"])
        ));
    }
    lines
}
