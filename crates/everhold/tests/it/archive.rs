//! The log is archived as it is written: whatever is lost, what was acknowledged more than a moment
//! before can be restored, over failovers, and an old leader spoils nothing.

use crate::backups::look;
use crate::stack::load::{Load, block_on, config, connect};
use crate::stack::{NODES, PATIENCE, Stack, Wanted, signal};
use everhold_adapters::postgres::SUPERUSER;
use everhold_core::ids::Lsn;
use everhold_core::spec::Location;
use everhold_core::term::Branch;
use everhold_repository::log::coverage;
use everhold_repository::{Log, Password, PlaceConfig, Repository};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::SimpleQueryMessage;

/// Where the distribution has PostgreSQL's programs.
const BIN: &str = "/usr/lib/postgresql/15/bin";
const SEGMENT: u64 = 4 << 20;
/// What may be missing at the end, on however busy a machine: 1.5 s is the target.
const RPO: Duration = Duration::from_secs(5);

/// A stack whose service is backed up into the directory `vault`, with its first backup: the log
/// from before it may be forgotten at any moment.
pub fn start() -> (Stack, Repository) {
    start_on(|_| {})
}

/// The same, where something is done first.
pub fn start_on(ready: impl FnOnce(&Stack)) -> (Stack, Repository) {
    let wanted = Wanted { repositories: &["vault"], durability: "preferred", ..Wanted::default() };
    let mut stack = Stack::new(wanted);
    ready(&stack);
    let mut key = fs::OpenOptions::new();
    let key = key.write(true).create_new(true).mode(0o600).open(stack.key_file("vault"));
    std::io::Write::write_all(&mut key.expect("a key file"), b"a password\n").expect("written");
    let place = PlaceConfig {
        name: "vault".to_string(),
        location: Location::Directory(stack.dir().join("vault").display().to_string()),
        region: None,
        endpoint: None,
        credentials_file: None,
    };
    let password = Password::new("a password");
    let repository = Repository::create(&place, &password, "test").expect("a repository");
    stack.up();
    stack.whole();
    stack.wait("a first backup", |status| newest(status).is_string());
    (stack, repository)
}

pub fn newest(status: &Value) -> Value {
    status["services"]["main"]["backup"]["newest"].clone()
}

/// The log of the one database that there is.
pub fn log(repository: &Repository) -> Log<'_> {
    let objects = repository.list("main/log/").expect("listed");
    let sysid = objects.keys().next().expect("an object").split('/').nth(2).expect("its database");
    Log::new(repository, "main", sysid.parse().expect("a number"))
}

pub fn line(log: &Log<'_>) -> Vec<Branch> {
    log.newest_line().expect("readable").expect("a line").1
}

/// The end of what is archived without a hole from `from` on.
fn end(log: &Log<'_>, from: Lsn) -> Lsn {
    let covered = coverage(&log.pieces(1).expect("listed"), &line(log));
    let first = covered.iter().find(|it| it.contains(&from)).expect("the beginning is there");
    assert_eq!(covered.last(), Some(first), "no hole: {covered:?}");
    first.end
}

/// All that is archived, which has no hole.
pub fn whole(log: &Log<'_>) -> std::ops::Range<Lsn> {
    let covered = coverage(&log.pieces(1).expect("listed"), &line(log));
    assert_eq!(covered.len(), 1, "{covered:?}");
    covered[0].clone()
}

/// A copy of the leader's data, without its log.
struct Base {
    dir: PathBuf,
    start: Lsn,
}

