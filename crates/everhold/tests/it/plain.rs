//! Health paths, metrics and JSON logs of a running stack, as balancers, Prometheus and collectors
//! of logs see them.

use crate::stack::load::{block_on, config, connect};
use crate::stack::{NODES, Stack, Wanted, signal};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What follows from a change of roles follows within this, also on a busy machine.
const SOON: Duration = Duration::from_secs(30);

pub fn ask(port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    // As HAProxy checks.
    stream.write_all(format!("{method} {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_string()))
}

/// The code of a path; 0 if nobody answers.
fn code(stack: &Stack, node: &str, path: &str) -> u16 {
    ask(stack.health_port(node), "GET", path).map_or(0, |(code, _)| code)
}

fn wait(what: &str, wanted: impl Fn() -> bool) {
    let until = Instant::now() + SOON;
    while !wanted() {
        assert!(Instant::now() < until, "no {what} within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The leader and nobody else passes as one.
fn roles_are_told(stack: &Stack, leader: &str) {
    for node in NODES {
        let (yes, no) = if node == leader { (200, 503) } else { (503, 200) };
        wait(&format!("role of {node}"), || code(stack, node, "/primary") == yes);
        wait(&format!("place of {node}"), || code(stack, node, "/replica?lag=1MB") == no);
        for path in ["/", "/master", "/read-write", "/leader", "/main/primary", "/main"] {
            assert_eq!(code(stack, node, path), yes, "{node}{path}");
        }
        for path in ["/replica", "/standby", "/sync", "/synchronous", "/main/replica"] {
            assert_eq!(code(stack, node, path), no, "{node}{path}");
        }
        for path in ["/read-only", "/read-only-sync", "/health", "/liveness", "/readiness"] {
            assert_eq!(code(stack, node, path), 200, "{node}{path}");
        }
        for path in ["/standby-leader", "/async"] {
            assert_eq!(code(stack, node, path), 503, "{node}{path}");
        }
        for method in ["HEAD", "OPTIONS"] {
            let answer = ask(stack.health_port(node), method, "/primary");
            assert_eq!(answer, Some((yes, String::new())), "{method} {node}");
        }
    }
}

fn switch_over(stack: &mut Stack) -> (String, String) {
    let old = stack.leader();
    let output = stack.command(&["switchover", "main"]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stack.whole();
    (old, stack.leader())
}

#[test]
fn balancers_prometheus_and_collectors_are_told_the_truth() {
    let arguments = vec!["--log-format".to_string(), "json".to_string()];
    let mut stack = Stack::start(Wanted { arguments, ..Wanted::default() });
    stack.whole();
    let leader = stack.leader();
    roles_are_told(&stack, &leader);
    documents(&stack, &leader);
    a_standby_that_lags(&stack, &leader);
    let proxy = Proxy::start(&stack);
    proxy.leads_to(&stack, &leader);
    let (old, new) = switch_over(&mut stack);
    assert_eq!(old, leader);
    assert_ne!(old, new);
    roles_are_told(&stack, &new);
    proxy.leads_to(&stack, &new);
    metrics(&stack, &new);
    a_leader_without_a_right(&mut stack, &new);
    let leader = stack.leader();
    signal("KILL", &stack.node_pids(&leader));
    stack.wait("another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["leader"] != leader.as_str()
    });
    stack.whole();
    let new = stack.leader();
    roles_are_told(&stack, &new);
    proxy.leads_to(&stack, &new);
    drop(proxy);
    ports_that_are_taken(&mut stack);
    logs_are_json(&mut stack);
}

fn documents(stack: &Stack, leader: &str) {
    for node in NODES {
        let port = stack.health_port(node);
        let (_, body) = ask(port, "GET", "/patroni").expect("an answer");
        let told: Value = serde_json::from_str(&body).expect("JSON");
        let role = if node == leader { "primary" } else { "replica" };
        assert_eq!((&told["state"], &told["role"]), (&"running".into(), &role.into()), "{body}");
        assert_eq!(told["patroni"]["name"], node, "{body}");
        let place = if node == leader { "location" } else { "replayed_location" };
        assert!(told["xlog"][place].as_u64().is_some_and(|lsn| lsn > 1 << 24), "{body}");
        assert!(told["dcs_last_seen"].as_i64().is_some_and(|at| at > 1_700_000_000), "{body}");
        for (method, path, expected, said) in [
            ("GET", "/shop/primary", 404, "prefixes: /main/"),
            ("GET", "/primary?lag=ten", 400, "`ten` is no number of bytes"),
            ("POST", "/switchover", 405, "does not take POST"),
        ] {
            let (code, body) = ask(port, method, path).expect("an answer");
            assert!(code == expected && body.contains(said), "{path}: {code} {body}");
        }
    }
}

/// With its replay halted a standby receives all and shows less and less of it.
fn a_standby_that_lags(stack: &Stack, leader: &str) {
    let node = NODES.into_iter().find(|node| *node != leader).expect("a standby");
    let replays = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("startup")
    };
    let startup: Vec<i32> = stack.postgres_pids(node).into_iter().filter(replays).collect();
    assert_eq!(startup.len(), 1);
    signal("STOP", &startup);
    block_on(async {
        let config = config(stack.write_port(), &stack.password());
        let (client, _) = connect(&config).await.expect("a session");
        let rows = "create table filler as select repeat('x', 500) from generate_series(1, 20000)";
        client.batch_execute(rows).await.expect("written");
    });
    wait("lag", || code(stack, node, "/replica?lag=1MB") == 503);
    for (path, expected) in [
        ("/replica", 200),
        ("/replica?lag=1GB", 200),
        ("/read-only?lag=1024kB", 503),
        ("/readiness", 503),
        ("/replica?lag=1048576", 503),
        ("/replica?tag_ssd=true", 503),
    ] {
        assert_eq!(code(stack, node, path), expected, "{path}");
    }
    wait("receipt of all", || code(stack, node, "/readiness?mode=write") == 200);
    let (samples, _) = scrape(stack.health_port(node));
    assert!(one(&samples, "everhold_instance_lag_bytes", &[]) > 1e6);
    signal("CONT", &startup);
    wait("end of the lag", || code(stack, node, "/replica?lag=1MB") == 200);
}

/// Without store and standbys nothing gives it the right to lead, and its minder, frozen too, can't
/// stop its PostgreSQL: it runs on as a primary.
fn a_leader_without_a_right(stack: &mut Stack, leader: &str) {
    let mut frozen: Vec<i32> = stack.etcd_pid().into_iter().collect();
    for node in NODES.into_iter().filter(|node| *node != leader) {
        frozen.extend(stack.machine_pids(node));
    }
    let (own, minders) = (stack.node_pids(leader), stack.machine_pids(leader));
    frozen.extend(minders.into_iter().filter(|pid| !own.contains(pid)));
    let postmaster = stack.postmaster(leader);
    signal("STOP", &frozen);
    wait("end of the right", || code(stack, leader, "/primary") == 503);
    assert_eq!(code(stack, leader, "/read-only?lag=1GB"), 503);
    assert_eq!(code(stack, leader, "/health"), 200);
    assert_eq!(code(stack, leader, "/liveness"), 200);
    assert_eq!(stack.postmaster(leader), postmaster);
    signal("CONT", &frozen);
    stack.whole();
}

/// HAProxy as it is set up for Patroni.
struct Proxy {
    process: Child,
    port: u16,
}

impl Proxy {
    fn start(stack: &Stack) -> Proxy {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let mut text = format!(
            "defaults\n mode tcp\n timeout connect 2s\n timeout client 30s\n timeout server 30s\n\
             listen write\n bind 127.0.0.1:{port}\n option httpchk OPTIONS /primary\n \
             http-check expect status 200\n \
             default-server inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions\n"
        );
        for node in NODES {
            let (to, check) = (stack.postgres_port(node), stack.health_port(node));
            text += &format!(" server {node} 127.0.0.1:{to} check port {check}\n");
        }
        let file = stack.dir().join("haproxy.cfg");
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-q").arg("-f").arg(&file).stdin(Stdio::null());
        let process = command.spawn().expect("haproxy; `make test` installs it");
        Proxy { process, port }
    }

    fn leads_to(&self, stack: &Stack, node: &str) {
        let config = config(self.port, &stack.password());
        let wanted = i32::from(stack.postgres_port(node));
        let reached = || -> Option<(i32, bool)> {
            block_on(async {
                let (client, _) = connect(&config).await.ok()?;
                let sql = "select inet_server_port(), pg_is_in_recovery()";
                let row = client.query_one(sql, &[]).await.ok()?;
                Some((row.get(0), row.get(1)))
            })
        };
        wait(&format!("way to {node}"), || reached() == Some((wanted, false)));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

type Samples = Vec<(String, BTreeMap<String, String>, f64)>;

/// A page as Prometheus reads it: the samples, and the page.
fn scrape(port: u16) -> (Samples, String) {
    let (code, page) = ask(port, "GET", "/metrics").expect("an answer");
    assert_eq!(code, 200);
    let (mut samples, mut seen, mut current) = (Vec::new(), BTreeSet::new(), String::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split(' ').next().expect("a name").to_string();
            assert!(seen.insert(current.clone()), "{current} comes twice");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let kind = rest.strip_prefix(&format!("{current} "));
            assert!(matches!(kind, Some("gauge" | "counter")), "{line}");
            continue;
        }
        let (name, labels, value) = parse(line).unwrap_or_else(|| panic!("not a sample: {line}"));
        assert_eq!(name, current, "{line}");
        samples.push((name, labels, value));
    }
    let keys: BTreeSet<_> = samples.iter().map(|(name, labels, _)| (name, labels)).collect();
    assert_eq!(keys.len(), samples.len(), "a sample comes twice");
    (samples, page)
}

fn parse(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}')?),
        None => (series, ""),
    };
    let word = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let pairs = labels.split_terminator("\",").map(|pair| {
        let (key, value) = pair.split_once("=\"")?;
        word(key).then(|| (key.to_string(), value.trim_end_matches('"').to_string()))
    });
    word(name).then_some(())?;
    Some((name.to_string(), pairs.collect::<Option<_>>()?, value.parse().ok()?))
}

/// The one sample of that name with these labels.
fn one(samples: &Samples, name: &str, wanted: &[(&str, &str)]) -> f64 {
    let has = |labels: &BTreeMap<String, String>| {
        wanted.iter().all(|(key, value)| labels.get(*key).is_some_and(|it| it == value))
    };
    let found: Vec<f64> =
        samples.iter().filter(|(it, labels, _)| it == name && has(labels)).map(|s| s.2).collect();
    assert_eq!(found.len(), 1, "{name} {wanted:?}: {found:?}");
    found[0]
}

/// Name, type and labels of every row of the manual.
fn manual() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let labels = cells[3].split(", ").map(|label| label.trim_matches('`').to_string());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (cells[1].trim_matches('`').to_string(), (cells[2].to_string(), labels))
    });
    rows.collect()
}

