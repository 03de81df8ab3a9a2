//! PostgreSQL settings that a user may give: which exist, what they hold, and which are Everhold's.
//!
//! The table of settings is PostgreSQL's own (`pg_settings` of version 15). A wrong name or value
//! is found here, with its line, instead of by a server that will not start.

use std::fmt;

/// `pg_settings` without extensions: name, context, type, unit, least, greatest, values.
const TABLE: &str = include_str!("postgres_15.tsv");

/// Senders and slots: each standby holds one, a clone under way two more, and a leader that comes
/// back needs its own free at once.
const SENDERS_MIN: i64 = 10;
/// The agent, the minder and the standbys hold some of the connections.
const CONNECTIONS_MIN: i64 = 20;
/// The agent must get in when clients have taken every other connection.
const RESERVED_MIN: i64 = 3;

/// What is allowed of a setting that a guarantee hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Everhold sets it, per node or per moment.
    Ours,
    /// Only these values keep the guarantee.
    OneOf(&'static [&'static str]),
    AtLeast(i64),
}

const ON: Rule = Rule::OneOf(&["on"]);
const OFF: Rule = Rule::OneOf(&["off"]);
const PLACE: &str = "each instance has a place of its own";
const TARGET: &str = "a standby that stops early can neither be promoted nor follow";
const ARCHIVE: &str = "a standby's WAL must come from its leader alone, or a seal proves nothing";
const EVIDENCE: &str = "detection and the evidence of a leader count on its timing";
const DAMAGE: &str = "damage would be passed over instead of being repaired from another node";
const SYNCED: &str = "a commit must be on a standby's disk before it is acknowledged";
const LOG: &str = "Everhold reads the server's messages from where it writes them by default";

/// Settings a guarantee hangs on, with the reason. In order of their name.
#[rustfmt::skip]
const RULES: &[(&str, Rule, &str)] = &[
    ("archive_cleanup_command", Rule::Ours, ARCHIVE),
    ("cluster_name", Rule::Ours, "it names the instance"),
    ("config_file", Rule::Ours, PLACE),
    ("data_directory", Rule::Ours, PLACE),
    ("data_sync_retry", OFF, "a commit whose fsync failed once would be acknowledged by the next"),
    ("default_transaction_read_only", OFF, "a new leader could not write its first record"),
    ("event_source", Rule::Ours, LOG),
    ("external_pid_file", Rule::Ours, PLACE),
    ("fsync", ON, "an acknowledged commit must be on disk"),
    ("full_page_writes", ON, "a torn page could not be repaired, and a rewind needs them"),
    ("hba_file", Rule::Ours, "who may connect, and how standbys do, is written by Everhold"),
    ("hot_standby", ON, "a standby must answer its agent and serve reads"),
    ("ident_file", Rule::Ours, PLACE),
    ("ignore_checksum_failure", OFF, DAMAGE),
    ("ignore_invalid_pages", OFF, DAMAGE),
    ("listen_addresses", Rule::Ours, "the node's address is given under [node]"),
    ("log_destination", Rule::Ours, LOG),
    ("logging_collector", Rule::Ours, LOG),
    ("max_connections", Rule::AtLeast(CONNECTIONS_MIN), "agent and standbys need connections too"),
    ("max_replication_slots", Rule::AtLeast(SENDERS_MIN), "a node has a slot for every other"),
    ("max_wal_senders", Rule::AtLeast(SENDERS_MIN), "every standby and every clone needs one"),
    ("password_encryption", Rule::OneOf(&["scram-sha-256"]), "md5 passwords can be replayed"),
    ("port", Rule::Ours, "ports are given under [node]"),
    ("primary_conninfo", Rule::Ours, "whom a standby follows is decided by the epoch"),
    ("primary_slot_name", Rule::Ours, "one slot per member is what keeps it from counting twice"),
    ("promote_trigger_file", Rule::Ours, "a promotion needs an epoch"),
    ("recovery_end_command", Rule::Ours, ARCHIVE),
    ("recovery_min_apply_delay", Rule::Ours, "a delayed standby holds up its own promotion"),
    ("recovery_target", Rule::Ours, TARGET),
    ("recovery_target_action", Rule::Ours, TARGET),
    ("recovery_target_inclusive", Rule::Ours, TARGET),
    ("recovery_target_lsn", Rule::Ours, TARGET),
    ("recovery_target_name", Rule::Ours, TARGET),
    ("recovery_target_time", Rule::Ours, TARGET),
    ("recovery_target_timeline", Rule::Ours, TARGET),
    ("recovery_target_xid", Rule::Ours, TARGET),
    ("restart_after_crash", Rule::Ours, "after a crash the agent decides who leads"),
    ("restore_command", Rule::Ours, ARCHIVE),
    ("superuser_reserved_connections", Rule::AtLeast(RESERVED_MIN), "the agent must always get in"),
    ("synchronous_commit", Rule::OneOf(&["on", "remote_apply"]), SYNCED),
    ("synchronous_standby_names", Rule::Ours, "agreed in the store; see `synchronous`"),
    ("unix_socket_directories", Rule::Ours, PLACE),
    ("unix_socket_group", Rule::Ours, "the socket is the agent's way in"),
    ("unix_socket_permissions", Rule::Ours, "the socket is the agent's way in"),
    ("wal_level", Rule::OneOf(&["replica", "logical"]), "standbys need the WAL whole"),
    ("wal_log_hints", ON, "a rewind needs them where checksums are off"),
    ("wal_receiver_create_temp_slot", Rule::Ours, "a member streams through its own slot"),
    ("wal_receiver_status_interval", Rule::Ours, EVIDENCE),
    ("wal_receiver_timeout", Rule::Ours, EVIDENCE),
    ("wal_retrieve_retry_interval", Rule::Ours, EVIDENCE),
    ("wal_sender_timeout", Rule::Ours, EVIDENCE),
    ("zero_damaged_pages", OFF, DAMAGE),
];

