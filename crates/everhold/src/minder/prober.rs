//! The minder's probe: a record written and flushed here, and whether the standbys hold it. A thread
//! of its own, since a frozen server never answers.

use crate::clock;
use everhold_adapters::postgres::SUPERUSER;
use everhold_core::ids::{Lsn, Time};
use everhold_core::minder::{Right, proven};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// A question that isn't answered by then is given up, with its session.
const ANSWER: Duration = Duration::from_millis(2_000);
/// So long the standbys are watched for one record. A late one is found by the next round.
const WATCH: Duration = Duration::from_millis(500);
/// Between two looks at the standbys.
const LOOK: Duration = Duration::from_millis(10);
/// Records that a slow standby may still come to hold.
const RECORDS_MAX: usize = 8;
/// A session that isn't needed so long is closed: the agent is back.
const UNUSED: Duration = Duration::from_secs(10);

/// An operator's defaults must neither end the statements nor hide their failure, and what is
/// written here waits for nobody.
const OPTIONS: &str = "-c synchronous_commit=local -c statement_timeout=0 -c lock_timeout=0 \
    -c idle_session_timeout=0 -c default_transaction_read_only=off -c log_statement=none \
    -c log_min_duration_statement=-1";
/// Part of a transaction, since only a commit flushes it at once.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'everhold', '')";
/// One row for each slot: a connection that lingers owns none.
const LOOK_SQL: &str = "SELECT s.slot_name, r.flush_lsn FROM pg_stat_replication r \
    JOIN pg_replication_slots s ON s.slot_name = r.application_name AND s.active_pid = r.pid \
    WHERE r.state = 'streaming' AND r.flush_lsn IS NOT NULL";

pub struct Prober {
    asks: SyncSender<Option<Right>>,
    answers: Receiver<Option<Time>>,
    answered: Arc<OwnedFd>,
}

impl Prober {
    pub fn start(run_dir: &Path, port: u16) -> io::Result<Prober> {
        let (asks, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let answered = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut probe = Probe { run_dir: run_dir.to_path_buf(), port, open: None };
        let wake = answered.clone();
        std::thread::Builder::new().name("prober".into()).stack_size(512 << 10).spawn(
            move || {
                loop {
                    let right = match asked.recv_timeout(UNUSED) {
                        Ok(Some(right)) => right,
                        Ok(None) => {
                            runtime.block_on(probe.rehearse());
                            continue;
                        }
                        Err(RecvTimeoutError::Timeout) => {
                            probe.open = None;
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => return,
                    };
                    let proven = runtime.block_on(probe.round(&right));
                    if answer.send(proven).is_err() {
                        return;
                    }
                    let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
                }
            },
        )?;
        Ok(Prober { asks, answers, answered })
    }

    /// Begins a probe; one at a time. False: it can't.
    pub fn ask(&self, right: Right) -> bool {
        self.asks.try_send(Some(right)).is_ok()
    }

    /// Connects once, so that what a probe needs is in memory.
    pub fn rehearse(&self) {
        let _ = self.asks.try_send(None);
    }

    /// How a probe ended, if one has.
    pub fn answer(&self) -> Option<Option<Time>> {
        let _ = rustix::io::read(&*self.answered, &mut [0; 8]);
        self.answers.try_recv().ok()
    }

    /// Readable when there is an answer.
    pub fn answered_fd(&self) -> &OwnedFd {
        &self.answered
    }
}

struct Probe {
    run_dir: PathBuf,
    port: u16,
    open: Option<Session>,
}

struct Session {
    client: Client,
    /// Written before, ending at; of this session.
    records: VecDeque<(Time, Lsn)>,
    conversation: tokio::task::AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.conversation.abort();
    }
}

impl Probe {
    /// One record, and a look at who holds this one or an earlier one. The session is closed when
    /// anything fails: the next round opens another.
    async fn round(&mut self, right: &Right) -> Option<Time> {
        let mut session = match self.open.take() {
            Some(session) => session,
            None => timeout(ANSWER, self.connect()).await.ok()??,
        };
        let found = timeout(ANSWER, session.prove(right)).await.ok()??;
        self.open = Some(session);
        found.proven
    }

    async fn rehearse(&mut self) {
        let asked = async {
            let session = self.connect().await?;
            session.client.simple_query(LOOK_SQL).await.ok()
        };
        let _ = timeout(ANSWER, asked).await;
    }

    async fn connect(&self) -> Option<Session> {
        let mut to = tokio_postgres::Config::new();
        to.host_path(&self.run_dir).port(self.port).user(SUPERUSER).dbname("postgres");
        to.application_name("everhold minder").options(OPTIONS);
        let (client, connection) = to.connect(NoTls).await.ok()?;
        let conversation = tokio::spawn(connection).abort_handle();
        Some(Session { client, records: VecDeque::new(), conversation })
    }
}

struct Found {
    proven: Option<Time>,
}

impl Session {
    /// `None`: the session is of no use any more.
    async fn prove(&mut self, right: &Right) -> Option<Found> {
        let before = clock::now();
        let end: Lsn = self.rows(WRITE).await?.first()?.0.parse().ok()?;
        if self.records.len() == RECORDS_MAX {
            self.records.pop_front();
        }
        self.records.push_back((before, end));
        let until = Instant::now() + WATCH;
        loop {
            let rows = self.rows(LOOK_SQL).await?.into_iter();
            let flushed: BTreeMap<String, Lsn> =
                rows.filter_map(|(name, lsn)| Some((name, lsn?.parse().ok()?))).collect();
            let proven = proven(self.records.make_contiguous(), &flushed, right);
            if proven.is_some() || Instant::now() > until {
                self.records.retain(|(at, _)| Some(*at) > proven);
                return Some(Found { proven });
            }
            sleep(LOOK).await;
        }
    }

    /// The first two columns.
    async fn rows(&self, sql: &str) -> Option<Vec<(String, Option<String>)>> {
        let messages = self.client.simple_query(sql).await.ok()?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let second = if row.len() > 1 { row.get(1) } else { None };
                Some((row.get(0)?.to_string(), second.map(str::to_string)))
            }
            _ => None,
        });
        Some(rows.collect())
    }
}