impl Base {
    fn take(stack: &mut Stack) -> Base {
        let leader = stack.leader();
        let dir = stack.dir().join("base");
        let run = stack.data().join(&leader).join("main/run");
        let port = stack.postgres_port(&leader).to_string();
        let mut command = Command::new(format!("{BIN}/pg_basebackup"));
        command.args(["-X", "none", "-c", "fast", "-p", &port, "-U", SUPERUSER, "-D"]).arg(&dir);
        let output = command.arg("-h").arg(run).output().expect("pg_basebackup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let label = fs::read_to_string(dir.join("backup_label")).expect("a label");
        let start = label.split_whitespace().nth(3).expect("a place").parse().expect("a place");
        Base { dir, start }
    }

    /// Recovers it with the archived log, and reads the rows of the load.
    fn restored(&self, stack: &Stack, log: &Log<'_>) -> BTreeSet<(i32, i64)> {
        let line = line(log);
        let to = end(log, self.start);
        let wal = self.dir.join("pg_wal");
        let written = log.segments(&line, self.start..to, SEGMENT, &wal).expect("segments");
        fs::write(self.dir.join("recovery.signal"), "").expect("written");
        let run = stack.dir().join("restored");
        fs::create_dir(&run).expect("made");
        fs::write(run.join("hba"), "local all all trust\n").expect("written");
        let conf = format!(
            "hba_file = '{0}/hba'\nunix_socket_directories = '{0}'\nlisten_addresses = ''\n\
             port = 5432\nhot_standby = off\nrestore_command = 'false'\n\
             recovery_target_timeline = '{1}'\n",
            run.display(),
            written.tli
        );
        fs::write(run.join("conf"), conf).expect("written");
        let server = Server::start(&self.dir, &run);
        let rows = server.rows(&run);
        drop(server);
        fs::remove_dir_all(&run).expect("removed");
        rows
    }
}

/// A server of the test's own.
struct Server(Child);

impl Server {
    fn start(data: &Path, run: &Path) -> Server {
        let output = Command::new("id").args(["-u", "postgres"]).output().expect("id");
        let uid: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a user");
        for dir in [data, run] {
            give(dir, uid);
        }
        let file = fs::File::create(run.join("log")).expect("a log");
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups"]);
        command.arg(format!("{BIN}/postgres")).arg("-D").arg(data);
        command.arg(format!("--config-file={}", run.join("conf").display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).current_dir("/");
        Server(command.spawn().expect("PostgreSQL"))
    }

    fn rows(&self, run: &Path) -> BTreeSet<(i32, i64)> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut to = tokio_postgres::Config::new();
            to.host_path(run).port(5432).user(SUPERUSER).dbname("app");
            let read = block_on(async {
                let (client, _) = connect(&to).await?;
                let sql = "SELECT writer, n FROM written";
                client.query(sql, &[]).await.map_err(|error| error.to_string())
            });
            match read {
                Ok(rows) => return rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
                Err(error) if Instant::now() > until => {
                    let log = fs::read_to_string(run.join("log")).unwrap_or_default();
                    panic!("it does not come up: {error}\n{log}");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal("QUIT", &[self.0.id() as i32]);
        let _ = self.0.wait();
    }
}

fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).expect("given");
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("listed").flatten().for_each(|entry| give(&entry.path(), uid));
    }
}

/// Waits until the log is archived up to where the leader is now.
pub fn caught_up(stack: &mut Stack) {
    let main = |status: &Value| status["services"]["main"].clone();
    let place = |text: &Value| text.as_str().and_then(|text| text.parse::<Lsn>().ok());
    let status = stack.status().expect("a status");
    let leader = main(&status)["leader"].as_str().expect("a leader").to_string();
    let now = place(&main(&status)["instances"][&leader]["detail"]["flush_lsn"]).expect("a place");
    stack.wait("an archive that has it all", |status| {
        place(&main(status)["backup"]["log_lsn"]) >= Some(now)
    });
}

pub fn held(status: &Value, rule: &str) -> bool {
    status["holds"].as_array().is_some_and(|holds| holds.iter().any(|hold| hold["rule"] == rule))
}

#[test]
fn everything_lost_at_once_is_restored_to_the_last_second() {
    let (mut stack, repository) = start();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    caught_up(&mut stack);
    let base = Base::take(&mut stack);

    // A failover, over which there is no hole.
    let (first, epoch) = (stack.leader(), stack.epoch());
    signal("KILL", &stack.node_pids(&first));
    stack.wait("another leader", |status| {
        status["services"]["main"]["epoch"].as_u64() > Some(epoch)
            && status["services"]["main"]["serving"] == true
    });
    load.flows();
    caught_up(&mut stack);
    let log = log(&repository);
    assert!(line(&log).len() > 1, "a new branch");
    end(&log, base.start);
    let rpo = stack.wait("an age", |it| it["services"]["main"]["backup"]["rpo_ms"].is_u64());
    assert!(!held(&rpo, "log-archive") && !held(&rpo, "log-gap"), "{:?}", rpo["holds"]);
    load.flows();
    std::thread::sleep(Duration::from_millis(random(3_000)));

    // All machines at once, with their disks.
    let mut pids: Vec<i32> = NODES.iter().flat_map(|node| stack.machine_pids(node)).collect();
    pids.sort_unstable();
    signal("KILL", &pids);
    stack.kill_up();
    let told = load.abandon();
    for node in NODES {
        let _ = fs::remove_dir_all(stack.data().join(node));
    }
    let rows = base.restored(&stack, &log);
    let (last, ..) = told.last().expect("something acknowledged");
    let lost = told.iter().filter(|(_, writer, n)| !rows.contains(&(*writer as i32, *n)));
    let oldest = lost.map(|(at, ..)| *at).min();
    let missing = oldest.map_or(Duration::ZERO, |at| last.duration_since(at));
    eprintln!("{} rows, the last {missing:?} are missing", rows.len());
    assert!(missing <= RPO, "{missing:?}");
}

