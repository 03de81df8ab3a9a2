//! What the server is told: what Everhold decides, what the operator may, and who may connect.
//!
//! Three layers, strongest first: forced settings on the command line, which neither ALTER SYSTEM
//! nor a file can change; ALTER SYSTEM; a file of the operator's parameters over our defaults. The
//! three settings that change while the server runs (where to stream from, whom to wait for) stand
//! in a file of their own that is included last, and ALTER SYSTEM's file is kept free of them.
//! Everything but ALTER SYSTEM's file is outside of the data directory, since a rewind or a clone
//! brings the files of the other server.

use super::config::PgConfig;
use super::control::Control;
use super::error::PgError;
use super::files::{self, Keep};
use everhold_core::ids::Member;
use everhold_core::policy::log_kept_bytes;
use everhold_core::postgres::{CLOSED, Source};
use postgres_protocol::password::scram_sha_256;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// The role standbys, rewinds, clones and probes connect as.
pub const REPLICATION_ROLE: &str = "everhold_replication";

/// The role of the agent itself, over the socket only.
pub const SUPERUSER: &str = "everhold";

/// WAL senders and slots: enough for nine nodes, each with a clone under way, and some of the
/// operator's own.
const SENDERS_MIN: u64 = 24;

/// Connections kept free for the agent when clients have taken all others: observation, evidence,
/// two for a seal or a barrier, and as many again that a dead agent left behind.
const RESERVED_CONNECTIONS_MIN: u64 = 8;

/// Limits that WAL depends on, with PostgreSQL's defaults.
pub const LIMITS: [(&str, u64); 4] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// Defaults that an operator may change.
const DEFAULTS: &[(&str, &str)] = &[
    // A rewind copies the source's whole pg_wal, so it holds no more than what slots need: no
    // segments kept ready for later, no tail for standbys without a slot, since all have one.
    ("wal_recycle", "off"),
    ("min_wal_size", "32MB"),
    ("wal_keep_size", "0"),
    // A dead client is noticed within half a minute.
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("log_line_prefix", "%m [%p] "),
];

/// Also a default, by the disk: a standby that is gone for longer is cloned again, rather than the
/// leader's disk filled.
const LOG_KEPT: &str = "max_slot_wal_keep_size";

/// Of a standby's walsender. A checkpoint that takes its log away ends it and waits for that; one that
/// writes to a frozen standby would not end before the standby goes on. Longer than
/// wal_sender_timeout, which is for all else. A rewind or a clone may rest for longer on a slow disk.
const SENDER_OPTIONS: &str = "-c tcp_user_timeout=10000";

/// Settings of the third file.
const DYNAMIC: [&str; 3] = ["primary_conninfo", "primary_slot_name", "synchronous_standby_names"];

/// Settings that are left at PostgreSQL's default, and that nobody may change: a server that promotes
/// itself or stops replaying is out of the agent's hands.
const UNTOUCHED: [&str; 9] = [
    "promote_trigger_file",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "unix_socket_group",
];

fn is_ours(name: &str, forced: &BTreeMap<String, String>) -> bool {
    forced.contains_key(name) || DYNAMIC.contains(&name) || UNTOUCHED.contains(&name)
}

/// The paths of the files written here.
#[derive(Clone, Debug)]
pub struct Paths {
    pub main: PathBuf,
    pub dynamic: PathBuf,
    pub hba: PathBuf,
    pub ident: PathBuf,
    pub passfile: PathBuf,
    /// Copies that PostgreSQL's user can read.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Paths {
    pub fn of(config: &PgConfig) -> Paths {
        let at = |name: &str| config.run_dir.join(name);
        Paths {
            main: at("postgresql.conf"),
            dynamic: at("everhold.conf"),
            hba: at("pg_hba.conf"),
            ident: at("pg_ident.conf"),
            passfile: at("passfile"),
            ca: at("ca.pem"),
            cert: at("server.pem"),
            key: at("server.key"),
        }
    }
}

