//! The archiver: a process of its own that ships the log of a leader's PostgreSQL as it is written.
//!
//! Its agent gives it an order on stdin and hears from it on stdout; it ends with either, and when its
//! server leads no more. One of an old epoch that runs on harms nothing: it writes under its epoch,
//! and beyond the fork nobody reads that.

mod lane;
mod late;
mod mark;
mod ship;
mod slot;
mod tender;

pub use slot::{Heard, tend_slot};
pub use tender::{Office, Tender};

use crate::{clock, helper};
use anyhow::Context;
use everhold_adapters::postgres::WalSource;
use everhold_core::ids::{Epoch, Lsn, Time};
use everhold_core::spec::RepositorySpec;
use everhold_core::term::Branch;
use late::Late;
use serde::{Deserialize, Serialize};
use ship::Shipper;
use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Between two looks at how far the server is: with the put itself a commit is archived within a
/// second.
const POLL: Duration = Duration::from_millis(500);
/// Between two words to the agent.
const TELL: Duration = Duration::from_millis(250);
/// A line of history of thousands of failovers.
const ORDER_BYTES_MAX: u64 = 4 << 20;

/// Whose log is shipped.
#[derive(clap::Args, Clone, Debug)]
pub struct Seat {
    /// The directory of the service on this node
    #[arg(long)]
    pub dir: PathBuf,
}

/// What a leader's log is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    pub sysid: u64,
    pub epoch: Epoch,
    pub line: Vec<Branch>,
}

/// What an archiver is to do. No secret is in it: passwords stand in files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub cluster: String,
    pub service: String,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub port: u16,
    pub places: BTreeMap<String, RepositorySpec>,
    /// So many places make a piece archived.
    pub copies: usize,
    pub lead: Lead,
}

/// How an archiver gets on, as told to the agent, and by that to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    pub epoch: Epoch,
    /// All up to there is in as many places as are asked for. `None`: not known yet.
    pub archived: Option<Lsn>,
    /// Since the oldest byte came to the server's disk that isn't archived; 0: all of it is.
    pub behind_ms: Option<u64>,
    /// The newest part that is missing for good.
    pub gap: Option<(Lsn, Lsn)>,
    pub trouble: Option<Trouble>,
}

/// What keeps it from shipping everything everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub why: String,
    pub next: String,
    /// Only a person ends it.
    pub operator: bool,
    pub for_ms: u64,
}

/// What the archiver's threads share.
#[derive(Default)]
struct State {
    archived: Option<Lsn>,
    gap: Option<(Lsn, Lsn)>,
    trouble: Option<(Time, Fault)>,
    late: Late,
}

/// A trouble, before it has lasted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    why: String,
    next: String,
    operator: bool,
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ships until its server leads no more, or its agent is gone.
pub async fn run() -> anyhow::Result<()> {
    helper::own_session();
    let order = Arc::new(take_order().context("read the order of the agent")?);
    let state = Shared::default();
    let (of, epoch) = (state.clone(), order.lead.epoch);
    std::thread::Builder::new().name("tell".into()).spawn(move || tell(&of, epoch))?;
    std::thread::Builder::new().name("agent".into()).spawn(end_with_agent)?;
    let tip = order.lead.line.last().map(|branch| branch.tli);
    let mut source = WalSource::new(&order.run_dir, order.port, &order.data_dir);
    let mut shipper = Shipper::new(order.clone(), state.clone())?;
    loop {
        let asked_ms = clock::unix_ms();
        match source.flushed().await {
            Ok(Some(at)) if at.sysid == order.lead.sysid && Some(at.tli) == tip => {
                lock(&state).late.seen(clock::now(), at.lsn);
                shipper.round(&at, asked_ms).await;
                shipper.rest(&at, POLL).await;
            }
            // Another server, or another branch: another's to ship.
            Ok(_) => return Ok(()),
            Err(error) => {
                shipper.complain(Fault {
                    why: format!(
                        "PostgreSQL does not say how far it is: {}",
                        crate::keeper::chain(&error)
                    ),
                    next: "its server answers again".to_string(),
                    operator: false,
                });
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

fn take_order() -> anyhow::Result<Order> {
    let mut text = String::new();
    std::io::stdin().lock().take(ORDER_BYTES_MAX).read_line(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// The agent holds the other end as long as it lives.
fn end_with_agent() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    std::process::exit(0);
}

fn tell(state: &Mutex<State>, epoch: Epoch) {
    loop {
        let word = lock(state).word(epoch, clock::now());
        // Numbers and texts only.
        let mut text = serde_json::to_string(&word).expect("plain data");
        text.push('\n');
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
        drop(out);
        std::thread::sleep(TELL);
    }
}

impl State {
    fn word(&self, epoch: Epoch, now: Time) -> Word {
        let trouble = self.trouble.as_ref().map(|(since, fault)| Trouble {
            why: fault.why.clone(),
            next: fault.next.clone(),
            operator: fault.operator,
            for_ms: now.since(*since),
        });
        Word {
            epoch,
            archived: self.archived,
            behind_ms: self.archived.and_then(|at| self.late.behind(at, now)),
            gap: self.gap,
            trouble,
        }
    }
}
