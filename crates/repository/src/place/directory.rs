//! A directory as a place: an object is a file that appears whole, once, and lasts.

use super::{Existing, Object};
use crate::RepositoryError;
use crate::key::hex;
use crate::seal::random;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Where files are written before they get their names. What a crash leaves here is nobody's,
/// and a prune takes it away. Made with the repository: a directory without it is the place where
/// one is mounted, and isn't now.
const UNFINISHED: &str = "unfinished";

pub struct Directory {
    root: PathBuf,
}

impl Directory {
    pub fn new(root: &Path) -> Directory {
        Directory { root: root.to_path_buf() }
    }

    fn path(&self, object: &str) -> PathBuf {
        self.root.join(object)
    }

    /// Makes it a place that objects can be put in.
    pub fn prepare(&self) -> Result<(), RepositoryError> {
        self.lasting_dir(&self.root.join(UNFINISHED))
    }

    /// An error unless it is such a place.
    fn is_here(&self) -> Result<(), RepositoryError> {
        let unfinished = self.root.join(UNFINISHED);
        let meta = fs::metadata(&unfinished).map(drop);
        meta.map_err(RepositoryError::file("find", &unfinished))
    }

    pub fn put(
        &self,
        object: &str,
        content: &[u8],
        existing: Existing,
    ) -> Result<bool, RepositoryError> {
        self.is_here()?;
        let path = self.path(object);
        let parent = path.parent().unwrap_or(&self.root);
        self.lasting_dir(parent)?;
        let temporary = self.root.join(UNFINISHED).join(hex(&random::<16>()?));
        let written = write(&temporary, content);
        let result = written.and_then(|()| name(&temporary, &path, parent, existing));
        let _ = fs::remove_file(&temporary);
        result.map_err(RepositoryError::file("write", &path))
    }

    /// Removes what was written last before that instant, in seconds since 1970, and never got its
    /// name; how many there were. Whoever was frozen meanwhile and still wants to name one finds it
    /// gone, and has put nothing: so clocks decide when it is tried, not whether it is safe.
    pub fn clear_unfinished(&self, before_s: u64) -> Result<usize, RepositoryError> {
        let unfinished = self.root.join(UNFINISHED);
        let before = UNIX_EPOCH + Duration::from_secs(before_s);
        let attempt = || -> io::Result<usize> {
            let mut gone = 0;
            for entry in fs::read_dir(&unfinished)? {
                let entry = entry?;
                let old = |meta: fs::Metadata| Ok(meta.is_file() && meta.modified()? < before);
                // One that got its name since, or failed, is no longer there.
                if absent_or(entry.metadata().and_then(old))?.unwrap_or(false) {
                    absent_or(fs::remove_file(entry.path()))?;
                    gone += 1;
                }
            }
            Ok(gone)
        };
        attempt().map_err(RepositoryError::file("clear", &unfinished))
    }

