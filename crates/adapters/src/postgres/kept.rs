//! WAL that a rewind or a clone is about to destroy: kept aside, with a summary of what it holds.

use super::error::PgError;
use super::files::{self, Keep};
use super::{Site, history, tool};
use everhold_core::ids::{Epoch, Lsn, Tli};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

/// More WAL than this is only summarised.
const KEPT_BYTES_MAX: u64 = 1 << 30;
/// The same for all that is kept. Nothing is ever deleted here: that is the operator's.
const KEPT_TOTAL_BYTES_MAX: u64 = 4 << 30;
/// Space that keeping leaves free on the disk.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Commits listed one by one; all are counted.
const COMMITS_LISTED_MAX: usize = 1_000;

/// The summary, `summary.json` beside the segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptWal {
    /// Of the term whose leader's history took its place.
    pub epoch: Epoch,
    pub node: String,
    pub tli: Tli,
    pub fork: Lsn,
    /// Its timelines, each with where its own records begin.
    #[serde(default)]
    pub begins: Vec<(Tli, Lsn)>,
    /// Where the WAL ends, as far as it could be read.
    pub end: Lsn,
    pub bytes: u64,
    /// Transactions that committed past the fork, those of Everhold itself included. None was
    /// acknowledged by the synchronous set.
    pub commits: u64,
    /// The first of them.
    pub listed: Vec<Commit>,
    /// Names of the segment files kept.
    pub segments: Vec<String>,
    /// Why there are none, or fewer than there were.
    pub note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub xid: u32,
    pub at: String,
    pub lsn: Lsn,
}

/// Keeps what follows `fork` in the stopped data directory, under the number of `epoch`. What an
/// earlier attempt kept stays: the directory may not be whole any more.
pub async fn keep(site: &Site, fork: Lsn, epoch: Epoch) -> Result<KeptWal, PgError> {
    let place = site.config.kept_dir.join(epoch.to_string());
    if let Ok(text) = fs::read_to_string(place.join("summary.json"))
        && let Ok(kept) = serde_json::from_str(&text)
    {
        return Ok(kept);
    }
    let segment_bytes = tool::control(&site.config).await?.segment_bytes()?;
    let pg_wal = site.config.pg_wal();
    let (segments, stretches) = site
        .blocking(move || {
            let mut segments = history::segments(&pg_wal)?;
            segments.retain(|segment| segment.begin(segment_bytes).0 + segment_bytes > fork.0);
            let stretches = stretches(&pg_wal, &segments, fork);
            Ok((segments, stretches))
        })
        .await?;
    let mut kept = KeptWal {
        epoch,
        node: site.config.node.clone(),
        tli: stretches.last().map_or(0, |(tli, _)| *tli),
        fork,
        begins: stretches.clone(),
        end: fork,
        bytes: 0,
        commits: 0,
        listed: Vec::new(),
        segments: Vec::new(),
        note: None,
    };
    for (at, (tli, begin)) in stretches.iter().enumerate() {
        let end = stretches.get(at + 1).map(|(_, begin)| *begin);
        read_commits(site, &mut kept, *tli, *begin, end).await?;
    }
    kept.bytes = kept.end.0 - fork.0;
    if kept.bytes > 0 {
        let holds = |segment: &&history::Segment| segment.begin(segment_bytes) < kept.end;
        kept.segments = segments.iter().filter(holds).map(|s| s.name.clone()).collect();
    }
    let (config, needed) = (site.config.clone(), kept.segments.len() as u64 * segment_bytes);
    site.blocking(move || {
        if let Some(why) = too_much(&config.kept_dir, needed)? {
            kept.segments.clear();
            kept.note = Some(why);
        }
        let partial = files::beside(&place, ".new");
        files::remove(&partial)?;
        files::private_dir(&partial, None)?;
        for name in &kept.segments {
            let (from, to) = (config.pg_wal().join(name), partial.join(name));
            fs::copy(&from, &to)
                .and_then(|_| File::open(&to)?.sync_all())
                .map_err(PgError::file("copy WAL to", &to))?;
        }
        let text = serde_json::to_string_pretty(&kept)
            .map_err(|error| PgError::Answer { doing: "summarise WAL", said: error.to_string() })?;
        files::write(&partial.join("summary.json"), text.as_bytes(), None, Keep::Synced)?;
        // What stands in the way has no summary: an attempt of another version, or by hand.
        files::remove(&place)?;
        fs::rename(&partial, &place).map_err(PgError::file("put in place", &place))?;
        files::sync_parent(&place)?;
        Ok(kept)
    })
    .await
}

