//! An HTTP service on three nodes: its instances come back, go on, go, start anew.

use crate::stack::{NODES, Stack, Wanted, free_ports, signal};
use everhold_adapters::proc::living;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERHOLD: &str = env!("CARGO_BIN_EXE_everhold");

/// The service as a record has it.
fn service(stack: &Stack, greeting: &str, instances: &[&str]) -> Value {
    let placed: BTreeMap<&str, Value> = instances
        .iter()
        .map(|id| {
            let (node, number) = id.split_once('.').expect("NODE.N");
            let port = stack.postgres_port(node) + number.parse::<u16>().expect("a number");
            (*id, json!({ "node": node, "port": port }))
        })
        .collect();
    let command = [EVERHOLD, "sample", "--port", "{port}", "--name", "{instance}"];
    let mut service = json!({
        "kind": "http",
        "run": {
            "instances": instances.len(), "command": command, "placed": placed,
            "env": { "GREETING": greeting, "URL": "{dsn:main}" },
            "stop": { "signal": "TERM", "grace_ms": 5_000 },
        },
        "health": {
            "interval_ms": 1_000, "timeout_ms": 500,
            "healthy_threshold": 2, "unhealthy_threshold": 3,
        },
        "slow_start_ms": 0, "timeout_ms": 60_000, "retries": 2,
    });
    if is_root() {
        service["run"]["user"] = json!("root");
    }
    service
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Makes it the cluster's.
fn put(stack: &Stack, service: Option<Value>) {
    change(stack, |spec| match service {
        Some(service) => spec["services"]["api"] = service,
        None => drop(spec["services"].as_object_mut().expect("services").remove("api")),
    });
}

fn change(stack: &Stack, change: impl FnOnce(&mut Value)) {
    let key = "/everhold/test/spec";
    let text = stack.etcdctl(&["get", "--print-value-only", key]);
    let mut spec: Value = serde_json::from_str(&text).expect("a spec");
    spec["version"] = json!(3);
    change(&mut spec);
    stack.etcdctl(&["put", key, &spec.to_string()]);
}

fn instance<'a>(status: &'a Value, id: &str) -> &'a Value {
    &status["services"]["api"]["instances"][id]
}

fn up(stack: &mut Stack, count: usize) -> BTreeMap<String, i64> {
    let status = stack.wait("all instances", |status| {
        let api = &status["services"]["api"];
        let all = api["instances"].as_object().map_or(0, serde_json::Map::len);
        api["health"] == "up" && all == count
    });
    let all = status["services"]["api"]["instances"].as_object().expect("instances").clone();
    all.into_iter().map(|(id, it)| (id, it["pid"].as_i64().expect("a pid"))).collect()
}

fn get(stack: &Stack, id: &str) -> Option<String> {
    let (node, number) = id.split_once('.')?;
    let port = stack.postgres_port(node) + number.parse::<u16>().ok()?;
    ask(port, "/", "")?.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_string())
}

/// The whole answer.
fn ask(port: u16, path: &str, fields: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{fields}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Runners and instances of this stack.
fn left(stack: &Stack) -> Vec<i32> {
    let data = stack.data().display().to_string();
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let works = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        (line.contains(" runner ") && line.contains(&data))
            || (line.contains(" sample ") && works.starts_with(&data))
    };
    pids.filter(is_ours).collect()
}

/// Where a gateway takes requests to it.
fn listen(stack: &Stack) -> u16 {
    let port = free_ports(1);
    change(stack, |spec| {
        spec["listeners"]["web"] =
            json!({ "bind": format!("127.0.0.1:{port}"), "protocol": "http" });
        spec["routes"]["all"] = json!({ "listener": "web", "match": {}, "service": "api" });
    });
    port
}

/// A client that asks without a break.
struct Client {
    over: Arc<AtomicBool>,
    asks: Option<JoinHandle<(usize, Vec<String>)>>,
}

