//! The role `restorer`: restores a service beside this node's data directory, recovers it to the
//! point and shuts it down there. An agent starts it, hears of it on its stdout, ends it by closing
//! its stdin, and then has what was made take the directory's place.

use super::restore::{Aim, Files, Order, files, reach};
use super::{open, told};
use crate::seat::Seat;
use crate::{clock, helper};
use anyhow::Context;
use everhold_adapters::postgres::{Aside, AsideConfig, RESTORED, Target, drop_restored};
use everhold_core::postgres::Restored;
use everhold_core::term::{last_written, line_to};
use everhold_repository::Repository;
use everhold_repository::backup::cut_log;
use everhold_repository::log::Log;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// What to restore.
#[derive(clap::Args)]
pub struct Restorer {
    #[command(flatten)]
    seat: Seat,
    /// A [`Point`] in JSON
    #[arg(long)]
    point: String,
}

/// Where a service is to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub aim: Aim,
    /// Also if not everybody who may acknowledge can be reached.
    #[serde(default)]
    pub force: bool,
}

/// What the restorer says on its stdout, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Step(String),
    Made { restored: Restored, backup: String },
    Failed { why: String },
}

/// Restores and says so; what failed is said too, and is no error of this process.
pub async fn run(restorer: Restorer) -> anyhow::Result<()> {
    helper::own_session();
    // What it leaves is marked, never started, and removed by its agent.
    helper::when_left(|| std::process::exit(1));
    let said = make(&restorer).await;
    helper::say(&said.unwrap_or_else(|error| Said::Failed { why: format!("{error:#}") }));
    Ok(())
}

async fn make(restorer: &Restorer) -> anyhow::Result<Said> {
    let ground = restorer.seat.open()?;
    let backup = ground.declared()?.backup.as_ref();
    let names = backup.context("E286 no backups of the service are declared")?.repositories.clone();
    let (_, config) = ground.instance()?;
    let point: Point = serde_json::from_str(&restorer.point).context("read the point")?;
    let to = config.restored_dir();
    let aside = AsideConfig {
        bin_dir: config.bin_dir.clone(),
        data_dir: to.clone(),
        run_dir: ground.layout.recovering(&ground.node.name, &ground.service),
        run_as: config.run_as,
        tli: 1,
        throwaway: false,
    };
    let order = Order {
        service: ground.service.clone(),
        to: to.clone(),
        aim: point.aim,
        along: None,
        before: None,
        over: false,
        throwaway: false,
    };
    let (of, place, beside) = (ground.spec.clone(), config.clone(), aside.run_dir.clone());
    let begun = tokio::task::spawn_blocking(move || -> anyhow::Result<Repository> {
        // The agent may be about to put it in place.
        drop_restored(&place, false)?;
        remove(&beside)?;
        open(&of, &names)
    });
    let repository = Arc::new(begun.await??);
    let step = |text: &str| helper::say(&Said::Step(text.to_string()));
    let write = async |order: &Order| {
        let (repository, order, beside) = (repository.clone(), order.clone(), aside.clone());
        let write = move || files(&repository, &order, &order.to, &beside, "standby.signal", &step);
        tokio::task::spawn_blocking(write).await?
    };
    let hold = async |files: &Files, target: &Target| {
        step(&format!("replaying the log, at most to {}", files.log_end));
        Aside::hold(&AsideConfig { tli: files.tli, ..aside.clone() }, target).await
    };
    let ((server, held), files) = reach(&order, write, hold, step).await?;
    server.stop().await?;
    remove(&aside.run_dir)?;
    let owner = config.run_as;
    let line = line_to(&files.line, files.tli);
    let cut = move || -> anyhow::Result<Said> {
        let Files { backup, .. } = &files;
        let tip = last_written(&line, held.end).map_or(1, |branch| branch.tli);
        let line = line_to(&line, tip);
        cut_log(&repository, backup, &to, owner, (&line, held.end)).map_err(told)?;
        let log = Log::new(&repository, &backup.about.service, backup.about.sysid);
        let (epoch, tli) = log.highest().map_err(told)?;
        let id = format!("{} of {}", backup.id, clock::wall());
        mark(&to.join(RESTORED), &id, owner)?;
        let newest = line.iter().map(|branch| branch.epoch).fold(epoch, u64::max);
        let restored = Restored {
            id,
            sysid: backup.about.sysid,
            tli: line.iter().map(|branch| branch.tli).fold(tli, u32::max),
            line,
            end: held.end,
            epoch: newest,
        };
        Ok(Said::Made { restored, backup: backup.id.clone() })
    };
    tokio::task::spawn_blocking(cut).await?
}

pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("E288 remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The last thing that is written: without it the directory is taken by nobody.
pub(super) fn mark(path: &Path, text: &str, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    if let Some(dir) = path.parent() {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}
