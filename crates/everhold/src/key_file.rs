//! Files with the password of a repository, on each machine.

use everhold_repository::Password;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A password is a line.
const BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read the key file {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the key file {} may be read by others: mode {mode:o}, not 600", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("the key file {} holds no password", path.display())]
    Empty { path: PathBuf },
}

impl KeyFileError {
    /// With its code, for a command that names the file itself.
    pub fn told(self) -> anyhow::Error {
        anyhow::anyhow!("E282 {self}; next step: a line in the file, mode 600, on every machine")
    }
}

/// Reads a password; refused if anybody but the file's owner may.
pub fn read(path: &Path) -> Result<Password, KeyFileError> {
    let unreadable = |source| KeyFileError::Unreadable { path: path.to_path_buf(), source };
    let meta = fs::metadata(path).map_err(unreadable)?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Open { path: path.to_path_buf(), mode });
    }
    if meta.len() > BYTES_MAX {
        return Err(unreadable(io::Error::other("it is too long for a password")));
    }
    let password = Password::new(&fs::read_to_string(path).map_err(unreadable)?);
    match password.is_empty() {
        true => Err(KeyFileError::Empty { path: path.to_path_buf() }),
        false => Ok(password),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        let check = |text: &str, mode: u32, expected: &str| {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            match read(&path) {
                Ok(_) => assert_eq!(expected, "", "{mode:o}"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(!expected.is_empty() && said.contains(expected), "{said}");
                    assert!(!said.contains("hunter2"), "{said}");
                }
            }
        };
        check("hunter2\n", 0o600, "");
        check("hunter2\n", 0o400, "");
        check("hunter2\n", 0o640, "mode 640");
        check("hunter2\n", 0o604, "mode 604");
        check(" \n", 0o600, "no password");
        check(&"x".repeat(70_000), 0o600, "too long");
        fs::remove_file(&path).expect("removed");
        assert!(read(&path).is_err());
    }
}
