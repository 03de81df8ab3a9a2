//! Real servers in a directory that vanishes with them.

use everhold_adapters::postgres::{PgConfig, Postgres, free_memory};
use everhold_core::ids::{Epoch, Lsn, Member, Tli};
use everhold_core::postgres::{
    PgAction, PgFacts, PgOutcome, Process, Source, StopMode, sync_names,
};
use everhold_core::term::{Branch, Set};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

pub const OWNER_PASSWORD: &str = "owner's \\ pass:word";
pub const REPLICATION_PASSWORD: &str = "repli:cation\\'s pass";

pub struct Cluster {
    pub dir: TempDir,
}

/// A node and its server, which is killed when this is dropped.
pub struct Node {
    pub me: Member,
    pub config: PgConfig,
    pub pg: Postgres,
}

impl Drop for Node {
    fn drop(&mut self) {
        for _ in 0..200 {
            let left = self.pg.pids();
            if left.is_empty() {
                break;
            }
            left.into_iter().for_each(|pid| signal(pid, "KILL"));
            std::thread::sleep(Duration::from_millis(5));
        }
        let config = &self.config;
        let _ = free_memory(&config.bin_dir, &config.data_dir, config.run_as);
    }
}

impl Cluster {
    pub fn new() -> Cluster {
        let dir = tempfile::Builder::new().prefix("everhold-pg-").tempdir().unwrap();
        // The server's user has to get through to its own directories.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        for (name, password) in [("owner", OWNER_PASSWORD), ("replication", REPLICATION_PASSWORD)] {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("{password}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        }
        Cluster { dir }
    }

    pub fn config(&self, name: &str) -> PgConfig {
        let at = |what: &str| self.dir.path().join(name).join(what);
        PgConfig {
            node: name.to_string(),
            bin_dir: bin_dir(),
            data_dir: at("data"),
            run_dir: at("run"),
            kept_dir: at("diverged"),
            log_file: at("postgres.log"),
            listen: Ipv4Addr::LOCALHOST.into(),
            port: free_port(),
            run_as: run_as(),
            database: "app".into(),
            owner: "app".into(),
            owner_password_file: self.dir.path().join("owner"),
            replication_password_file: self.dir.path().join("replication"),
            tls: None,
            parameters: BTreeMap::from([("shared_buffers".into(), "16MB".into())]),
        }
    }

    pub async fn node(&self, name: &str) -> Node {
        Node::open(name, self.config(name)).await
    }

    /// A leader at epoch 1 on timeline 2, waiting for nobody it could have: closed.
    pub async fn leader(&self, name: &str) -> Node {
        let node = self.node(name).await;
        node.run(PgAction::Bootstrap).await;
        node.start(&line(&[1]), None).await;
        let (end, tli) = node.park().await;
        assert_eq!(tli, 1);
        let promoted = node.promote(2, 1, end, &[], &[]).await;
        assert_eq!(promoted, PgOutcome::Promoted { tli: 2, parent: 1, fork: end });
        node
    }

    /// A standby cloned from `leader`, streaming through its slot.
    pub async fn standby(&self, name: &str, leader: &Node) -> Node {
        let node = self.node(name).await;
        leader.run(slots(&[&node])).await;
        let source = node.source(leader);
        node.run(PgAction::Clone {
            source: source.clone(),
            fork: None,
            epoch: 1,
            keep: false,
            bad_pages_too: false,
        })
        .await;
        node.start(&line(&[1, 2]), Some(source)).await;
        leader.await_streaming(&node).await;
        node
    }
}

impl Node {
    pub async fn open(name: &str, config: PgConfig) -> Node {
        let pg = Postgres::open(config.clone()).await.unwrap();
        Node { me: Member::new(name, 1), config, pg }
    }

    pub async fn run(&self, action: PgAction) -> PgOutcome {
        match self.pg.run(&self.me, &action).await {
            Ok(outcome) => outcome,
            Err(error) => panic!("{} {action:?}: {error} {}", self.me, self.log()),
        }
    }

    pub async fn fail(&self, action: PgAction) -> String {
        match self.pg.run(&self.me, &action).await {
            Ok(outcome) => panic!("{} {action:?}: {outcome:?}", self.me),
            Err(error) => error.to_string(),
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.config.log_file).unwrap_or_default()
    }

    pub async fn facts(&self) -> PgFacts {
        self.pg.observe(&self.me).await
    }

    pub fn source(&self, leader: &Node) -> Source {
        Source {
            member: leader.me.clone(),
            host: leader.config.listen.to_string(),
            port: leader.config.port,
            slot: self.me.slot(),
        }
    }

