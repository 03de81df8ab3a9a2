//! A gateway that is renewed, and one whose spec changes, as clients see it: no request fails, no
//! WebSocket and no session ends.

use crate::stack::{Stack, Wanted, signal};
use crate::web::{Client, Load, answered, port, spec, whole};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// An instance that does as told with each connection; its port.
fn instance(serve: fn(TcpStream) -> std::io::Result<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// It is not well, takes its time to say so to checks, and should be asked nothing else.
fn sick(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        if head(&mut reader)?.starts_with("GET / ") {
            std::thread::sleep(Duration::from_millis(300));
        }
        stream.write_all(b"HTTP/1.1 500 Sick\r\nContent-Length: 0\r\n\r\n")?;
    }
}

/// It is well, takes its time to say so, and sends back each frame of a WebSocket.
fn well(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let head = head(&mut reader)?;
        if head.starts_with("GET / ") {
            std::thread::sleep(Duration::from_millis(300));
        }
        if !head.to_ascii_lowercase().contains("upgrade: websocket") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            continue;
        }
        stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )?;
        loop {
            let mut frame = [0; 10];
            reader.read_exact(&mut frame)?;
            let (mask, text) = frame[2..].split_at(4);
            let plain = text.iter().zip(mask).map(|(byte, mask)| byte ^ mask);
            stream.write_all(&[vec![0x81, 4], plain.collect()].concat())?;
        }
    }
}

