//! The role `scrub`: reads the pages of one data directory, round after round. An agent starts it,
//! hears of it on its stdout, and ends it by closing its stdin.

use super::round::{Pace, Source};
use super::state::{BAD_MAX, State};
use crate::seat::{Ground, Seat};
use crate::{clock, disk, helper};
use everhold_adapters::postgres::PgConfig;
use everhold_adapters::postgres::scrub;
use everhold_core::durable::{Data, Durable};
use everhold_core::page::PAGE;
use everhold_core::spec::SCRUB_EVERY_MS;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks whether a round is due, and whether the data is still the same.
const LOOK: Duration = Duration::from_secs(1);
/// Between two words on how far it is, and two records of it on disk.
const TELL_EVERY: Duration = Duration::from_secs(2);
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// Bad pages are read again so often: one may be written whole, or its relation dropped.
const RECHECK_EVERY: Duration = Duration::from_secs(10);

/// Runs until its stdin is closed.
pub async fn run(seat: Seat) -> anyhow::Result<()> {
    helper::when_left(|| std::process::exit(0));
    helper::stand_back();
    let (ground, _, config, _) = look(&seat)?;
    let dir = ground.layout.service(&ground.node.name, &seat.service);
    let record = dir.join("record.json");
    let scrubber = Scrubber { record, file: dir.join("scrub.json"), seat, config };
    loop {
        if let Err(error) = scrubber.work().await {
            // The server went away, most likely; what was read stays read.
            tracing::info!(error = format!("{error:#}"), "the round is interrupted");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The record of the service as it stands, and how often it is to be read.
fn look(seat: &Seat) -> anyhow::Result<(Ground, Durable, PgConfig, Duration)> {
    let ground = seat.open()?;
    let (durable, config) = ground.instance()?;
    let every = ground.declared()?.scrub_every_ms.unwrap_or(SCRUB_EVERY_MS);
    Ok((ground, durable, config, Duration::from_millis(every)))
}

struct Scrubber {
    seat: Seat,
    config: PgConfig,
    record: PathBuf,
    file: PathBuf,
}

impl Scrubber {
    /// One round, or what is left of it, when it is due.
    async fn work(&self) -> anyhow::Result<()> {
        let (_, durable, _, every) = look(&self.seat)?;
        if durable.data != Data::Ok || !self.config.data_dir.join("postmaster.pid").exists() {
            return Ok(());
        }
        let mut state = State::load(&self.file, durable.incarnation);
        helper::say(&state);
        let mut rechecked = Instant::now();
        while state.next.is_none() && clock::unix_s() < state.began_s + every.as_secs() {
            if rechecked.elapsed() >= RECHECK_EVERY {
                rechecked = Instant::now();
                self.recheck(&mut state).await?;
            }
            tokio::time::sleep(LOOK).await;
            let (_, durable, _, now_every) = look(&self.seat)?;
            if durable.incarnation != state.incarnation || now_every != every {
                return Ok(());
            }
        }
        self.round(&mut state).await
    }

    async fn round(&self, state: &mut State) -> anyhow::Result<()> {
        let data_dir = &self.config.data_dir;
        let checksums = scrub::has_checksums(&self.config).await?;
        let files = scrub::relation_files(data_dir)?;
        let size = |path: &String| std::fs::metadata(data_dir.join(path)).map_or(0, |it| it.len());
        if state.next.is_none() {
            state.began_s = clock::unix_s();
            (state.done_bytes, state.spent_s) = (0, 0);
        }
        state.of_bytes = files.iter().map(size).sum();
        let begin = state.next.take().unwrap_or_default();
        let (mut pace, mut told, mut saved) = (Pace::new(), Instant::now(), Instant::now());
        let (went_on, spent_before) = (Instant::now(), state.spent_s);
        for path in files.into_iter().filter(|path| *path >= begin.0) {
            let source = Source { data_dir, path: &path, checksums };
            let mut page = if path == begin.0 { begin.1 } else { 0 };
            let mut pages = match source.open() {
                Ok(Some(pages)) => pages,
                Ok(None) => continue,
                // Its first page stands for all of them.
                Err(_) => {
                    self.suspect(state, &source, &[0]).await?;
                    continue;
                }
            };
            loop {
                let piece = source.piece(&mut pages, page, &mut pace);
                if !piece.suspects.is_empty() {
                    self.suspect(state, &source, &piece.suspects).await?;
                }
                page += piece.pages;
                state.done_bytes += piece.pages * PAGE as u64;
                state.next = Some((path.clone(), page));
                state.spent_s = spent_before + went_on.elapsed().as_secs();
                if told.elapsed() >= TELL_EVERY {
                    self.require_same(state)?;
                    helper::say(state);
                    told = Instant::now();
                }
                if saved.elapsed() >= SAVE_EVERY {
                    state.save(&self.file)?;
                    saved = Instant::now();
                }
                if piece.pages == 0 {
                    break;
                }
            }
        }
        self.recheck(state).await?;
        (state.next, state.ended_s, state.took_s) =
            (None, Some(clock::unix_s()), spent_before + went_on.elapsed().as_secs());
        state.save(&self.file)?;
        helper::say(state);
        Ok(())
    }

    /// Makes sure of pages that look bad, and tells at once of those that are.
    async fn suspect(
        &self,
        state: &mut State,
        source: &Source<'_>,
        suspects: &[u64],
    ) -> anyhow::Result<()> {
        let known = |page: &&u64| {
            !state.bad.iter().any(|bad| bad.path == source.path && bad.page == **page)
        };
        let new: Vec<u64> = suspects.iter().filter(known).copied().collect();
        if new.is_empty() || state.bad.len() >= BAD_MAX {
            return Ok(());
        }
        let certain = source.certain(&self.config, &new).await?;
        self.require_same(state)?;
        if certain.is_empty() {
            return Ok(());
        }
        let room = BAD_MAX.saturating_sub(state.bad.len());
        state.bad.extend(certain.into_iter().take(room));
        state.save(&self.file)?;
        helper::say(state);
        Ok(())
    }

    /// Forgets what is not bad any more.
    async fn recheck(&self, state: &mut State) -> anyhow::Result<()> {
        if state.bad.is_empty() {
            return Ok(());
        }
        let checksums = scrub::has_checksums(&self.config).await?;
        let before = state.bad.len();
        state.bad.retain(|bad| {
            let source = Source { data_dir: &self.config.data_dir, path: &bad.path, checksums };
            !source.still(&[bad.page]).is_empty()
        });
        self.require_same(state)?;
        if state.bad.len() != before {
            state.save(&self.file)?;
            helper::say(state);
        }
        Ok(())
    }

    /// Of data that was replaced meanwhile nothing is known.
    fn require_same(&self, state: &State) -> anyhow::Result<()> {
        let durable = disk::load(&self.record, &self.config.data_dir)?;
        let same = durable.incarnation == state.incarnation && durable.data == Data::Ok;
        anyhow::ensure!(same, "the data directory is being replaced");
        Ok(())
    }
}