    pub async fn start(&self, line: &[Branch], source: Option<Source>) {
        self.run(PgAction::Start { line: line.to_vec(), source }).await;
        let begun = Instant::now();
        while self.facts().await.process != Process::Running {
            assert!(begun.elapsed().as_secs() < 60, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn stop(&self, mode: StopMode) {
        self.run(PgAction::Stop { mode }).await;
        assert_eq!(self.pg.pids(), [] as [i32; 0]);
    }

    pub async fn park(&self) -> (Lsn, Tli) {
        match self.run(PgAction::Park).await {
            PgOutcome::Parked { end, tli } => (end, tli),
            other => panic!("{other:?}"),
        }
    }

    pub async fn seal(&self) -> (Lsn, Tli) {
        self.run(PgAction::SetSource { source: None }).await;
        self.park().await
    }

    pub async fn promote(
        &self,
        tli: Tli,
        parent: Tli,
        fork: Lsn,
        reserved: &[Tli],
        slots: &[&Node],
    ) -> PgOutcome {
        let branch = Branch { tli, epoch: Epoch::from(tli), parent, fork };
        let slots = slots.iter().map(|node| node.me.slot()).collect();
        self.run(PgAction::Promote { branch, reserved: reserved.to_vec(), slots }).await
    }

    /// Waits for `k` of `standbys`.
    pub async fn wait_for(&self, k: u32, standbys: &[&Node]) {
        let members = standbys.iter().map(|node| node.me.clone()).collect();
        let names = sync_names(&Set { leader: self.me.clone(), members, k }, false);
        self.run(PgAction::SetSync { names }).await;
    }

    pub async fn follow(&self, leader: &Node) {
        self.run(PgAction::SetSource { source: Some(self.source(leader)) }).await;
        leader.await_streaming(self).await;
    }

    pub async fn await_streaming(&self, standby: &Node) {
        let name = standby.me.slot();
        let begun = Instant::now();
        loop {
            let facts = self.facts().await;
            let mut rows = facts.walsenders.iter();
            if rows.any(|row| row.name == name && row.streaming && row.owns_slot) {
                return;
            }
            let waited = begun.elapsed();
            assert!(waited.as_secs() < 20, "{facts:?}\n{}\n{}", standby.log(), self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A superuser's session over the socket.
    /// Until it has replayed up to there.
    pub async fn await_replay(&self, end: Lsn) {
        let begun = Instant::now();
        while self.facts().await.lsn < end {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn admin(&self) -> Client {
        let mut to = tokio_postgres::Config::new();
        to.host_path(&self.config.run_dir).port(self.config.port).user("everhold");
        connect(to.dbname("app")).await
    }

    /// A client's session over the network, with its password.
    pub async fn client(&self) -> Client {
        let mut to = tokio_postgres::Config::new();
        to.host(self.config.listen.to_string()).port(self.config.port).user("app").dbname("app");
        connect(to.password(OWNER_PASSWORD)).await
    }

    pub fn pg_wal(&self) -> PathBuf {
        self.config.data_dir.join("pg_wal")
    }

    /// Kills the postmaster, and says after what time that was seen.
    pub async fn kill_postmaster(&self) -> Duration {
        let pid = self.postmaster().await;
        let mut death = self.pg.death();
        let begun = Instant::now();
        signal(pid, "KILL");
        let seen = tokio::time::timeout(Duration::from_secs(1), death.changed()).await;
        seen.expect("its death is seen").unwrap();
        begun.elapsed()
    }

    pub async fn postmaster(&self) -> i32 {
        self.facts().await.pid.unwrap()
    }
}

pub async fn connect(to: &tokio_postgres::Config) -> Client {
    let (client, connection) = to.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Runs statements; a commit that nobody acknowledges fails the test instead of hanging it.
pub async fn execute(client: &Client, sql: &str) -> Vec<SimpleQueryMessage> {
    let answer = tokio::time::timeout(Duration::from_secs(30), client.simple_query(sql)).await;
    answer.unwrap_or_else(|_| panic!("no answer: {sql}")).unwrap()
}

/// One value as text.
pub async fn value(client: &Client, sql: &str) -> String {
    for message in execute(client, sql).await {
        if let SimpleQueryMessage::Row(row) = message {
            return row.get(0).unwrap_or_default().to_string();
        }
    }
    String::new()
}

/// Branches of these numbers; forks don't matter to the adapter.
pub fn line(tlis: &[Tli]) -> Vec<Branch> {
    let mut parent = 0;
    let branch = |tli: &Tli| {
        let branch = Branch { tli: *tli, epoch: Epoch::from(*tli), parent, fork: Lsn(0) };
        parent = *tli;
        branch
    };
    tlis.iter().map(branch).collect()
}

pub fn signal(pid: i32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
}

/// Slots for these, who have all there is.
pub fn slots(of: &[&Node]) -> PgAction {
    let names = of.iter().map(|node| node.me.slot()).collect();
    PgAction::Slots { names, needed: BTreeMap::new() }
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The newest PostgreSQL here.
pub fn bin_dir() -> PathBuf {
    let root = Path::new("/usr/lib/postgresql");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path().join("bin")).collect();
    found.sort();
    found.pop().unwrap()
}

/// PostgreSQL doesn't run as root.
pub fn run_as() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let id = |flag: &str| {
        let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    Some((id("-u"), id("-g")))
}