fn head(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// Clients of a WebSocket each, which say something and hear it again until they are told to end.
struct Sockets {
    end: Arc<AtomicBool>,
    clients: Vec<JoinHandle<std::io::Result<u32>>>,
}

impl Sockets {
    fn open(port: u16) -> Sockets {
        let end = Arc::new(AtomicBool::new(false));
        let one = |_| {
            let end = end.clone();
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            let mut reader = BufReader::new(stream.try_clone().expect("another handle"));
            let ask = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Version: 13\r\n\r\n";
            stream.write_all(ask.as_bytes()).expect("asked");
            let answer = head(&mut reader).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
            std::thread::spawn(move || {
                let mut said = 0_u32;
                while !end.load(Ordering::Relaxed) {
                    let (text, mask) = (said.to_be_bytes(), *b"mask");
                    let masked = text.iter().zip(mask).map(|(byte, mask)| byte ^ mask);
                    let frame = [vec![0x81, 0x84], mask.to_vec(), masked.collect()].concat();
                    stream.write_all(&frame)?;
                    let mut back = [0; 6];
                    reader.read_exact(&mut back)?;
                    assert_eq!(back[2..], text, "what was said comes back");
                    said += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(said)
            })
        };
        let clients = (0..4).map(one).collect();
        Sockets { end, clients }
    }

    /// Ends them; none was dropped.
    fn well(self, during: &str) {
        self.end.store(true, Ordering::Relaxed);
        let said = self.clients.into_iter().map(|client| {
            let said = client.join().expect("a client");
            said.unwrap_or_else(|error| panic!("{during}: a WebSocket was dropped: {error}"))
        });
        let said: Vec<u32> = said.collect();
        println!("{during}: WebSockets that went on: {}, frames {said:?}", said.len());
        assert!(said.iter().all(|said| *said > 10), "{said:?}");
    }
}

/// A session of psql.
struct Psql {
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Psql {
    fn open(stack: &Stack) -> Psql {
        let mut command = stack.command(&["psql", "main", "--no-psqlrc", "--tuples-only"]);
        command.args(["--no-align", "--quiet"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("psql");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (told, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| told.send(line))
        });
        Psql { process, input, lines }
    }

    /// What the server says; empty if the session has ended.
    fn ask(&mut self, sql: &str) -> String {
        match writeln!(self.input, "{sql};").map(|()| self.lines.recv_timeout(PATIENCE)) {
            Ok(Ok(line)) => line,
            Ok(Err(RecvTimeoutError::Timeout)) => panic!("no answer, and no end: {sql}"),
            Ok(Err(RecvTimeoutError::Disconnected)) | Err(_) => String::new(),
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The spec with a chat at `/chat`, of two instances at these ports, and `more` at its end.
fn with_chat(stack: &Stack, [well, sick]: [u16; 2], more: &str) -> String {
    let chat = format!(
        "[service.chat]\nkind = \"http\"\nhealth = {{ path = \"/\" }}\nbalance = \"round_robin\"\n\
         addresses = [\"127.0.0.1:{well}\", \"127.0.0.1:{sick}\"]\n\
         [route.chat]\nlistener = \"web\"\nservice = \"chat\"\nmatch = {{ path = \"/chat\" }}\n"
    );
    spec(stack, &format!("{more}{chat}"))
}

/// With its own program, three instances behind its listener, and the ports of the chat.
fn started() -> (Stack, [u16; 2]) {
    let mut stack = Stack::new(Wanted { installed: true, ..Wanted::default() });
    let chat = [instance(well), instance(sick)];
    fs::write(stack.spec_file(), with_chat(&stack, chat, "")).expect("the spec is written");
    stack.up();
    whole(&mut stack);
    answered(port(&stack), &["a.1", "b.1", "c.1"]);
    let sick = format!("127.0.0.1:{}", chat[1]);
    stack.wait("word of who is sick", |status| {
        gateway(status)["services"]["chat"][&sick]["is"] == "unhealthy"
    });
    (stack, chat)
}

fn gateway(status: &Value) -> &Value {
    &status["gateways"]["gateway"]
}

fn gateway_pid(stack: &mut Stack) -> i64 {
    let status = stack.wait("a gateway", |status| gateway(status)["pid"].is_i64());
    gateway(&status)["pid"].as_i64().expect("a pid")
}

/// Everhold becomes the program that is installed; the new gateway's pid.
fn renew(stack: &mut Stack) -> i64 {
    let (before, times) = (gateway_pid(stack), stack.said().matches("ready in ").count());
    let up = stack.up_pid().expect("it runs");
    signal("HUP", &[up]);
    let until = Instant::now() + PATIENCE;
    while stack.said().matches("ready in ").count() == times {
        assert!(Instant::now() < until, "it is not there again: {}", stack.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = stack.wait("a new gateway", |status| {
        gateway(status)["pid"].as_i64().is_some_and(|pid| pid != before)
    });
    gateway(&status)["pid"].as_i64().expect("a pid")
}

#[test]
fn no_client_notices_ten_upgrades() {
    let (mut stack, _) = started();
    let port = port(&stack);
    let load = Load::start(port, &["GET", "POST"]);
    let seldom = Load::every(Duration::from_millis(731), port, &["POST", "GET"]);
    let chat = Load::start(port, &["GET /chat"]);
    let sockets = Sockets::open(port);
    let mut psql = Psql::open(&stack);
    let backend = psql.ask("select pg_backend_pid()");
    assert!(!backend.is_empty());
    let mut pids = vec![gateway_pid(&mut stack)];
    for index in 1..=10 {
        stack.install(index);
        let pid = renew(&mut stack);
        let length = |path: &std::path::Path| fs::metadata(path).expect("a file").len();
        let runs = std::path::PathBuf::from(format!("/proc/{pid}/exe"));
        assert_eq!(length(&runs), length(&stack.program()), "it is the program installed");
        assert!(!pids.contains(&pid), "each time another process");
        pids.push(pid);
        assert_eq!(psql.ask("select pg_backend_pid()"), backend, "the session is the same");
    }
    load.well("10 upgrades");
    seldom.well("10 upgrades, connections that are mostly idle");
    chat.well("10 upgrades, nobody begins with who is sick");

    // The first still has the WebSockets and the session, and says so.
    let first = pids[0];
    let status = stack.wait("the first that drains", |status| {
        let draining = gateway(status)["draining"].as_array().cloned().unwrap_or_default();
        draining.iter().any(|it| it["pid"] == json!(first) && it["connections"] == json!(5))
    });
    assert_eq!(gateway(&status)["pid"], json!(pids[10]));
    let told = stack.done(&["status"]);
    assert!(told.contains(&format!("process {first} drains")), "{told}");
    sockets.well("10 upgrades");

    // Who leads is heard by it as by any other: a frozen leader can't end its sessions itself.
    assert_eq!(psql.ask("select pg_backend_pid()"), backend);
    let (leader, epoch) = (stack.leader(), stack.epoch());
    let frozen = stack.machine_pids(&leader);
    signal("STOP", &frozen);
    stack.wait("another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["epoch"].as_u64().is_some_and(|now| now > epoch)
    });
    assert_eq!(psql.ask("select 1"), "", "nobody stays with who led before");
    signal("CONT", &frozen);
    drop(psql);
    stack.wait("nobody that drains", |status| gateway(status)["draining"] == json!([]));
    assert!(!fs::exists(format!("/proc/{first}/exe")).expect("looked"), "the first has ended");
    stack.interrupt();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "all of it has stopped");
}

#[test]
fn no_client_notices_a_hundred_changes_of_the_spec() {
    let (stack, chat) = started();
    let port = port(&stack);
    let load = Load::start(port, &["GET", "POST"]);
    let seldom = Load::every(Duration::from_millis(373), port, &["POST", "GET"]);
    let sockets = Sockets::open(port);
    let file = stack.dir().join("changed.toml");
    for index in 0..100 {
        let balance = ["round_robin", "least_requests", "weighted", "peak_ewma"][index % 4];
        let mut text = with_chat(&stack, chat, &format!("balance = \"{balance}\"\n"));
        text.push_str(&format!(
            "[route.more]\nlistener = \"web\"\nservice = \"web\"\nmatch = {{ path = \"/{index}\" }}\n"
        ));
        fs::write(&file, text).expect("the spec is written");
        stack.done(&["apply", file.to_str().expect("UTF-8")]);
    }
    load.well("100 changes of the spec");
    seldom.well("100 changes of the spec, connections that are mostly idle");
    sockets.well("100 changes of the spec");
}

/// Says a word to the gateway that serves, as the next one would.
fn say(stream: &mut UnixStream, word: &str) {
    let length = u32::try_from(word.len()).expect("short").to_be_bytes();
    stream.write_all(&[&length, word.as_bytes()].concat()).expect("said");
}

/// Reads that there is a word, and not what came with it.
fn hear(stream: &mut UnixStream) {
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("a word");
    let mut word = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut word).expect("the word");
}

/// A new process that comes to nothing changes nothing; an old one that does not answer is replaced.
#[test]
fn a_gateway_outlives_its_successor_and_is_not_waited_for() {
    let (mut stack, _) = started();
    let (port, pid) = (port(&stack), gateway_pid(&mut stack));
    let load = Load::start(port, &["GET", "POST"]);
    let mut psql = Psql::open(&stack);
    let backend = psql.ask("select pg_backend_pid()");
    let path = stack.data().join("gateway/handover");
    for late in [false, true] {
        let mut stream = UnixStream::connect(&path).expect("connected");
        say(&mut stream, "\"take\"");
        hear(&mut stream);
        if late {
            // The byte that carries the sockets.
            stream.read_exact(&mut [0]).expect("sockets");
            say(&mut stream, "\"ready\"");
            hear(&mut stream);
        }
        drop(stream);
        answered(port, &["a.1", "b.1", "c.1"]);
        assert_eq!(psql.ask("select pg_backend_pid()"), backend);
    }
    assert_eq!(gateway_pid(&mut stack), pid);
    // Whoever comes while another one is being waited for has patience.
    let mut stream = UnixStream::connect(&path).expect("connected");
    say(&mut stream, "\"take\"");
    hear(&mut stream);
    let goes = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(7));
        drop(stream);
    });
    let pid = renew(&mut stack);
    assert!(goes.is_finished(), "nobody serves in place of one that serves");
    assert_eq!(psql.ask("select pg_backend_pid()"), backend);
    load.well("successors that came to nothing, and one that had to wait");

    signal("STOP", &[i32::try_from(pid).expect("a pid")]);
    let from = Instant::now();
    let next = renew(&mut stack);
    answered(port, &["a.1", "b.1", "c.1"]);
    println!("a frozen gateway was replaced within {:?}", from.elapsed());
    assert!(!fs::exists(format!("/proc/{pid}/exe")).expect("looked"), "the frozen one is gone");
    drop(psql);

    signal("KILL", &[i32::try_from(next).expect("a pid")]);
    stack.wait("another one", |status| {
        gateway(status)["pid"].as_i64().is_some_and(|pid| pid != next)
    });
    answered(port, &["a.1", "b.1", "c.1"]);
}

/// The gateways of a stack, whatever they do.
fn gateways(stack: &Stack) -> Vec<i64> {
    let dir = stack.data().join("gateway");
    let is_ours = |pid: &i64| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.nth(1) == Some(b"gateway")
            && words.any(|word| word.starts_with(dir.as_os_str().as_encoded_bytes()))
    };
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

/// The old process dies while the new one is not ready yet: what comes meanwhile waits for it.
#[test]
fn a_gateway_that_dies_before_its_successor_is_ready_refuses_nobody() {
    let (mut stack, _) = started();
    let (port, pid) = (port(&stack), gateway_pid(&mut stack));
    signal("HUP", &[stack.up_pid().expect("it runs")]);
    let until = Instant::now() + PATIENCE;
    let new = loop {
        if let Some(new) = gateways(&stack).into_iter().find(|it| *it != pid) {
            break new;
        }
        assert!(Instant::now() < until, "no new gateway: {}", stack.said());
        std::thread::sleep(Duration::from_millis(2));
    };
    // It takes the sockets at once, and more than 300 ms for its checks.
    let taken = |pid: i64| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|to| to.to_string_lossy().starts_with("socket:")).collect::<Vec<_>>()
    };
    let had = taken(pid);
    while !taken(new).iter().any(|socket| had.contains(socket)) {
        assert!(Instant::now() < until, "nothing is taken: {}", stack.said());
        std::thread::sleep(Duration::from_millis(2));
    }
    signal("KILL", &[i32::try_from(pid).expect("a pid")]);
    let served = Client::new(port).ask("GET");
    assert!(served.is_ok(), "who comes now waits, and is served: {served:?}");
    let status = stack.wait("the new gateway", |status| {
        gateway(status)["pid"].as_i64().is_some_and(|it| it != pid)
    });
    assert_eq!(gateway(&status)["pid"], json!(new), "the very process that took the sockets");
}
