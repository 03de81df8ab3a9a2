//! What can go wrong with a PostgreSQL server: what was tried, on what, in words for an operator.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum PgError {
    #[error("could not {doing} {}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the socket path in {} would be {bytes} bytes long, at most 107 are possible", dir.display())]
    SocketPath { dir: PathBuf, bytes: usize },
    #[error("{tool} ended with {status}: {said}")]
    Tool { tool: &'static str, status: String, said: String },
    #[error("PostgreSQL did not start: {said}")]
    DidNotStart { said: String },
    #[error("PostgreSQL is still starting after {seconds} s: {said}")]
    StillStarting { seconds: u64, said: String },
    #[error("processes of {} could not be ended: {pids:?}", dir.display())]
    Remains { dir: PathBuf, pids: Vec<i32> },
    #[error("could not {doing}: {said}")]
    Sql { doing: &'static str, said: String, source: tokio_postgres::Error },
    #[error("could not {doing}: no answer within {ms} ms")]
    Timeout { doing: &'static str, ms: u64 },
    #[error("could not {doing}: {said}")]
    Answer { doing: &'static str, said: String },
    #[error("the standby is not parked after {ms} ms: {why}")]
    NotParked { ms: u64, why: String },
    #[error("the commit was not acknowledged: {warning}")]
    Unacknowledged { warning: String },
    #[error("promotion gave timeline {tli} instead of {wanted}")]
    WrongTimeline { tli: u32, wanted: u32 },
    #[error("refused: {why}")]
    Refused { why: String },
    #[error("a background task ended: {said}")]
    Task { said: String },
}

impl PgError {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PgError {
        let path = path.to_path_buf();
        move |source| PgError::File { doing, path, source }
    }

    pub(super) fn sql(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> PgError {
        move |source| {
            let said = match source.as_db_error() {
                Some(error) => error.message().to_string(),
                None => source.to_string(),
            };
            PgError::Sql { doing, said, source }
        }
    }

    pub(super) fn refused(why: impl Into<String>) -> PgError {
        PgError::Refused { why: why.into() }
    }
}
