//! What a restored server is asked, to see whether it is well.

use super::aside::Aside;
use super::error::PgError;
use super::files::{self, Keep};
use super::session::Session;
use super::{history, tool};
use everhold_core::ids::Lsn;
use std::fs;
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

/// Rows of a check that are shown: enough to begin with.
const ROWS_SHOWN: usize = 5;
/// A row is cut after so many characters.
const ROW_CHARS_MAX: usize = 300;
/// A check that takes longer is none that a proof can wait for.
const CHECK_OPTIONS: &str = "-c default_transaction_read_only=on -c statement_timeout=6h";
/// The server reads its files again within this.
const ADMITTED_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

/// Of permanent B-trees: what is not logged begins empty after a recovery.
const INDEXES: &str = "FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
    JOIN pg_catalog.pg_am m ON m.oid = c.relam WHERE m.amname = 'btree' AND c.relkind = 'i' \
    AND c.relpersistence = 'p' AND i.indisvalid AND i.indisready";
const TABLES: &str = "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_am m ON m.oid = c.relam";
const IS_TABLE: &str = "WHERE m.amname = 'heap' AND c.relkind IN ('r', 'm', 't') \
    AND c.relpersistence = 'p'";

/// What a statement found that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// From one.
    pub statement: usize,
    /// The first rows, or why it failed.
    pub said: Vec<String>,
    pub rows: u64,
}

impl Aside {
    /// Where the replay of the log ended: its own branch of history began there.
    pub fn recovered_to(&self) -> Result<Lsn, PgError> {
        let dir = self.config.pg_wal();
        let newest = history::present(&dir)?.pop_last();
        let none = || PgError::refused("the restored server has no branch of its own");
        history::origin(&dir, newest.ok_or_else(none)?).map(|(_, fork)| fork)
    }

    /// Writes something that is logged: to the catalogs, and gone with the session.
    pub async fn write(&self) -> Result<(), PgError> {
        let session = self.session("postgres").await?;
        let sql = "CREATE TEMPORARY TABLE everhold_proof ()";
        session.ask("write to the restored server", sql).await.map(|_| ())
    }

    /// Those that can be connected to.
    pub async fn databases(&self) -> Result<Vec<String>, PgError> {
        let sql = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn ORDER BY 1";
        let rows = self.rows("postgres", sql).await?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }

    /// Whether the package of that extension is installed.
    pub async fn offers(&self, extension: &str) -> Result<bool, PgError> {
        let sql = "SELECT name FROM pg_catalog.pg_available_extensions";
        let rows = self.rows("postgres", sql).await?;
        Ok(rows.iter().any(|row| row.first().is_some_and(|it| it.as_deref() == Some(extension))))
    }

    /// Whether pages have checksums.
    pub async fn has_checksums(&self) -> Result<bool, PgError> {
        let rows = self.rows("postgres", "SHOW data_checksums").await?;
        Ok(rows == [[Some("on".to_string())]])
    }

    /// Checks a database with amcheck: that each B-tree is in order and has every row of its table,
    /// and that the rows of each table can be read. What is wrong.
    pub async fn amcheck(&self, database: &str) -> Result<Vec<String>, PgError> {
        let session = self.session(database).await?;
        let asked = "look at the restored database with amcheck";
        // One that is there may be older than what is asked of it.
        let sql = "CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA pg_catalog; \
             ALTER EXTENSION amcheck UPDATE; \
             SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension e \
             JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'amcheck'";
        let answers = session.ask(asked, sql).await?;
        let schema = answers.into_iter().next_back().and_then(|rows| rows.into_iter().next());
        let schema = schema.and_then(|row| row.into_iter().next()).flatten().unwrap_or_default();
        let tables = format!(
            "SELECT format('%s, block %s: %s', c.oid::regclass, v.blkno, v.msg) {TABLES} \
             CROSS JOIN LATERAL {schema}.verify_heapam(c.oid, on_error_stop => true) v \
             {IS_TABLE} LIMIT {ROWS_SHOWN}"
        );
        let indexes = format!("SELECT {schema}.bt_index_check(c.oid, true) {INDEXES}");
        let mut wrong = Vec::new();
        for sql in [tables, indexes] {
            // For a good index there is a row with nothing in it.
            let found = session.each(asked, &sql, ROWS_SHOWN).await?;
            wrong.extend(found.into_iter().flat_map(|it| it.said));
        }
        wrong.retain(|row| !row.is_empty());
        wrong.iter_mut().for_each(shorten);
        Ok(wrong)
    }

