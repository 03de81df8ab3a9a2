//! The minder beside a real primary with a real standby, with nobody else there to stop it.

#![allow(clippy::unwrap_used)]

#[path = "../../../adapters/tests/postgres/cluster.rs"]
#[allow(dead_code)]
mod cluster;
#[path = "../../src/minder/feed.rs"]
mod feed;
#[path = "../../src/minder/place.rs"]
#[allow(dead_code)]
mod place;

use cluster::{Cluster, Node, signal};
use everhold_adapters::proc::started;
use everhold_core::ids::Time;
use everhold_core::minder::{Order, Postmaster, Right};
use everhold_core::policy::EVIDENCE_MS;
use everhold_core::postgres::StopMode;
use feed::{Feed, Office};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_everhold");
/// For what is not about time, on a busy machine.
const PATIENCE: u64 = 30_000;
/// What a loaded machine may add to any of the times below.
const HICCUP: u64 = 700;

/// A primary `a` with its standby `b`.
struct Pair {
    cluster: Cluster,
    a: Node,
    b: Node,
    postmaster: Postmaster,
}

/// A minder without an agent.
struct Minder {
    process: Child,
    postmaster: Postmaster,
    members: Vec<String>,
    dir: PathBuf,
    socket: UnixDatagram,
}

impl Drop for Minder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn now() -> Time {
    let at = clock_gettime(ClockId::Boottime);
    Time(at.tv_sec as u64 * 1_000 + at.tv_nsec as u64 / 1_000_000)
}

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Waits until `done`, for at most `ms`; how long it took.
async fn within(ms: u64, what: &str, mut done: impl FnMut() -> bool) -> u64 {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_millis(ms), "not within {ms} ms: {what}");
        sleep(2).await;
    }
    begun.elapsed().as_millis() as u64
}

impl Pair {
    async fn new() -> Pair {
        let cluster = Cluster::new();
        let a = cluster.leader("a").await;
        let b = cluster.standby("b", &a).await;
        a.wait_for(1, &[&b]).await;
        let pid = a.postmaster().await;
        let postmaster = Postmaster { pid, started: started(pid).unwrap() };
        Pair { cluster, a, b, postmaster }
    }

    fn dir(&self) -> PathBuf {
        self.cluster.dir.path().join("a")
    }

    async fn minder(&self) -> Minder {
        let mut command = Command::new(PROGRAM);
        command.arg("minder").arg("--dir").arg(self.dir());
        command.arg("--run-dir").arg(&self.a.config.run_dir);
        command.arg("--port").arg(self.a.config.port.to_string());
        command.arg("--pid").arg(self.postmaster.pid.to_string());
        command.arg("--started").arg(self.postmaster.started.to_string());
        let process = command.spawn().unwrap();
        let minder = Minder {
            process,
            postmaster: self.postmaster,
            members: vec![self.b.me.slot()],
            dir: self.dir(),
            socket: UnixDatagram::unbound().unwrap(),
        };
        within(PATIENCE, "the minder listens", || minder.try_tell(None)).await;
        minder
    }

    fn is_up(&self) -> bool {
        started(self.postmaster.pid) == Some(self.postmaster.started)
            && !self.a.pg.pids().is_empty()
    }

    fn is_gone(&self) -> bool {
        self.a.pg.pids().is_empty()
    }
}

/// A client that reads as fast as it can, from a thread of its own, and notes when it last could.
fn read_on(node: &Node, last: Arc<Mutex<Option<Instant>>>) -> std::thread::JoinHandle<()> {
    let mut to = tokio_postgres::Config::new();
    to.host_path(&node.config.run_dir).port(node.config.port).user("everhold").dbname("app");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = cluster::connect(&to).await;
            while client.simple_query("SELECT 1").await.is_ok() {
                *last.lock().unwrap() = Some(Instant::now());
            }
        });
    })
}

impl Minder {
    fn try_tell(&self, right: Option<Right>) -> bool {
        let order = Order { postmaster: self.postmaster, right };
        let text = serde_json::to_vec(&order).unwrap();
        self.socket.send_to(&text, place::socket(&self.dir)).is_ok()
    }

    /// Says that it may run for `ms` from now, waiting for `k` standbys.
    fn tell(&self, k: u32, ms: u64) {
        let members = self.members.clone();
        assert!(self.try_tell(Some(Right { epoch: 2, until: now().plus(ms), k, members })));
    }

