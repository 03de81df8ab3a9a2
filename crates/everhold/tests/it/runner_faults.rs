//! A runner and its instance when what they rely on fails: files, rights, other processes.

use crate::runner::{Instance, children_go_with_one_that_ends, is_root};
use crate::stack::signal;
use serde_json::json;
use std::fs;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

impl Instance {
    fn kill(&mut self, runner: i32, others: &[i32]) {
        signal("KILL", &[&[runner], others].concat());
        self.ended(runner);
    }

    fn ended(&mut self, runner: i32) -> ExitStatus {
        let mut ours = self.runners.iter_mut();
        let ours = ours.find(|it| it.id() as i32 == runner).expect("ours");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = ours.try_wait().expect("its status") {
                return status;
            }
            assert!(Instant::now() < until, "the runner goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The state can't be read, so nobody knows whether the process lives: no other one is started.
#[test]
fn a_torn_state_starts_nothing() {
    let mut it = Instance::new();
    it.order(&["sleep", "600"], json!({}));
    let runner = it.runner();
    let first = it.running();
    let state = fs::read(it.path("state.json")).expect("a state");
    it.kill(runner, &[]);
    fs::write(it.path("state.json"), "{").expect("written");
    let runner = it.runner();
    assert!(!it.ended(runner).success());
    assert_eq!(fs::read(it.path("state.json")).expect("it is there"), b"{", "left alone");
    fs::write(it.path("state.json"), state).expect("written");
    assert_eq!(it.family(), [first]);
    let runner = it.runner();
    it.await_said(&format!("goes on with process {first}"));
    it.end(runner);
}

/// Runner and main process are gone, a child is left: it is ended, and nothing is started.
#[test]
fn what_is_left_of_one_that_goes_is_ended() {
    let mut it = Instance::new();
    it.order(&["sh", "-c", "setsid sleep 604 & exec sleep 605"], json!({}));
    let runner = it.runner();
    let first = it.running();
    it.await_family(2);
    it.kill(runner, &[first]);
    it.await_family(1);
    let runner = it.runner_through(&[], &["--end"]);
    assert!(it.ended(runner).success());
    assert_eq!((it.family().len(), it.state()["is"].clone()), (0, json!("stopped")));
    assert_eq!(it.log().matches(" started\n").count(), 1, "{}", it.log());
}

/// A disk that takes nothing is no reason not to start an instance that is known by its token.
#[test]
fn a_full_disk_stops_no_restart() {
    let mut it = Instance::new();
    it.order(&["sleep", "600"], json!({}));
    let runner = it.runner();
    let first = it.running();
    // Nothing can be written under that name.
    fs::create_dir(it.path(&format!("state.json.{runner}.new"))).expect("made");
    signal("KILL", &[first]);
    let deadline = Instant::now() + PATIENCE;
    while it.log().matches(" started\n").count() < 2 {
        assert!(Instant::now() < deadline, "{}", it.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    it.await_family(1);
    it.end(runner);
    assert!(it.family().is_empty());

    // Of one that was never written down nothing would be found again.
    let mut it = Instance::new();
    it.order(&["sleep", "600"], json!({}));
    let state = it.path("state.json");
    let made = "mkdir \"$0.$$.new\" && exec \"$@\"";
    let runner = it.runner_through(&["sh", "-c", made, state.to_str().expect("UTF-8")], &[]);
    it.await_said("not started: write its state");
    it.end(runner);
    assert!(!it.log().contains(" started\n"), "{}", it.log());
}

/// One that is asked to end with an hour's grace, and then everything is to end.
#[test]
fn a_long_grace_holds_up_no_halt() {
    let mut it = Instance::new();
    let stop = json!({ "signal": "TERM", "grace_ms": 3_600_000 });
    it.order(&["sh", "-c", "trap '' TERM; echo said; sleep 600"], json!({ "stop": stop }));
    let runner = it.runner();
    it.running();
    it.await_said(" said");
    signal("TERM", &[runner]);
    it.wait("stopping", |state| state["is"] == "stopping");
    signal("INT", &[runner]);
    it.wait("stopped", |state| state["is"] == "stopped");
    assert!(it.ended(runner).success());
    assert!(it.log().contains("did not end in 10 s: killed"), "{}", it.log());
}

/// What Everhold is allowed and protected by stays its own.
#[test]
fn instances_are_ordinary_when_memory_is_short() {
    let mut it = Instance::new();
    it.order(&["sh", "-c", "cat /proc/self/oom_score_adj; sleep 600"], json!({}));
    let protected = ["choom", "-n", "-900", "--"];
    let may = Command::new("choom").args(&protected[1..]).arg("true").output();
    if !may.is_ok_and(|it| it.status.success()) {
        return println!("not tried: protecting a process takes CAP_SYS_RESOURCE");
    }
    let runner = it.runner_through(&protected, &[]);
    it.running();
    assert!(it.said().contains(&"0".to_string()), "{}", it.log());
    it.end(runner);
}

/// Without the right to look at others' environments and programs, as in a container.
#[test]
fn a_family_is_found_without_the_right_to_trace() {
    if !is_root() {
        return println!("not tried: one's own user's processes may always be traced");
    }
    let mut it = Instance::new();
    let more = json!({ "user": "nobody", "stop": { "signal": "TERM", "grace_ms": 500 } });
    it.order(&["sh", "-c", "sleep 604 & exec sleep 605"], more);
    let less = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"];
    let runner = it.runner_through(&less, &[]);
    children_go_with_one_that_ends(&mut it, runner);
}

/// The kernel ended a child of it for its memory, long before it is stopped in the usual way.
#[test]
fn an_old_want_of_memory_is_not_why_it_stops() {
    let mut it = Instance::new();
    let script = "sh -c 'x=$(head -c 200000000 /dev/zero | tr \"\\0\" x); echo $x | wc -c'; \
                  echo went on; exec sleep 600";
    it.order(&["sh", "-c", script], json!({ "limits": { "memory_bytes": 32 << 20 } }));
    let runner = it.runner();
    let state = it.wait("running", |state| state["is"] == "running");
    if !state["unenforced"].as_array().expect("a list").is_empty() {
        it.end(runner);
        return println!("not tried: {}", state["unenforced"]);
    }
    it.await_said("went on");
    it.end(runner);
    assert_eq!(it.state()["last_exit"]["reason"], "ended by signal 15", "{}", it.log());
}
