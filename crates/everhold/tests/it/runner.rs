//! A runner alone with its instance: restarts, adoption, output, an end that leaves nothing.

use crate::stack::signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const EVERHOLD: &str = env!("CARGO_BIN_EXE_everhold");

pub struct Instance {
    dir: tempfile::TempDir,
    pub runners: Vec<Child>,
}

impl Instance {
    pub fn new() -> Instance {
        let dir = tempfile::tempdir().expect("a directory");
        // The instance's user passes through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("permissions");
        Instance { dir, runners: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the order; `more` replaces what it says.
    pub fn order(&self, command: &[&str], more: Value) {
        let mut order = json!({
            "cluster": "test", "service": "api", "instance": "a.1", "node": "a", "port": 15410,
            "command": command, "user": if is_root() { "root" } else { "" },
            "stop": { "signal": "TERM", "grace_ms": 2_000 }, "fingerprint": "f1",
        });
        let map = order.as_object_mut().expect("an object");
        if !is_root() {
            map.remove("user");
        }
        map.extend(more.as_object().expect("an object").clone());
        let text = json!({ "version": 1, "record": order }).to_string();
        fs::write(self.path("order.json"), text).expect("written");
    }

    pub fn runner(&mut self) -> i32 {
        self.runner_through(&[], &[])
    }

    /// Started by another program, and told more.
    pub fn runner_through(&mut self, outer: &[&str], more: &[&str]) -> i32 {
        let mut words = outer.iter().chain(&[EVERHOLD]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).arg("runner").arg("--dir").arg(self.dir.path()).args(more);
        command.stdin(Stdio::null());
        let child = command.spawn().expect("a runner");
        let pid = child.id() as i32;
        self.runners.push(child);
        pid
    }

    pub fn state(&self) -> Value {
        let text = fs::read_to_string(self.path("state.json")).unwrap_or_default();
        serde_json::from_str::<Value>(&text).unwrap_or_default()["record"].clone()
    }

    pub fn wait(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let state = self.state();
            if is(&state) {
                return state;
            }
            assert!(Instant::now() < until, "{what}: {state:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn running(&self) -> i32 {
        pid(&self.wait("running", |state| state["is"] == "running"))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The words of the log, without their times.
    pub fn said(&self) -> Vec<String> {
        let log = self.log();
        log.lines().map(|line| line.split_once(' ').expect("a time").1.to_string()).collect()
    }

    pub fn await_said(&self, wanted: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(wanted) {
            assert!(Instant::now() < until, "{wanted}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn end(&mut self, runner: i32) -> Duration {
        let begun = Instant::now();
        signal("TERM", &[runner]);
        let ours = |it: &&mut Child| it.id() as i32 == runner;
        self.runners.iter_mut().find(ours).expect("ours").wait().expect("it ended");
        begun.elapsed()
    }

    /// Processes that carry the instance's token.
    pub fn family(&self) -> Vec<i32> {
        let token = format!("EVERHOLD_RUN={}", self.state()["token"].as_str().expect("a token"));
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let has = |pid: &i32| {
            let given = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            given.split(|byte| *byte == 0).any(|it| it == token.as_bytes())
        };
        pids.filter(has).collect()
    }

    /// Waits until that many processes carry the token: one that was started has yet to fork, one that was
    /// killed has yet to go.
    pub fn await_family(&self, wanted: usize) {
        let until = Instant::now() + PATIENCE;
        while self.family().len() != wanted {
            assert!(Instant::now() < until, "{:?} are not {wanted}: {}", self.family(), self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for runner in &mut self.runners {
            let _ = runner.kill();
            let _ = runner.wait();
        }
        if self.state()["token"].is_string() {
            signal("KILL", &self.family());
        }
    }
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

pub fn pid(state: &Value) -> i32 {
    state["process"]["pid"].as_i64().unwrap_or(0) as i32
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// The body of its answer: one that has begun has yet to listen.
fn get(port: u16) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(body) = try_get(port) {
            return body;
        }
        assert!(Instant::now() < until, "nobody answers at {port}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn try_get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_string())
}

#[test]
fn a_killed_instance_comes_back_and_a_killed_runner_disturbs_none() {
    let mut it = Instance::new();
    let port = free_port();
    let command = [EVERHOLD, "sample", "--port", "{port}", "--name", "{instance}"];
    it.order(&command, json!({ "port": port, "env": { "GREETING": "port {port} of" } }));
    let first = it.runner();
    let one = it.running();
    assert_eq!(get(port), format!("port {port} of a.1\n"));
    // There is one runner.
    let second = it.runner();
    it.runners.iter_mut().find(|it| it.id() as i32 == second).expect("it").wait().expect("ended");
    assert_eq!(it.family().len(), 1, "one process");

    signal("KILL", &[one]);
    let state = it.wait("another one", |state| state["is"] == "running" && pid(state) != one);
    let two = pid(&state);
    assert_eq!(state["restarts"], 1);
    assert_eq!(state["last_exit"]["reason"], "ended by signal 9");
    assert_eq!(get(port), format!("port {port} of a.1\n"));

    // Its runner is killed: it goes on, and what it says is not lost.
    signal("KILL", &[first]);
    it.runners[0].wait().expect("it ended");
    assert!(try_get(port).is_some(), "it answers all the time");
    let third = it.runner();
    it.await_said(&format!("a new runner goes on with process {two}"));
    assert_eq!((it.family(), pid(&it.state())), (vec![two], two));
    assert!(try_get(port).is_some());
    // The new one sees it end too.
    signal("KILL", &[two]);
    let state = it.wait("a third", |state| state["is"] == "running" && pid(state) != two);
    assert_eq!(state["restarts"], 2);
    it.await_family(1);

    // Runner and instance killed together: the next runner starts one.
    signal("KILL", &[third, pid(&state)]);
    it.runners[2].wait().expect("it ended");
    let fourth = it.runner();
    let state = it.wait("a fourth", |now| now["is"] == "running" && pid(now) != pid(&state));
    it.await_family(1);
    assert_eq!((it.family(), get(port)), (vec![pid(&state)], format!("port {port} of a.1\n")));
    let took = it.end(fourth);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!((it.state()["is"].clone(), it.family().len()), (json!("stopped"), 0));
    assert!(it.said().iter().any(|line| line == "a.1 ends"), "asked to end: {}", it.log());
    let mode = fs::metadata(it.path("log")).expect("a log").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_end_leaves_nothing_not_even_what_hides() {
    let mut it = Instance::new();
    // It doesn't hear the signal, and has a child in a session of its own that doesn't either.
    let script = "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 600; sleep 600\" & sleep 601 & \
                  echo said; sleep 602; sleep 603";
    it.order(&["sh", "-c", script], json!({ "stop": { "signal": "TERM", "grace_ms": 500 } }));
    let runner = it.runner();
    it.running();
    it.await_said(" said");
    it.await_family(5);
    it.end(runner);
    assert!(it.family().is_empty());
    assert!(it.log().contains("did not end in 0 s: killed"), "{}", it.log());

    // Its children go with one that ends by itself.
    it.order(
        &["sh", "-c", "setsid sleep 604 & exec sleep 605"],
        json!({ "fingerprint": "f2", "given_ms": 2 }),
    );
    let runner = it.runner();
    children_go_with_one_that_ends(&mut it, runner);
}

/// Of an instance with one child.
pub fn children_go_with_one_that_ends(it: &mut Instance, runner: i32) {
    let first = it.running();
    it.await_family(2);
    signal("KILL", &[first]);
    it.wait("another", |state| state["is"] == "running" && pid(state) != first);
    // The first one's child is gone.
    it.await_family(2);
    it.end(runner);
    assert!(it.family().is_empty());
}

#[test]
fn a_crash_loop_backs_off_and_what_can_t_start_says_why() {
    let mut it = Instance::new();
    it.order(&["sh", "-c", "echo out; echo err >&2; exit 3"], json!({}));
    let runner = it.runner();
    let begun = Instant::now();
    let state = it.wait("five restarts", |state| state["restarts"] == 5);
    // 100 + 200 + 400 + 800 + 1,600 ms, less a quarter at most.
    assert!(begun.elapsed() > Duration::from_millis(2_300), "{:?}", begun.elapsed());
    assert_eq!(state["last_exit"]["reason"], "exit status 3");
    it.wait("backoff", |state| state["is"] == "backoff");
    let said = it.said();
    assert!(said.len() < 100 && said.contains(&"out".into()) && said.contains(&"err".into()));
    it.end(runner);

    it.order(&["/nowhere/to/be/found"], json!({ "fingerprint": "f2", "given_ms": 2 }));
    let runner = it.runner();
    let state =
        it.wait("another order", |state| state["fingerprint"] == "f2" && state["is"] == "backoff");
    assert_eq!(state["last_exit"]["reason"], "exit status 127");
    it.await_said("E268 cannot start /nowhere/to/be/found: No such file");
    it.end(runner);
}

#[test]
fn an_instance_is_given_what_the_spec_says_and_nothing_of_ours() {
    let mut it = Instance::new();
    let mut order = json!({ "env": { "A": "{instance}" }, "limits": { "cpu_milli": 100 } });
    order["limits"]["memory_bytes"] = json!(64 << 20);
    if is_root() {
        order["user"] = json!("nobody");
    }
    let script = "id -u; pwd; env | sort; cat /proc/self/cgroup; echo done; sleep 600";
    it.order(&["sh", "-c", script], order);
    let runner = it.runner();
    it.running();
    it.await_said(" done");
    let said = it.said();
    let given = said.iter().filter_map(|line| line.split_once('=').map(|(name, _)| name));
    // Not the lines of control groups.
    let names: Vec<&str> = given.filter(|name| !name.contains(':')).collect();
    assert_eq!(names, ["A", "EVERHOLD_RUN", "HOME", "LANG", "PATH", "PWD"], "{said:#?}");
    assert!(said.contains(&"A=a.1".to_string()));
    if is_root() {
        // The runner's own line may come between.
        let own: Vec<_> = said.iter().filter(|line| !line.starts_with("everhold: ")).collect();
        assert_eq!(own[..2], ["65534", &it.path("work").display().to_string()]);
        let state = it.state();
        let unenforced = state["unenforced"].as_array().expect("a list").len();
        let joined = said.iter().filter(|line| line.contains("/everhold/api.a.1.")).count();
        if joined > 0 {
            take_memory(&mut it, runner);
            return;
        }
        assert_eq!(unenforced, 2, "{said:#?} {state:#}");
        println!("limits were not tried: {}", state["unenforced"]);
    }
    it.end(runner);
}

/// More than the limit: the kernel ends it, and that is said.
fn take_memory(it: &mut Instance, runner: i32) {
    it.end(runner);
    let limits = json!({ "memory_bytes": 32 << 20 });
    let script = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo $x | wc -c; sleep 600";
    it.order(
        &["sh", "-c", script],
        json!({ "limits": limits, "fingerprint": "f2", "given_ms": 2 }),
    );
    let runner = it.runner();
    let state = it.wait("killed", |state| state["fingerprint"] == "f2" && state["failures"] == 1);
    let reason = state["last_exit"]["reason"].clone();
    assert_eq!(reason, "killed: it took more memory than its limit", "{}", it.log());
    it.end(runner);
    assert!(it.family().is_empty());
}