/// When a changed setting is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Reload,
    Restart,
    /// PostgreSQL shows it, nobody can set it.
    ReadOnly,
}

/// Why a setting is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unknown,
    ReadOnly,
    /// The value is not of the setting's type or range; what would be.
    Value {
        wants: String,
    },
    /// Everhold sets it; why.
    Ours {
        why: &'static str,
    },
    /// The value would weaken a guarantee; what is allowed, and why.
    Weakens {
        allowed: String,
        why: &'static str,
    },
}

struct Setting {
    name: &'static str,
    context: Context,
    kind: Kind,
}

enum Kind {
    Bool,
    Enum(&'static str),
    Text,
    Number { whole: bool, unit: &'static str, min: f64, max: f64 },
}

/// Every setting PostgreSQL has, for "did you mean".
pub fn names() -> impl Iterator<Item = &'static str> {
    lines().filter_map(|line| line.split('\t').next())
}

/// The settings that a guarantee hangs on, each with the reason.
pub fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    RULES.iter().map(|&(name, _, why)| (name, why))
}

/// When a change of the setting is in force; settings of extensions may need a restart.
pub fn context(name: &str) -> Context {
    find(name).map_or(Context::Restart, |setting| setting.context)
}

/// Judges a setting: the name in PostgreSQL's spelling, or why it is refused. Settings of
/// extensions (`auto_explain.log_min_duration`) are taken as they are, only the extension knows
/// them.
pub fn check(name: &str, value: &str) -> Result<String, Refusal> {
    if let Some(wants) = text_fault(value) {
        return Err(Refusal::Value { wants });
    }
    if is_of_extension(name) {
        return Ok(name.to_owned());
    }
    let setting = find(name).ok_or(Refusal::Unknown)?;
    if setting.context == Context::ReadOnly {
        return Err(Refusal::ReadOnly);
    }
    let rule = RULES.iter().find(|(ruled, _, _)| *ruled == setting.name);
    if let Some(&(_, Rule::Ours, why)) = rule {
        return Err(Refusal::Ours { why });
    }
    let number = setting.kind.check(value).map_err(|wants| Refusal::Value { wants })?;
    match rule {
        Some(&(_, Rule::OneOf(allowed), why)) if !allowed.contains(&canonical(value).as_str()) => {
            Err(Refusal::Weakens { allowed: allowed.join(" or "), why })
        }
        Some(&(_, Rule::AtLeast(least), why)) if number.is_some_and(|it| it < least as f64) => {
            Err(Refusal::Weakens { allowed: format!("{least} or more"), why })
        }
        Some(_) | None => Ok(setting.name.to_owned()),
    }
}

fn lines() -> impl Iterator<Item = &'static str> {
    TABLE.lines().filter(|line| !line.starts_with('#'))
}