impl Client {
    fn begin(port: u16) -> Client {
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let asks = std::thread::spawn(move || {
            let (mut asked, mut failed) = (0, Vec::new());
            while !ends.load(Ordering::Relaxed) {
                asked += 1;
                let answer = ask(port, "/", "").unwrap_or_default();
                if !answer.starts_with("HTTP/1.1 200 ") {
                    failed.push(answer);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            (asked, failed)
        });
        Client { over, asks: Some(asks) }
    }

    /// How often it has asked, and the answers that weren't good.
    fn end(mut self) -> (usize, Vec<String>) {
        self.over.store(true, Ordering::Relaxed);
        self.asks.take().expect("it asks").join().expect("a client")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A program that answers each request with 500, at a port as soon as that is free.
fn fail_at(port: u16, over: &Arc<AtomicBool>) -> JoinHandle<()> {
    let over = over.clone();
    std::thread::spawn(move || {
        let mut listener = None;
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
            if listener.is_none() {
                listener = TcpListener::bind(("127.0.0.1", port)).ok();
            }
            let Some(listener) = &listener else { continue };
            listener.set_nonblocking(true).expect("no waiting");
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 1_024]);
                let answer = "HTTP/1.1 500 Sorry\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes());
            }
        }
    })
}

/// Through the gateway: answered, counted, and explained.
fn requests_are_told_of(stack: &Stack) {
    let port = listen(stack);
    let until = Instant::now() + Duration::from_secs(60);
    while !ask(port, "/hello", "x-request-id: first\r\n").is_some_and(|it| it.contains(" 200 ")) {
        assert!(Instant::now() < until, "{:?}", ask(port, "/hello", ""));
        std::thread::sleep(Duration::from_millis(50));
    }
    let told = stack.done(&["explain", "request", "first"]);
    for part in ["first  20", "127.0.0.1 asked web for GET x/hello", "Route all to api", ".1 ("] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.contains("\nAnswered 200 in "), "{told}");
    let unknown = stack.command(&["explain", "request", "never"]).output().expect("everhold");
    let said = String::from_utf8_lossy(&unknown.stderr).to_string();
    assert!(!unknown.status.success() && said.contains("E306"), "{said}");
    let counted = "http_server_request_duration_seconds_count{cluster=\"test\",\
                   gateway=\"gateway\",http_route=\"all\",http_request_method=\"GET\",\
                   http_response_status_code=\"200\"} ";
    let used = "everhold_gateway_instance_used{cluster=\"test\",gateway=\"gateway\",\
                service=\"api\",backend=\"a.1\"} 1\n";
    let wanted = [counted, "outcome=\"ok\",le=\"+Inf\"} ", used];
    let page = || ask(stack.gateway_port(), "/metrics", "").unwrap_or_default();
    while !wanted.iter().all(|part| page().contains(part)) {
        assert!(Instant::now() < until, "{}", page());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn instances_come_back_and_nothing_of_everhold_that_dies_disturbs_them() {
    let mut stack = Stack::start(Wanted::default());
    put(&stack, Some(service(&stack, "hello from", &["a.1", "b.1", "c.1"])));
    let before = up(&mut stack, 3);
    for id in before.keys() {
        assert_eq!(get(&stack, id).expect("an answer"), format!("hello from {id}"));
    }
    let said = stack.done(&["wait", "api", "--timeout", "10s"]);
    assert_eq!(said, "api is up\n");
    requests_are_told_of(&stack);

    // kill -9 of one.
    signal("KILL", &[before["a.1"] as i32]);
    let begun = Instant::now();
    while get(&stack, "a.1").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    let back = begun.elapsed();
    let status = stack.wait("a.1 again", |status| {
        let a = instance(status, "a.1");
        a["state"] == "running" && a["pid"] != before["a.1"] && a["detail"]["restarts"] == 1
    });
    println!("back after {back:?}");
    assert_eq!(instance(&status, "a.1")["detail"]["last_exit"]["reason"], "ended by signal 9");
    let journal = stack.done(&["journal", "--service", "api"]);
    assert!(journal.contains("a.1: ended by signal 9, after"), "{journal}");

    // kill -9 of all agents: the same processes.
    let before = up(&mut stack, 3);
    for node in NODES {
        signal("KILL", &[stack.agent_pid(node).expect("an agent")]);
    }
    stack.wait("other agents", |status| NODES.iter().all(|n| status["nodes"][n]["health"] == "up"));
    assert_eq!(up(&mut stack, 3), before);
    assert_eq!(left(&stack).len(), 6, "a runner each");
    for pid in left(&stack) {
        assert_eq!(living(pid).map(|it| it.session), Some(pid), "a session of its own");
    }

    // kill -9 of the runners.
    let runners: Vec<i32> = left(&stack)
        .into_iter()
        .filter(|pid| !before.values().any(|it| it == &i64::from(*pid)))
        .collect();
    signal("KILL", &runners);
    let until = Instant::now() + Duration::from_secs(60);
    while left(&stack).len() != 6 || left(&stack).iter().any(|pid| runners.contains(pid)) {
        assert!(Instant::now() < until, "{:?}", left(&stack));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(up(&mut stack, 3), before);

    // More and fewer.
    assert_eq!(stack.done(&["scale", "api", "4"]), "api: 4 instances, 3 before\n");
    let more = up(&mut stack, 4);
    assert!(before.iter().all(|(id, pid)| more[id] == *pid), "the others went on");
    put(&stack, Some(service(&stack, "hello from", &["a.2", "c.1"])));
    let fewer = stack.wait("two", |status| {
        let all = status["services"]["api"]["instances"].as_object();
        status["services"]["api"]["health"] == "up" && all.is_some_and(|all| all.len() == 2)
    });
    assert_eq!(instance(&fewer, "c.1")["pid"], before["c.1"]);
    let until = Instant::now() + Duration::from_secs(60);
    while left(&stack).len() != 4 {
        assert!(Instant::now() < until, "{:?}", left(&stack));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(get(&stack, "b.1").is_none());

    // The password is in the environment, and nowhere on disk but where it belongs.
    let given = fs::read(format!("/proc/{}/environ", before["c.1"])).expect("an environment");
    let (given, password) = (String::from_utf8_lossy(&given).to_string(), stack.password());
    assert!(given.contains(&format!("URL=postgresql://app:{password}@127.0.0.1:")), "{given}");
    let dir = stack.data().join("c/api/c.1");
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        if entry.file_type().is_ok_and(|it| it.is_file()) {
            let text = fs::read_to_string(entry.path()).expect("a file");
            assert!(!text.contains(&password), "{:?}", entry.path());
        }
    }

    stack.interrupt();
    assert!(left(&stack).is_empty(), "{:?}", left(&stack));

    // kill -9 of the supervisor.
    stack.up();
    put(&stack, Some(service(&stack, "hello from", &["b.1", "c.1"])));
    let before = up(&mut stack, 2);
    let running = left(&stack);
    stack.kill_up();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(left(&stack), running);
    assert!(before.keys().all(|id| get(&stack, id).is_some()));
}

#[test]
fn a_rollout_goes_one_by_one_and_stops_at_one_that_ends_again() {
    let mut stack = Stack::start(Wanted::default());
    let ids = ["a.1", "b.1", "c.1"];
    put(&stack, Some(service(&stack, "one", &ids)));
    let first = up(&mut stack, 3);
    put(&stack, Some(service(&stack, "two", &ids)));
    stack.wait("restarts pending", |status| {
        ids.iter().all(|id| instance(status, id)["detail"]["restart_pending"] == true)
    });
    assert_eq!(up(&mut stack, 3), first, "nothing happens by itself");
    assert_eq!(stack.done(&["rollout", "api"]), "done: 3 started anew\n");
    let second = up(&mut stack, 3);
    for id in ids {
        assert_ne!(first[id], second[id]);
        assert_eq!(get(&stack, id).expect("an answer"), format!("two {id}"));
    }

    // A bad command: the first one shows it, and the others go on as they were.
    let mut bad = service(&stack, "three", &ids);
    bad["run"]["command"] = json!(["sh", "-c", "echo no such luck; exit 4"]);
    put(&stack, Some(bad));
    stack.wait("restarts pending", |status| {
        ids.iter().all(|id| instance(status, id)["detail"]["restart_pending"] == true)
    });
    let output = stack.command(&["rollout", "api"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("E261") && error.contains("a.1 ended again: exit status 4"), "{error}");
    let status = stack.wait("a crash loop", |status| {
        instance(status, "a.1")["detail"]["restarts"].as_u64().is_some_and(|it| it >= 4)
    });
    assert_eq!(status["services"]["api"]["health"], "degraded");
    for id in ["b.1", "c.1"] {
        assert_eq!(instance(&status, id)["pid"], second[id]);
        assert_eq!(get(&stack, id).expect("an answer"), format!("two {id}"));
    }
    let logs = stack.done(&["logs", "api"]);
    assert!(logs.contains(" a.1 no such luck\n") && logs.contains(" b.1 b.1 serves on"), "{logs}");
    let logs = stack.done(&["logs", "api", "b.1", "--limit", "2", "--json"]);
    let logs: Value = serde_json::from_str(&logs).expect("JSON");
    assert_eq!(logs["lines"].as_array().map(Vec::len), Some(2));

    // Mended: the one that can't stay up takes it up by itself, the others in their turn.
    put(&stack, Some(service(&stack, "four", &ids)));
    let third = up(&mut stack, 3);
    assert_eq!(get(&stack, "a.1").expect("an answer"), "four a.1");
    assert_eq!((third["b.1"], third["c.1"]), (second["b.1"], second["c.1"]));
    let said = stack.done(&["restart", "api", "b.1"]);
    assert!(said.starts_with("b.1 runs anew, process "), "{said}");
    assert_eq!(get(&stack, "b.1").expect("an answer"), "four b.1");
    assert_eq!(get(&stack, "c.1").expect("an answer"), "two c.1");
    let journal = stack.done(&["journal", "--service", "api", "--limit", "100"]);
    assert!(journal.contains("restart of b.1"), "{journal}");

    // One that is gone has left its last words.
    put(&stack, Some(service(&stack, "four", &ids[..2])));
    stack.wait("c.1 is gone", |status| instance(status, "c.1").is_null());
    let logs = stack.done(&["logs", "api", "c.1"]);
    assert!(logs.contains(" c.1 c.1 ends"), "{logs}");
    let unknown = stack.command(&["logs", "api", "c.9"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&unknown.stderr);
    assert!(!unknown.status.success() && error.contains("has no instance c.9"), "{error}");
}

/// Clients notice nothing of a rollout, whether what is new starts slowly, or runs and is of no use.
#[test]
fn a_rollout_waits_until_gateways_find_each_instance_well() {
    let mut stack = Stack::start(Wanted::default());
    let ids = ["a.1", "b.1", "c.1"];
    let version = |greeting: &str, command: &str| {
        let mut service = service(&stack, greeting, &ids);
        let sample = format!("exec {EVERHOLD} sample --port {{port}} --name {{instance}}");
        service["run"]["command"] = json!(["sh", "-c", command.replace("SAMPLE", &sample)]);
        service["health"]["path"] = json!("/healthz");
        service
    };
    let (one, slow) = (version("one", "SAMPLE"), version("two", "sleep 8; SAMPLE"));
    let mut bad = version("three", "exec sleep 1000");
    bad["health"]["start_within_ms"] = json!(5_000);
    put(&stack, Some(one));
    up(&mut stack, 3);
    let port = listen(&stack);
    let until = Instant::now() + Duration::from_secs(60);
    while !ask(port, "/", "").is_some_and(|it| it.contains(" 200 ")) {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(50));
    }
    let pending = |stack: &mut Stack| {
        stack.wait("restarts pending", |status| {
            ids.iter().all(|id| instance(status, id)["detail"]["restart_pending"] == true)
        });
    };
    let well = |stack: &mut Stack| {
        stack.wait("all are found well", |status| {
            ids.iter().all(|id| instance(status, id)["detail"]["gateways"] == "healthy")
        });
    };

    well(&mut stack);
    let client = Client::begin(port);
    put(&stack, Some(slow.clone()));
    pending(&mut stack);
    assert_eq!(stack.done(&["rollout", "api"]), "done: 3 started anew\n");
    let (asked, failed) = client.end();
    assert!(asked > 100 && failed.is_empty(), "of {asked}: {failed:?}");
    let second = up(&mut stack, 3);
    for id in ids {
        assert_eq!(get(&stack, id).expect("an answer"), format!("two {id}"));
    }

    // It listens, and fails its checks: the first one shows it.
    let over = Arc::new(AtomicBool::new(false));
    let fails = fail_at(stack.postgres_port("a") + 1, &over);
    let client = Client::begin(port);
    put(&stack, Some(bad));
    pending(&mut stack);
    let output = stack.command(&["rollout", "api"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    let why = "a.1: the gateway gateway finds it unhealthy";
    assert!(error.contains("E261") && error.contains(why), "{error}");
    let status =
        stack.wait("a.1 is suspect", |status| instance(status, "a.1")["health"] == "suspect");
    for id in ["b.1", "c.1"] {
        assert_eq!(instance(&status, id)["pid"], second[id]);
        assert_eq!(get(&stack, id).expect("an answer"), format!("two {id}"));
    }
    over.store(true, Ordering::Relaxed);
    fails.join().expect("it ended");

    // Nobody is served by it, so it holds up no rollout of what is mended.
    put(&stack, Some(slow));
    stack.wait("the mended is known", |status| {
        let pending = |id| instance(status, id)["detail"]["restart_pending"] == true;
        pending("a.1") && !pending("b.1")
    });
    assert_eq!(stack.done(&["rollout", "api"]), "done: 3 started anew\n");
    let (asked, failed) = client.end();
    assert!(asked > 100 && failed.is_empty(), "of {asked}: {failed:?}");
}

/// Frozen, as after a deadlock: it runs, and answers nobody.
#[test]
fn one_that_hangs_is_started_anew_and_not_when_all_do() {
    let mut stack = Stack::start(Wanted::default());
    let ids = ["a.1", "b.1", "c.1"];
    let mut service = service(&stack, "x", &ids);
    service["health"]["path"] = json!("/healthz");
    service["health"]["restart_after_ms"] = json!(5_000);
    put(&stack, Some(service));
    let well = |stack: &mut Stack| {
        stack.wait("all are found well", |status| {
            ids.iter().all(|id| instance(status, id)["detail"]["gateways"] == "healthy")
        });
        up(stack, 3)
    };
    let first = well(&mut stack);
    let pids: Vec<i32> = first.values().map(|pid| *pid as i32).collect();
    let held = |status: &Value| {
        let holds = status["holds"].as_array().into_iter().flatten();
        let of = holds.filter(|it| it["rule"] == "hung" && it["service"] == "api");
        of.filter_map(|it| it["why"].as_str()).map(str::to_string).collect::<Vec<_>>()
    };
    signal("STOP", &pids);
    let status = stack.wait("holds", |status| held(status).len() == 3);
    let why = "a.1 is unhealthy and is not started anew: only 0 of 2 others are well, \
               so it may not be its own fault";
    assert_eq!(held(&status)[0], why);
    signal("CONT", &pids);
    assert_eq!(well(&mut stack), first, "all went on");
    stack.wait("no hold", |status| held(status).is_empty());

    signal("STOP", &pids[..1]);
    stack.wait("another process", |status| {
        let pid = &instance(status, "a.1")["pid"];
        pid.is_i64() && *pid != first["a.1"]
    });
    let second = well(&mut stack);
    assert_eq!((second["b.1"], second["c.1"]), (first["b.1"], first["c.1"]));
    let journal = stack.done(&["journal", "--service", "api", "--limit", "100"]);
    assert!(journal.contains("since all gateways have found it unhealthy for"), "{journal}");
}
