//! Three machines with a cable each, end to end.

use crate::hosts::{self, Hosts, Wanted};
use crate::stack::load::Load;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

#[test]
fn a_machine_that_is_gone_is_missed_and_comes_back() {
    let mut hosts = Hosts::start(&Wanted::default());
    let status = hosts.status("b").expect("a status");
    assert_eq!(status["answered_by"], "b");
    assert!(status["coordinator"].is_string(), "{status:#}");
    let load = Load::on(hosts.target());
    std::thread::sleep(Duration::from_secs(1));
    let leader = hosts.leader("b");
    hosts.kill(&leader);
    let (before, from) = (load.acknowledged(), Instant::now());
    while load.acknowledged() < before + 50 {
        assert!(from.elapsed() < Duration::from_secs(60), "no write was acknowledged");
        std::thread::sleep(Duration::from_millis(10));
    }
    let other = if leader == "a" { "b" } else { "a" };
    assert_ne!(hosts.leader(other), leader);
    hosts.revive(&leader);
    hosts.wait(other, "whole cluster", hosts::is_whole);
    let seen = load.finish();
    assert_eq!(seen.lost, 0);
    // As balancers and Prometheus on another machine see it.
    let leader = hosts.leader(other);
    for host in ["a", "b", "c"] {
        let code = if host == leader { "200" } else { "503" };
        let told = asked(&hosts, other, host, "15497/primary");
        assert!(told.starts_with(&format!("HTTP/1.0 {code} ")), "{host}: {told}");
        let told = asked(&hosts, other, host, "15497/metrics");
        assert!(told.contains(&format!("\neverhold_pid{{cluster=\"shop\",node=\"{host}\"}} ")));
        let told = asked(&hosts, other, host, "15496/metrics");
        assert!(told.contains(&format!("\neverhold_pid{{cluster=\"shop\",gateway=\"{host}\"}} ")));
    }
}

