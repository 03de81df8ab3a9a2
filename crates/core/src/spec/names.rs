//! What a cluster, node, service or listener may be called.
//!
//! Names become directories, PostgreSQL application names, replication slots, keys of the store and
//! words of the command line; one rule fits all of these without quoting.

/// The longest name: with an incarnation behind it, it still fits PostgreSQL's 63 bytes.
pub const NAME_LENGTH_MAX: usize = 31;

/// Directories that stand next to the nodes' own in the data directory, and words that mean
/// something else where a node is expected.
pub const NODE_NAMES_RESERVED: [&str; 9] =
    ["api", "cluster", "etcd", "gateway", "log", "pki", "run", "secrets", "store"];
/// Directories of the agent that stand next to its services' own, and what a repository has next to
/// theirs.
pub const SERVICE_NAMES_RESERVED: [&str; 12] = [
    "agent",
    "cluster",
    "journal",
    "keys",
    "log",
    "pki",
    "probe",
    "run",
    "sealed",
    "secrets",
    "state",
    "unfinished",
];
/// Databases that PostgreSQL and Everhold have themselves.
pub const DATABASE_NAMES_RESERVED: [&str; 4] = ["everhold", "postgres", "template0", "template1"];
/// Roles that PostgreSQL and Everhold have themselves, and the key words of `GRANT`.
pub const OWNER_NAMES_RESERVED: [&str; 4] = ["everhold", "none", "postgres", "public"];

/// Says what is wrong with `name`, which must match `[a-z][a-z0-9_-]{0,30}`.
pub fn check_name(name: &str) -> Result<(), String> {
    let Some(first) = name.chars().next() else { return Err("is empty".into()) };
    if name.len() > NAME_LENGTH_MAX {
        return Err(format!("is {} bytes long, {NAME_LENGTH_MAX} are allowed", name.len()));
    }
    if !first.is_ascii_lowercase() {
        return Err(format!("starts with `{first}`, a name starts with a letter a-z"));
    }
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    match name.chars().find(|&c| !legal(c)) {
        Some(c) => {
            Err(format!("holds `{}`, a name is made of a-z, 0-9, _ and -", c.escape_debug()))
        }
        None => Ok(()),
    }
}

/// Says why `name` is not free: one of `reserved`, or of PostgreSQL's own `pg_` names.
pub fn check_name_free(name: &str, reserved: &[&str]) -> Result<(), String> {
    if reserved.contains(&name) {
        Err("is taken by PostgreSQL or Everhold itself".into())
    } else if name.starts_with("pg_") {
        Err("starts with `pg_`, which PostgreSQL keeps for itself".into())
    } else {
        Ok(())
    }
}
