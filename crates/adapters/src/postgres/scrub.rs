//! Reading the pages of a data directory from its disk, and what has to be known of one that looks
//! bad: whether the server still holds a better one, and whose it is.

use super::config::PgConfig;
use super::error::PgError;
use super::session::{Session, within};
use everhold_core::page::{PAGE, first_page};
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Read at a time.
pub const CHUNK_PAGES: u64 = 64;
/// What reads past the page cache have to be aligned to; no disk has larger sectors.
const ALIGN: usize = 4096;
/// A checkpoint of a large busy server takes minutes.
const CHECKPOINT_MS_MAX: u64 = 3_600_000;
/// Between two looks for a standby's restartpoint, which waits for a checkpoint of its leader.
const RESTARTPOINT_EVERY: Duration = Duration::from_secs(1);

/// The relation files of a data directory, by their paths in it, sorted.
pub fn relation_files(data_dir: &Path) -> Result<Vec<String>, PgError> {
    let mut files = Vec::new();
    let mut open: Vec<String> = ["base", "global", "pg_tblspc"].map(str::to_string).to_vec();
    while let Some(dir) = open.pop() {
        let path = data_dir.join(&dir);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // Databases are dropped meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(PgError::file("list", &path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(PgError::file("list", &path))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let at = format!("{dir}/{name}");
            // Tablespaces are links.
            if fs::metadata(entry.path()).is_ok_and(|found| found.is_dir()) {
                open.push(at);
            } else if first_page(&at).is_some() {
                files.push(at);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// One file, read from the disk itself where the file system can: rot lies there, and a page that
/// the kernel has in memory hides it. Nothing that others use is thrown out of memory for it.
pub struct Pages {
    file: File,
    buffer: Vec<u8>,
}

impl Pages {
    pub fn open(path: &Path) -> io::Result<Pages> {
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let file = match OpenOptions::new().read(true).custom_flags(direct).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => File::open(path)?,
            other => other?,
        };
        Ok(Pages { file, buffer: vec![0; CHUNK_PAGES as usize * PAGE + ALIGN] })
    }

    /// The whole pages from `page` on, at most `count` and [`CHUNK_PAGES`]; none behind the end.
    pub fn read(&mut self, page: u64, count: u64) -> io::Result<&[u8]> {
        let skip = self.buffer.as_ptr().align_offset(ALIGN);
        let want = count.min(CHUNK_PAGES) as usize * PAGE;
        let into = &mut self.buffer[skip..skip + want];
        let mut done = 0;
        while done < want {
            match self.file.read_at(&mut into[done..], page * PAGE as u64 + done as u64) {
                Ok(0) => break,
                // Behind a short read lies the end: another would not be aligned.
                Ok(read) if read % ALIGN != 0 => {
                    done += read;
                    break;
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[skip..skip + done - done % PAGE])
    }
}

/// Whether the pages of the data directory have checksums.
pub async fn has_checksums(config: &PgConfig) -> Result<bool, PgError> {
    Ok(super::tool::control(config).await?.checksums())
}

/// Returns when everything that the server had changed in memory before is on its disk: a page that
/// is still bad then stays so.
///
/// On a standby that takes until its leader has made a checkpoint; asked for one it does what it
/// can, which may be nothing, so it is asked until its restartpoint has moved. The first answer
/// counts for nothing: it may be of one that was under way before.
pub async fn written_out(config: &PgConfig) -> Result<(), PgError> {
    let session = Session::open(config, "scrub", "").await?;
    let first = checkpoint(&session).await?;
    let Some(first) = first else { return Ok(()) };
    while checkpoint(&session).await?.is_some_and(|now| now == first) {
        tokio::time::sleep(RESTARTPOINT_EVERY).await;
    }
    Ok(())
}

/// Makes one; where the last restartpoint of a standby is, `None` on a primary.
async fn checkpoint(session: &Session) -> Result<Option<String>, PgError> {
    let doing = "make a checkpoint";
    within(doing, CHECKPOINT_MS_MAX, session.ask(doing, "CHECKPOINT")).await?;
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN checkpoint_lsn END \
               FROM pg_control_checkpoint()";
    session.value("read the last checkpoint", sql).await
}

/// The relation a file belongs to, as `NAME of DATABASE`; `None`: the server doesn't say.
pub async fn relation_of(config: &PgConfig, path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let number = |text: &str| text.split(['.', '_']).next()?.parse::<u32>().ok();
    let (space, database, file) = match *parts.as_slice() {
        ["global", file] => (1664, None, file),
        ["base", database, file] => (0, Some(number(database)?), file),
        ["pg_tblspc", space, _, database, file] => (number(space)?, Some(number(database)?), file),
        _ => return None,
    };
    let name = match database {
        None => "postgres".to_string(),
        Some(oid) => {
            let session = Session::open(config, "scrub", "").await.ok()?;
            let sql = format!("SELECT datname FROM pg_database WHERE oid = {oid}");
            session.value("name a database", &sql).await.ok()??
        }
    };
    let session = Session::open_in(config, &name, "scrub", "").await.ok()?;
    let file = number(file)?;
    let sql = format!("SELECT pg_filenode_relation({space}, {file})::regclass");
    let relation = session.value("name a relation", &sql).await.ok()??;
    Some(format!("{relation} of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_are_read_up_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("16384");
        let bytes: Vec<u8> = (0..200 * PAGE + 5_000).map(|at| (at / PAGE) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let mut pages = Pages::open(&path).unwrap();
        for (page, count, expected) in [
            (0, 1, 1),
            (0, 1_000, CHUNK_PAGES),
            (190, 64, 10),
            (199, 1, 1),
            (200, 64, 0),
            (900, 1, 0),
        ] {
            let read = pages.read(page, count).unwrap();
            let from = page as usize * PAGE;
            assert_eq!(read.len(), expected as usize * PAGE, "{page} {count}");
            assert!(read.is_empty() || *read == bytes[from..from + read.len()], "{page} {count}");
        }
    }

    #[test]
    fn files_of_relations_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "base/5/16384",
            "base/5/16384.1",
            "base/5/PG_VERSION",
            "base/5/t3_16384",
            "global/1262",
            "global/pg_control",
            "pg_wal/1",
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let found = relation_files(dir.path()).unwrap();
        assert_eq!(found, ["base/5/16384", "base/5/16384.1", "global/1262"]);
    }
}