    /// Runs `sql` as `role`, which may only read: whatever else it is led to do, it does with the
    /// rights of who owns the data. Each row of a statement is something wrong.
    pub async fn check(
        &self,
        database: &str,
        role: &str,
        sql: &str,
    ) -> Result<Vec<Wrong>, PgError> {
        self.admit(role).await?;
        let until = Instant::now() + ADMITTED_WITHIN;
        let session = loop {
            match Session::open_as(&self.config, role, database, "proof", CHECK_OPTIONS).await {
                Ok(session) => break session,
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        let mut wrong = session.each("run the checks", sql, ROWS_SHOWN).await?;
        wrong.iter_mut().flat_map(|it| &mut it.said).for_each(shorten);
        Ok(wrong)
    }

    /// Lets a role in over the socket, as the user who restores.
    async fn admit(&self, role: &str) -> Result<(), PgError> {
        let config = &self.config;
        let quoted = format!("\"{}\"", role.replace('"', "\"\""));
        let add = |name: &str, line: String| {
            let path = config.run_dir.join(name);
            let text = fs::read_to_string(&path).map_err(PgError::file("read", &path))?;
            let text = format!("{text}{line}");
            files::write(&path, text.as_bytes(), config.run_as, Keep::UntilReboot)
        };
        add("pg_hba.conf", format!("local all {quoted} peer map=everhold\n"))?;
        for name in config.local_names()? {
            add("pg_ident.conf", format!("everhold \"{name}\" {quoted}\n"))?;
        }
        self.rows("postgres", "SELECT pg_reload_conf()").await.map(|_| ())
    }

    /// Stops it in order and has the checksum of every page looked at. What is wrong.
    pub async fn check_pages(self) -> Result<Vec<String>, PgError> {
        let config = self.config.clone();
        self.stop().await?;
        let mut command = tool::command(&config, "pg_checksums", &[]);
        command.arg("--check").arg("-D").arg(&config.data_dir);
        match tool::run("pg_checksums", command, None).await {
            Ok(_) => Ok(Vec::new()),
            Err(PgError::Tool { said, .. }) if said.contains("verification failed") => {
                let wrong = said.split("; ").filter(|it| it.contains("verification failed"));
                Ok(wrong.take(ROWS_SHOWN).map(str::to_string).collect())
            }
            Err(error) => Err(error),
        }
    }
}

fn shorten(row: &mut String) {
    if let Some((at, _)) = row.char_indices().nth(ROW_CHARS_MAX) {
        row.truncate(at);
        row.push('…');
    }
}

/// Words of a server that says that the machine, not the data, kept it from going on.
const OF_THE_MACHINE: [&str; 13] = [
    "No space left",
    "Disk quota exceeded",
    "annot allocate memory",
    "shared memory",
    "semaphores",
    "lock file",
    "Too many open files",
    "could not access file",
    "could not fork",
    "Input/output error",
    "Read-only file system",
    "signal: ",
    "by signal 9",
];

impl PgError {
    /// Whether it says something of the data: without this it may be the machine's fault, and the
    /// same data may be well on another day.
    pub fn is_of_data(&self) -> bool {
        match self {
            PgError::DidNotStart { said } => !OF_THE_MACHINE.iter().any(|it| said.contains(it)),
            PgError::Sql { source, .. } => source.as_db_error().is_some_and(|error| {
                let class = error.code().code().get(..2).unwrap_or_default();
                // Insufficient resources, an operator's intervention, the system.
                let of_machine =
                    ["53", "57"].contains(&class) || *error.code() == SqlState::IO_ERROR;
                !of_machine || *error.code() == SqlState::QUERY_CANCELED
            }),
            PgError::File { .. }
            | PgError::SocketPath { .. }
            | PgError::Tool { .. }
            | PgError::StillStarting { .. }
            | PgError::Remains { .. }
            | PgError::Timeout { .. }
            | PgError::Answer { .. }
            | PgError::NotParked { .. }
            | PgError::Unacknowledged { .. }
            | PgError::WrongTimeline { .. }
            | PgError::Refused { .. }
            | PgError::Task { .. } => false,
        }
    }
}