/// The answer of PORT/PATH on `host` as seen on another machine.
fn asked(hosts: &Hosts, on: &str, host: &str, what: &str) -> String {
    let (port, path) = what.split_once('/').expect("PORT/PATH");
    let address = hosts::address(host);
    let script = format!(
        "exec 3<>/dev/tcp/{address}/{port}; printf 'GET /{path} HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    );
    let output = hosts.on(on, "bash").args(["-c", &script]).output().expect("bash runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Nobody judges by the wall clock of another machine, or by its own.
#[test]
fn a_clock_that_is_set_by_an_hour_is_no_reason_for_anything() {
    let hosts = Hosts::start(&Wanted { worse: true, ..Wanted::default() });
    let (leader, epoch) = (hosts.leader("a"), hosts.epoch("a"));
    let standby = if leader == "b" { "c" } else { "b" };
    let load = Load::on(hosts.target());
    load.flows();
    let from = Instant::now();
    for host in [leader.as_str(), standby] {
        for seconds in [3_600, -3_600, 0] {
            hosts.clock(host, seconds);
            std::thread::sleep(Duration::from_secs(3));
            load.flows();
            let ahead = load.ask("SELECT extract(epoch FROM clock_timestamp())::bigint::text");
            let ahead = ahead.parse::<i64>().expect("a number") - now();
            let expected = if host == leader { seconds } else { 0 };
            assert!((ahead - expected).abs() < 60, "the leader's clock is {ahead} s ahead");
            let status = hosts.status(host).expect("a status");
            let at: jiff::Timestamp = status["at"].as_str().expect("a time").parse().expect("one");
            let ahead = at.as_second() - now();
            assert!((ahead - seconds).abs() < 60, "{host}'s own clock is {ahead} s ahead");
        }
    }
    let gap = load.outage_since(from);
    assert!(gap < Duration::from_secs(10), "{gap:?}");
    hosts.wait("a", "whole cluster", hosts::is_whole);
    assert_eq!((hosts.leader("a"), hosts.epoch("a")), (leader, epoch), "no failover");
    assert_eq!(load.finish().lost, 0);
}

/// The true time, in seconds.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs() as i64
}

/// As systemd starts, watches, reloads and stops it.
#[test]
fn who_started_a_machine_hears_of_it() {
    let hosts = Hosts::bare();
    fs::write(hosts.spec_file(), hosts.spec(&Wanted::default())).expect("the spec is written");
    let spec = hosts.spec_file().display().to_string();
    let file = hosts.node_file("a").display().to_string();
    hosts.done("a", &["init", "--node", "a", "--spec", &spec, "--node-file", &file]);
    let socket = hosts.dir().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let hear = |word: &str| {
        for _ in 0..1_000 {
            let mut heard = [0; 256];
            let length = manager.recv(&mut heard).unwrap_or_else(|error| panic!("{word}: {error}"));
            if String::from_utf8_lossy(&heard[..length]).lines().any(|line| line == word) {
                return;
            }
        }
        panic!("{word} was not said");
    };
    let mut run = hosts.on("a", env!("CARGO_BIN_EXE_everhold"));
    run.args(["run", "--node-file", &file]).stdout(Stdio::null()).stderr(Stdio::null());
    run.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "600000");
    let mut run = run.spawn().expect("everhold starts");
    hear("READY=1");
    assert!(hosts.status("a").is_some(), "ready is when it answers");
    (0..3).for_each(|_| hear("WATCHDOG=1"));

    let me = run.id() as i32;
    let others: Vec<i32> = hosts.processes("a").into_iter().filter(|pid| *pid != me).collect();
    assert!(others.len() >= 3, "an agent, a gateway and etcd: {others:?}");
    for pid in others {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(!environment.contains("NOTIFY_SOCKET="), "{pid} would be taken for `run`");
    }

    let certificate = hosts.data("a").join("pki/api.a.pem");
    fs::remove_file(&certificate).expect("removed");
    hosts::signal("HUP", &[me]);
    let until = Instant::now() + Duration::from_secs(30);
    while !certificate.exists() {
        assert!(Instant::now() < until, "a reload issues what is missing");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(run.try_wait().expect("a child").is_none(), "and ends nothing");

    hosts::signal("TERM", &[me]);
    hear("STOPPING=1");
    assert!(run.wait().expect("it ends").success());
}

/// What can't be taken up is said once and tried again; a program that can't be started leaves
/// everything as it is.
#[test]
fn what_fails_on_a_machine_is_mended_without_a_new_start() {
    let mut hosts = Hosts::bare();
    let spec = |gateway: &str| {
        let spec = hosts.spec(&Wanted::default());
        spec.replace("[listener]", &format!("[gateway]\nnodes = [\"{gateway}\"]\n[listener]"))
    };
    let (without, with) = (spec("b"), spec("a"));
    fs::write(hosts.spec_file(), without).expect("the spec is written");
    let path = hosts.spec_file().display().to_string();
    let file = hosts.node_file("a").display().to_string();
    hosts.done("a", &["init", "--node", "a", "--spec", &path, "--node-file", &file]);
    let program = hosts.dir().join("everhold");
    let install = || fs::copy(env!("CARGO_BIN_EXE_everhold"), &program).expect("installed");
    install();
    hosts.spawn("a", &program);
    hosts.until("answer", || hosts.status("a").is_some());
    let gateway = |hosts: &Hosts| {
        let gateway = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"gateway")
        };
        hosts.processes("a").into_iter().find(|pid| gateway(pid))
    };
    assert_eq!(gateway(&hosts), None);

    let copy = hosts.data("a").join("run/spec.json");
    fs::remove_file(&copy).expect("removed");
    fs::create_dir(&copy).expect("made");
    fs::write(hosts.spec_file(), with).expect("the spec is written");
    hosts.done("a", &["apply", &path]);
    let said = |words: &str| hosts.said("a").matches(words).count();
    hosts.until("word of the spec", || said("the new spec") > 0);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((said("the new spec"), gateway(&hosts)), (1, None));
    fs::remove_dir(&copy).expect("mended");
    hosts.until("gateway", || gateway(&hosts).is_some());

    let (run, before) = (hosts.run_pid("a"), gateway(&hosts));
    fs::remove_file(&program).expect("removed");
    hosts::signal("HUP", &[run]);
    hosts.until("word of the program", || said(&format!("start {}", program.display())) > 0);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(gateway(&hosts), before, "all goes on");
    install();
    hosts::signal("HUP", &[run]);
    hosts.until("new gateway", || gateway(&hosts).is_some_and(|pid| Some(pid) != before));
    hosts.until("answer", || hosts.status("a").is_some());
    hosts::signal("TERM", &[run]);
    assert!(hosts.ended("a").success(), "{}", hosts.said("a"));
}