fn find(name: &str) -> Option<Setting> {
    let line = lines().find(|line| {
        line.split('\t').next().is_some_and(|known| known.eq_ignore_ascii_case(name))
    })?;
    let mut fields = line.split('\t');
    let mut next = || fields.next().unwrap_or_default();
    let (name, context, kind, unit) = (next(), next(), next(), next());
    let (min, max, values) = (next(), next(), next());
    let bound = |text: &str, otherwise| text.parse().unwrap_or(otherwise);
    Some(Setting {
        name,
        context: match context {
            "internal" => Context::ReadOnly,
            "postmaster" => Context::Restart,
            _ => Context::Reload,
        },
        kind: match kind {
            "bool" => Kind::Bool,
            "enum" => Kind::Enum(values),
            "integer" | "real" => Kind::Number {
                whole: kind == "integer",
                unit,
                min: bound(min, f64::MIN),
                max: bound(max, f64::MAX),
            },
            _ => Kind::Text,
        },
    })
}

impl Kind {
    /// The number a value stands for, in the setting's own unit, or what it should have been.
    fn check(&self, value: &str) -> Result<Option<f64>, String> {
        let word = value.to_ascii_lowercase();
        match self {
            Kind::Text => Ok(None),
            Kind::Bool if boolean(&word).is_some() => Ok(None),
            Kind::Bool => Err("on or off".into()),
            Kind::Enum(values) => {
                let is = |known: &str| known.eq_ignore_ascii_case(&word);
                let as_boolean =
                    boolean(&word).is_some_and(|it| values.split(',').any(|v| v == it));
                if as_boolean || values.split(',').any(is) {
                    Ok(None)
                } else {
                    Err(format!("one of {}", values.replace(',', ", ")))
                }
            }
            Kind::Number { whole, unit, min, max } => {
                let number = number(value, unit, *whole).ok_or_else(|| self.to_string())?;
                if (*min..=*max).contains(&number) {
                    Ok(Some(number))
                } else {
                    Err(self.to_string())
                }
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kind::Number { whole, unit, min, max } = self else { return Ok(()) };
        write!(f, "{} from {min} to {max}", if *whole { "a whole number" } else { "a number" })?;
        match (*unit, units(unit)) {
            ("", _) => Ok(()),
            (base, units) => {
                let names: Vec<&str> = units.iter().map(|&(name, _)| name).collect();
                write!(f, " (of {base}), or with a unit: {}", names.join(", "))
            }
        }
    }
}

/// A value that no configuration file can hold.
fn text_fault(value: &str) -> Option<String> {
    value
        .chars()
        .any(char::is_control)
        .then(|| "text without line ends or other control characters".into())
}

fn is_of_extension(name: &str) -> bool {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    name.contains('.') && name.split('.').all(word)
}

fn boolean(word: &str) -> Option<&'static str> {
    match word {
        "on" | "true" | "yes" | "1" => Some("on"),
        "off" | "false" | "no" | "0" => Some("off"),
        _ => None,
    }
}

fn canonical(value: &str) -> String {
    let word = value.to_ascii_lowercase();
    boolean(&word).map_or(word, str::to_owned)
}

/// The units that PostgreSQL takes where `base` is counted, in bytes or milliseconds.
fn units(base: &str) -> &'static [(&'static str, f64)] {
    const MEMORY: &[(&str, f64)] = &[
        ("B", 1.0),
        ("kB", 1024.0),
        ("MB", 1_048_576.0),
        ("GB", 1_073_741_824.0),
        ("TB", 1_099_511_627_776.0),
    ];
    const TIME: &[(&str, f64)] = &[
        ("us", 0.001),
        ("ms", 1.0),
        ("s", 1_000.0),
        ("min", 60_000.0),
        ("h", 3_600_000.0),
        ("d", 86_400_000.0),
    ];
    match base {
        "ms" | "s" | "min" => TIME,
        "" => &[],
        _ => MEMORY,
    }
}

/// Reads `value` as PostgreSQL does (`guc.c`, `parse_int` and `parse_real`), in units of `base`.
fn number(value: &str, base: &str, whole: bool) -> Option<f64> {
    let value = value.trim();
    let end = value
        .find(|c: char| c.is_ascii_alphabetic() && !(c == 'e' || c == 'E') || c.is_whitespace())
        .unwrap_or(value.len());
    let (digits, unit) = (&value[..end], value[end..].trim());
    if digits.is_empty() || !digits.ends_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let number: f64 = digits.parse().ok()?;
    let number = if unit.is_empty() {
        number
    } else {
        let size = |name: &str| units(base).iter().find(|(known, _)| *known == name).map(|it| it.1);
        // PostgreSQL counts some settings in pages.
        let one = if base == "8kB" { Some(8192.0) } else { size(base) };
        number * size(unit)? / one?
    };
    Some(if whole { number.round_ties_even() } else { number })
}