fn metrics(stack: &Stack, leader: &str) {
    for node in NODES {
        let page = || ask(stack.health_port(node), "GET", "/metrics").unwrap_or_default().1;
        wait("record of the switchover", || page().contains("kind=\"switchover\""));
        wait("whole round of the scrub", || page().contains("everhold_scrub_timestamp_seconds"));
    }
    let manual = manual();
    let mut told = BTreeSet::new();
    let mut pages: Vec<(&str, u16)> =
        NODES.into_iter().map(|node| (node, stack.health_port(node))).collect();
    pages.push(("gateway", stack.gateway_port()));
    for (name, port) in pages {
        let (samples, page) = scrape(port);
        for (metric, labels, _) in &samples {
            let (kind, expected) = manual.get(metric).unwrap_or_else(|| panic!("{metric}"));
            assert!(page.contains(&format!("# TYPE {metric} {kind}\n")), "{metric}");
            let base = match metric.starts_with("process_") {
                true => vec![],
                false => vec!["cluster", if name == "gateway" { "gateway" } else { "node" }],
            };
            let base: BTreeSet<String> = base.into_iter().map(str::to_string).collect();
            let own: BTreeSet<String> = labels.keys().cloned().collect();
            assert_eq!(own, base.union(expected).cloned().collect(), "{metric}");
            told.insert(metric.clone());
        }
        promtool(&page);
        assert!(one(&samples, "process_resident_memory_bytes", &[]) > 1e6);
        assert!(one(&samples, "process_start_time_seconds", &[]) > 1.7e9);
        if name == "gateway" {
            let write = [("listener", "write")];
            assert!(one(&samples, "everhold_gateway_connections_total", &write) >= 1.0);
            assert!(one(&samples, "everhold_gateway_received_bytes_total", &write) > 0.0);
            let to = [write[0], ("backend", leader)];
            assert!(one(&samples, "everhold_gateway_listener_backend", &to) >= 1.0);
            continue;
        }
        let leads = if name == leader { 1.0 } else { 0.0 };
        let service = [("service", "main"), ("node", name)];
        assert_eq!(one(&samples, "everhold_instance_serving", &service), leads, "{name}");
        assert_eq!(one(&samples, "everhold_instance_up", &service), 1.0, "{name}");
        let role = [("role", "primary")];
        assert_eq!(one(&samples, "everhold_instance_role", &role), leads, "{name}");
        let state = [("state", if name == leader { "open" } else { "streaming" })];
        assert_eq!(one(&samples, "everhold_instance_state", &state), 1.0, "{name}");
        assert_eq!(one(&samples, "everhold_service_leader", &[("leader", leader)]), 1.0);
        assert_eq!(one(&samples, "everhold_service_tolerated_losses", &[]), 1.0);
        assert_eq!(one(&samples, "everhold_store_reachable", &[]), 1.0);
        assert_eq!(one(&samples, "everhold_minder_up", &[]), 1.0);
        assert_eq!(one(&samples, "everhold_checker_refusals_total", &[]), 0.0);
        let kind = [("kind", "switchover")];
        let epoch = one(&samples, "everhold_service_epoch", &[]);
        assert_eq!(one(&samples, "everhold_last_failover_epoch", &kind), epoch);
        assert!(one(&samples, "everhold_last_failover_outage_seconds", &[]) < 10.0);
        let certificate = [("certificate", name)];
        let ends = one(&samples, "everhold_certificate_expiry_timestamp_seconds", &certificate);
        let began = one(&samples, "process_start_time_seconds", &[]);
        assert!((80.0..91.0).contains(&((ends - began) / 86_400.0)), "{ends}");
    }
    // A healthy stack has a sample of everything but, most of the time, of what it waits for, of backups
    // that nobody asked for, and of HTTP services that it has none of.
    let known: BTreeSet<String> = manual.into_keys().collect();
    let of_more = [
        "everhold_log_",
        "everhold_backup_",
        "http_",
        "everhold_gateway_instance_",
        "everhold_gateway_breaker_",
        "everhold_gateway_cache_",
        "everhold_gateway_hedged_",
        "everhold_gateway_degraded",
        "everhold_gateway_places_",
        "everhold_gateway_request_wait_",
    ];
    let of_none =
        |name: &str| name == "everhold_holds" || of_more.iter().any(|it| name.starts_with(it));
    let missing: Vec<&String> = known.difference(&told).filter(|name| !of_none(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Prometheus' own judgement, where it is installed.
fn promtool(page: &str) {
    let mut command = Command::new("promtool");
    let command = command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = match command.stderr(Stdio::piped()).spawn() {
        Ok(process) => process,
        Err(error) => return eprintln!("not checked by promtool: {error}"),
    };
    process.stdin.take().expect("piped").write_all(page.as_bytes()).expect("taken");
    let output = process.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    // It judges names too, and doesn't know that these are written so on purpose.
    assert!(output.status.success(), "{said}{page}");
}

#[test]
fn the_rules_are_what_prometheus_takes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus");
    for (what, file) in [("rules", "alerts.yml"), ("config", "prometheus.yml")] {
        match Command::new("promtool").args(["check", what]).arg(dir.join(file)).output() {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            Err(error) => eprintln!("{file} is not checked by promtool: {error}"),
        }
    }
}

/// Somebody else has the ports of a node that leads, and of the gateway: both do their work.
fn ports_that_are_taken(stack: &mut Stack) {
    let leader = stack.leader();
    stack.kill_up();
    let pids: Vec<i32> =
        [stack.agent_pid(&leader), stack.agent_pid("gateway")].into_iter().flatten().collect();
    signal("KILL", &pids);
    let bind = |port: u16| {
        wait("free port", || TcpListener::bind(("127.0.0.1", port)).is_ok());
        TcpListener::bind(("127.0.0.1", port)).expect("free")
    };
    let taken = [bind(stack.health_port(&leader)), bind(stack.gateway_port())];
    stack.up();
    stack.hold("health-port", &["E212", &leader]);
    stack.hold("metrics-port", &["E212", "gateway"]);
    signal("KILL", &stack.postmaster(&leader).into_iter().collect::<Vec<_>>());
    stack.wait("another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["leader"] != leader.as_str()
    });
    drop(taken);
    wait("port of the agent", || code(stack, &leader, "/health") == 200);
    wait("port of the gateway", || ask(stack.gateway_port(), "GET", "/metrics").is_some());
    stack.wait("end of the holds", |status| {
        let holds = status["holds"].as_array();
        holds.is_some_and(|all| all.iter().all(|hold| !hold["rule"].to_string().contains("port")))
    });
    stack.whole();
}

/// Every line of every process, but what `up` says on stdout.
fn logs_are_json(stack: &mut Stack) {
    let mut levels = BTreeSet::new();
    for name in ["up.log", "data/a/log", "data/b/log", "data/c/log", "data/gateway/log"] {
        let text = std::fs::read_to_string(stack.dir().join(name)).expect("a log");
        for line in text.lines().filter(|line| !line.starts_with("ready in ")) {
            let read: Result<Value, _> = serde_json::from_str(line);
            let line = read.unwrap_or_else(|error| panic!("{name}: {error}: {line}"));
            let at = line["@timestamp"].as_str().and_then(|at| at.get(10..11));
            assert_eq!((at, &line["service.name"]), (Some("T"), &"everhold".into()), "{line}");
            assert!(line["message"].as_str().is_some_and(|text| !text.is_empty()), "{line}");
            levels.insert(line["log.level"].as_str().expect("a level").to_string());
            if let Some(node) = name.strip_prefix("data/").and_then(|it| it.split('/').next()) {
                // The minder has no node file, and says little.
                let minder = line["log.logger"].as_str().is_some_and(|it| it.contains("log"));
                assert!(line["service.node.name"] == node || minder, "{line}");
            }
        }
    }
    assert!(levels.contains("info") && levels.contains("warn"), "{levels:?}");
}
