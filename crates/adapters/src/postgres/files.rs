//! Files that are whole or absent, owned by whom the server runs as.

use super::error::PgError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// User and group of files; `None` leaves them with the caller.
pub type Owner = Option<(u32, u32)>;

/// Whether a file has to be there after a power failure, or is written again before each start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Synced,
    UntilReboot,
}

/// `path` with `suffix` put behind its last component.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes a file of mode 0600 by way of a temporary one, so that a reader sees all or nothing.
pub fn write(path: &Path, content: &[u8], owner: Owner, keep: Keep) -> Result<(), PgError> {
    let temporary = beside(path, ".tmp");
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        file.write_all(content)?;
        if keep == Keep::Synced {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    attempt().map_err(PgError::file("write", path))?;
    if keep == Keep::Synced { sync_parent(path) } else { Ok(()) }
}

/// Makes a directory of mode 0700 for `owner`, with its parents.
pub fn private_dir(path: &Path, owner: Owner) -> Result<(), PgError> {
    let attempt = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        match owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    };
    attempt().map_err(PgError::file("make the directory", path))
}

/// Makes a rename or removal in `path` itself last.
pub fn sync_dir(path: &Path) -> Result<(), PgError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(PgError::file("sync", path))
}

pub fn sync_parent(path: &Path) -> Result<(), PgError> {
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Removes a file or a whole directory; it need not be there.
pub fn remove(path: &Path) -> Result<(), PgError> {
    let attempt = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match attempt {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(PgError::file("remove", path)),
    }
}
