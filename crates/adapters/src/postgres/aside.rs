//! A server on a restored directory, beside the cluster: reached over a socket and by its superuser
//! only, archiving nothing and following nobody. It is recovered to a point and then looked at.

use super::config::PgConfig;
use super::error::PgError;
use super::files::{self, Keep, Owner};
use super::process::Directory;
use super::session::Session;
use super::settings::{LIMITS, SUPERUSER};
use super::{postmaster, tool};
use everhold_core::ids::{Lsn, Tli};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Child;

/// Its only port names its socket.
const PORT: u16 = 5432;
/// Why [`Aside::hold`] came to no point, where PostgreSQL itself has no words.
pub const LOG_ENDS: &str = "the log ends before the point was reached";
const LOOK: Duration = Duration::from_millis(50);
/// A shutdown checkpoint of what was recovered.
const STOP_WITHIN: Duration = Duration::from_secs(300);
/// Killed processes are gone within this, unless their disk is stalled.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// One that is thrown away leaves nothing but its memory.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Up to where the log is replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All there is.
    End,
    /// As PostgreSQL reads a time, with its zone: the last commit at or before it.
    Time(String),
    /// The last record that begins before this place is replayed whole.
    Lsn(Lsn),
    /// Of pg_create_restore_point().
    Name(String),
    /// Only what the backup needs to be whole.
    Consistent,
}

/// A server beside the cluster. It ends with this.
pub struct Aside {
    pub(super) config: PgConfig,
    child: Child,
}

/// Where a server was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Just past the last record that was replayed.
    pub end: Lsn,
}

/// What becomes of it at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Promote,
    Hold,
}

/// Where it is and whose.
#[derive(Clone, Debug)]
pub struct AsideConfig {
    pub bin_dir: PathBuf,
    pub data_dir: PathBuf,
    /// For its socket and its own configuration; made with mode 0700.
    pub run_dir: PathBuf,
    pub run_as: Owner,
    /// The line that is followed ends with this timeline.
    pub tli: Tli,
    /// It may be thrown away after a crash, so nothing waits for the disk.
    pub throwaway: bool,
}

impl AsideConfig {
    /// Makes the directory for its socket, which its data may be put into.
    pub fn make_run_dir(&self) -> Result<(), PgError> {
        files::private_dir(&self.run_dir, self.run_as)
    }
}

impl Aside {
    /// Ends what a lost process left running on that directory, which is thrown away. Blocks.
    pub fn clear(data_dir: &Path) -> Result<(), PgError> {
        let directory = Directory { data_dir: data_dir.to_path_buf(), copies: Vec::new() };
        directory.end(Signal::QUIT, END_WITHIN, END_WITHIN * 6)
    }

