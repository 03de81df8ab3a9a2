//! Backup mode: what a copy of a running server's files needs at its two ends.

use super::config::PgConfig;
use super::error::PgError;
use super::session::{Session, within};
use everhold_core::ids::{Lsn, Tli};

/// The checkpoint at the beginning; on a large busy server it takes minutes.
const BEGIN_MS_MAX: u64 = 3_600_000;
const END_MS_MAX: u64 = 60_000;

/// A server in backup mode, which ends with this.
pub struct BackupMode {
    session: Session,
    /// From where the log is needed.
    pub start: Lsn,
    /// As it calls itself.
    pub server_version: String,
    /// Whether its pages have checksums.
    pub checksums: bool,
    /// Of a segment of its log.
    pub segment_bytes: u64,
}

/// What a copy is completed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupEnds {
    /// The content of its backup_label.
    pub label: String,
    /// The content of its tablespace_map, if it has tablespaces.
    pub tablespace_map: Option<String>,
    pub tli: Tli,
    /// From where the log is needed, and to where to be consistent.
    pub start: Lsn,
    pub stop: Lsn,
}

impl BackupMode {
    /// Begins with a checkpoint (on a standby: goes back to the last one).
    pub async fn begin(config: &PgConfig) -> Result<BackupMode, PgError> {
        let session = Session::open(config, "backup", "").await?;
        let sql = "SELECT pg_backup_start('everhold', true), current_setting('server_version'), \
                   current_setting('data_checksums'), \
                   pg_size_bytes(current_setting('wal_segment_size'))";
        let answers = within("begin a backup", BEGIN_MS_MAX, session.ask("begin a backup", sql));
        let row = answers.await?.into_iter().next().and_then(|rows| rows.into_iter().next());
        let mut row = row.unwrap_or_default().into_iter().flatten();
        let start = row.next().and_then(|it| it.parse().ok());
        let server_version = row.next().unwrap_or_default();
        let checksums = row.next().as_deref() == Some("on");
        let segment_bytes = row.next().and_then(|it| it.parse().ok());
        let (Some(start), Some(segment_bytes)) = (start, segment_bytes) else {
            return Err(PgError::refused("the backup's start can't be read"));
        };
        Ok(BackupMode { session, start, server_version, checksums, segment_bytes })
    }

    /// Ends it. On a standby that was promoted meanwhile this fails, and the copy is worth nothing.
    pub async fn end(self) -> Result<BackupEnds, PgError> {
        let doing = "end a backup";
        let sql = "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)";
        let answers = within(doing, END_MS_MAX, self.session.ask(doing, sql)).await?;
        let row = answers.into_iter().next().and_then(|rows| rows.into_iter().next());
        let mut row = row.unwrap_or_default().into_iter();
        let mut next = || row.next().flatten();
        let (stop, label, map) = (next(), next(), next());
        let label = label.unwrap_or_default();
        let read = |line: &str| {
            label.lines().find_map(|it| it.strip_prefix(line)).and_then(|it| it.split(' ').next())
        };
        let start = read("START WAL LOCATION: ").and_then(|it| it.parse().ok());
        let tli = read("START TIMELINE: ").and_then(|it| it.parse().ok());
        match (start, tli, stop.and_then(|it| it.parse().ok())) {
            (Some(start), Some(tli), Some(stop)) => Ok(BackupEnds {
                tablespace_map: map.filter(|map| !map.is_empty()),
                label,
                tli,
                start,
                stop,
            }),
            _ => Err(PgError::refused("the server's backup label can't be read")),
        }
    }
}
