//! The files of a data directory that a backup holds: what pg_basebackup takes, less what is
//! Everhold's own.

use super::manifest::Stamp;
use crate::RepositoryError;
use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Read last: a standby's recovery has to reach what it says before the files are consistent.
pub const CONTROL: &str = "global/pg_control";
/// Stands in a directory as long as a restore into it is not complete.
pub const MARKER: &str = "everhold.restoring";
pub const PID_FILE: &str = "postmaster.pid";
pub const TABLESPACES: &str = "pg_tblspc";
/// The log is not part of a backup; it has an archive of its own.
pub const WAL: &str = "pg_wal";

/// Directories that are kept empty.
const EMPTY: [&str; 8] = [
    WAL,
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];
/// Files of a server that runs, of a restore, and of another backup.
const SKIPPED: [&str; 11] = [
    PID_FILE,
    "postmaster.opts",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "recovery.signal",
    "standby.signal",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
];

#[derive(Debug, Default)]
pub struct Tree {
    /// Parents come before what is in them.
    pub dirs: Vec<String>,
    pub files: Vec<Found>,
}

#[derive(Debug)]
pub struct Found {
    pub path: String,
    pub size: u64,
    pub stamp: Stamp,
}

/// Looks through a data directory. What goes away meanwhile is left out.
pub fn walk(root: &Path) -> Result<Tree, RepositoryError> {
    let mut tree = Tree::default();
    visit(root, "", &mut tree)?;
    Ok(tree)
}

fn visit(root: &Path, dir: &str, tree: &mut Tree) -> Result<(), RepositoryError> {
    let path = root.join(dir);
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.is_empty() => return Ok(()),
        Err(error) => return Err(RepositoryError::file("list", &path)(error)),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(RepositoryError::file("list", &path))?;
        let name = entry.file_name().into_string();
        names.insert(name.map_err(|name| RepositoryError::Malformed {
            what: path.join(name).display().to_string(),
            said: "its name is not UTF-8".to_string(),
        })?);
    }
    let unlogged: BTreeSet<&str> =
        names.iter().filter_map(|name| name.strip_suffix("_init")).collect();
    for name in &names {
        let at = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
        let full = root.join(&at);
        let meta = match fs::symlink_metadata(&full) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(RepositoryError::file("look at", &full)(error)),
        };
        if EMPTY.contains(&at.as_str()) {
            if at == WAL {
                tree.dirs.extend([at, format!("{WAL}/archive_status")]);
            } else {
                tree.dirs.push(at);
            }
        } else if meta.is_dir() {
            if !name.starts_with("pgsql_tmp") {
                tree.dirs.push(at.clone());
                visit(root, &at, tree)?;
            }
        } else if meta.is_symlink() && dir == TABLESPACES {
            return Err(RepositoryError::Tablespace { path: full });
        } else if !meta.is_file() {
            tracing::warn!(path = at, "neither file nor directory: left out, as by pg_basebackup");
        } else if is_taken(dir, name, &unlogged) {
            tree.files.push(Found { path: at, size: meta.len(), stamp: Stamp::of(&meta) });
        }
    }
    Ok(())
}

fn is_taken(dir: &str, name: &str, unlogged: &BTreeSet<&str>) -> bool {
    let relation = name.split(['.', '_']).next().unwrap_or(name);
    let own = name.starts_with("everhold.") || SKIPPED.contains(&name);
    let temporary = name.starts_with("pgsql_tmp") || is_temporary_relation(name);
    // Its content is lost in any recovery; the initial fork makes it anew.
    let lost = dir.starts_with("base/") && unlogged.contains(relation) && !name.ends_with("_init");
    !(dir.is_empty() && own || temporary || lost || name.starts_with("pg_internal.init"))
}

/// `t`, a backend's number, `_` and a relation's name.
fn is_temporary_relation(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    parts.is_some_and(|(backend, relation)| {
        digits(backend) && relation.split(['.', '_']).next().is_some_and(digits)
    })
}

impl Stamp {
    pub fn of(meta: &Metadata) -> Stamp {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Stamp {
            inode: meta.ino(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        #[rustfmt::skip]
        let files = [
            ("PG_VERSION", true), ("postmaster.pid", false), ("backup_label", false),
            ("standby.signal", false), ("everhold.slots", false), ("postgresql.conf", true),
            ("global/pg_control", true), ("global/pg_internal.init", false),
            ("base/5/16384", true), ("base/5/16384.1", true), ("base/5/16384_fsm", true),
            ("base/5/16390", false), ("base/5/16390.1", false), ("base/5/16390_vm", false),
            ("base/5/16390_init", true), ("base/5/16391", true), ("base/5/t3_16384", false),
            ("base/5/t3_16384_fsm", false), ("base/5/pg_filenode.map", true),
            ("base/pgsql_tmp/pgsql_tmp1.0", false), ("base/5/pg_internal.init.7", false),
            ("pg_wal/000000010000000000000001", false), ("pg_replslot/a/state", false),
            ("pg_xact/0000", true), ("pg_stat_tmp/x", false), ("pg_subtrans/0000", false),
        ];
        for (path, _) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
        let tree = walk(dir.path()).unwrap();
        let taken: Vec<&str> = tree.files.iter().map(|it| it.path.as_str()).collect();
        for (path, expected) in files {
            assert_eq!(taken.contains(&path), expected, "{path}");
        }
        for dir in ["pg_wal", "pg_wal/archive_status", "pg_replslot", "base/5"] {
            assert!(tree.dirs.iter().any(|it| it == dir), "{dir}");
        }
        assert!(!tree.dirs.iter().any(|it| it.contains("pgsql_tmp") || it == "pg_replslot/a"));
        fs::create_dir_all(dir.path().join(TABLESPACES)).unwrap();
        std::os::unix::fs::symlink("/tmp", dir.path().join("pg_tblspc/16400")).unwrap();
        assert!(matches!(walk(dir.path()), Err(RepositoryError::Tablespace { .. })));
    }
}
