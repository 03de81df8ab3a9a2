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
pub fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

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
