//! `routes`, laid out for people.

use super::client::Client;
use super::failure::{Failure, say};
use super::output::{bytes, duration, plain, print, print_json, table};
use serde_json::Value;

pub fn routes(client: &Client) -> Result<(), Failure> {
    let answer = client.get("/v1/routes")?;
    for (gateway, why) in answer["unheard"].as_object().into_iter().flatten() {
        say(&format!("{gateway}: {}; what it carries is missing here", plain(why)));
    }
    if client.json { print_json(&answer) } else { print(&text(&answer)) }
}

fn text(answer: &Value) -> String {
    let title = ["route", "listener", "service", "req/s", "failed/s", "places", "waiting"];
    let more = ["turned away", "rate limit", "cache"];
    let mut routes = vec![title.into_iter().chain(more).map(str::to_string).collect::<Vec<_>>()];
    for (name, route) in answer["routes"].as_object().into_iter().flatten() {
        routes.push(vec![
            name.clone(),
            plain(&route["listener"]),
            plain(&route["service"]),
            plain(&route["requests_per_s"]),
            plain(&route["failed_per_s"]),
            places(&route["places"]),
            plain(&route["places"]["waiting"]),
            turned(&route["met"]),
            limit(&route["rate_limit"]),
            cache(&route["cache"]),
        ]);
    }
    if routes.len() == 1 {
        return "the spec has no route".to_string();
    }
    let title = ["service", "tries/s", "failed/s", "places", "waiting", "breaker", "instances"];
    let mut services = vec![title.map(str::to_string).to_vec()];
    for (name, service) in answer["services"].as_object().into_iter().flatten() {
        services.push(vec![
            name.clone(),
            plain(&service["tries_per_s"]),
            plain(&service["failed_per_s"]),
            places(&service["places"]),
            plain(&service["places"]["waiting"]),
            breaker(&service["breaker"]),
            instances(&service["instances"]),
        ]);
    }
    format!("{}\n\n{}", table("", &routes), table("", &services))
}

fn places(places: &Value) -> String {
    if places.is_null() {
        return "-".to_string();
    }
    let auto = if places["auto"] == true { " (auto)" } else { "" };
    format!("{} of {}{auto}", plain(&places["taken"]), plain(&places["limit"]))
}

/// Since the start. Who waited and got its turn was not turned away.
fn turned(met: &Value) -> String {
    let met = met.as_object().into_iter().flatten().filter(|(what, _)| *what != "queue");
    let met: Vec<String> = met.map(|(what, count)| format!("{count} {what}")).collect();
    if met.is_empty() { "-".to_string() } else { met.join(", ").replace('_', " ") }
}

fn limit(limit: &Value) -> String {
    if limit.is_null() {
        return "-".to_string();
    }
    format!("{} clients, {} refused", plain(&limit["clients"]), plain(&limit["refused"]))
}

fn cache(cache: &Value) -> String {
    let number = |key: &str| cache[key].as_u64().unwrap_or_default();
    if cache.is_null() {
        return "-".to_string();
    }
    let kept = format!("{} answers, {}", number("answers"), bytes(number("bytes")));
    match (number("hits") * 100).checked_div(number("requests")) {
        Some(hits) => format!("{kept}, {hits} % hits"),
        None => kept,
    }
}

fn breaker(breaker: &Value) -> String {
    let open = breaker["open_at"].as_array().map(Vec::as_slice).unwrap_or_default();
    match breaker["probe_in_ms"].as_u64() {
        _ if breaker.is_null() => "-".to_string(),
        _ if open.is_empty() => "closed".to_string(),
        probe => {
            let at: Vec<String> = open.iter().map(plain).collect();
            let probe = probe.map(|ms| format!(", probe in {}", duration(ms)));
            format!("OPEN at {}{}", at.join(", "), probe.unwrap_or_default())
        }
    }
}

/// Those that are not fit by name.
fn instances(instances: &Value) -> String {
    let all: Vec<(&String, String)> =
        instances.as_object().into_iter().flatten().map(|(id, is)| (id, plain(is))).collect();
    let others: Vec<String> =
        all.iter().filter(|(_, is)| is != "healthy").map(|(id, is)| format!("{id} {is}")).collect();
    let fit = format!("{} of {} fit", all.len() - others.len(), all.len());
    if others.is_empty() { fit } else { format!("{fit}; {}", others.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn routes_and_services_are_laid_out() {
        let answer = json!({
            "routes": {
                "api": {
                    "listener": "web", "service": "api", "requests_per_s": 12.5, "failed_per_s": 0.0,
                    "places": { "limit": 20, "auto": true, "taken": 3, "waiting": 1 },
                    "met": { "queue": 9, "queue_full": 2 },
                    "rate_limit": { "clients": 4, "refused": 5 },
                    "cache": { "answers": 6, "bytes": 2048, "requests": 8, "hits": 6 },
                },
                "old": { "listener": "web", "service": "api" },
            },
            "services": {
                "api": {
                    "tries_per_s": 3.0, "failed_per_s": 1.0, "places": null,
                    "breaker": { "open_at": ["a"], "probe_in_ms": 250 },
                    "instances": { "a.1": "healthy", "b.1": "ejected" },
                },
            },
        });
        let lines: Vec<String> = text(&answer).lines().map(str::to_string).collect();
        let words = |line: usize| {
            lines[line].split("  ").map(str::trim).filter(|it| !it.is_empty()).collect::<Vec<_>>()
        };
        #[rustfmt::skip]
        assert_eq!(words(1), [
            "api", "web", "api", "12.5", "0.0", "3 of 20 (auto)", "1", "2 queue full",
            "4 clients, 5 refused", "6 answers, 2.0 KiB, 75 % hits",
        ]);
        assert_eq!(words(2), ["old", "web", "api", "-", "-", "-", "-", "-", "-", "-"]);
        #[rustfmt::skip]
        assert_eq!(words(5), [
            "api", "3.0", "1.0", "-", "-", "OPEN at a, probe in 250 ms", "1 of 2 fit; b.1 ejected",
        ]);
        assert_eq!(text(&json!({ "routes": {} })), "the spec has no route");
    }
}
