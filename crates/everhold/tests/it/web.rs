//! HTTP through the gateway, as clients see it: an instance that is killed, a rollout, a drain and
//! changes of the spec, all of it under load.

use crate::stack::{Stack, Wanted, signal};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The stack's spec with the sample behind a listener, and `more` at its end.
pub fn spec(stack: &Stack, more: &str) -> String {
    use std::os::unix::fs::MetadataExt;
    let root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    let user = if root { "user = \"root\"\n" } else { "" };
    let program = env!("CARGO_BIN_EXE_everhold");
    format!(
        "{}[listener.web]\nbind = \"127.0.0.1:{}\"\nprotocol = \"http\"\n\
         [route.web]\nlistener = \"web\"\nservice = \"web\"\n\
         [service.web]\nkind = \"http\"\n{user}slow_start = \"0s\"\n\
         command = [\"{program}\", \"sample\", \"--port\", \"{{port}}\", \"--name\", \"{{instance}}\"]\n\
         health = {{ path = \"/healthz\" }}\n{more}",
        stack.spec(false),
        port(stack)
    )
}

pub fn port(stack: &Stack) -> u16 {
    stack.write_port() + 8
}

/// One connection, kept for the next request.
pub struct Client {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    pub fn new(port: u16) -> Client {
        Client { port, stream: None }
    }

    /// Who answered, if it was answered with 200.
    pub fn ask(&mut self, method: &str) -> io::Result<String> {
        let answer = self.try_ask(method);
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    fn try_ask(&mut self, method: &str) -> io::Result<String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(("127.0.0.1", self.port))?;
                stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                none.insert(BufReader::new(stream))
            }
        };
        let (method, path) = method.split_once(' ').unwrap_or((method, "/"));
        let body = if method == "POST" { "content-length: 2\r\n\r\nhi" } else { "\r\n" };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{body}");
        stream.get_mut().write_all(request.as_bytes())?;
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            if stream.read_line(&mut head)? == 0 {
                return Err(io::Error::other(format!("it was closed after {head:?}")));
            }
            let line = head[from..].to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let closes = head.to_ascii_lowercase().contains("connection: close");
        let body = String::from_utf8_lossy(&body).trim().to_string();
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(io::Error::other(format!("{head}{body}")));
        }
        if closes {
            self.stream = None;
        }
        Ok(body.rsplit(' ').next().unwrap_or_default().to_string())
    }
}

/// Clients that ask again and again, until they are told to end.
pub struct Load {
    end: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    pub fn start(port: u16, methods: &'static [&'static str]) -> Load {
        Load::every(Duration::from_millis(1), port, methods)
    }

    /// With such a pause after each request. A method may have a path behind it.
    pub fn every(pause: Duration, port: u16, methods: &'static [&'static str]) -> Load {
        let end = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let end = end.clone();
            std::thread::spawn(move || {
                let (mut client, mut asked, mut failed) = (Client::new(port), 0, Vec::new());
                while !end.load(Ordering::Relaxed) {
                    let method = methods[asked % methods.len()];
                    asked += 1;
                    if let Err(error) = client.ask(method) {
                        failed.push(format!("{method}: {error}"));
                    }
                    std::thread::sleep(pause);
                }
                (asked, failed)
            })
        };
        let clients = (0..6).map(client).collect();
        Load { end, clients }
    }

    /// Ends it; no request failed.
    pub fn well(self, during: &str) {
        self.end.store(true, Ordering::Relaxed);
        let told = self.clients.into_iter().map(|client| client.join().expect("a client"));
        let (asked, failed): (Vec<usize>, Vec<Vec<String>>) = told.unzip();
        let (asked, failed) = (asked.iter().sum::<usize>(), failed.concat());
        println!("{during}: {asked} requests, {} failed", failed.len());
        assert!(asked > 20, "{during}: only {asked} requests");
        assert!(failed.is_empty(), "{during}: {} of {asked}: {failed:#?}", failed.len());
    }
}

