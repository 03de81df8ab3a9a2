//! The node's durable record of a service: promise, incarnation, state of the data.

use everhold_core::durable::Durable;
use everhold_core::records::{Unreadable, decode, encode};
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why the record can't be used. Nothing is ever deleted or overwritten because of it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("E201 the node's record {} can't be used: {why}; next step: {}", path.display(), unreadable_next(path, why))]
    Unreadable { path: PathBuf, why: Unreadable },
    #[error("E202 there is a data directory but no record {}; next step: restore the record, or end the node's PostgreSQL and move its data directory away, so that the node is cloned anew", path.display())]
    Missing { path: PathBuf },
    #[error("E203 cannot {what} {}: {source}; next step: mend the disk, or free space on it; it is tried again", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

fn unreadable_next(path: &Path, why: &Unreadable) -> String {
    match why {
        Unreadable::Newer { .. } => "run the version that wrote it".to_string(),
        Unreadable::Torn(_) => format!(
            "restore it from a backup of this node, or end the node's PostgreSQL and move {} and \
             the data directory away, so that the node is cloned anew",
            path.display()
        ),
    }
}

/// Reads the record; a node without data begins with an empty one.
pub fn load(path: &Path, data_dir: &Path) -> Result<Durable, DiskError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let holds =
                std::fs::read_dir(data_dir).is_ok_and(|mut entries| entries.next().is_some());
            if holds {
                return Err(DiskError::Missing { path: path.to_path_buf() });
            }
            return Ok(Durable::default());
        }
        Err(source) => {
            return Err(DiskError::Io { what: "read", path: path.to_path_buf(), source });
        }
    };
    decode(&text).map_err(|why| DiskError::Unreadable { path: path.to_path_buf(), why })
}

/// Writes the record: it is on disk, under its name, when this returns.
pub fn save(path: &Path, durable: &Durable) -> Result<(), DiskError> {
    write_whole(path, &encode(durable)).map_err(|source| DiskError::Io {
        what: "write",
        path: path.to_path_buf(),
        source,
    })
}

/// Temporary file, fsync, rename, fsync of the directory; readable by its owner only.
///
/// Each process has a temporary file of its own, so that none puts another's half in place.
pub fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_file_name(temporary(path, &std::process::id().to_string()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    clear(path, directory);
    File::open(directory)?.sync_all()
}

fn temporary(path: &Path, process: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}.{process}.new")
}

/// Removes what processes that are gone have left beside it.
fn clear(path: &Path, directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|it| it.rsplit('.').nth(1));
        let Some(process) = process.filter(|it| it.parse::<u32>().is_ok()) else { continue };
        if name == *temporary(path, process) && !Path::new("/proc").join(process).exists() {
            // It is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_temporary_file_of_its_own_and_leaves_none_for_ever() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.json");
        // Of one that lives, of one that is gone, and what belongs to others.
        let mut gone = std::process::Command::new("true").spawn().expect("spawned");
        let gone = (gone.id(), gone.wait().expect("ended")).0;
        let parent = std::os::unix::process::parent_id();
        let others =
            ["a.json.new", "b.json.1.new", "a.json.x.new", "a.json.1.old", "xa.json.1.new"];
        let mut kept: Vec<String> =
            others.map(|name| name.replace(".1.", &format!(".{gone}."))).into();
        kept.push(format!("a.json.{parent}.new"));
        for name in kept.iter().chain([&format!("a.json.{gone}.new")]) {
            std::fs::write(dir.path().join(name), "half").expect("written");
        }
        write_whole(&path, "whole").expect("written");
        kept.push("a.json".to_string());
        kept.sort();
        let entries = std::fs::read_dir(dir.path()).expect("a directory").flatten();
        let mut names: Vec<String> =
            entries.map(|it| it.file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        assert_eq!(names, kept);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "whole");
        let others = std::fs::read_to_string(dir.path().join(format!("a.json.{parent}.new")));
        assert_eq!(others.expect("read"), "half");
    }

    #[test]
    fn what_was_saved_is_loaded_and_torn_files_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, data) = (dir.path().join("record.json"), dir.path().join("pgdata"));
        assert_eq!(load(&path, &data).expect("nothing yet"), Durable::default());
        let durable = Durable { promise: 7, ..Durable::default() };
        save(&path, &durable).expect("saved");
        assert_eq!(load(&path, &data).expect("there"), durable);
        std::fs::write(&path, "{\"version\":1,\"rec").expect("torn");
        assert!(matches!(load(&path, &data), Err(DiskError::Unreadable { .. })));
        assert_eq!(std::fs::read_to_string(&path).expect("kept"), "{\"version\":1,\"rec");
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&data).expect("data");
        std::fs::write(data.join("PG_VERSION"), "15").expect("data");
        assert!(matches!(load(&path, &data), Err(DiskError::Missing { .. })));
    }
}