    /// Starts it and waits until it has recovered to `target` and takes writes; then it is a branch
    /// of its own. Its recovery.signal came with its files.
    pub async fn recover(aside: &AsideConfig, target: &Target) -> Result<Aside, PgError> {
        let config = config(aside).prepare()?;
        write_files(&config)?;
        files::remove(&config.data_dir.join("standby.signal"))?;
        files::remove(&config.data_dir.join("postmaster.pid"))?;
        let mut aside =
            Aside { child: spawn(aside, &config, target, Then::Promote).await?, config };
        loop {
            if let Some(status) = aside.child.try_wait().map_err(not_waited)? {
                let said = postmaster::logged_since(&aside.config.log_file, 0);
                return Err(PgError::DidNotStart { said: format!("{said} ({status})") });
            }
            // What it does not answer now, on a machine that has much to do, it answers later.
            if let Ok(session) = aside.session("postgres").await {
                let sql = "SELECT pg_is_in_recovery()";
                let doing = "ask whether it has recovered";
                if session.value(doing, sql).await.is_ok_and(|it| it.as_deref() == Some("f")) {
                    return Ok(aside);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts it as a standby of nobody and waits until it has replayed up to `target` and no
    /// further. It never becomes a branch of its own. Its standby.signal came with its files.
    pub async fn hold(aside: &AsideConfig, target: &Target) -> Result<(Aside, Held), PgError> {
        let config = config(aside).prepare()?;
        write_files(&config)?;
        files::remove(&config.data_dir.join("recovery.signal"))?;
        files::remove(&config.data_dir.join("postmaster.pid"))?;
        // What an earlier one left when its process was killed.
        let directory = config.directory();
        let ended = move || directory.end(Signal::KILL, Duration::ZERO, GONE_WITHIN);
        tokio::task::spawn_blocking(ended)
            .await
            .map_err(|error| PgError::Task { said: error.to_string() })??;
        let mut server = Aside { child: spawn(aside, &config, target, Then::Hold).await?, config };
        match server.await_hold(target).await {
            Ok(held) => Ok((server, held)),
            Err(error) => {
                let _ = server.stop().await;
                Err(error)
            }
        }
    }

    async fn await_hold(&mut self, target: &Target) -> Result<Held, PgError> {
        loop {
            if let Some(status) = self.child.try_wait().map_err(not_waited)? {
                let said = postmaster::logged_since(&self.config.log_file, 0);
                return Err(PgError::DidNotStart { said: format!("{said} ({status})") });
            }
            if let Ok(session) = self.session("postgres").await {
                match self.look(&session, target).await {
                    Ok(Some(held)) => return Ok(held),
                    Err(refused @ PgError::Refused { .. }) => return Err(refused),
                    // It is not there yet, or does not answer now: hours of replay stand behind it.
                    Ok(None) | Err(_) => {}
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where it stands, once it stands.
    async fn look(&self, session: &Session, target: &Target) -> Result<Option<Held>, PgError> {
        let sql = "SELECT pg_get_wal_replay_pause_state(), pg_last_wal_replay_lsn(), \
                   (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')";
        let answers = session.ask_soon("look how far it has replayed", sql).await?;
        let row = answers.into_iter().next().and_then(|rows| rows.into_iter().next());
        let mut row = row.unwrap_or_default().into_iter();
        let mut next = || row.next().flatten();
        let (pause, end, waits) = (next(), next(), next());
        let at_end = waits.as_deref() == Some("RecoveryRetrieveRetryInterval");
        let paused = pause.as_deref() == Some("paused");
        if !paused && !at_end {
            return Ok(None);
        }
        // A pause is also how it says that a setting is too low for the log.
        let log = std::fs::read_to_string(&self.config.log_file).unwrap_or_default();
        if *target != Target::End && !log.contains("recovery stopping") {
            let what =
                if paused { "it can't go on before the point was reached" } else { LOG_ENDS };
            let said = postmaster::logged_since(&self.config.log_file, 0);
            return Err(PgError::refused(format!("{what}: {said}")));
        }
        if *target == Target::End {
            let mut why = String::new();
            super::standby::await_idle(session, std::time::Instant::now(), &mut why).await?;
        }
        let sql = "SELECT pg_last_wal_replay_lsn()";
        let end = session.value("read the replay position", sql).await?.or(end);
        let end = end.and_then(|end| end.parse().ok());
        let end = end.ok_or_else(|| PgError::refused("it has replayed nothing"))?;
        Ok(Some(Held { end }))
    }

    /// A session of the superuser.
    pub async fn session(&self, database: &str) -> Result<Session, PgError> {
        Session::open_in(&self.config, database, "restore", "").await
    }

    /// The rows of the last statement, as text; NULL is `None`.
    pub async fn rows(
        &self,
        database: &str,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, PgError> {
        let session = self.session(database).await?;
        let answers = session.ask("look at what was restored", sql).await?;
        Ok(answers.into_iter().next_back().unwrap_or_default())
    }

    pub fn run_dir(&self) -> &Path {
        &self.config.run_dir
    }

    /// Stops it in order.
    pub async fn stop(mut self) -> Result<(), PgError> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid as i32));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::INT);
        }
        let ended = tokio::time::timeout(STOP_WITHIN, self.child.wait()).await;
        match ended {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(not_waited(error)),
            Err(_) => Err(PgError::refused("the restored server did not stop in order")),
        }
    }
}

fn not_waited(error: std::io::Error) -> PgError {
    PgError::refused(format!("the restored server can't be waited for: {error}"))
}

fn config(aside: &AsideConfig) -> PgConfig {
    PgConfig {
        node: "aside".to_string(),
        bin_dir: aside.bin_dir.clone(),
        data_dir: aside.data_dir.clone(),
        run_dir: aside.run_dir.clone(),
        kept_dir: aside.run_dir.join("kept"),
        log_file: aside.run_dir.join("postgres.log"),
        listen: std::net::Ipv4Addr::LOCALHOST.into(),
        port: PORT,
        run_as: aside.run_as,
        database: "postgres".to_string(),
        owner: SUPERUSER.to_string(),
        owner_password_file: PathBuf::new(),
        replication_password_file: PathBuf::new(),
        tls: None,
        parameters: Default::default(),
    }
}

/// Nobody gets in but the superuser, and that only as the user who restores.
fn write_files(config: &PgConfig) -> Result<(), PgError> {
    let file = |name: &str, text: &str| {
        let path = config.run_dir.join(name);
        files::write(&path, text.as_bytes(), config.run_as, Keep::UntilReboot)
    };
    let mut ident = String::new();
    for name in config.local_names()? {
        ident += &format!("everhold \"{name}\" {SUPERUSER}\n");
    }
    file("postgresql.conf", "")?;
    file("pg_hba.conf", &format!("local all {SUPERUSER} peer map=everhold\n"))?;
    file("pg_ident.conf", &ident)
}

async fn spawn(
    aside: &AsideConfig,
    config: &PgConfig,
    target: &Target,
    then: Then,
) -> Result<Child, PgError> {
    let control = tool::control(config).await?;
    // It ends with whoever restores, however that ends.
    let through = ["setpriv", "--pdeathsig", "INT"];
    let mut command = tool::command(config, "postgres", &through);
    command.arg("-D").arg(&config.data_dir);
    let at = |name: &str| config.run_dir.join(name).display().to_string();
    let mut settings = vec![
        ("config_file".to_string(), at("postgresql.conf")),
        ("hba_file".to_string(), at("pg_hba.conf")),
        ("ident_file".to_string(), at("pg_ident.conf")),
        ("unix_socket_directories".to_string(), config.run_dir.display().to_string()),
        ("port".to_string(), PORT.to_string()),
    ];
    let mut set = |name: &str, value: &str| settings.push((name.to_string(), value.to_string()));
    for (name, value) in [
        ("listen_addresses", ""),
        ("archive_mode", "off"),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("synchronous_standby_names", ""),
        ("ssl", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("shared_preload_libraries", ""),
        ("session_preload_libraries", ""),
        ("max_wal_size", "1GB"),
        ("default_transaction_read_only", "off"),
        ("recovery_end_command", ""),
        ("archive_cleanup_command", ""),
        ("recovery_min_apply_delay", "0"),
        ("wal_retrieve_retry_interval", "50ms"),
        ("lc_messages", "C"),
        ("recovery_target_inclusive", "on"),
    ] {
        set(name, value);
    }
    // All of the log is in its directory.
    let how = match then {
        Then::Promote => [
            ("hot_standby", "off"),
            ("restore_command", "/bin/false"),
            ("recovery_target_action", "promote"),
        ],
        Then::Hold => {
            [("hot_standby", "on"), ("restore_command", ""), ("recovery_target_action", "pause")]
        }
    };
    how.into_iter().for_each(|(name, value)| set(name, value));
    // Of these it takes one, and none beside it that is empty.
    match target {
        Target::End => {}
        Target::Time(time) => set("recovery_target_time", time),
        Target::Lsn(lsn) => set("recovery_target_lsn", &lsn.to_string()),
        Target::Name(name) => set("recovery_target_name", name),
        Target::Consistent => set("recovery_target", "immediate"),
    }
    set("recovery_target_timeline", &aside.tli.to_string());
    for limit in LIMITS.iter().map(|(limit, _)| *limit).chain(["max_wal_senders"]) {
        if let Some(value) = control.limit(limit) {
            set(limit, &value.to_string());
        }
    }
    if aside.throwaway {
        ["fsync", "full_page_writes", "synchronous_commit"].iter().for_each(|it| set(it, "off"));
    }
    for (name, value) in settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let log = OpenOptions::new().create(true).write(true).truncate(true).open(&config.log_file);
    let log = log.map_err(PgError::file("open", &config.log_file))?;
    let errors = log.try_clone().map_err(PgError::file("open", &config.log_file))?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors).kill_on_drop(true);
    command.spawn().map_err(|error| PgError::Tool {
        tool: "postgres",
        status: "no start".to_string(),
        said: error.to_string(),
    })
}
