//! The data directory: whether it can be written, whose it is, and whether PostgreSQL reaches it.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use everhold_core::spec::Spec;
use rustix::fs::{
    Access, AtFlags, CWD, PROC_SUPER_MAGIC, StatxAttributes, StatxFlags, accessat, statfs, statx,
};

use super::super::fault::{Code, Fault};
use super::{Local, instances};
use crate::layout::{CLUSTER_RECORD_VERSION, ClusterRecord};

/// What may stand in a data directory beside the nodes before it carries a name.
const OWN: [&str; 8] =
    ["cluster.json", "etcd", "gateway", "log", "lost+found", "pki", "run", "secrets"];
/// A record is a few words; no more is read of a file that pretends to be one.
const RECORD_BYTES_MAX: u64 = 64 * 1024;
/// The kind of file system below /sys.
const SYSFS_MAGIC: i128 = 0x6265_6572;
/// How many strange files are named.
const FOREIGN_SHOWN: usize = 3;

pub(super) fn check(spec: &Spec, local: &Local<'_>, faults: &mut Vec<Fault>) {
    let root = local.layout.root();
    let Some(existing) = existing(root, faults) else { return };
    writable(root, &existing, faults);
    if existing == root {
        whose(spec, local, faults);
    }
    if local.run_as.is_other() {
        reachable(root, &existing, local, faults);
    }
    for (node, service, _) in instances(spec, local) {
        let Some(postgres) = spec.postgres(service) else { continue };
        pgdata(&local.layout.pgdata(node, service), postgres.version, local, faults);
    }
}

/// The directory itself, or the nearest one above it.
fn existing(root: &Path, faults: &mut Vec<Fault>) -> Option<PathBuf> {
    for path in root.ancestors() {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Some(path.to_owned()),
            Ok(_) => {
                let message = format!("{} is not a directory", path.display());
                faults.push(Fault::of_machine(Code::DataForeign, message));
                return None;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if fs::symlink_metadata(path).is_ok() {
                    let message = format!("{} is a link that leads nowhere", path.display());
                    faults.push(Fault::of_machine(Code::DataForeign, message));
                    return None;
                }
            }
            // A file on the way is found further up.
            Err(error) if error.kind() == ErrorKind::NotADirectory => {}
            Err(error) => {
                let message = format!("cannot look at {}: {error}", path.display());
                faults.push(Fault::of_machine(Code::DataNotWritable, message));
                return None;
            }
        }
    }
    None
}

fn writable(root: &Path, existing: &Path, faults: &mut Vec<Fault>) {
    let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    let access = accessat(CWD, existing, wanted, AtFlags::EACCESS);
    let why = access.err().map(|error| error.to_string()).or_else(|| closed_to_all(existing));
    if let Some(error) = why {
        let message = if existing == root {
            format!("the data directory {} is not writable: {error}", root.display())
        } else {
            let (root, existing) = (root.display(), existing.display());
            format!("the data directory {root} cannot be made, {existing} is not writable: {error}")
        };
        faults.push(Fault::of_machine(Code::DataNotWritable, message));
    }
}

/// Root passes every question of access and still cannot write to these.
fn closed_to_all(path: &Path) -> Option<String> {
    let flags = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).ok()?;
    if flags.stx_attributes.contains(StatxAttributes::IMMUTABLE) {
        return Some("it is marked immutable (chattr +i)".into());
    }
    let kind = statfs(path).ok()?.f_type;
    let kernels =
        i128::from(kind) == i128::from(PROC_SUPER_MAGIC) || i128::from(kind) == SYSFS_MAGIC;
    kernels.then(|| "it belongs to the kernel".into())
}

/// Whether the directory is ours, and this cluster's.
fn whose(spec: &Spec, local: &Local<'_>, faults: &mut Vec<Fault>) {
    let path = local.layout.cluster_record();
    let text = match read_record(&path) {
        Ok(Some(text)) => text,
        Ok(None) => return foreign(spec, local, faults),
        Err(why) => {
            let message = format!("{} cannot be read: {why}", path.display());
            return faults.push(Fault::of_machine(Code::TornRecord, message));
        }
    };
    let shown = path.display();
    // The version is read first, since a newer record may have another shape.
    let version = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|record| record.get("version")?.as_u64());
    let fault = match (version, serde_json::from_str::<ClusterRecord>(&text)) {
        (Some(version), _) if version > u64::from(CLUSTER_RECORD_VERSION) => {
            let message = format!(
                "{shown} has version {version}, this Everhold reads up to {CLUSTER_RECORD_VERSION}"
            );
            Fault::of_machine(Code::NewerRecord, message)
        }
        (_, Ok(record)) if record.cluster == spec.cluster => return,
        (_, Ok(record)) => {
            let message = format!(
                "{} holds the data of cluster `{}`, not of `{}`",
                local.layout.root().display(),
                record.cluster.escape_debug(),
                spec.cluster
            );
            Fault::of_machine(Code::OtherCluster, message)
        }
        (_, Err(error)) => {
            Fault::of_machine(Code::TornRecord, format!("{shown} cannot be read: {error}"))
        }
    };
    faults.push(fault);
}

