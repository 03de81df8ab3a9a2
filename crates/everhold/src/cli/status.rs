//! `status`, laid out for people.

use super::client::Client;
use super::failure::Failure;
use super::output::{bytes, duration, plain, print, print_json, table};
use serde_json::{Map, Value};
use std::io::IsTerminal;
use std::time::Duration;

/// Between two looks of `--watch`.
const AGAIN: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub fn status(client: &Client, watch: bool) -> Result<(), Failure> {
    loop {
        let answer = client.get("/v1/status")?;
        match (client.json, watch) {
            (true, true) => print(&answer.to_string())?,
            (true, false) => print_json(&answer)?,
            (false, true) if std::io::stdout().is_terminal() => {
                print(&format!("{CLEAR}{}", text(&answer)))?;
            }
            (false, _) => print(&text(&answer))?,
        }
        if !watch {
            return Ok(());
        }
        std::thread::sleep(AGAIN);
    }
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn text(status: &Value) -> String {
    let store = &status["store"];
    let mut parts = vec![format!(
        "cluster {}  {}  {}\nstore   {} {}, revision {}",
        plain(&status["cluster"]),
        plain(&status["health"]),
        plain(&status["at"]),
        plain(&store["kind"]),
        plain(&store["health"]),
        plain(&store["revision"]),
    )];
    if let (Some(ms), Some(head)) = (store["snapshot_ms_ago"].as_u64(), parts.first_mut()) {
        *head += &format!(", copied {} ago", duration(ms));
    }
    parts.extend(object(&status["services"]).iter().map(|(name, it)| service(name, it)));
    parts.push(nodes(&object(&status["nodes"])));
    let gateways = object(&status["gateways"]);
    parts.push(match gateways.is_empty() {
        true => "no gateway has told of itself".to_string(),
        false => gateways.iter().map(|(name, it)| gateway(name, it)).collect::<Vec<_>>().join("\n"),
    });
    let holds = status["holds"].as_array().cloned().unwrap_or_default();
    if !holds.is_empty() {
        parts.push(holds.iter().map(hold).collect::<Vec<_>>().join("\n"));
    }
    parts.join("\n\n")
}

fn service(name: &str, service: &Value) -> String {
    if service["kind"] == "http" {
        return http(name, service);
    }
    let mut head =
        format!("service {name} ({})  {}", plain(&service["kind"]), plain(&service["health"]));
    match service["serving"].as_bool() {
        Some(true) => head += &format!(", led by {}", plain(&service["leader"])),
        Some(false) => head += ", NOT SERVING",
        None => head += ", not known to serve",
    }
    head += &format!(", epoch {}", plain(&service["epoch"]));
    if service["maintenance"] == true {
        head += ", IN MAINTENANCE: nothing is done by itself";
    }
    let mut lines = vec![head];
    lines.extend(guarantee(service));
    let title = ["node", "role", "state", "health", "lag", "in route", "port", "pid"];
    let mut rows: Vec<Vec<String>> = vec![title.map(str::to_string).to_vec()];
    rows.extend(object(&service["instances"]).values().map(|instance| {
        vec![
            plain(&instance["node"]),
            plain(&instance["role"]),
            plain(&instance["state"]).replace('_', " "),
            plain(&instance["health"]),
            lag(instance),
            in_route(instance),
            plain(&instance["port"]),
            plain(&instance["pid"]),
        ]
    }));
    lines.push(table("  ", &rows));
    lines.extend(last_failover(&service["last_failover"]));
    lines.join("\n")
}

fn in_route(instance: &Value) -> String {
    let said = match instance["in_route"].as_bool() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    said.to_string()
}

/// An HTTP service: nobody leads it, and an instance may be anywhere.
fn http(name: &str, service: &Value) -> String {
    let instances = object(&service["instances"]);
    let up = instances.values().filter(|it| it["health"] == "up").count();
    let serving = match service["serving"].as_bool() {
        Some(true) => "",
        Some(false) => ", NOT SERVING",
        None => ", not known to serve",
    };
    let head = format!(
        "service {name} (http)  {}, {up} of {} up{serving}",
        plain(&service["health"]),
        plain(&service["wanted"]),
    );
    let title =
        ["instance", "node", "state", "health", "in route", "under way", "restarts", "port", "pid"];
    let mut rows: Vec<Vec<String>> = vec![title.map(str::to_string).to_vec()];
    rows.extend(instances.iter().map(|(id, instance)| {
        let detail = &instance["detail"];
        let drained = match instance["drain"]["state"].as_str() {
            Some(_) => ", drained",
            None => "",
        };
        let pending = if detail["restart_pending"] == true { ", restart pending" } else { "" };
        vec![
            id.clone(),
            plain(&instance["node"]),
            format!("{}{drained}{pending}", plain(&instance["state"])),
            plain(&instance["health"]),
            in_route(instance),
            plain(&detail["requests"]),
            plain(&detail["restarts"]),
            plain(&instance["port"]),
            plain(&instance["pid"]),
        ]
    }));
    format!("{head}\n{}", table("  ", &rows))
}

fn guarantee(service: &Value) -> Option<String> {
    let sync = service["synchronous"].as_object()?;
    let members = sync["members"].as_array()?.iter().map(plain).collect::<Vec<_>>().join(", ");
    let number = sync["number"].as_u64().unwrap_or_default();
    let what = match number {
        0 => "a commit is acknowledged by the leader ALONE".to_string(),
        n => format!("a commit is acknowledged when the leader and {n} of ({members}) hold it"),
    };
    let changing = match &sync["changing_to"] {
        Value::Null => String::new(),
        other => format!(", changing to {}", plain(other)),
    };
    let tolerates = match service["tolerates"].as_u64() {
        Some(0) => "; NO further node may be lost".to_string(),
        Some(1) => "; one more node may be lost".to_string(),
        Some(n) => format!("; {n} more nodes may be lost"),
        None => String::new(),
    };
    Some(format!("  {what}{changing}{tolerates}"))
}

fn lag(instance: &Value) -> String {
    let size = instance["lag_bytes"].as_u64().map(bytes);
    let time = instance["lag_ms"].as_u64().map(duration);
    match (size, time) {
        (None, None) => "-".to_string(),
        (Some(size), Some(time)) => format!("{size}, {time}"),
        (Some(one), None) | (None, Some(one)) => one,
    }
}

fn last_failover(last: &Value) -> Option<String> {
    let last = last.as_object()?;
    let get = |key: &str| last.get(key).map_or("-".to_string(), plain);
    let from = match &last["from"] {
        Value::Null => String::new(),
        other => format!("from {} ", plain(other)),
    };
    let outage = last["outage_ms"].as_u64().map(|ms| format!(", outage {}", duration(ms)));
    let journal = last["journal"].as_str().map(|id| format!("  (everhold explain {id})"));
    Some(format!(
        "  last {}: {from}to {} at {}, epoch {}, rule {}{}{}",
        get("kind"),
        get("to"),
        get("at"),
        get("epoch"),
        get("rule"),
        outage.unwrap_or_default(),
        journal.unwrap_or_default(),
    ))
}

fn nodes(nodes: &Map<String, Value>) -> String {
    let title = ["node", "health", "address", "zone", "agent pid", "heard"];
    let mut rows: Vec<Vec<String>> = vec![title.map(str::to_string).to_vec()];
    rows.extend(nodes.iter().map(|(name, node)| {
        let told = |key: &str, what: &'static str| if node[key].is_null() { "" } else { what };
        let heard = node["seen_ms_ago"].as_u64().map(|ms| format!("{} ago", duration(ms)));
        vec![
            name.clone(),
            plain(&node["health"]) + told("lost_since", ", lost") + told("back_since", ", back"),
            plain(&node["address"]),
            plain(&node["zone"]),
            plain(&node["agent_pid"]),
            heard.unwrap_or_else(|| "never".to_string()),
        ]
    }));
    table("", &rows)
}

fn gateway(name: &str, gateway: &Value) -> String {
    let mut rows = Vec::new();
    for (listener, it) in object(&gateway["listeners"]) {
        let to = it["to"].as_array().map(|to| to.iter().map(plain).collect::<Vec<_>>());
        let to = to.filter(|to| !to.is_empty()).map(|to| to.join(", "));
        rows.push(vec![
            listener,
            plain(&it["bind"]),
            plain(&it["state"]),
            format!("to {}", to.unwrap_or_else(|| "nobody".to_string())),
            format!("{} connections", plain(&it["connections"])),
            format!("{} waiting", plain(&it["waiting"])),
        ]);
    }
    let draining = gateway["draining"].as_array().into_iter().flatten().map(|it| {
        let (pid, left, since) =
            (plain(&it["pid"]), plain(&it["connections"]), plain(&it["since"]));
        format!("\n  process {pid} drains since {since}: {left} connections")
    });
    let draining: String = draining.collect();
    format!("gateway {name}  {}\n{}{draining}", plain(&gateway["health"]), table("  ", &rows))
}

fn hold(hold: &Value) -> String {
    let mark = if hold["needs_operator"] == true { "  NEEDS YOU" } else { "" };
    let told = |key: &str, words: &dyn Fn(&str) -> String| hold[key].as_str().map(words);
    let since = told("since", &|at| format!(", since {at}")).unwrap_or_default();
    let recheck = told("recheck_at", &|at| format!(", looked at again at {at}"));
    let journal = told("journal", &|id| format!("  (everhold explain {id})"));
    format!(
        "holds   {} {}: {}{since}{mark}\n        ends with: {}{}{}",
        plain(&hold["service"]),
        plain(&hold["rule"]),
        plain(&hold["why"]),
        plain(&hold["unblocks"]),
        recheck.unwrap_or_default(),
        journal.unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nobody_leads_an_http_service() {
        let of = |node: &str, more: Value| {
            let mut it = json!({
                "node": node, "role": null, "state": "running", "health": "up", "pid": 7,
                "port": 15410, "in_route": true, "detail": { "requests": 2, "restarts": 1 },
            });
            it.as_object_mut().expect("an object").extend(object(&more));
            it
        };
        let web = json!({
            "kind": "http", "health": "degraded", "serving": true, "wanted": 3,
            "instances": {
                "a.1": of("a", json!({})),
                "b.1": of("b", json!({ "in_route": false, "drain": { "state": "out" } })),
                "c.1": of("c", json!({ "state": "backoff", "health": "down", "in_route": null })),
            },
        });
        let shown = text(&json!({ "services": { "web": web } }));
        let shown: Vec<&str> = shown.lines().map(str::trim_end).collect();
        let wanted = [
            "service web (http)  degraded, 2 of 3 up",
            "  instance  node  state             health  in route  under way  restarts  port   pid",
            "  a.1       a     running           up      yes       2          1         15410  7",
            "  b.1       b     running, drained  up      no        2          1         15410  7",
            "  c.1       c     backoff           down    -         2          1         15410  7",
        ];
        let begin = shown.iter().position(|line| line.starts_with("service")).expect("shown");
        assert_eq!(shown[begin..begin + wanted.len()], wanted);
    }
}