/// The forced settings, as `-c` arguments of the server.
pub fn forced(config: &PgConfig, control: Option<&Control>) -> BTreeMap<String, String> {
    let paths = Paths::of(config);
    let path = |path: &Path| path.display().to_string();
    let asked = |name: &str| config.parameters.get(name).map(String::as_str);
    let at_least = |name: &str, floor: u64| {
        let asked = asked(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        let recorded = control.and_then(|control| control.limit(name)).unwrap_or(0);
        floor.max(asked).max(recorded).to_string()
    };
    let mut forced: BTreeMap<&str, String> = BTreeMap::from([
        // Durability, and what a rewind needs.
        ("fsync", "on".into()),
        ("full_page_writes", "on".into()),
        ("wal_log_hints", "on".into()),
        ("data_sync_retry", "off".into()),
        ("zero_damaged_pages", "off".into()),
        ("ignore_checksum_failure", "off".into()),
        ("ignore_invalid_pages", "off".into()),
        (
            "synchronous_commit",
            match asked("synchronous_commit") {
                Some("remote_apply") => "remote_apply".into(),
                _ => "on".into(),
            },
        ),
        (
            "wal_level",
            match asked("wal_level") {
                Some("logical") => "logical".into(),
                _ => "replica".into(),
            },
        ),
        // Only the agent decides what follows a crash.
        ("restart_after_crash", "off".into()),
        // A standby follows whom the agent says, and nothing else.
        ("hot_standby", "on".into()),
        ("restore_command", String::new()),
        ("archive_cleanup_command", String::new()),
        ("recovery_end_command", String::new()),
        ("recovery_min_apply_delay", "0".into()),
        ("recovery_target_timeline", "latest".into()),
        ("wal_receiver_create_temp_slot", "off".into()),
        ("wal_receiver_status_interval", "1s".into()),
        ("wal_receiver_timeout", "5s".into()),
        ("wal_sender_timeout", "5s".into()),
        ("wal_retrieve_retry_interval", "50ms".into()),
        ("max_wal_senders", at_least("max_wal_senders", SENDERS_MIN)),
        ("max_replication_slots", at_least("max_replication_slots", SENDERS_MIN)),
        (
            "superuser_reserved_connections",
            at_least("superuser_reserved_connections", RESERVED_CONNECTIONS_MIN),
        ),
        // Where it is and who gets in.
        ("cluster_name", config.node.clone()),
        ("listen_addresses", config.listen.to_string()),
        ("port", config.port.to_string()),
        ("unix_socket_directories", quoted_directory(&config.run_dir)),
        ("unix_socket_permissions", "0700".into()),
        ("config_file", path(&paths.main)),
        ("hba_file", path(&paths.hba)),
        ("ident_file", path(&paths.ident)),
        ("password_encryption", "scram-sha-256".into()),
        ("ssl", if config.tls.is_some() { "on".into() } else { "off".into() }),
        ("ssl_ca_file", path(&paths.ca)),
        ("ssl_cert_file", path(&paths.cert)),
        ("ssl_key_file", path(&paths.key)),
        // The log is the agent's file, which it keeps small.
        ("log_destination", "stderr".into()),
        ("logging_collector", "off".into()),
    ]);
    // A standby whose limits are below those its WAL was written under stops replaying.
    for (name, default) in LIMITS {
        let asked = asked(name).and_then(|value| value.parse().ok()).unwrap_or(default);
        if let Some(recorded) = control.and_then(|control| control.limit(name))
            && asked < recorded
        {
            forced.insert(name, recorded.to_string());
        }
    }
    forced.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// The operator's limits, for the very first start: later ones can be raised, never lowered, since
/// every start is a standby's.
pub fn first_limits(config: &PgConfig) -> impl Iterator<Item = String> {
    let asked = |name: &str| Some(format!("{name}={}", config.parameters.get(name)?));
    LIMITS.iter().filter_map(move |(name, _)| asked(name))
}

/// Limits that a running server has above what the operator asks for, in words.
pub fn not_lowered(config: &PgConfig, name: &str, in_force: &str) -> Option<String> {
    let asked = config.parameters.get(name)?;
    let is_limit = LIMITS.iter().any(|(limit, _)| *limit == name);
    let lower = asked.parse::<u64>().ok()? < in_force.parse().ok()?;
    (is_limit && lower).then(|| {
        format!("parameters: {name} = {asked} has no effect, its WAL was written under {in_force}")
    })
}

/// unix_socket_directories is a list: a comma in a name would part it.
fn quoted_directory(dir: &Path) -> String {
    format!("\"{}\"", dir.display().to_string().replace('"', "\"\""))
}

/// Parameters of the spec and of ALTER SYSTEM that have no effect, in words.
pub fn ignored(config: &PgConfig) -> Vec<String> {
    let forced = forced(config, None);
    let differs = |(name, value): &(&String, &String)| {
        is_ours(name, &forced) && forced.get(*name) != Some(*value)
    };
    let say =
        |(name, value)| format!("parameters: {name} = {value} has no effect, Everhold sets it");
    // A larger number of senders and the like is taken over, so it doesn't differ.
    config.parameters.iter().filter(differs).map(say).collect()
}

/// Writes all files for a start: closed, with or without a source. `local_names` are the system
/// users that may be the superuser.
pub fn write_all(
    config: &PgConfig,
    local_names: &[String],
    source: Option<&Source>,
) -> Result<(), PgError> {
    let paths = Paths::of(config);
    write_parameters(config)?;
    let remote = if config.tls.is_some() { REMOTE_TLS } else { REMOTE_PLAIN };
    write(config, &paths.hba, &format!("{LOCAL}{remote}"))?;
    write_certificates(config)?;
    let mut ident = String::new();
    for name in local_names {
        let _ = writeln!(ident, "everhold \"{name}\" {SUPERUSER}");
    }
    write(config, &paths.ident, &ident)?;
    write_passfile(config)?;
    Dynamic { source: source.cloned(), names: CLOSED.to_string() }.write(config)
}

/// Writes the operator's parameters over our defaults. A running server takes them at a reload, as
/// far as it can without a start.
pub fn write_parameters(config: &PgConfig) -> Result<(), PgError> {
    let paths = Paths::of(config);
    let mut main =
        String::from("# Written by Everhold before each start: changes here are lost.\n");
    let log_kept = format!("{}MB", log_kept_bytes(log_disk_bytes(&config.data_dir)) >> 20);
    let mut parameters: BTreeMap<&str, &str> = DEFAULTS.iter().copied().collect();
    parameters.insert(LOG_KEPT, &log_kept);
    parameters
        .extend(config.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let forced = forced(config, None);
    for (name, value) in parameters {
        if !is_ours(name, &forced) {
            let _ = writeln!(main, "{name} = {}", quoted(value));
        }
    }
    let _ = writeln!(main, "include = {}", quoted(&paths.dynamic.display().to_string()));
    write(config, &paths.main, &main)
}

/// How large the disk is that the log of a data directory is on, or would be on; 0: nobody knows.
fn log_disk_bytes(data_dir: &Path) -> u64 {
    let log = data_dir.join("pg_wal");
    let there = log.ancestors().find(|it| it.exists());
    let disk = there.and_then(|it| rustix::fs::statvfs(it).ok());
    disk.map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

fn write(config: &PgConfig, path: &Path, content: &str) -> Result<(), PgError> {
    files::write(path, content.as_bytes(), config.run_as, Keep::UntilReboot)
}

/// The file libpq reads the replication role's password from: for standbys, rewinds and clones.
pub fn write_passfile(config: &PgConfig) -> Result<(), PgError> {
    let password = read_password(&config.replication_password_file)?;
    let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
    let line = format!("*:*:*:{REPLICATION_ROLE}:{escaped}\n");
    write(config, &Paths::of(config).passfile, &line)
}

/// A text as SQL has it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name as SQL has it.
pub fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Gives the roles that Everhold made their passwords of this cluster, as what a server keeps of
/// them: the passwords themselves stand in no statement. Nothing of it is logged, nor waited for:
/// nobody acknowledges yet.
pub fn roles_sql(config: &PgConfig) -> Result<String, PgError> {
    let owner_password = read_password(&config.owner_password_file)?;
    let replication_password = read_password(&config.replication_password_file)?;
    let exists =
        |role: &str| format!("EXISTS (SELECT FROM pg_roles WHERE rolname = {})", literal(role));
    let mut sql = "SET log_statement = none; SET log_min_error_statement = panic; \
                   SET log_min_duration_statement = -1; SET log_duration = off; \
                   SET synchronous_commit = local;"
        .to_string();
    for (role, more, password) in [
        (REPLICATION_ROLE, "REPLICATION", replication_password),
        (config.owner.as_str(), "", owner_password),
    ] {
        let (given, password) = (name(role), literal(&scram_sha_256(password.as_bytes())));
        sql += &format!(
            " DO $everhold$ BEGIN IF NOT {} THEN CREATE ROLE {given}; END IF; END $everhold$; \
             ALTER ROLE {given} LOGIN {more} PASSWORD {password};",
            exists(role)
        );
    }
    Ok(sql)
}

/// What a password file holds, without the line's end.
pub fn read_password(path: &Path) -> Result<String, PgError> {
    let text = fs::read_to_string(path).map_err(PgError::file("read the password in", path))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.contains(['\r', '\n', '\0']) {
        return Err(PgError::refused(format!("{} must hold one line, a password", path.display())));
    }
    Ok(password.to_string())
}

/// The agent over the socket by its user; everybody else by password.
const LOCAL: &str = "\
local all everhold peer map=everhold
local replication everhold peer map=everhold
local all all scram-sha-256
host all everhold all reject
";

/// Where nobody but this machine is spoken to.
const REMOTE_PLAIN: &str = "\
host replication everhold_replication all scram-sha-256
host postgres everhold_replication all scram-sha-256
host all everhold_replication all reject
host all all all scram-sha-256
";

/// Other nodes prove themselves with their certificate too; clients know the password.
const REMOTE_TLS: &str = "\
hostssl replication everhold_replication all scram-sha-256 clientcert=verify-ca
hostssl postgres everhold_replication all scram-sha-256 clientcert=verify-ca
host all everhold_replication all reject
hostssl all all all scram-sha-256
";

/// Copies certificate and key to where PostgreSQL's user can read them. A running server takes new
/// ones at a reload, a standby with its next connection.
pub fn write_certificates(config: &PgConfig) -> Result<(), PgError> {
    let Some(pair) = &config.tls else { return Ok(()) };
    let paths = Paths::of(config);
    for (from, to) in [(&pair.ca, paths.ca), (&pair.cert, paths.cert), (&pair.key, paths.key)] {
        let text = fs::read_to_string(from).map_err(PgError::file("read", from))?;
        write(config, &to, &text)?;
    }
    Ok(())
}

/// The settings that change while the server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dynamic {
    pub source: Option<Source>,
    pub names: String,
}

impl Dynamic {
    /// Not synced: after a reboot all is written anew before PostgreSQL starts.
    pub fn write(&self, config: &PgConfig) -> Result<(), PgError> {
        let conninfo = self.source.as_ref().map(|source| conninfo(source, config));
        let slot = self.source.as_ref().map(|source| source.slot.as_str());
        let text = format!(
            "primary_conninfo = {}\nprimary_slot_name = {}\nsynchronous_standby_names = {}\n",
            quoted(conninfo.as_deref().unwrap_or_default()),
            quoted(slot.unwrap_or_default()),
            quoted(&self.names)
        );
        write(config, &Paths::of(config).dynamic, &text)?;
        free_auto_conf(config)
    }
}

impl Dynamic {
    /// What was written last; closed and without a source where that can't be read.
    pub fn read(config: &PgConfig) -> Dynamic {
        let text = fs::read_to_string(Paths::of(config).dynamic).unwrap_or_default();
        let value = |name: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
            values.find_map(|rest| rest.strip_prefix(" = ")).map(unquoted)
        };
        let slot = value("primary_slot_name").unwrap_or_default();
        let source = value("primary_conninfo").and_then(|text| parse_conninfo(&text, &slot));
        let names = value("synchronous_standby_names").unwrap_or_else(|| CLOSED.to_string());
        Dynamic { source, names }
    }
}

/// libpq's words for where to stream from. The walreceiver sets a fallback name of its own, so that
/// of the leader is only carried along, for observation to read it back.
pub fn conninfo(source: &Source, config: &PgConfig) -> String {
    let member = source.member.to_string();
    let own = [
        ("application_name", source.slot.as_str()),
        ("fallback_application_name", &member),
        ("options", SENDER_OPTIONS),
    ];
    connection_words(source, config, &own)
}

/// libpq's words for a rewind or a clone, under a name that no member has.
pub fn tool_conninfo(source: &Source, config: &PgConfig, application: &str) -> String {
    let own = [("application_name", application), ("dbname", "postgres")];
    connection_words(source, config, &own)
}

fn connection_words(source: &Source, config: &PgConfig, own: &[(&str, &str)]) -> String {
    let paths = Paths::of(config);
    let shown = |path: &Path| path.display().to_string();
    let (port, passfile) = (source.port.to_string(), shown(&paths.passfile));
    let (ca, cert, key) = (shown(&paths.ca), shown(&paths.cert), shown(&paths.key));
    let common = [
        ("host", source.host.as_str()),
        ("port", &port),
        ("user", REPLICATION_ROLE),
        ("passfile", &passfile),
        ("gssencmode", "disable"),
        // A leader that is gone is given up within seconds.
        ("connect_timeout", "2"),
        ("keepalives_idle", "2"),
        ("keepalives_interval", "1"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "5000"),
    ];
    let tls: &[(&str, &str)] = match &config.tls {
        Some(_) => &[
            ("sslmode", "verify-full"),
            ("sslrootcert", &ca),
            ("sslcert", &cert),
            ("sslkey", &key),
        ],
        None => &[("sslmode", "disable")],
    };
    let say = |(name, value): &(&str, &str)| format!("{name}={}", word(value));
    common.iter().chain(tls).chain(own).map(say).collect::<Vec<_>>().join(" ")
}

/// The source in libpq's words, as [`conninfo`] writes them. `None` if there is no host.
pub fn parse_conninfo(text: &str, slot: &str) -> Option<Source> {
    let words = words(text);
    let member = words.get("fallback_application_name").and_then(|name| name.parse().ok());
    Some(Source {
        host: words.get("host")?.clone(),
        port: words.get("port").and_then(|port| port.parse().ok()).unwrap_or(5432),
        member: member.unwrap_or_else(|| Member::new("", 0)),
        slot: slot.to_string(),
    })
}

fn word(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn words(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut chars = text.chars().peekable();
    loop {
        let name: String = std::iter::from_fn(|| chars.next_if(|c| *c != '=')).collect();
        if chars.next().is_none() {
            return found;
        }
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        while let Some(c) = chars.next() {
            match c {
                '\\' => value.extend(chars.next()),
                '\'' if quoted => break,
                ' ' if !quoted => break,
                c => value.push(c),
            }
        }
        found.insert(name.trim().to_string(), value);
    }
}

/// A value as a configuration file wants it.
pub fn quoted(value: &str) -> String {
    let inner = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n");
    format!("'{inner}'")
}

fn unquoted(value: &str) -> String {
    let inner = value.trim().strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    inner.unwrap_or_default().replace("\\n", "\n").replace("''", "'").replace("\\\\", "\\")
}

/// Takes what only Everhold sets out of ALTER SYSTEM's file, and leaves the rest.
fn free_auto_conf(config: &PgConfig) -> Result<(), PgError> {
    let path = config.data_dir.join("postgresql.auto.conf");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let (kept, dropped) = without_ours(&text, &forced(config, None));
    if dropped.is_empty() {
        return Ok(());
    }
    tracing::warn!(node = %config.node, settings = ?dropped, "ALTER SYSTEM of forced settings undone");
    files::write(&path, kept.as_bytes(), config.run_as, Keep::Synced)
}

/// The lines of `text` that aren't ours to set, and the names of the others.
fn without_ours(text: &str, forced: &BTreeMap<String, String>) -> (String, Vec<String>) {
    let mut kept = String::new();
    let mut dropped = Vec::new();
    for line in text.lines() {
        let end = line.find(['=', ' ', '\t']).unwrap_or(line.len());
        let name = line[..end].to_ascii_lowercase();
        if is_ours(&name, forced) {
            dropped.push(name);
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    (kept, dropped)
}

/// Forced names that ALTER SYSTEM holds now, in words.
pub fn altered(config: &PgConfig) -> Vec<String> {
    let path = config.data_dir.join("postgresql.auto.conf");
    let text = fs::read_to_string(path).unwrap_or_default();
    let (_, dropped) = without_ours(&text, &forced(config, None));
    dropped.into_iter().map(|name| format!("ALTER SYSTEM: {name} is Everhold's")).collect()
}

/// A `name=value` of a role or a database that takes a guarantee away.
pub fn weakens(setting: &str) -> bool {
    let Some((name, value)) = setting.split_once('=') else { return false };
    match name {
        "synchronous_commit" => !matches!(value, "on" | "remote_apply" | "true" | "yes" | "1"),
        "zero_damaged_pages" | "ignore_checksum_failure" => {
            matches!(value, "on" | "true" | "yes" | "1")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(at: impl Fn(&str) -> PathBuf) -> PgConfig {
        PgConfig {
            node: "a".into(),
            bin_dir: at("bin"),
            data_dir: at("data"),
            run_dir: at(""),
            kept_dir: at("kept"),
            log_file: at("log"),
            listen: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 5432,
            run_as: None,
            database: "app".into(),
            owner: "app".into(),
            owner_password_file: at("owner"),
            replication_password_file: at("replication"),
            tls: None,
            parameters: BTreeMap::new(),
        }
    }

    #[test]
    fn how_much_log_is_kept_follows_the_disk_unless_it_is_said() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = config(|name| dir.path().join(name));
        let kept = |config: &PgConfig| {
            write_parameters(config).expect("written");
            let text = fs::read_to_string(Paths::of(config).main).expect("a file");
            let line = text.lines().find_map(|it| it.strip_prefix("max_slot_wal_keep_size = "));
            line.map(unquoted).expect("it is set")
        };
        let disk = log_disk_bytes(dir.path());
        assert!(disk > 0, "there is a disk");
        assert_eq!(kept(&config), format!("{}MB", log_kept_bytes(disk) >> 20));
        config.parameters.insert(LOG_KEPT.to_string(), "7GB".to_string());
        assert_eq!(kept(&config), "7GB");
    }

    #[test]
    fn a_source_comes_back_as_it_was_written() {
        let source = Source {
            member: Member::new("b", 3),
            host: "db'1\\x y".into(),
            port: 5433,
            slot: "a_1".into(),
        };
        let at = |name: &str| PathBuf::from(format!("/run/it's here/{name}"));
        let mut config = config(at);
        let text = conninfo(&source, &config);
        assert_eq!(parse_conninfo(&text, "a_1"), Some(source.clone()));
        assert_eq!(words(&text)["passfile"], "/run/it's here/passfile");
        assert_eq!(words(&text)["sslmode"], "disable");
        assert_eq!(words(&text)["options"], "-c tcp_user_timeout=10000");
        config.tls = Some(crate::pki::CertPair { ca: at("ca"), cert: at("cert"), key: at("key") });
        let text = conninfo(&source, &config);
        assert_eq!(parse_conninfo(&text, "a_1"), Some(source));
        assert_eq!(words(&text)["sslmode"], "verify-full");
        assert_eq!(words(&text)["sslkey"], "/run/it's here/server.key");
        assert_eq!(parse_conninfo("", ""), None);
        assert_eq!(parse_conninfo("host=x user=y", "").map(|s| s.host), Some("x".to_string()));
    }

    #[test]
    fn alter_system_keeps_what_is_not_ours() {
        let forced = BTreeMap::from([("fsync".to_string(), "on".to_string())]);
        let text = "# a comment\nwork_mem = '8MB'\nfsync = 'off'\nPrimary_Conninfo='host=x'\n";
        let (kept, dropped) = without_ours(text, &forced);
        assert_eq!(kept, "# a comment\nwork_mem = '8MB'\n");
        assert_eq!(dropped, ["fsync", "primary_conninfo"]);
    }

    #[test]
    fn values_are_quoted_for_the_file() {
        assert_eq!(quoted("it's \\ 1"), "'it''s \\\\ 1'");
        for text in ["", "it's \\ 1", "ANY 1 (\"-\")"] {
            assert_eq!(unquoted(&quoted(text)), text);
        }
    }
}
