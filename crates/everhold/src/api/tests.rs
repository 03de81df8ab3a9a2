//! The API over real HTTP, with agents that answer over real links and a store in memory.

mod bed;

use super::*;
use crate::gateway::purges::tests::Keeper;
use crate::gateway::{Presence, presence_prefix};
use crate::routes::Told;
use bed::Bed;
use everhold_core::http::cache::purge::Purged;
use everhold_core::kv::Txn;
use everhold_core::records::encode;
use everhold_store::Store;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::sync::watch;

/// The request's status, and the code of its error.
async fn refused(bed: &Bed, method: &str, path: &str, body: &str) -> (u16, String) {
    let reply = bed.send(method, path, body).await;
    let error = &reply.body["error"];
    for key in ["code", "message", "next"] {
        assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "{path}: {reply:?}");
    }
    (reply.status, error["code"].as_str().unwrap_or_default().to_string())
}

#[tokio::test]
async fn every_route_but_two_needs_the_token_and_a_loopback_host() {
    let bed = Bed::start().await;
    let get = |head: &str, path: &str| {
        let text = format!("GET {path} HTTP/1.1\r\n{head}connection: close\r\n\r\n");
        bed.exchange(text.into_bytes())
    };
    let token = format!("authorization: Bearer {}\r\n", bed::TOKEN);
    let local = "host: 127.0.0.1:7070\r\n";
    for path in ["/v1/status", "/v1/spec", "/nothing", "/"] {
        let reply = get(local, path).await;
        assert_eq!((reply.status, reply.code()), (401, "E301"), "{path}");
        for wrong in ["Bearer x", "Bearer ", "Basic YTpi", bed::TOKEN, "bearer\ttoken"] {
            let reply = get(&format!("{local}authorization: {wrong}\r\n"), path).await;
            assert_eq!((reply.status, reply.code()), (401, "E301"), "{path} {wrong}");
        }
    }
    for path in ["/healthz", "/openapi.json"] {
        assert_eq!(get(local, path).await.status, 200, "{path}");
        assert_eq!(get("host: evil.example\r\n", path).await.status, 403, "{path}");
    }
    let reply = get(&format!("{local}{token}"), "/v1/status").await;
    assert_eq!(reply.status, 200);
    for host in ["host: evil.example:7070\r\n", "host: 10.0.0.1\r\n", "host: \r\n", ""] {
        let reply = get(&format!("{host}{token}"), "/v1/status").await;
        assert_eq!((reply.status, reply.code()), (403, "E310"), "{host}");
    }
    let absolute = get(&format!("{local}{token}"), "http://evil.example/v1/status").await;
    assert_eq!(absolute.status, 403);
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong_with_them() {
    let bed = Bed::start().await;
    let large = format!("{{\"to\":\"{}\"}}", "x".repeat(1 << 20));
    let deep = "[".repeat(100_000);
    let switchover = "/v1/services/main/switchover";
    let not_utf8 = bed.send_bytes("POST", "/v1/spec", b"\xff\xfe").await;
    assert_eq!((not_utf8.status, not_utf8.code()), (400, "E304"));
    #[rustfmt::skip]
    let cases = [
        ("GET",    "/v1/nothing",                       "",                       404, "E302"),
        ("GET",    "/v1/status/",                       "",                       404, "E302"),
        ("DELETE", "/v1/status",                        "",                       405, "E303"),
        ("GET",    switchover,                          "",                       405, "E303"),
        ("GET",    "/v1/journal?limit=x",               "",                       400, "E304"),
        ("GET",    "/v1/journal?limit=-1",              "",                       400, "E304"),
        ("GET",    "/v1/journal?limit=0",               "",                       400, "E304"),
        ("GET",    "/v1/journal?limit=100000",          "",                       400, "E304"),
        ("GET",    "/v1/journal?limt=5",                "",                       400, "E304"),
        ("GET",    "/v1/services/main/dsn?read=maybe",  "",                       400, "E304"),
        ("GET",    "/v1/services/%ff/dsn",              "",                       400, "E304"),
        ("POST",   switchover,                          "{",                      400, "E304"),
        ("POST",   switchover,                          "[]",                     400, "E304"),
        ("POST",   switchover,                          "{\"to\":7}",             400, "E304"),
        ("POST",   switchover,                          "{\"too\":\"a\"}",        400, "E304"),
        ("POST",   switchover,                          &deep,                    400, "E304"),
        ("POST",   switchover,                          &large,                   413, "E305"),
        ("POST",   "/v1/spec",                          &large,                   413, "E305"),
        ("POST",   "/v1/services/main/maintenance",     "",                       400, "E304"),
        ("POST",   "/v1/services/main/maintenance",     "{\"on\":\"yes\"}",       400, "E304"),
        ("POST",   "/v1/faults",                        "{}",                     400, "E304"),
        ("POST",   "/v1/faults",                        "{\"kind\":\"burn\"}",    400, "E304"),
        ("GET",    "/v1/journal?service=x",             "",                       404, "E306"),
        ("GET",    "/v1/journal/a-99",                  "",                       404, "E306"),
        ("GET",    "/v1/explain/x-1",                   "",                       404, "E306"),
        ("GET",    "/v1/explain/..%2f..%2fetc-1",       "",                       404, "E306"),
        ("GET",    "/v1/requests/a%20b",                "",                       400, "E304"),
        ("GET",    "/v1/requests/x-1",                  "",                       404, "E306"),
        ("GET",    "/v1/services/x/dsn",                "",                       404, "E306"),
        ("POST",   "/v1/services/x/switchover",         "",                       404, "E306"),
        ("POST",   switchover,                          "{\"to\":\"x\"}",         404, "E306"),
        ("POST",   switchover,                          "{\"to\":\"a\"}",         409, "E307"),
        ("POST",   "/v1/services/main/failover",        "{}",                     409, "E307"),
        ("POST",   "/v1/services/x/failover",           "{\"force\":true}",       404, "E306"),
        ("POST",   "/v1/services/x/maintenance",        "{\"on\":true}",          404, "E306"),
        ("POST",   "/v1/cache/purge",                   "",                       400, "E304"),
        ("POST",   "/v1/cache/purge",                   "{\"route\":\"web\"}",    404, "E306"),
        ("POST",   "/v1/cache/purge",                   "{\"paths\":[]}",         400, "E304"),
        ("POST",   "/v1/cache/purge",                   "{\"paths\":[\"a\"]}",    400, "E304"),
        ("POST",   "/v1/cache/purge",                   "{\"paths\":[\"/a?b\"]}", 400, "E304"),
        ("POST",   "/v1/cache/purge",                   "{\"all\":true,\"tags\":[\"a\"]}", 400, "E304"),
    ];
    for (method, path, body, status, code) in cases {
        let (is, text) = (refused(&bed, method, path, body).await, code.to_string());
        assert_eq!(is, (status, text), "{method} {path} {}", &body[..body.len().min(40)]);
    }
    // A body that doesn't say how large it is.
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(17);
    let reply = bed.send_chunked("/v1/spec", &chunk).await;
    assert_eq!((reply.status, reply.code()), (413, "E305"));
    // What isn't HTTP at all, and heads without end.
    let head = format!("GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(64 << 10));
    let heads = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
    // The one after a good one, on the same connection.
    let good = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    #[rustfmt::skip]
    let cases = [
        ("GET\r\n\r\n",                       400, "E304"),
        ("\0\0\0\0\r\n\r\n",                 400, "E304"),
        ("GET /healthz HTTP/9.9\r\n\r\n",     400, "E304"),
        ("GET /a b HTTP/1.1\r\n\r\n",         400, "E304"),
        ("GET / HTTP/1.1\r\nhost\r\n\r\n",    400, "E304"),
        (&head,                               431, "E305"),
        (&heads,                              431, "E305"),
    ];
    for (garbage, status, code) in cases {
        let shown = &garbage[..garbage.len().min(40)];
        let reply = bed.exchange(garbage.as_bytes().to_vec()).await;
        assert_eq!((reply.status, reply.code()), (status, code), "{shown:?}");
        let next = reply.body["error"]["next"].as_str().unwrap_or_default();
        assert!(!next.is_empty(), "{shown:?}");
        let (first, second) = bed.exchange_twice(good, garbage).await;
        assert_eq!((first.status, &first.body["ok"]), (200, &json!(true)), "{shown:?}");
        assert_eq!((second.status, second.code()), (status, code), "{shown:?}");
    }
    assert_eq!(bed.send("GET", "/v1/status", "").await.status, 200, "it still stands");
}

#[tokio::test]
async fn a_spec_is_shown_checked_compared_and_stored() {
    let bed = Bed::start().await;
    let text = bed.toml("");
    let same = bed.send("POST", "/v1/spec", &text).await;
    assert_eq!((&same.body["applied"], &same.body["changes"]), (&json!(false), &json!([])));
    let changed = bed.toml("parameters = { work_mem = \"8MB\" }");
    let wanted = json!([{
        "path": "service.main.parameters.work_mem", "old": null, "new": "8MB",
        "takes_effect": "reload",
    }]);
    let dry = bed.send("POST", "/v1/spec?dry_run=true", &changed).await;
    assert_eq!((&dry.body["applied"], &dry.body["changes"]), (&json!(false), &wanted));
    let before = bed.send("GET", "/v1/spec", "").await.body;
    assert_eq!(before["spec"]["services"]["main"]["parameters"], json!({}));
    let done = bed.send("POST", "/v1/spec", &changed).await;
    assert_eq!((&done.body["applied"], &done.body["changes"]), (&json!(true), &wanted));
    let after = bed.send("GET", "/v1/spec", "").await.body;
    assert_eq!(after["spec"]["services"]["main"]["parameters"], json!({ "work_mem": "8MB" }));
    assert_eq!(after["revision"], done.body["revision"]);

    let other = text.replace("cluster = \"local\"", "cluster = \"other\"");
    let reply = bed.send("POST", "/v1/spec", &other).await;
    assert_eq!((reply.status, reply.code()), (409, "E315"));
    assert_eq!(reply.body["error"]["changes"][0]["takes_effect"], "refused");
    let reply = bed.send("POST", "/v1/spec?dry_run=true", &other).await;
    assert_eq!((reply.status, &reply.body["possible"]), (200, &json!(false)));
    let reply = bed.send("POST", "/v1/spec", "schema = 1\nclutser = \"x\"\n[service]\n").await;
    assert_eq!((reply.status, reply.code()), (422, "E314"));
    let faults = reply.body["error"]["faults"].as_array().cloned().unwrap_or_default();
    assert!(faults.len() > 1 && faults.iter().all(|fault| fault["line"].is_u64()), "{faults:?}");
}

#[tokio::test]
async fn a_switchover_is_answered_when_another_node_serves() {
    let bed = Bed::start().await;
    let reply = bed.send("POST", "/v1/services/main/switchover", "{\"to\":\"b\"}").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(
        (&reply.body["leader"], &reply.body["from"], &reply.body["epoch"]),
        (&json!("b"), &json!("a"), &json!(2))
    );
    assert_eq!(bed.asked("a"), ["switchover to b by tester"]);
    bed.until("told", async || {
        let status = bed.send("GET", "/v1/status", "").await.body;
        let last = &status["services"]["main"]["last_failover"];
        last["to"] == "b" && last["epoch"] == 2 && last["outage_ms"].is_u64()
    })
    .await;
    let key = "/everhold/local/service/main/last-failover";
    bed.until("written down", async || {
        let kv = bed.store.get_prefix(key).await.expect("answers").get(key).cloned();
        kv.is_some_and(|kv| kv.value.contains("\"epoch\":2"))
    })
    .await;
    bed.refuse("b", "not now");
    let reply = bed.send("POST", "/v1/services/main/switchover", "").await;
    assert_eq!((reply.status, reply.code()), (409, "E307"));
    assert_eq!(reply.body["error"]["message"], "b: not now");
    // Its agent is gone: it can't be asked.
    bed.silence("b").await;
    let reply = bed.send("POST", "/v1/services/main/switchover", "").await;
    assert_eq!((reply.status, reply.code()), (503, "E308"));
}

#[tokio::test]
async fn force_names_the_loss_and_wants_it_repeated() {
    let bed = Bed::start().await;
    bed.silence("a").await;
    bed.silence("b").await;
    let path = "/v1/services/main/failover";
    let first = bed.send("POST", path, "{\"force\":true}").await;
    assert_eq!((first.status, first.code()), (409, "E312"));
    let error = &first.body["error"];
    assert_eq!(error["token"], "1:a.0+1of(b.0,c.0)");
    assert_eq!(error["uncovered"], json!(["a.0+1 of (b.0,c.0)"]));
    let stale = bed.send("POST", path, "{\"force\":true,\"token\":\"0:none\"}").await;
    assert_eq!((stale.status, stale.code()), (409, "E312"));
    assert!(stale.body["error"]["message"].as_str().is_some_and(|text| text.contains("token")));
    let body = json!({ "force": true, "token": error["token"] }).to_string();
    let done = bed.send("POST", path, &body).await;
    assert_eq!((done.status, &done.body["leader"]), (200, &json!("c")), "{done:?}");
    assert_eq!(bed.asked("c").last().map(String::as_str), Some("force to any by tester"));
    assert!(bed.asked("c")[0].contains("may be lost"), "{:?}", bed.asked("c"));
}

#[tokio::test]
async fn without_the_store_what_needs_it_is_refused_and_the_rest_answers() {
    let bed = Bed::start().await;
    bed.store.stall(true);
    bed.until("noticed", async || {
        let status = bed.send("GET", "/v1/status", "").await.body;
        status["store"]["health"] == "down" && status["store"]["revision"].is_null()
    })
    .await;
    for (path, body) in [
        ("/v1/services/main/maintenance", "{\"on\":true}".to_string()),
        ("/v1/services/main/failover", "{\"force\":true}".to_string()),
        ("/v1/spec", bed.toml("version = 15")),
    ] {
        assert_eq!(refused(&bed, "POST", path, &body).await, (503, "E308".to_string()), "{path}");
    }
    assert_eq!(bed.send("GET", "/v1/services/main/dsn", "").await.status, 200);
    bed.store.stall(false);
    let on = bed.send("POST", "/v1/services/main/maintenance", "{\"on\":true}").await;
    assert_eq!(on.status, 200);
    let status = async || bed.send("GET", "/v1/status", "").await.body;
    assert_eq!(status().await["services"]["main"]["maintenance"], true);
    assert_eq!(status().await["nodes"]["b"]["maintenance"], true);
    // What comes later of what was before turns nothing back.
    for round in 0..40 {
        let on = round % 2 == 1;
        bed.send("POST", "/v1/services/main/maintenance", &json!({ "on": on }).to_string()).await;
        assert_eq!(status().await["services"]["main"]["maintenance"], on, "{round}");
        assert_eq!(status().await["nodes"]["b"]["maintenance"], on, "{round}");
    }
}

/// Says in the store what a gateway has purged.
async fn tell(
    store: everhold_store::MemoryStore,
    name: &str,
    mut purged: watch::Receiver<Option<Purged>>,
) {
    let key = format!("{}{name}", presence_prefix("local"));
    loop {
        let now = purged.borrow_and_update().clone();
        let presence = Presence { pid: 1, purged: now, ..Presence::default() };
        store.txn(&Txn::new().put(&key, encode(&presence))).await.expect("written");
        if purged.changed().await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_purge_is_answered_when_every_gateway_has_purged() {
    let bed = Bed::start().await;
    let (mut one, mut other) = (Keeper::start(), Keeper::start());
    one.follow(&bed.store);
    other.follow(&bed.store);
    tokio::spawn(tell(bed.store.clone(), "gateway", one.purged.clone()));
    tokio::spawn(tell(bed.store.clone(), "gateway.b", other.purged.clone()));
    let given = |one: &Keeper, other: &Keeper| [one.ask("/a"), other.ask("/a")];
    let path = "/v1/cache/purge";
    bed.until("both have heard the store", async || {
        one.purged.borrow().is_some() && other.purged.borrow().is_some()
    })
    .await;
    let before = given(&one, &other);
    let done = bed.send("POST", path, "{\"paths\":[\"/a\",\"/c\"]}").await;
    assert_eq!(done.status, 200, "{done:?}");
    let said = (&done.body["purge"], &done.body["gateways"], &done.body["journal"]);
    assert_eq!(said, (&json!(1), &json!(["b", "gateway"]), &json!("a-9")));
    assert_eq!(bed.asked("a"), ["purge: path /a; path /c"]);
    let after = given(&one, &other);
    assert!(after[0] != before[0] && after[1] != before[1], "{after:?}");

    // One of them hears nothing any more.
    other.cut_off();
    let missed = bed.send("POST", path, "{\"host\":\"A\",\"all\":true}").await;
    assert_eq!((missed.status, missed.code()), (504, "E309"));
    let error = &missed.body["error"];
    assert_eq!((&error["purge"], &error["gateways"]), (&json!(2), &json!(["gateway"])));
    let why = error["missing"]["b"].as_str().unwrap_or_default();
    assert_eq!(why, "it is there, and has not said so");
    let last = given(&one, &other);
    assert!(last[0] != after[0] && last[1] == after[1], "{last:?}");
    other.follow(&bed.store);
    let done = bed.send("POST", path, "{\"tags\":[\"t\"]}").await;
    assert_eq!((done.status, &done.body["purge"]), (200, &json!(3)));
    assert_ne!(other.ask("/a"), last[1]);
}

#[tokio::test]
async fn routes_are_told_by_all_gateways_that_answer() {
    let bed = Bed::start().await;
    let none = bed.send("GET", "/v1/routes", "").await.body;
    assert_eq!((&none["gateways"], none["unheard"]["a"].is_string()), (&json!([]), true));
    // All agents of one machine know the same gateway.
    for node in ["a", "b"] {
        let told = Told { gateway: "gateway".to_string(), pid: 7, ..Told::default() };
        bed.route(node, serde_json::to_value(told).expect("JSON"));
    }
    let told = bed.send("GET", "/v1/routes", "").await.body;
    assert_eq!((&told["gateways"], &told["unheard"]), (&json!(["gateway"]), &json!({})));
}

#[tokio::test]
async fn faults_that_a_service_does_not_survive_need_force() {
    let bed = Bed::start().await;
    let gone = bed.send("POST", "/v1/faults", "{\"kind\":\"kill-node\",\"node\":\"b\"}").await;
    // Nothing of it really runs: it comes to the act itself.
    assert_eq!((gone.status, gone.code()), (409, "E307"), "{gone:?}");
    bed.silence("c").await;
    let kill = "{\"kind\":\"kill-postgres\",\"service\":\"main\"}";
    let freeze = "{\"kind\":\"freeze-node\",\"node\":\"a\",\"for\":\"5s\"}";
    for body in [kill, freeze, "{\"kind\":\"kill-node\",\"node\":\"b\"}"] {
        let reply = bed.send("POST", "/v1/faults", body).await;
        assert_eq!((reply.status, reply.code()), (409, "E313"), "{body}");
    }
    // The one that is gone already costs nothing more.
    let same = bed.send("POST", "/v1/faults", "{\"kind\":\"kill-node\",\"node\":\"c\"}").await;
    assert_eq!((same.status, same.code()), (409, "E307"));
    for wrong in ["0s", "11m", "5", "x", "99999999999999999999h"] {
        let body = json!({ "kind": "freeze-node", "node": "a", "for": wrong }).to_string();
        assert_eq!(refused(&bed, "POST", "/v1/faults", &body).await.0, 400, "{wrong}");
    }
    let reply = bed.send("POST", "/v1/faults", "{\"kind\":\"heal\"}").await;
    assert_eq!((reply.status, &reply.body["healed"]), (200, &json!([])));
    assert_eq!(bed.send("GET", "/v1/faults", "").await.body, json!({ "active": [] }));
}

#[tokio::test]
async fn entries_of_the_journal_are_listed_explained_and_verified() {
    let bed = Bed::start().await;
    let list = bed.send("GET", "/v1/journal?limit=10", "").await.body;
    let ids: Vec<&str> =
        list["entries"].as_array().into_iter().flatten().filter_map(|e| e["id"].as_str()).collect();
    assert_eq!(ids, ["a-1", "a-2"]);
    let main = bed.send("GET", "/v1/journal?service=main&limit=1", "").await.body;
    assert_eq!(main["entries"][0]["id"], "a-2");
    let entry = bed.send("GET", "/v1/journal/a-2", "").await.body;
    assert_eq!((&entry["intact"], &entry["entry"]["id"]), (&json!(true), &json!("a-2")));
    let told = bed.send("GET", "/v1/explain/a-1", "").await.body;
    assert_eq!((&told["kind"], &told["text"]), (&json!("noted"), &json!("began")));
    assert!(told.get("same").is_none());
    let told = bed.send("GET", "/v1/explain/a-2", "").await.body;
    assert_eq!((&told["kind"], &told["same"]), (&json!("decided"), &json!(true)), "{told}");
    let facts: Vec<&str> =
        told["facts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(facts.iter().any(|fact| fact.contains("b was never heard")), "{facts:?}");
    assert_eq!(facts[0], "it had waited for 100 ms; it ends with: a look");
    assert_eq!(told["text"], "look: holds — PostgreSQL was not looked at yet");

    let whole = bed.send("GET", "/v1/journal/verify", "").await.body;
    assert_eq!(whole["nodes"]["a"], json!({ "ok": true, "entries": 2 }));
    bed.mirror("a", "a-2 0000").await;
    let changed = bed.send("GET", "/v1/journal/verify", "").await.body;
    assert_eq!((&changed["ok"], &changed["nodes"]["a"]["ok"]), (&json!(false), &json!(false)));
    bed.mirror("a", "a-3 0000").await;
    let cut = bed.send("GET", "/v1/journal/verify", "").await.body;
    assert!(cut["nodes"]["a"]["fault"].as_str().is_some_and(|text| text.contains("missing")));
}

#[tokio::test]
async fn the_password_file_is_there_and_its_owner_s_alone() {
    use std::os::unix::fs::MetadataExt;
    let bed = Bed::start().await;
    let answer = bed.send("GET", "/v1/services/main/dsn?read=true", "").await.body;
    let path = answer["passfile"].as_str().expect("a path");
    assert!(answer["dsn"].as_str().is_some_and(|url| url.contains(path)), "{answer}");
    let text = std::fs::read_to_string(path).expect("there");
    let write = bed.spec.listeners["write"].bind.port();
    let read = bed.spec.listeners["read"].bind.port();
    assert_eq!(text, format!("127.0.0.1:{write}:*:app:geheim\n127.0.0.1:{read}:*:app:geheim\n"));
    assert_eq!(std::fs::metadata(path).expect("there").mode() & 0o777, 0o600);
    assert_eq!(answer["hosts"], json!([{ "host": "127.0.0.1", "port": read }]));
}

/// As SCHEMA says, one of each thing; kinds that this version doesn't have are left out.
const EXAMPLE: &str = include_str!("tests/status.json");

#[tokio::test]
async fn the_status_has_the_documented_keys_and_no_others() {
    let bed = Bed::start().await;
    bed.send("POST", "/v1/services/main/switchover", "").await;
    let status = bed.send("GET", "/v1/status", "").await.body;
    let example: Value = serde_json::from_str(EXAMPLE).expect("JSON");
    let keys = |value: &Value, path: &str| -> BTreeSet<String> {
        let found = value.pointer(path).and_then(Value::as_object);
        found.unwrap_or_else(|| panic!("{path} of {value}")).keys().cloned().collect()
    };
    for path in [
        "",
        "/store",
        "/nodes/a",
        "/services/main",
        "/services/main/synchronous",
        "/services/main/last_failover",
        "/services/main/instances/a",
        "/gateways/gateway",
        "/gateways/gateway/listeners/write",
        "/holds/0",
        "/holds/0/evidence/0",
    ] {
        let (is, documented) = (keys(&status, path), keys(&example, path));
        let missing: Vec<_> = documented.difference(&is).collect();
        assert!(missing.is_empty(), "{path} lacks {missing:?}");
        let open = path.ends_with("/write");
        let more: Vec<_> = is.difference(&documented).collect();
        assert!(open || more.is_empty(), "{path} has {more:?} beyond the document");
    }
    let detail = keys(&status, "/services/main/instances/a/detail");
    assert!(detail.is_superset(&BTreeSet::from(["flush_lsn".into(), "timeline".into()])));
    let hold = &status["holds"][0];
    assert_eq!(hold["since"], "2026-11-20T09:58:31.000Z");
    assert_eq!((&hold["service"], &hold["journal"]), (&json!("main"), &json!("c-1")));
    // Of a node that isn't heard nobody knows what it waits for.
    bed.silence("c").await;
    bed.until("the hold is gone", async || {
        bed.send("GET", "/v1/status", "").await.body["holds"] == json!([])
    })
    .await;
}

#[test]
fn the_openapi_document_names_every_route_and_no_other() {
    let document: Value = serde_json::from_str(include_str!("openapi.json")).expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            documented.insert((method.to_uppercase(), path.clone()));
            let place = format!("{method} {path}");
            assert!(operation["responses"]["200"].is_object(), "{place}");
            assert!(operation["responses"]["403"].is_object(), "{place}");
            let open = operation["security"] == json!([]);
            assert_eq!(open, operation["responses"]["401"].is_null(), "{place}");
        }
    }
    let served: BTreeSet<(String, String)> =
        paths().into_iter().map(|(method, path, _)| (method.to_string(), path.into())).collect();
    assert_eq!(documented, served);
    let manual = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    let manual = std::fs::read_to_string(manual).expect("docs/api.md");
    for (method, path) in &served {
        assert!(manual.contains(&format!("| {method} | `{path}` |")), "{method} {path}");
    }
    let text = document.to_string();
    for part in text.split("\"#/").skip(1) {
        let pointer = format!("/{}", part.split('"').next().unwrap_or_default());
        assert!(document.pointer(&pointer).is_some(), "{pointer} is nowhere");
    }
    for code in Code::ALL.iter().filter(|code| code.as_str() > "E3") {
        let internal = *code == Code::Internal;
        let wrong_place = matches!(code, Code::UnknownPath | Code::WrongMethod);
        assert!(internal || wrong_place || text.contains(code.as_str()), "{}", code.as_str());
    }
}