    async fn note(&self) -> String {
        let mut text = String::new();
        within(PATIENCE, "the note", || {
            text = std::fs::read_to_string(place::note(&self.dir)).unwrap_or_default();
            !text.is_empty()
        })
        .await;
        println!("{text}");
        text
    }

    fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }
}

#[tokio::test]
async fn standbys_vouch_for_a_primary_whose_agent_is_silent_until_they_are_gone() {
    let pair = Pair::new().await;
    let mut minder = pair.minder().await;
    let mode = std::fs::metadata(place::socket(&pair.dir())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    minder.tell(1, 1_000);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2 * EVIDENCE_MS + 1_500) {
        assert!(pair.is_up(), "stopped after {:?}: {}", begun.elapsed(), minder.note().await);
        sleep(50).await;
    }
    pair.b.stop(StopMode::Immediate).await;
    let took = within(EVIDENCE_MS + HICCUP, "the primary is stopped", || pair.is_gone()).await;
    println!("stopped {took} ms after its last standby");
    // The last proof was younger than the round.
    assert!(took > 800, "{took}");
    let note = minder.note().await;
    assert!(note.contains("no news of the agent, and 1 standbys last vouched"), "{note}");
    assert!(minder.process.wait().unwrap().success());
}

#[tokio::test]
async fn a_frozen_primary_is_stopped_at_its_deadline() {
    let pair = Pair::new().await;
    let minder = pair.minder().await;
    pair.a.pg.pids().into_iter().for_each(|pid| signal(pid, "STOP"));
    minder.tell(1, 1_500);
    let took = within(1_500 + HICCUP, "the frozen primary is stopped", || pair.is_gone()).await;
    println!("a frozen primary was stopped after {took} ms of 1500");
    assert!(took >= 1_450, "{took}");
    assert!(minder.note().await.contains("1 standbys never vouched"));
}

#[tokio::test]
async fn after_a_freeze_of_everything_nobody_reads_on() {
    let pair = Pair::new().await;
    let minder = pair.minder().await;
    let last_read = Arc::new(Mutex::new(None));
    let reads = read_on(&pair.a, last_read.clone());
    within(PATIENCE, "a read", || last_read.lock().unwrap().is_some()).await;
    let mut all = pair.a.pg.pids();
    all.push(minder.pid());
    // At once, as a machine freezes: no program is run for each.
    let send = |signal| {
        for pid in &all {
            // A worker may have ended by itself meanwhile.
            let sent = kill_process(Pid::from_raw(*pid).unwrap(), signal);
            assert!(matches!(sent, Ok(()) | Err(rustix::io::Errno::SRCH)), "{sent:?}");
        }
    };
    minder.tell(1, 3_000);
    send(Signal::STOP);
    sleep(300).await;
    let frozen = *last_read.lock().unwrap();
    // News of before the freeze wait in its socket; they make nothing younger.
    minder.tell(1, 2_500);
    sleep(5_700).await;
    assert_eq!(*last_read.lock().unwrap(), frozen);
    assert!(pair.is_up());
    // PostgreSQL first.
    let woken = Instant::now();
    send(Signal::CONT);
    within(PATIENCE, "the primary is stopped", || pair.is_gone()).await;
    let gone = woken.elapsed();
    within(PATIENCE, "the client has noticed", || reads.is_finished()).await;
    let last = last_read.lock().unwrap().unwrap();
    let read_on = last.saturating_duration_since(woken);
    println!("a client read on for {read_on:?} after the freeze");
    println!("all processes gone {gone:?} after the first was woken");
    assert!(read_on < Duration::from_millis(HICCUP), "{read_on:?}");
    let note = minder.note().await;
    let late = note.split(" ms before it was judged").next().unwrap().rsplit(' ').next().unwrap();
    assert!(late.parse::<u64>().unwrap() > 2_500, "{note}");
}

#[tokio::test]
async fn news_keep_it_up_and_alone_only_the_lease_counts() {
    let pair = Pair::new().await;
    let minder = pair.minder().await;
    // At rest for as long as nobody says that it is a primary's.
    sleep(500).await;
    for _ in 0..10 {
        minder.tell(0, 1_200);
        sleep(400).await;
        assert!(pair.is_up());
    }
    // At rest again: a deadline that was told before is forgotten.
    assert!(minder.try_tell(None));
    sleep(1_500).await;
    assert!(pair.is_up());
    // A second minder of the same postmaster makes way.
    let mut second = Command::new("true").spawn().unwrap();
    std::mem::swap(&mut second, &mut pair.minder().await.process);
    within(PATIENCE, "the second has ended", || second.try_wait().unwrap().is_some()).await;
    assert_eq!(place::holder(&pair.dir()).unwrap().record.pid, minder.pid());

    minder.tell(0, 1_200);
    let took = within(1_200 + HICCUP, "the lease's end is the end", || pair.is_gone()).await;
    println!("stopped {took} ms after 1200 ms were given");
    assert!(took >= 1_150, "{took}");
    assert!(minder.note().await.contains("the lease is over"));
}