fn random(below: u64) -> u64 {
    crate::stack::random::seed() % below
}

#[test]
fn a_repository_that_is_away_misses_nothing_once_it_is_back() {
    let (mut stack, repository) = start();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    caught_up(&mut stack);
    let before = whole(&log(&repository)).end;
    let (vault, away) = (stack.dir().join("vault"), stack.dir().join("away"));
    fs::rename(&vault, &away).expect("moved");
    let began = Instant::now();
    let hold = stack.hold("log-archive", &["vault"]);
    assert!(began.elapsed() >= Duration::from_secs(9), "at once: {hold}");
    // PostgreSQL would remove these segments if nothing kept them.
    let password = stack.password();
    for _ in 0..3 {
        let config = config(stack.write_port(), &password);
        block_on(async {
            let (client, _) = connect(&config).await.expect("a connection");
            let sql = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 17000000))";
            client.batch_execute(sql).await.expect("written");
        });
        checkpoint(&mut stack);
    }
    std::thread::sleep(Duration::from_secs(20).saturating_sub(began.elapsed()));
    let behind = stack.status().expect("a status")["services"]["main"]["backup"]["rpo_ms"].clone();
    assert!(behind.as_u64() >= Some(10_000), "{behind}");
    fs::rename(&away, &vault).expect("back");
    caught_up(&mut stack);
    stack.wait("an end of the hold", |status| !held(status, "log-archive"));
    assert!(!held(&stack.status().expect("a status"), "log-gap"));
    assert!(whole(&log(&repository)).end.0 > before.0 + 3 * SEGMENT);
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn a_lost_slot_is_a_gap_that_a_backup_ends_by_itself() {
    let (mut stack, repository) = start();
    let first = newest(&stack.status().expect("a status"));
    let psql = |stack: &Stack, sql: &str| stack.done(&["psql", "main", "--", "-XAt", "-c", sql]);
    psql(&stack, "CREATE TABLE point (at int); INSERT INTO point VALUES (1)");
    caught_up(&mut stack);
    let then = psql(
        &stack,
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')",
    );
    std::thread::sleep(Duration::from_millis(1_100));
    psql(&stack, "INSERT INTO point VALUES (2)");
    // What status tells is as old as the last look.
    std::thread::sleep(Duration::from_millis(1_500));
    caught_up(&mut stack);
    let before = whole(&log(&repository)).end;

    // What is written while the repository is away is kept by nothing.
    let (vault, away) = (stack.dir().join("vault"), stack.dir().join("away"));
    fs::rename(&vault, &away).expect("moved");
    let leader = stack.leader();
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                WHERE slot_name = 'everhold_log'";
    let fill = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 35000000))";
    for _ in 0..4 {
        as_superuser(&stack, &leader, drop);
        as_superuser(&stack, &leader, fill);
        as_superuser(&stack, &leader, drop);
        as_superuser(&stack, &leader, "CHECKPOINT");
        std::thread::sleep(Duration::from_secs(3));
    }
    psql(&stack, "INSERT INTO point VALUES (3)");
    fs::rename(&away, &vault).expect("back");
    let hold = stack.hold("log-gap", &[&before.to_string()]);
    eprintln!("{hold}");
    // Nobody asks for it.
    let status = stack.wait("a backup behind the gap", |status| {
        newest(status).is_string() && newest(status) != first
    });
    stack.wait("an end of the gap", |status| !held(status, "log-gap"));
    let second = newest(&status);
    let listed: Value =
        serde_json::from_str(&stack.done(&["backup", "list", "main", "--json"])).expect("JSON");
    let backup = &listed["backups"][0];
    assert_eq!((&backup["id"], &backup["kind"]), (&second, &"full".into()), "{listed}");
    let start: Lsn = backup["start"].as_str().expect("a place").parse().expect("a place");
    assert!(start > before);
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(2), "one and no more: {listed}");
    // A later archiver knows that the gap is over.
    signal("KILL", &stack.role_pids("archive", &leader));
    psql(&stack, "INSERT INTO point VALUES (4)");
    caught_up(&mut stack);
    assert!(!held(&stack.status().expect("a status"), "log-gap"));
    // Both sides of it can be restored, and what is in it can't.
    let rows = "SELECT string_agg(at::text, ' ' ORDER BY at) FROM point";
    let dir = |name: &str| stack.dir().join(name);
    assert_eq!(look(&stack, &dir("then"), &["--time", then.trim()], rows), "1");
    assert_eq!(look(&stack, &dir("now"), &[], rows), "1 2 3 4");
    let inside = Lsn(before.0 + (1 << 20)).to_string();
    let to = dir("inside").display().to_string();
    let output = stack.command(&["restore", "main", "--to", &to, "--lsn", &inside]).output();
    let said = String::from_utf8_lossy(&output.expect("it runs").stderr).to_string();
    assert!(said.contains("E287"), "{said}");
}

