//! Sockets at paths that only this process's user may open.

use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A listening socket that nobody finds yet.
pub struct OwnSocket {
    listener: UnixListener,
    new: PathBuf,
    path: PathBuf,
}

impl OwnSocket {
    /// Beside that path, where another may listen.
    pub fn bind(path: &Path) -> io::Result<OwnSocket> {
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        Ok(OwnSocket { listener, new, path: path.to_path_buf() })
    }

    /// Whoever comes from now on comes here, and waits until it is accepted.
    pub fn open(self) -> io::Result<UnixListener> {
        std::fs::rename(&self.new, &self.path)?;
        Ok(self.listener)
    }
}