#[tokio::test]
async fn an_agent_finds_its_minder_again_and_replaces_one_that_is_dead_or_deaf() {
    let pair = Pair::new().await;
    let office = Office {
        dir: pair.dir(),
        run_dir: pair.a.config.run_dir.clone(),
        port: pair.a.config.port,
        program: PROGRAM.into(),
        now,
    };
    let said = Arc::new(Mutex::new(Vec::new()));
    let start = || {
        let said = said.clone();
        Feed::start(office.clone(), move |text| said.lock().unwrap().push(text)).unwrap()
    };
    let holder = || place::holder(&pair.dir()).map(|holder| holder.record.pid);
    let lasting = || Right { epoch: 2, until: now().plus(9_000), k: 0, members: Vec::new() };

    let feed = start();
    feed.tend(Some(pair.postmaster.pid), true);
    feed.feed(lasting());
    within(PATIENCE, "a minder", || holder().is_some()).await;
    let first = holder();

    // A new agent goes on with it.
    drop(feed);
    let feed = start();
    feed.tend(Some(pair.postmaster.pid), true);
    sleep(700).await;
    assert_eq!(holder(), first);
    // Told that it is a standby's after all, it forgets its deadline.
    feed.feed(Right { until: now().plus(800), ..lasting() });
    feed.rest();
    sleep(1_200).await;
    assert!(pair.is_up());
    feed.feed(lasting());

    // Dead.
    signal(first.unwrap(), "KILL");
    let took =
        within(PATIENCE, "another minder", || holder().is_some_and(|pid| Some(pid) != first)).await;
    println!("a dead minder was replaced after {took} ms");
    let second = holder();

    // Frozen: it is told until nothing more fits in, and then given two seconds.
    signal(second.unwrap(), "STOP");
    within(PATIENCE, "a minder that isn't deaf", || {
        feed.feed(lasting());
        holder().is_some_and(|pid| Some(pid) != second)
    })
    .await;
    assert!(said.lock().unwrap().iter().any(|text| text.contains("is deaf")));

    // A new one learns what the one before it was told last, and a new agent disarms none.
    let begun = Instant::now();
    feed.feed(Right { until: now().plus(3_000), ..lasting() });
    let third = holder();
    signal(third.unwrap(), "KILL");
    within(PATIENCE, "another minder", || holder().is_some_and(|pid| Some(pid) != third)).await;
    sleep(200).await;
    drop(feed);
    // It has not yet seen that it is a primary's.
    let feed = start();
    feed.tend(Some(pair.postmaster.pid), false);
    within(3_000 + HICCUP, "the primary is stopped", || pair.is_gone()).await;
    assert!(begun.elapsed() >= Duration::from_millis(2_900), "{:?}", begun.elapsed());
    within(PATIENCE, "the agent is told", || {
        said.lock().unwrap().iter().any(|text| text.contains("the lease is over"))
    })
    .await;
    within(PATIENCE, "no minder is left", || holder().is_none()).await;
    assert!(!place::note(&pair.dir()).exists());
    sleep(700).await;
    assert_eq!(holder(), None, "nothing is left to mind");
}

#[tokio::test]
async fn a_primary_that_no_agent_can_speak_for_has_as_long_as_a_lease() {
    let pair = Pair::new().await;
    let office = Office {
        dir: pair.dir(),
        run_dir: pair.a.config.run_dir.clone(),
        port: pair.a.config.port,
        program: PROGRAM.into(),
        now,
    };
    let feed = Feed::start(office, |_| {}).unwrap();
    feed.tend(Some(pair.postmaster.pid), true);
    let took = within(5_000 + HICCUP, "the primary is stopped", || pair.is_gone()).await;
    assert!(took >= 4_500, "{took}");
    // The standby's postmaster is another's, and has none.
    assert!(!pair.b.pg.pids().is_empty());
}