    /// Makes a directory and its parents, so that they are there after a power failure too.
    fn lasting_dir(&self, path: &Path) -> Result<(), RepositoryError> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|_| path != self.root) {
            self.lasting_dir(parent)?;
        }
        private_dir(path)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(parent).and_then(|dir| dir.sync_all());
        synced.map_err(RepositoryError::file("sync", parent))
    }

    pub fn get(&self, object: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        let path = self.path(object);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) => absent(error).map_err(RepositoryError::file("read", &path)),
        }
    }

    pub fn read(
        &self,
        object: &str,
        offset: u64,
        len: usize,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let path = self.path(object);
        let attempt = || -> io::Result<Vec<u8>> {
            let file = File::open(&path)?;
            let mut content = vec![0; len];
            let mut done = 0;
            while done < len {
                match file.read_at(&mut content[done..], offset + done as u64)? {
                    0 => break,
                    read => done += read,
                }
            }
            content.truncate(done);
            Ok(content)
        };
        match attempt() {
            Ok(content) => Ok(Some(content)),
            Err(error) => absent(error).map_err(RepositoryError::file("read", &path)),
        }
    }

    pub fn list(&self, prefix: &str) -> Result<Vec<Object>, RepositoryError> {
        self.is_here()?;
        // Only the directory that the prefix names is walked.
        let dir = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
        let mut objects = Vec::new();
        self.walk(dir, &mut objects)?;
        objects.retain(|object| object.name.starts_with(prefix));
        Ok(objects)
    }

    /// All of them, also where nothing can be put.
    pub fn objects(&self) -> Result<Vec<Object>, RepositoryError> {
        let mut objects = Vec::new();
        self.walk("", &mut objects)?;
        Ok(objects)
    }

    fn walk(&self, dir: &str, objects: &mut Vec<Object>) -> Result<(), RepositoryError> {
        let path = self.path(dir);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                return absent::<()>(error)
                    .map(|_| ())
                    .map_err(RepositoryError::file("list", &path));
            }
        };
        for entry in entries {
            let entry = entry.map_err(RepositoryError::file("list", &path))?;
            let file = entry.file_name();
            let Some(file) = file.to_str() else { continue };
            let name = if dir.is_empty() { file.to_string() } else { format!("{dir}/{file}") };
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // It was taken away since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(RepositoryError::file("list", &path)(error)),
            };
            if meta.is_dir() && name != UNFINISHED {
                self.walk(&name, objects)?;
            } else if meta.is_file() {
                objects.push(Object { name, bytes: meta.len() });
            }
        }
        Ok(())
    }

    pub fn delete(&self, object: &str) -> Result<(), RepositoryError> {
        self.is_here()?;
        let path = self.path(object);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) => {
                absent::<()>(error).map(|_| ()).map_err(RepositoryError::file("remove", &path))
            }
        }
    }
}

fn write(temporary: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Gives what was written its name. False: there was one, and it was kept.
fn name(temporary: &Path, path: &Path, parent: &Path, existing: Existing) -> io::Result<bool> {
    let new = match existing {
        Existing::Replace => fs::rename(temporary, path).map(|()| true)?,
        // Unlike a rename a link never takes the place of what is there, on NFS neither.
        Existing::Keep => match fs::hard_link(temporary, path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        },
    };
    File::open(parent)?.sync_all()?;
    Ok(new)
}

fn absent_or<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    result.map(Some).or_else(absent)
}

/// What is not there is no error.
fn absent<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(None),
        _ => Err(error),
    }
}

fn private_dir(path: &Path) -> Result<(), RepositoryError> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.map_err(RepositoryError::file("make", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cleared_can_not_be_named_any_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Directory::new(dir.path());
        place.prepare().expect("ready");
        let (old, young) = (place.path("unfinished/old"), place.path("unfinished/young"));
        for (file, at_s) in [(&old, 100), (&young, 200)] {
            write(file, b"content").expect("written");
            let at = UNIX_EPOCH + Duration::from_secs(at_s);
            File::open(file).and_then(|file| file.set_modified(at)).expect("aged");
        }
        assert_eq!(place.clear_unfinished(100).expect("cleared"), 0);
        assert_eq!(place.clear_unfinished(101).expect("cleared"), 1);
        // Whoever wrote them wakes up.
        for existing in [Existing::Keep, Existing::Replace] {
            let late = name(&old, &place.path("a"), dir.path(), existing);
            assert_eq!(late.expect_err("gone").kind(), io::ErrorKind::NotFound);
            assert_eq!(place.get("a").expect("read"), None);
        }
        assert!(name(&young, &place.path("a"), dir.path(), Existing::Keep).expect("named"));
        // One that has its name already loses only the other.
        assert_eq!(place.clear_unfinished(201).expect("cleared"), 1);
        assert_eq!(place.get("a").expect("read").as_deref(), Some(&b"content"[..]));
    }
}