/// Errors name their code, and neither the machine nor the cluster has changed after them.
#[test]
fn a_machine_that_may_not_join_changes_nothing() {
    let mut hosts = Hosts::bare();
    fs::write(hosts.spec_file(), hosts.spec(&Wanted::default())).expect("the spec is written");
    let spec = hosts.spec_file().display().to_string();
    let file = |hosts: &Hosts, host: &str| hosts.node_file(host).display().to_string();
    let a = file(&hosts, "a");
    refused(&hosts, "a", &["init", "--node", "z", "--spec", &spec, "--node-file", &a], "E243");
    hosts.done("a", &["init", "--node", "a", "--spec", &spec, "--node-file", &a]);
    refused(&hosts, "a", &["init", "--node", "a", "--spec", &spec, "--node-file", &a], "E241");
    hosts.run("a");
    let token = hosts.token("b", "a");
    let b = file(&hosts, "b");

    let (secret, at) = token.split_once('@').expect("TOKEN@HOST");
    let mut parts: Vec<String> = secret.split('-').map(str::to_string).collect();
    let with = |place: usize, text: &str| {
        let mut parts = parts.clone();
        parts[place] = text.to_string();
        format!("{}@{at}", parts.join("-"))
    };
    let foreign = with(1, &"0".repeat(32));
    let unknown = with(2, "0123456789abcdef");
    let wrong = with(3, &"0".repeat(48));
    for (token, code) in [
        ("nonsense", "E248"),
        (foreign.as_str(), "E249"),
        (unknown.as_str(), "E246"),
        (wrong.as_str(), "E246"),
    ] {
        refused(&hosts, "b", &["join", token, "--node-file", &b], code);
        assert!(!hosts.data("b").exists(), "{code}: nothing was made");
    }
    let mut command = hosts.on("b", env!("CARGO_BIN_EXE_everhold"));
    let typed = fs::File::open(hosts.spec_file()).expect("a file that holds no token");
    let output = command.args(["join", "-", "--node-file", &b]).stdin(typed).output();
    let error = String::from_utf8_lossy(&output.expect("everhold runs").stderr).into_owned();
    assert!(error.contains("E248"), "{error}");
    // A machine without the programs that it would have to run.
    let mut command = hosts.on("b", "env");
    command.args(["PATH=/nowhere", env!("CARGO_BIN_EXE_everhold")]);
    command.args(["join", &token, "--node-file", &b]);
    let output = command.output().expect("everhold runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("E109"), "{error}");
    assert!(!hosts.data("b").exists());

    hosts.done("b", &["join", &token, "--node-file", &b]);
    refused(&hosts, "b", &["join", &token, "--node-file", &b], "E241");
    let c = file(&hosts, "c");
    refused(&hosts, "c", &["join", &token, "--node-file", &c], "E246");
    refused(&hosts, "a", &["token", "b"], "E307");
    refused(&hosts, "a", &["token", "z"], "E306");
    // The answer was lost: the same machine may ask again.
    fs::remove_file(hosts.node_file("b")).expect("removed");
    hosts.done("b", &["join", &token, "--node-file", &b]);
    // Another machine in the place of b, and its data directory of another cluster.
    parts.clear();
    let replacement = hosts.done("a", &["token", "b", "--replace"]);
    let replacement = replacement.trim().strip_prefix("everhold join ").expect("a command");
    fs::create_dir_all(hosts.data("c")).expect("made");
    let record = hosts.data("c").join("cluster.json");
    fs::write(&record, "{\"version\":1,\"cluster\":\"other\"}").expect("written");
    refused(&hosts, "c", &["join", replacement, "--node-file", &c], "E242");
    assert_eq!(fs::read_dir(hosts.data("c")).expect("there").count(), 1, "nothing was added");
}

fn refused(hosts: &Hosts, on: &str, arguments: &[&str], code: &str) {
    let output = hosts.everhold(on, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} was taken");
    assert!(error.contains(code), "{arguments:?}: {error}");
    assert!(error.contains("next"), "{arguments:?}: {error}");
}
