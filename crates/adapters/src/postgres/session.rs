//! Conversations with a server: SQL over the socket, and the replication protocol's one question.

use super::config::PgConfig;
use super::error::PgError;
use super::proof::Wrong;
use super::settings::SUPERUSER;
use everhold_core::ids::Tli;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, SimpleQueryMessage};
use tokio_stream::StreamExt;

/// How long a server may take to answer a question of the agent's.
pub const ANSWER_MS_MAX: u64 = 1_000;

/// A server that sends more warnings than this in a session has its further ones merged.
const WARNINGS_MAX: usize = 16;

/// The first part of the application name of every session of the agent.
pub const APPLICATION: &str = "everhold";

/// The replication protocol's answers to one question are a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The same where only a superuser may set the rest.
const FOR_ALL: &str = "-c lock_timeout=0 -c idle_session_timeout=0 \
    -c idle_in_transaction_session_timeout=0 -c client_min_messages=warning";

/// What an operator's defaults must not change: how long statements may take, that warnings are seen.
const OPTIONS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 \
    -c idle_in_transaction_session_timeout=0 -c client_min_messages=warning \
    -c default_transaction_read_only=off -c log_statement=none -c log_min_duration_statement=-1";

/// One row, as text.
pub type Row = Vec<Option<String>>;

/// Runs `answer` for at most `ms`. What it was talking to is closed with it, never cancelled: a
/// cancelled commit would look like one that was acknowledged.
pub async fn within<T>(
    doing: &'static str,
    ms: u64,
    answer: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    match tokio::time::timeout(Duration::from_millis(ms), answer).await {
        Ok(answer) => answer,
        Err(_) => Err(PgError::Timeout { doing, ms }),
    }
}

/// A superuser's session over the socket. Closed when dropped.
pub struct Session {
    client: Client,
    warnings: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// A new session in the database `postgres`, in at most [`ANSWER_MS_MAX`]. `purpose` ends its application name, `options`
    /// are further settings.
    pub async fn open(config: &PgConfig, purpose: &str, options: &str) -> Result<Session, PgError> {
        Session::open_in(config, "postgres", purpose, options).await
    }

    /// The same in another database.
    pub async fn open_in(
        config: &PgConfig,
        database: &str,
        purpose: &str,
        options: &str,
    ) -> Result<Session, PgError> {
        let mut to = Session::to(&config.run_dir, config.port, purpose);
        to.dbname(database).options(format!("{OPTIONS} {options}"));
        within("connect", ANSWER_MS_MAX, Session::connect(&to)).await
    }

    /// A session of another role, for what is not to have a superuser's rights.
    pub async fn open_as(
        config: &PgConfig,
        role: &str,
        database: &str,
        purpose: &str,
        options: &str,
    ) -> Result<Session, PgError> {
        let mut to = Session::to(&config.run_dir, config.port, purpose);
        to.user(role).dbname(database).options(format!("{FOR_ALL} {options}"));
        within("connect", ANSWER_MS_MAX, Session::connect(&to)).await
    }

    /// The same as [`Session::open`] where no more is known than where its socket is.
    pub async fn open_at(run_dir: &Path, port: u16, purpose: &str) -> Result<Session, PgError> {
        let to = Session::to(run_dir, port, purpose);
        within("connect", ANSWER_MS_MAX, Session::connect(&to)).await
    }

    fn to(run_dir: &Path, port: u16, purpose: &str) -> tokio_postgres::Config {
        let mut to = tokio_postgres::Config::new();
        to.host_path(run_dir).port(port).user(SUPERUSER).dbname("postgres");
        to.application_name(format!("{APPLICATION} {purpose}")).options(OPTIONS);
        to
    }

    async fn connect(to: &tokio_postgres::Config) -> Result<Session, PgError> {
        let (client, connection) = to.connect(NoTls).await.map_err(PgError::sql("connect"))?;
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(converse(connection, warnings.clone())).abort_handle();
        Ok(Session { client, warnings, task })
    }

