//! `explain request`.

use super::client::{Client, segment};
use super::failure::Failure;
use super::output::{plain, print, print_json};
use serde_json::Value;

pub fn explain(client: &Client, id: &str) -> Result<(), Failure> {
    let answer = client.get(&format!("/v1/requests/{}", segment(id)))?;
    if client.json { print_json(&answer) } else { print(&text(&answer)) }
}

fn text(record: &Value) -> String {
    let word = |key: &str| plain(&record[key]);
    let mut lines = vec![
        format!("{}  {}  gateway {}", word("id"), word("at"), word("gateway")),
        format!(
            "{} asked {} for {} {}{}",
            word("client"),
            word("listener"),
            word("method"),
            word("host"),
            word("path")
        ),
    ];
    lines.push(match record["route"] == "" {
        true => "No route takes it".to_string(),
        false => format!("Route {} to {}", word("route"), word("service")),
    });
    if record["waited_us"].as_u64().is_some_and(|us| us > 0) {
        lines.push(format!("Waited {} for a place", ms(&record["waited_us"])));
    }
    if record["cache"].as_str().is_some_and(|it| !it.is_empty()) {
        lines.push(format!("Cache: {}", word("cache")));
    }
    let tries = record["tries"].as_array().map(Vec::as_slice).unwrap_or_default();
    for one in tries {
        lines.push(format!(
            "  - {} ({}) after {}: {} in {}",
            plain(&one["instance"]),
            plain(&one["why"]),
            ms(&one["after_us"]),
            plain(&one["outcome"]),
            ms(&one["took_us"])
        ));
    }
    let status = match record["status"] == 0 {
        true => "No answer".to_string(),
        false => format!("Answered {}", word("status")),
    };
    let outcome = if record["outcome"] == "" { "whole".to_string() } else { word("outcome") };
    lines.push(format!(
        "{status} in {}, {} bytes in, {} bytes out: {outcome}",
        ms(&record["took_us"]),
        word("bytes_in"),
        word("bytes_out")
    ));
    lines.join("\n")
}

fn ms(us: &Value) -> String {
    format!("{:.1} ms", us.as_f64().unwrap_or_default() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_is_told_in_words() {
        let mut record = json!({
            "id": "9f", "at": "2026-11-21T03:00:00.123Z", "gateway": "a", "listener": "web",
            "client": "127.0.0.1", "method": "GET", "host": "shop.example", "path": "/cart",
            "route": "cart", "service": "api",
            "tries": [
                { "instance": "a.1", "why": "its turn", "after_us": 140, "took_us": 90, "ok": false,
                  "outcome": "no connection" },
                { "instance": "b.1", "why": "others had been tried", "after_us": 300, "took_us": 2_150, "ok": true,
                  "outcome": "answered" },
            ],
            "status": 200, "bytes_in": 0, "bytes_out": 512, "took_us": 2_600, "outcome": "",
        });
        let expected = "9f  2026-11-21T03:00:00.123Z  gateway a\n\
                        127.0.0.1 asked web for GET shop.example/cart\n\
                        Route cart to api\n  \
                        - a.1 (its turn) after 0.1 ms: no connection in 0.1 ms\n  \
                        - b.1 (others had been tried) after 0.3 ms: answered in 2.1 ms\n\
                        Answered 200 in 2.6 ms, 0 bytes in, 512 bytes out: whole";
        assert_eq!(text(&record), expected);
        record["tries"] = json!([]);
        record["route"] = json!("");
        record["status"] = json!(0);
        record["outcome"] = json!("client gone");
        let told = text(&record);
        assert!(told.contains("\nNo route takes it\nNo answer in 2.6 ms"), "{told}");
        assert!(told.ends_with(": client gone"), "{told}");
    }
}
