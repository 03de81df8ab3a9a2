//! Functions that carry settings of their own (`ALTER FUNCTION … SET`). Each database has its own
//! catalog of them, so a session in each one looks.
//!
//! A commit goes by the setting at its own end, when that of a function is over again; so
//! `synchronous_commit` there weakens none today, and is told because somebody meant it to. What
//! concerns pages takes effect while the function runs.

use super::config::PgConfig;
use super::error::PgError;
use super::session::Session;
use super::settings;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;

/// Between two looks: functions change with releases, and each look is a session per database.
const EVERY: Duration = Duration::from_secs(30);
/// More databases than a server of one service has.
const DATABASES_MAX: u32 = 100;
/// Enough to see what is wrong.
const FOUND_MAX: usize = 50;

/// Nothing is found by an unqualified name, so that all names are told with their schema.
const OPTIONS: &str = "-c search_path=pg_catalog";
const FUNCTIONS: &str = "\
SELECT CASE prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, oid::regprocedure, \
 unnest(proconfig) FROM pg_proc WHERE proconfig IS NOT NULL ORDER BY 2, 3";

/// Looks from time to time, beside everything else: a database that answers late, or never, is no
/// reason to know nothing of the server. Ends when dropped.
pub struct Functions {
    found: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Functions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Functions {
    pub fn watch(config: Arc<PgConfig>) -> Functions {
        let found = Arc::new(Mutex::new(Vec::new()));
        let told = found.clone();
        let task = tokio::spawn(async move {
            loop {
                match look(&config).await {
                    Ok(found) => *told.lock().unwrap_or_else(PoisonError::into_inner) = found,
                    Err(error) => tracing::debug!(%error, "can't look for functions' settings"),
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Functions { found, task: task.abort_handle() }
    }

    /// Those that weaken a guarantee, in words, as of the last look.
    pub fn found(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn look(config: &PgConfig) -> Result<Vec<String>, PgError> {
    let session = Session::open(config, "functions", "").await?;
    let sql = format!(
        "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname LIMIT {DATABASES_MAX}"
    );
    let answers = session.ask_soon("list the databases", &sql).await?;
    drop(session);
    let rows = answers.into_iter().flatten();
    let mut found = Vec::new();
    for database in rows.filter_map(|row| row.into_iter().next()?) {
        // One that is being dropped, or lets nobody in: the others are looked at all the same.
        match look_into(config, &database).await {
            Ok(more) => found.extend(more),
            Err(error) => tracing::debug!(database, %error, "can't look into a database"),
        }
    }
    found.truncate(FOUND_MAX);
    Ok(found)
}

async fn look_into(config: &PgConfig, database: &str) -> Result<Vec<String>, PgError> {
    let session = Session::open_in(config, database, "functions", OPTIONS).await?;
    let answers = session.ask_soon("look for functions' settings", FUNCTIONS).await?;
    let rows = answers.iter().flatten().filter_map(|row| match row.as_slice() {
        [Some(kind), Some(name), Some(setting)] if settings::weakens(setting) => {
            Some(format!("ALTER {kind} {name} in {database}: {setting}"))
        }
        _ => None,
    });
    Ok(rows.collect())
}