/// Why `needed` bytes aren't kept, if so.
fn too_much(kept_dir: &Path, needed: u64) -> Result<Option<String>, PgError> {
    let failed = PgError::file("measure", kept_dir);
    let disk = rustix::fs::statvfs(kept_dir).map_err(|error| failed(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let held = bytes_in(kept_dir);
    Ok(if needed > KEPT_BYTES_MAX {
        Some(format!("not kept: {needed} bytes, at most {KEPT_BYTES_MAX} are"))
    } else if held + needed > KEPT_TOTAL_BYTES_MAX {
        Some(format!("not kept: {held} bytes are here already, at most {KEPT_TOTAL_BYTES_MAX} are"))
    } else if needed > 0 && free < needed + FREE_BYTES_MIN {
        Some(format!("not kept: only {free} bytes are free on the disk"))
    } else {
        None
    })
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let found = entry.metadata().ok()?;
        Some(if found.is_dir() { bytes_in(&entry.path()) } else { found.len() })
    });
    sizes.sum()
}

/// The timelines of `segments` past `fork`, each with the place where its own records begin.
fn stretches(pg_wal: &Path, segments: &[history::Segment], fork: Lsn) -> Vec<(Tli, Lsn)> {
    let tlis: BTreeSet<Tli> = segments.iter().map(|segment| segment.tli).collect();
    let begin = |tli: Tli| history::origin(pg_wal, tli).map_or(fork, |(_, left)| left.max(fork));
    tlis.into_iter().map(|tli| (tli, begin(tli))).collect()
}

/// Counts the commits of one timeline from `begin` on and finds the end, by pg_waldump.
async fn read_commits(
    site: &Site,
    kept: &mut KeptWal,
    tli: Tli,
    begin: Lsn,
    end: Option<Lsn>,
) -> Result<(), PgError> {
    if end.is_some_and(|end| end <= begin) {
        return Ok(());
    }
    let mut command = tool::command(&site.config, "pg_waldump", &[]);
    command.arg("--path").arg(site.config.pg_wal());
    command.args(["--timeline", &tli.to_string(), "--start", &begin.to_string()]);
    if let Some(end) = end {
        command.args(["--end", &end.to_string()]);
    }
    command.args(["--rmgr", "Transaction"]);
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let not_run = |error: std::io::Error| PgError::Tool {
        tool: "pg_waldump",
        status: "no start".to_string(),
        said: error.to_string(),
    };
    let mut child = command.spawn().map_err(not_run)?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(not_run(std::io::ErrorKind::BrokenPipe.into()));
    };
    // It says one sentence at the end, so reading that afterwards can't block it.
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await.map_err(not_run)? {
        if let Some(commit) = parse_commit(&line) {
            kept.end = kept.end.max(commit.lsn);
            kept.commits += 1;
            if kept.listed.len() < COMMITS_LISTED_MAX {
                kept.listed.push(commit);
            }
        }
    }
    let mut said = String::new();
    stderr.read_to_string(&mut said).await.map_err(not_run)?;
    // The end of WAL is always an error to it.
    child.wait().await.map_err(not_run)?;
    let named = positions(&said).into_iter().max();
    // Beyond the end of a stretch there is only what was abandoned before.
    kept.end = kept.end.max(end.or(named).unwrap_or(begin));
    Ok(())
}

fn parse_commit(line: &str) -> Option<Commit> {
    let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest.trim_start());
    let at = after("desc: COMMIT")?;
    let until = |text: &str| text.split([',', ' ']).next().unwrap_or_default().to_string();
    Some(Commit {
        xid: until(after("tx:")?).parse().ok()?,
        lsn: until(after("lsn:")?).parse().ok()?,
        at: at.trim_start_matches("_PREPARED ").split(';').next()?.trim().to_string(),
    })
}

/// Every WAL position named in a text.
fn positions(text: &str) -> Vec<Lsn> {
    let clean = |word: &str| word.trim_matches(|c: char| !c.is_ascii_hexdigit()).parse().ok();
    text.split_whitespace().filter_map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_read_from_pg_waldump() {
        let line = "rmgr: Transaction len (rec/tot):     34/    34, tx:        735, lsn: \
                    0/01BD3F40, prev 0/01BD3F00, desc: COMMIT 2026-11-20 06:00:00.123456 UTC";
        let commit =
            Commit { xid: 735, at: "2026-11-20 06:00:00.123456 UTC".into(), lsn: Lsn(0x1BD3F40) };
        assert_eq!(parse_commit(line), Some(commit));
        assert_eq!(parse_commit("rmgr: Transaction tx: 3, lsn: 0/1, desc: ABORT now"), None);
    }

    #[test]
    fn the_end_is_the_last_position_named() {
        let said = "pg_waldump: error: error in WAL record at 0/3000148: invalid record length at \
                    0/3000180: wanted 24, got 0";
        assert_eq!(positions(said), [Lsn(0x3000148), Lsn(0x3000180)]);
        assert_eq!(positions("nothing and/or"), []);
    }
}
