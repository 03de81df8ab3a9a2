//! A client that writes all the time and remembers what was acknowledged.

use super::super::course::wait;
use super::super::failure::{Failure, say};
use super::super::output::plain;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// One write waits so long at most.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(10);
/// Where it writes. Taken away at the end.
const TABLE: &str = "everhold_drill";

/// What came of it.
pub struct Written {
    pub acknowledged: u64,
    /// Acknowledged rows that are not there.
    pub lost: u64,
    /// The longest time without an acknowledgement.
    pub gap: Duration,
}

#[derive(Default)]
struct Seen {
    acknowledged: Vec<i64>,
    last: Option<Instant>,
    gap: Duration,
}

/// Writes from its start until it is finished.
pub struct Writer {
    url: String,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    /// Makes its table and begins. `url`: of the service, with the password.
    pub fn start(url: &str) -> Result<Writer, Failure> {
        // One that an earlier drill left has rows that would hide what is lost.
        query(url, &format!("DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} (n bigint)"))?;
        let (stop, seen) =
            (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (of, own, told) = (url.to_string(), stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build()
            {
                runtime.block_on(write(&of, &own, &told));
            }
        });
        Ok(Writer { url: url.to_string(), stop, seen, thread: Some(thread) })
    }

    fn acknowledged(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.len()
    }

    /// Waits until so many more writes were acknowledged. False: not in that time.
    pub fn flows(&self, more: usize, within: Duration) -> Result<bool, Failure> {
        let from = self.acknowledged();
        wait(within, || self.acknowledged() >= from + more)
    }

    /// Ends it, and looks what is there of what was acknowledged.
    pub fn finish(mut self) -> Result<Written, Failure> {
        self.end();
        let there = query(&self.url, &format!("SELECT n FROM {TABLE}"))?;
        let there: std::collections::BTreeSet<i64> =
            there.iter().filter_map(|text| text.parse().ok()).collect();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = seen.acknowledged.iter().filter(|n| !there.contains(n)).count() as u64;
        Ok(Written { acknowledged: seen.acknowledged.len() as u64, lost, gap: seen.gap })
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// However the drill ended, its table is not left behind.
impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
        if let Err(failure) = query(&self.url, &format!("DROP TABLE IF EXISTS {TABLE}")) {
            let why = failure.get("message").map_or_else(String::new, plain);
            say(&format!("The table {TABLE} stays: {why}"));
        }
    }
}

async fn write(url: &str, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut client: Option<Client> = None;
    let mut n: i64 = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let sql = format!("INSERT INTO {TABLE} VALUES ({n})");
        let done = tokio::time::timeout(ANSWER, async {
            let open = match client.take() {
                Some(open) => open,
                None => connect(url).await.ok()?,
            };
            open.batch_execute(&sql).await.ok()?;
            Some(open)
        });
        client = done.await.ok().flatten();
        if client.is_none() {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(last) = seen.last {
            seen.gap = seen.gap.max(now - last);
        }
        seen.last = Some(now);
        seen.acknowledged.push(n);
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of what a statement answers, asked anew.
pub fn query(url: &str, sql: &str) -> Result<Vec<String>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::plain(error.to_string()))?;
    let asked = async {
        let client = connect(url).await?;
        client.simple_query(sql).await
    };
    let answer = runtime.block_on(async { tokio::time::timeout(ANSWER, asked).await });
    let failed = |why: String| Failure::plain(format!("the service does not do `{sql}`: {why}"));
    let messages = answer.map_err(|_| failed("no answer in time".to_string()))?;
    let messages = messages.map_err(|error| failed(crate::keeper::chain(&error)))?;
    let value = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_string),
        _ => None,
    };
    Ok(messages.iter().filter_map(value).collect())
}