/// A directory without a name may hold what Everhold makes before it gives one, and nothing else.
fn foreign(spec: &Spec, local: &Local<'_>, faults: &mut Vec<Fault>) {
    let root = local.layout.root();
    // An unreadable directory was reported as not writable.
    let Ok(entries) = fs::read_dir(root) else { return };
    let mut strange: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            !name.starts_with('.')
                && !OWN.contains(&name.as_str())
                && !spec.nodes.contains_key(name)
        })
        .collect();
    if strange.is_empty() {
        return;
    }
    strange.sort();
    let rest = strange.len().saturating_sub(FOREIGN_SHOWN);
    strange.truncate(FOREIGN_SHOWN);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let message = format!(
        "{} holds files that are not Everhold's: {}{more}",
        root.display(),
        strange.join(", ")
    );
    faults.push(Fault::of_machine(Code::DataForeign, message));
}

/// Every directory on the way that PostgreSQL's user may not enter. What does not exist yet is made
/// so that it can.
fn reachable(root: &Path, existing: &Path, local: &Local<'_>, faults: &mut Vec<Fault>) {
    // The kernel asks at each directory that is really passed, not at links to them.
    let Ok(real) = fs::canonicalize(existing) else { return };
    let blocked: Vec<String> = real
        .ancestors()
        .filter(|path| fs::metadata(path).is_ok_and(|it| !local.run_as.may_enter(&it)))
        .map(|path| path.display().to_string())
        .collect();
    if !blocked.is_empty() {
        let user = &local.run_as.name;
        let message = format!(
            "PostgreSQL runs as user {user}, who may not enter {} on the way to {}",
            blocked.join(", "),
            root.display()
        );
        let next = format!(
            "choose a directory that {user} may enter with --data, such as /var/lib/everhold, \
             or grant it: chmod o+x {}",
            blocked.join(" ")
        );
        faults.push(Fault::of_machine(Code::Unreachable, message).next(next));
    }
}

/// An instance's data from an earlier run.
fn pgdata(path: &Path, version: u32, local: &Local<'_>, faults: &mut Vec<Fault>) {
    let Ok(found) = fs::metadata(path) else { return };
    let shown = path.display();
    let record = path.join("PG_VERSION");
    match read_record(&record) {
        Ok(Some(text)) => match text.trim().parse::<u32>() {
            Ok(major) if major == version => {}
            Ok(major) => {
                let message =
                    format!("{shown} was made by PostgreSQL {major}, the spec declares {version}");
                faults.push(Fault::of_machine(Code::OtherMajor, message));
            }
            Err(_) => {
                let message = format!(
                    "{} holds `{}`, not a version",
                    record.display(),
                    text.trim().escape_debug()
                );
                faults.push(Fault::of_machine(Code::TornRecord, message));
            }
        },
        // Not bootstrapped, or a clone that was interrupted; the agent makes it anew.
        Ok(None) => {}
        Err(why) => {
            let message = format!("{} cannot be read: {why}", record.display());
            faults.push(Fault::of_machine(Code::TornRecord, message));
        }
    }
    let user = local.run_as;
    if found.uid() != user.uid {
        let message =
            format!("{shown} belongs to user {}, PostgreSQL runs as {}", found.uid(), user.name);
        let next = format!("chown -R {} {shown}", user.name);
        faults.push(Fault::of_machine(Code::WrongOwner, message).next(next));
    }
    // PostgreSQL accepts 0700 and 0750.
    if found.mode() & 0o027 != 0 || found.mode() & 0o700 != 0o700 {
        let mode = found.mode() & 0o7777;
        let message = format!("{shown} has mode {mode:04o}, PostgreSQL accepts 0700 and 0750");
        let next = format!("chmod 0700 {shown}");
        faults.push(Fault::of_machine(Code::WrongOwner, message).next(next));
    }
}

/// A small file as text; `None` if it does not exist.
fn read_record(path: &Path) -> Result<Option<String>, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    match file.take(RECORD_BYTES_MAX).read_to_string(&mut text) {
        Ok(_) => Ok(Some(text)),
        Err(error) => Err(error.to_string()),
    }
}