/// Waits until all of these answer.
pub fn answered(port: u16, wanted: &[&str]) {
    let (until, mut client) = (Instant::now() + PATIENCE, Client::new(port));
    let mut missing: BTreeSet<&str> = wanted.iter().copied().collect();
    while !missing.is_empty() {
        assert!(Instant::now() < until, "nothing of {missing:?}");
        if let Ok(name) = client.ask("GET") {
            missing.remove(name.as_str());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn started() -> Stack {
    started_with("")
}

fn started_with(more: &str) -> Stack {
    let mut stack = Stack::new(Wanted::default());
    fs::write(stack.spec_file(), spec(&stack, more)).expect("the spec is written");
    stack.up();
    whole(&mut stack);
    answered(port(&stack), &["a.1", "b.1", "c.1"]);
    stack
}

pub fn whole(stack: &mut Stack) -> Value {
    stack.wait("all instances", |status| status["services"]["web"]["health"] == "up")
}

#[test]
fn requests_outlive_a_killed_instance_a_rollout_and_a_drain() {
    let mut stack = started();
    let port = port(&stack);

    let load = Load::start(port, &["GET"]);
    let pid = whole(&mut stack)["services"]["web"]["instances"]["a.1"]["pid"].as_i64();
    signal("KILL", &[pid.expect("a pid") as i32]);
    stack.wait("another process", |status| {
        let a = &status["services"]["web"]["instances"]["a.1"];
        a["state"] == "running" && a["pid"].as_i64() != pid
    });
    answered(port, &["a.1"]);
    load.well("kill -9 of an instance");
    stack.wait("the gateway's word", |status| {
        status["gateways"]["gateway"]["services"]["web"]["a.1"]["is"] == "healthy"
    });

    let load = Load::start(port, &["GET"]);
    assert_eq!(stack.done(&["rollout", "web"]), "done: 3 started anew\n");
    load.well("a rollout");

    let load = Load::start(port, &["GET"]);
    stack.done(&["node", "drain", "b"]);
    stack.wait("nothing on b", |status| {
        let web = &status["services"]["web"];
        let all = web["instances"].as_object();
        web["health"] == "up"
            && all.is_some_and(|all| all.len() == 3 && all.values().all(|it| it["node"] != "b"))
    });
    load.well("a drain");
}

/// The program ends at once when it is asked to, and nothing that was sent there may be sent again.
#[test]
fn long_requests_outlive_whatever_ends_an_instance() {
    let mut stack = started_with("stop = { signal = \"HUP\" }\n");
    let load = || Load::start(port(&stack), &["POST /wait/5000"]);

    let long = load();
    assert_eq!(stack.done(&["rollout", "web"]), "done: 3 started anew\n");
    long.well("a rollout");

    let long = load();
    stack.done(&["restart", "web", "b.1"]);
    stack.done(&["scale", "web", "2"]);
    let placed = |count: usize| {
        move |status: &Value| {
            let all = status["services"]["web"]["instances"].as_object();
            all.is_some_and(|all| all.len() == count && all.values().all(|it| it["health"] == "up"))
        }
    };
    stack.wait("two of them", placed(2));
    stack.done(&["scale", "web", "3"]);
    stack.wait("three of them", placed(3));
    stack.done(&["node", "drain", "b"]);
    stack.wait("nothing on b", |status| {
        let all = status["services"]["web"]["instances"].as_object();
        placed(3)(status) && all.is_some_and(|all| all.values().all(|it| it["node"] != "b"))
    });
    long.well("a restart, fewer instances, and a drain");
}

#[test]
fn requests_outlive_changes_of_the_spec() {
    let mut stack = started();
    let load = Load::start(port(&stack), &["GET", "POST"]);
    let file = stack.dir().join("changed.toml");
    let revision = |status: &Value| status["gateways"]["gateway"]["table_revision"].as_u64();
    let first = revision(&whole(&mut stack)).expect("a table");
    let route =
        "[route.more]\nlistener = \"web\"\nservice = \"web\"\nmatch = { path = \"/more\" }\n";
    for balance in ["round_robin", "least_load", "weighted", "peak_ewma"].repeat(5) {
        let more = if balance == "weighted" { route } else { "" };
        let more = format!("balance = \"{balance}\"\n{more}");
        fs::write(&file, spec(&stack, &more)).expect("the spec is written");
        stack.done(&["apply", file.to_str().expect("UTF-8")]);
    }
    load.well("20 changes of the spec");
    // They were taken up: several at once may be one.
    stack.wait("another table", |status| revision(status).is_some_and(|it| it > first + 1));
    let text = spec(&stack, "").replacen(
        "[route.web]\n",
        "[route.web]\nmatch = { path = \"/only\" }\n",
        1,
    );
    fs::write(&file, text).expect("the spec is written");
    stack.done(&["apply", file.to_str().expect("UTF-8")]);
    let (until, mut client) = (Instant::now() + PATIENCE, Client::new(port(&stack)));
    while client.ask("GET").is_ok() {
        assert!(Instant::now() < until, "the old route is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    client.ask("GET /only").expect("the new route");
}

/// What was recorded, under the spec in force and under one that lets nearly nobody in.
fn what_if(stack: &Stack, in_force: &Path, log: &Path) {
    let other = stack.dir().join("tighter.toml");
    let text = fs::read_to_string(in_force).expect("the spec");
    let limit = "[route.web]\nrate_limit = { per_minute = 1, burst = 1 }\n";
    fs::write(&other, text.replacen("[route.web]\n", limit, 1)).expect("written");
    // Three times the same request, and what is none.
    let text = fs::read_to_string(log).expect("the log");
    let line = text.lines().next().expect("a line");
    let copy = stack.dir().join("copy.log");
    fs::write(&copy, format!("{line}\n{line}\nno line\n{line}\n")).expect("written");
    let [copy, other] = [&copy, &other].map(|it| it.to_str().expect("UTF-8"));
    let said = stack.done(&["what-if", "--json", "--log", copy, "--spec", other]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let admitted = |under: &str| said["routes"]["web"][under]["admitted"].as_u64();
    assert_eq!(["recorded", "in_force", "other_spec"].map(admitted), [Some(3), Some(3), Some(1)]);
    assert_eq!(said["routes"]["web"]["other_spec"]["refused"]["rate_limit"], 2, "{said}");
    assert_eq!(said["bad_lines"], 1, "{said}");
    let table = stack.done(&["what-if", "--route", "web", "--log", copy, "--spec", other]);
    let row = table.lines().find(|it| it.contains("difference")).expect("a row");
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>(),
        ["web", "difference", "0", "-2", "0", "0", "+2"]
    );
}

/// Turned on and off by the spec alone, while the gateway goes on.
#[test]
fn the_access_log_is_where_the_manual_says() {
    let stack = started();
    let (file, log) = (stack.dir().join("changed.toml"), stack.data().join("gateway/access.log"));
    let apply = |on: bool| {
        let more = format!("[gateway]\naccess_log = {on}\n");
        fs::write(&file, spec(&stack, &more)).expect("the spec is written");
        stack.done(&["apply", file.to_str().expect("UTF-8")]);
    };
    let pid = stack.agent_pid("gateway").expect("a gateway");
    assert!(!log.exists(), "nobody asked for it");
    apply(true);
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        // The last one may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let (until, mut client) = (Instant::now() + PATIENCE, Client::new(port(&stack)));
    while lines().is_empty() {
        assert!(Instant::now() < until, "{}", stack.said());
        client.ask("GET").expect("answered");
    }
    let line = lines().remove(0);
    assert_eq!((&line["http.route"], &line["outcome"]), (&"web".into(), &"".into()), "{line}");
    assert_eq!(fs::metadata(&log).expect("a file").permissions().mode() & 0o777, 0o600);
    what_if(&stack, &file, &log);
    apply(false);
    // The last line is written within a second of its request, and then nothing is.
    let (mut count, mut since) = (lines().len(), Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        client.ask("GET").expect("answered");
        let now = lines().len();
        if now != count {
            (count, since) = (now, Instant::now());
        }
        assert!(Instant::now() < until, "it is still written");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(stack.agent_pid("gateway"), Some(pid));
}

#[test]
fn an_instance_is_taken_out_of_use_and_back() {
    let mut stack = started();
    let port = port(&stack);
    let refused = |stack: &Stack, arguments: &[&str], words: &str| {
        let output = stack.command(arguments).output().expect("everhold");
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
    };
    refused(&stack, &["drain", "web", "z.1"], "web has no instance z.1");

    let load = Load::start(port, &["GET", "POST"]);
    // Said again it only waits, and by then there is nothing to wait for.
    stack.done(&["drain", "web", "a.1", "--no-wait"]);
    stack.wait("nothing left on a.1", |status| {
        status["services"]["web"]["instances"]["a.1"]["drain"]["state"] == "out"
    });
    let said = stack.done(&["drain", "web", "a.1"]);
    assert_eq!(said, "a.1 gets nothing new, and none of its requests is left\n");
    let unasked = |times: usize| {
        let mut client = Client::new(port);
        (0..times).for_each(|_| assert_ne!(client.ask("GET").expect("answered"), "a.1"));
    };
    unasked(300);
    let status = whole(&mut stack);
    let a = &status["services"]["web"]["instances"]["a.1"];
    assert_eq!((&a["drain"]["state"], &a["state"]), (&"out".into(), &"running".into()), "{a}");
    load.well("an instance out of use");
    stack.wait("how busy it is", |status| {
        status["services"]["web"]["instances"]["a.1"]["detail"]["load"].is_u64()
    });

    // Whoever dies meanwhile, it stays out of use; a spec that is given anew says nothing of it.
    for name in ["gateway", "a"] {
        let pid = stack.agent_pid(name).expect("a process");
        signal("KILL", &[pid]);
        let back = || stack.agent_pid(name).is_some_and(|now| now != pid);
        let until = Instant::now() + PATIENCE;
        while !back() {
            assert!(Instant::now() < until, "{name} is not back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    stack.done(&["apply", stack.spec_file().to_str().expect("UTF-8")]);
    whole(&mut stack);
    answered(port, &["b.1", "c.1"]);
    unasked(300);

    // With a.1 out and the two others going, one of them must stay.
    stack.done(&["drain", "web", "b.1"]);
    refused(&stack, &["drain", "web", "c.1"], "without c.1 nobody would serve web now");
    let load = Load::start(port, &["GET", "POST"]);
    stack.done(&["drain", "web", "a.1", "--undo"]);
    answered(port, &["a.1", "c.1"]);
    stack.done(&["drain", "web", "b.1", "--undo"]);
    answered(port, &["a.1", "b.1", "c.1"]);
    load.well("instances back in use");
}

/// What is on its way to it goes on, and is said.
#[test]
fn an_instance_is_left_when_its_last_request_has_ended() {
    let mut stack = Stack::new(Wanted::default());
    let (said, told) = std::sync::mpsc::channel::<TcpStream>();
    let serve = |hold: Option<std::sync::mpsc::Sender<TcpStream>>| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hold = hold.clone();
                std::thread::spawn(move || answer(stream, hold));
            }
        });
        address
    };
    let (slow, quick) = (serve(Some(said)), serve(None));
    let service = format!(
        "addresses = [\"{slow}\", \"{quick}\"]\nslow_start = \"0s\"\nbalance = \"round_robin\"\n"
    );
    let text = spec(&stack, "");
    let (before, _) = text.split_once("[service.web]").expect("the service");
    let text = format!("{before}[service.web]\nkind = \"http\"\n{service}");
    fs::write(stack.spec_file(), text).expect("the spec is written");
    stack.up();
    whole(&mut stack);
    let port = port(&stack);
    // One that is held there, and many beside it.
    let mut waiting = Vec::new();
    let held = loop {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        stream
            .write_all(b"POST /hold HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            .expect("sent");
        waiting.push(stream);
        if let Ok(held) = told.recv_timeout(Duration::from_secs(1)) {
            break (waiting.pop(), held);
        }
    };
    stack.done(&["drain", "web", &slow, "--no-wait"]);
    let of = |status: &Value| status["services"]["web"]["instances"][&slow].clone();
    let status = stack.wait("the request that is left", |status| {
        let it = of(status);
        it["in_route"] == false && it["drain"]["requests"] == 1
    });
    assert_eq!(of(&status)["drain"]["state"], "leaving");
    let (client, mut instance) = held;
    instance.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").expect("sent");
    let mut client = client.expect("the client");
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut head = [0; 12];
    client.read_exact(&mut head).expect("answered");
    assert_eq!(&head, b"HTTP/1.1 200");
    stack.wait("nothing left", |status| of(status)["drain"]["state"] == "out");
}

/// One service calls another by name, through the gateway of its machine: when that one is gone it is
/// told so at once, nobody else is slower for it, and it goes on by itself.
#[test]
fn services_reach_each_other_and_one_that_is_gone_takes_nobody_along() {
    let serve = |listener: TcpListener, gone: &Arc<AtomicBool>| {
        let gone = gone.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if gone.load(Ordering::Relaxed) {
                    return;
                }
                let gone = gone.clone();
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        if gone.load(Ordering::Relaxed)
                            || (line == "\r\n" && stream.get_mut().write_all(answer).is_err())
                        {
                            return;
                        }
                        line.clear();
                    }
                });
            }
        })
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let gone = Arc::new(AtomicBool::new(false));
    let serves = serve(listener, &gone);
    let mut stack = Stack::new(Wanted::default());
    let inside = port(&stack) + 1;
    let more = format!(
        "[listener.inside]\nbind = \"127.0.0.1:{inside}\"\nprotocol = \"http\"\n\
         [route.billing]\nlistener = \"inside\"\nservice = \"billing\"\n\
         [service.billing]\nkind = \"http\"\naddresses = [\"{address}\"]\n\
         breaker = {{ failures = 3, open = \"500ms\", open_max = \"1s\" }}\n\
         [service.shop]\nkind = \"http\"\ninstances = 1\nenv = {{ BILLING = \"{{url:inside}}\" }}\n\
         command = [\"sh\", \"-c\", \"while sleep 0.1; do curl -si $BILLING/x | head -1; done\"]\n"
    );
    fs::write(stack.spec_file(), spec(&stack, &more)).expect("the spec is written");
    stack.up();
    whole(&mut stack);
    let last = |stack: &Stack| {
        let lines = stack.done(&["logs", "shop", "-n", "1"]);
        lines.split_once("HTTP/1.1 ").map(|(_, it)| it[..3].to_string()).unwrap_or_default()
    };
    let sees = |stack: &Stack, status: &str| {
        let until = Instant::now() + PATIENCE;
        while last(stack) != status {
            assert!(Instant::now() < until, "{}", stack.done(&["logs", "shop", "-n", "20"]));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    sees(&stack, "200");

    let load = Load::start(port(&stack), &["GET"]);
    gone.store(true, Ordering::Relaxed);
    let _ = TcpStream::connect(address);
    serves.join().expect("it ends");
    sees(&stack, "503");
    load.well("a service that is gone");
    gone.store(false, Ordering::Relaxed);
    serve(TcpListener::bind(address).expect("the same port"), &gone);
    sees(&stack, "200");
}

/// Answers what is asked; `/hold` is handed on.
fn answer(stream: TcpStream, hold: Option<std::sync::mpsc::Sender<TcpStream>>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while stream.read_line(&mut head).is_ok_and(|read| read > 0) {
        if !head.ends_with("\r\n\r\n") {
            continue;
        }
        match &hold {
            Some(hold) if head.starts_with("POST /hold") => {
                let copy = stream.get_ref().try_clone().expect("a copy");
                return drop(hold.send(copy));
            }
            Some(_) | None => {}
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        if stream.get_mut().write_all(answer).is_err() {
            return;
        }
        head.clear();
    }
}