/// Where a standby's next backup begins is its last one.
pub fn checkpoint(stack: &mut Stack) {
    for node in NODES {
        as_superuser(stack, node, "CHECKPOINT");
    }
}

/// The first value that the node's own server answers, waiting for nobody else.
pub fn as_superuser(stack: &Stack, node: &str, sql: &str) -> Option<String> {
    let run = stack.data().join(node).join("main/run");
    let mut to = tokio_postgres::Config::new();
    to.host_path(&run).port(stack.postgres_port(node)).user(SUPERUSER).dbname("postgres");
    to.options("-c synchronous_commit=local");
    block_on(async {
        let (client, _) = connect(&to).await.expect("a connection");
        let answers = client.simple_query(sql).await.expect("an answer");
        answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_string),
            _ => None,
        })
    })
}

#[test]
fn an_archiver_of_an_old_epoch_spoils_nothing() {
    let (mut stack, repository) = start();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    caught_up(&mut stack);
    let base = Base::take(&mut stack);
    let (leader, epoch) = (stack.leader(), stack.epoch());
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != leader).collect();

    // The leader gets a tail that nobody else has, and freezes with all that is on its machine.
    let frozen: Vec<i32> = others.iter().flat_map(|node| stack.machine_pids(node)).collect();
    signal("STOP", &frozen);
    for _ in 0..4 {
        let config = config(stack.write_port(), &stack.password());
        std::thread::spawn(move || {
            block_on(async {
                let (client, _) = connect(&config).await?;
                let sql = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 4194304))";
                client.batch_execute(sql).await.map_err(|error| error.to_string())
            })
        });
    }
    std::thread::sleep(Duration::from_millis(700));
    let machine = stack.machine_pids(&leader);
    let archiver = stack.role_pids("archive", &leader);
    assert_eq!(archiver.len(), 1);
    signal("STOP", &machine);
    signal("CONT", &frozen);
    let status = stack.wait("another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["epoch"].as_u64() > Some(epoch) && main["leader"] != leader
    });
    load.flows();

    // Archiver and server thaw, and nobody who would stop them.
    signal("CONT", &stack.postgres_pids(&leader));
    signal("CONT", &archiver);
    let sql = "SELECT pg_logical_emit_message(true, 'test', 'of an old leader')";
    let alone = as_superuser(&stack, &leader, sql).expect("a place");
    let alone: Lsn = alone.parse().expect("a place");
    let log = log(&repository);
    caught_up(&mut stack);
    let line = line(&log);
    let [.., old, new] = &line[..] else { panic!("one branch: {line:?}") };
    let (id, fork) = (old.id(), new.fork);
    assert!(alone > fork, "{alone} is on no line: it forked at {fork}");
    let until = Instant::now() + PATIENCE;
    let beyond = || {
        let pieces = log.pieces(1).expect("listed");
        pieces.into_iter().any(|it| it.branch == id && it.end >= alone && it.epoch == epoch)
    };
    while !beyond() {
        assert!(Instant::now() < until, "the old archiver ships nothing: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    load.flows();
    signal("CONT", &machine);
    stack.whole();
    load.flows();
    caught_up(&mut stack);
    assert!(stack.role_pids("archive", &leader).is_empty(), "it leads no more");
    let told = load.abandon();
    std::thread::sleep(Duration::from_millis(200));
    caught_up(&mut stack);
    let rows = base.restored(&stack, &log);
    let lost: Vec<_> =
        told.iter().filter(|(_, writer, n)| !rows.contains(&(*writer as i32, *n))).collect();
    assert!(lost.is_empty(), "{} of {}: {:?}", lost.len(), told.len(), lost.first());
}