    /// The rows of each statement of `sql`, which are run one after the other.
    pub async fn ask(&self, doing: &'static str, sql: &str) -> Result<Vec<Vec<Row>>, PgError> {
        let messages = self.client.simple_query(sql).await.map_err(PgError::sql(doing))?;
        let mut answers = Vec::new();
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|i| row.get(i).map(str::to_string)).collect());
                }
                SimpleQueryMessage::CommandComplete(_) => answers.push(std::mem::take(&mut rows)),
                _ => {}
            }
        }
        Ok(answers)
    }

    /// Of each statement of `sql` that has rows, or fails: how many, and the first `shown` as text. A
    /// failure is an error unless it says something of the data; with it the rest is not run.
    pub async fn each(
        &self,
        doing: &'static str,
        sql: &str,
        shown: usize,
    ) -> Result<Vec<Wrong>, PgError> {
        let stream = self.client.simple_query_raw(sql).await.map_err(PgError::sql(doing))?;
        let mut stream = std::pin::pin!(stream);
        let new = |statement| Wrong { statement, said: Vec::new(), rows: 0 };
        let (mut found, mut now) = (Vec::new(), new(1));
        while let Some(message) = stream.next().await {
            match message.map_err(PgError::sql(doing)) {
                Ok(SimpleQueryMessage::Row(row)) => {
                    now.rows += 1;
                    if now.said.len() < shown {
                        let text = |i| row.get(i).unwrap_or("NULL");
                        let row: Vec<&str> = (0..row.len()).map(text).collect();
                        now.said.push(row.join(", "));
                    }
                }
                Ok(SimpleQueryMessage::CommandComplete(_)) => {
                    let next = new(now.statement + 1);
                    let ended = std::mem::replace(&mut now, next);
                    found.extend(Some(ended).filter(|it| it.rows > 0));
                }
                Ok(_) => {}
                Err(error) if error.is_of_data() => {
                    let said = match &error {
                        PgError::Sql { said, .. } => said.clone(),
                        other => other.to_string(),
                    };
                    now.said = vec![format!("it failed: {said}")];
                    found.push(now);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The same within [`ANSWER_MS_MAX`].
    pub async fn ask_soon(&self, doing: &'static str, sql: &str) -> Result<Vec<Vec<Row>>, PgError> {
        within(doing, ANSWER_MS_MAX, self.ask(doing, sql)).await
    }

    /// The first value of the last statement.
    pub async fn value(&self, doing: &'static str, sql: &str) -> Result<Option<String>, PgError> {
        let answers = self.ask_soon(doing, sql).await?;
        let row = answers.into_iter().next_back().and_then(|rows| rows.into_iter().next());
        Ok(row.and_then(|row| row.into_iter().next()).flatten())
    }

    /// Warnings received since the last call. Those of a statement precede its end.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// Carries the session's messages and keeps its warnings.
async fn converse<S, T>(mut connection: Connection<S, T>, warnings: Arc<Mutex<Vec<String>>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                let mut kept = warnings.lock().unwrap_or_else(PoisonError::into_inner);
                let text = format!("{}: {}", notice.severity(), notice.message());
                match kept.get_mut(WARNINGS_MAX) {
                    Some(last) => *last = text,
                    None => kept.push(text),
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// The timeline of a standby's last replayed record. Only the replication protocol tells it; one
/// session of that is kept for all who ask.
#[derive(Clone, Default)]
pub struct Timeline {
    kept: Arc<tokio::sync::Mutex<Option<Replication>>>,
}

impl Timeline {
    /// Bounded by twice [`ANSWER_MS_MAX`].
    pub async fn ask(&self, config: &PgConfig) -> Result<Tli, PgError> {
        let mut kept = self.kept.lock().await;
        // One that doesn't answer is closed, not kept.
        if let Some(mut session) = kept.take()
            && let Ok(tli) = session.identify().await
        {
            *kept = Some(session);
            return Ok(tli);
        }
        let mut session = Replication::open(config).await?;
        let tli = session.identify().await?;
        *kept = Some(session);
        Ok(tli)
    }

    pub async fn close(&self) {
        *self.kept.lock().await = None;
    }
}

/// A session of the replication protocol.
struct Replication {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Replication {
    async fn open(config: &PgConfig) -> Result<Replication, PgError> {
        within("open a replication session", ANSWER_MS_MAX, async {
            let path = config.run_dir.join(format!(".s.PGSQL.{}", config.port));
            let stream = UnixStream::connect(path).await.map_err(spoken)?;
            let mut this = Replication { stream, buffer: Vec::new() };
            let application = format!("{APPLICATION} timeline");
            let parameters =
                [("user", SUPERUSER), ("replication", "true"), ("application_name", &application)];
            let mut body = 196_608_u32.to_be_bytes().to_vec();
            for text in parameters.iter().flat_map(|(name, value)| [name, value]) {
                body.extend(text.bytes().chain([0]));
            }
            body.push(0);
            let mut message = (body.len() as u32 + 4).to_be_bytes().to_vec();
            message.extend(body);
            this.stream.write_all(&message).await.map_err(spoken)?;
            this.until_ready().await?;
            Ok(this)
        })
        .await
    }

    /// The timeline of the last record replayed.
    async fn identify(&mut self) -> Result<Tli, PgError> {
        let rows = within("ask for the timeline", ANSWER_MS_MAX, async {
            let query = b"IDENTIFY_SYSTEM\0";
            let mut message = vec![b'Q'];
            message.extend((query.len() as u32 + 4).to_be_bytes());
            message.extend(query);
            self.stream.write_all(&message).await.map_err(spoken)?;
            self.until_ready().await
        })
        .await?;
        // System identifier, timeline, position, database.
        let tli = rows.first().and_then(|row| row.get(1)?.as_deref()?.parse().ok());
        tli.ok_or_else(|| broken(format!("IDENTIFY_SYSTEM answered {rows:?}")))
    }

    /// Reads rows up to the server's readiness for the next question.
    async fn until_ready(&mut self) -> Result<Vec<Row>, PgError> {
        let mut rows = Vec::new();
        loop {
            let (tag, body) = self.message().await?;
            match tag {
                b'Z' => return Ok(rows),
                b'D' => rows.push(data_row(&body).ok_or_else(|| broken("a torn row".into()))?),
                b'E' => return Err(broken(error_text(&body))),
                b'R' if body != [0, 0, 0, 0] => {
                    return Err(broken("the server wants a password over its socket".into()));
                }
                _ => {}
            }
        }
    }

    async fn message(&mut self) -> Result<(u8, Vec<u8>), PgError> {
        loop {
            if let Some((head, rest)) = self.buffer.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if !(4..ANSWER_BYTES_MAX).contains(&length) {
                    return Err(broken(format!("a message of {length} bytes")));
                }
                if rest.len() >= length - 4 {
                    let (tag, body) = (head[0], rest[..length - 4].to_vec());
                    self.buffer.drain(..=length);
                    return Ok((tag, body));
                }
            }
            if self.stream.read_buf(&mut self.buffer).await.map_err(spoken)? == 0 {
                return Err(broken("the server closed the session".into()));
            }
        }
    }
}

fn spoken(error: io::Error) -> PgError {
    broken(error.to_string())
}

fn broken(said: String) -> PgError {
    PgError::Answer { doing: "speak the replication protocol", said }
}

fn data_row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        let length = i32::from_be_bytes(*length);
        let value = usize::try_from(length).ok();
        row.push(match value {
            Some(length) => {
                let (value, after) = rest.split_at_checked(length)?;
                rest = after;
                Some(String::from_utf8_lossy(value).into_owned())
            }
            None => None,
        });
    }
    Some(row)
}

/// The message field of an error.
fn error_text(body: &[u8]) -> String {
    let fields: BTreeMap<u8, String> = body
        .split(|byte| *byte == 0)
        .filter_map(|field| field.split_first())
        .map(|(tag, text)| (*tag, String::from_utf8_lossy(text).into_owned()))
        .collect();
    fields.get(&b'M').cloned().unwrap_or_else(|| "an error without a message".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_errors_of_the_protocol_are_read() {
        let row = [0, 2, 0, 0, 0, 2, b'4', b'2', 255, 255, 255, 255];
        assert_eq!(data_row(&row), Some(vec![Some("42".to_string()), None]));
        assert_eq!(data_row(&row[..7]), None);
        assert_eq!(error_text(b"SFATAL\0Mno\0\0"), "no");
        assert_eq!(error_text(b""), "an error without a message");
    }
}
