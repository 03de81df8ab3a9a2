//! What the kept logs of old leaders hold, read by a process beside the agent: the role `losses`. A log
//! may be gigabytes, and an agent that hands over in milliseconds has no memory for that.

use crate::seat::Seat;
use crate::{helper, link};
use everhold_adapters::postgres::lost::{self, Tail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Mutex;

/// A thousand rows of three hundred letters a column are far below this.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// What it says, once.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Tails(Vec<Tail>),
    Failed { why: String },
}

/// Reads them and says what they hold; what failed is said too. It ends when its stdin is closed.
pub async fn run(seat: Seat) -> anyhow::Result<()> {
    helper::when_left(|| std::process::exit(0));
    helper::stand_back();
    let said = match tails(&seat).await {
        Ok(tails) => Said::Tails(tails),
        Err(error) => Said::Failed { why: format!("{error:#}") },
    };
    helper::say(&said);
    Ok(())
}

async fn tails(seat: &Seat) -> anyhow::Result<Vec<Tail>> {
    let (_, config) = seat.open()?.instance()?;
    Ok(lost::tails(&config).await?)
}

/// Has them read, one service at a time.
pub struct Losses {
    node_file: PathBuf,
    turn: Mutex<()>,
}

impl Losses {
    pub fn new(node_file: &Path) -> Losses {
        let node_file = std::path::absolute(node_file).unwrap_or_else(|_| node_file.to_path_buf());
        Losses { node_file, turn: Mutex::default() }
    }

    /// Ended where nobody waits for it any more.
    pub async fn read(&self, service: &str) -> Result<Vec<Tail>, String> {
        let within = link::ANSWER.as_secs();
        match tokio::time::timeout(link::ANSWER, self.wait(service)).await {
            Ok(tails) => tails,
            Err(_) => Err(format!("the logs it keeps of {service} were not read in {within} s")),
        }
    }

    async fn wait(&self, service: &str) -> Result<Vec<Tail>, String> {
        let _turn = self.turn.lock().await;
        let failed = |error: std::io::Error| format!("no process to read them: {error}");
        // It ends with this value, as it does with its stdin.
        let mut child =
            Seat::command("losses-of", &self.node_file, service).spawn().map_err(failed)?;
        let _stdin = child.stdin.take();
        let text = match child.stdout.take() {
            Some(stdout) => whole(stdout).await.map_err(failed)?,
            None => Vec::new(),
        };
        let status = child.wait().await.map_err(failed)?;
        match serde_json::from_slice(&text) {
            Ok(Said::Tails(tails)) => Ok(tails),
            Ok(Said::Failed { why }) => Err(why),
            Err(_) => Err(format!("the process that reads them ended ({status})")),
        }
    }
}

async fn whole(from: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(ANSWER_BYTES_MAX).read_to_end(&mut text).await?;
    Ok(text)
}
