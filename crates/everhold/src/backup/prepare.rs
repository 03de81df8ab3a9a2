//! The role `restorer`: restores a service beside this node's data directory, recovers it to the
//! point and shuts it down there. An agent starts it, hears of it on its stdout, ends it by closing
//! its stdin, and then has what was made take the directory's place.

use super::restore::{Files, Order, Until, files};
use super::{open, told};
use crate::agent::{self, Site};
use crate::layout::Layout;
use crate::node_file::NodeFile;
use crate::spec::record;
use crate::{clock, log};
use anyhow::{Context, anyhow};
use everhold_adapters::postgres::{Aside, AsideConfig, RESTORED};
use everhold_core::postgres::Restored;
use everhold_core::term::{last_written, line_to};
use everhold_repository::backup::cut_log;
use everhold_repository::log::Log;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to restore.
#[derive(clap::Args)]
pub struct Restorer {
    #[arg(long)]
    node_file: PathBuf,
    /// A [`Point`] in JSON
    #[arg(long)]
    point: String,
    #[arg(long)]
    service: String,
}

/// Where a service is to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub until: Until,
    /// The newest that serves, if none is named.
    pub backup: Option<String>,
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
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().take(1 << 20).read_to_end(&mut rest);
        // What it leaves is marked, never started, and removed by the next one.
        std::process::exit(1);
    });
    let said = make(&restorer).await;
    say(&said.unwrap_or_else(|error| Said::Failed { why: format!("{error:#}") }));
    Ok(())
}

fn say(said: &Said) {
    let mut out = std::io::stdout().lock();
    // Nobody listens to one whose agent is gone.
    let _ = serde_json::to_writer(&mut out, said).map(|()| out.write_all(b"\n"));
    let _ = out.flush();
}

async fn make(restorer: &Restorer) -> anyhow::Result<Said> {
    let node = NodeFile::read(&restorer.node_file)?;
    log::name(&node.name);
    let layout = Layout::new(&node.data)?;
    let copy = layout.node(&node.name).join("spec.json");
    let text = fs::read_to_string(&copy).context("read the spec")?;
    let spec = record::from_json(&text).context("read the spec")?;
    let service = spec.postgres(&restorer.service).context("the service is not in the spec")?;
    let backup = service.backup.as_ref();
    let names = backup.context("E286 no backups of the service are declared")?.repositories.clone();
    let site = Site { node: &node, layout: &layout, spec: &spec };
    let (_, config, _) = agent::open(&site, &restorer.service, service)?;
    let point: Point = serde_json::from_str(&restorer.point).context("read the point")?;
    let to = config.restored_dir();
    let aside = AsideConfig {
        bin_dir: config.bin_dir.clone(),
        data_dir: to.clone(),
        run_dir: layout.service(&node.name, &restorer.service).join("restore"),
        run_as: config.run_as,
        tli: 1,
        throwaway: false,
    };
    let order = Order {
        service: restorer.service.clone(),
        to: to.clone(),
        backup: point.backup.clone(),
        until: point.until.clone(),
        over: false,
        throwaway: false,
    };
    let (of, told_order, beside) = (spec.clone(), order.clone(), aside.clone());
    let written = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        remove(&told_order.to)?;
        remove(&beside.run_dir)?;
        let repository = open(&of, &names)?;
        let step = |text: &str| say(&Said::Step(text.to_string()));
        let to = &told_order.to;
        let files = files(&repository, &told_order, to, &beside, "standby.signal", &step)?;
        Ok((Arc::new(repository), files))
    });
    let (repository, files) = written.await??;
    say(&Said::Step(format!("replaying the log, at most to {}", files.log_end)));
    let line = line_to(&files.line, files.tli);
    let at = AsideConfig { tli: files.tli, ..aside.clone() };
    let held = Aside::hold(&at, &order.until.target()).await;
    let (server, held) = held.map_err(|error| {
        anyhow!("E287 the restored server does not come to that point: {error}")
    })?;
    server.stop().await?;
    remove(&aside.run_dir)?;
    let owner = config.run_as;
    let cut = move || -> anyhow::Result<Said> {
        let Files { backup, .. } = &files;
        let tip = last_written(&line, held.end).map_or(1, |branch| branch.tli);
        let line = line_to(&line, tip);
        cut_log(&repository, backup, &to, owner, (&line, held.end)).map_err(told)?;
        let log = Log::new(&repository, &backup.about.service, backup.about.sysid);
        let (epoch, tli) = log.highest().map_err(told)?;
        let id = format!("{} of {}", backup.id, clock::wall());
        mark(&to, &id, owner)?;
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

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("E288 remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The last thing that is written: without it the directory is taken by nobody.
fn mark(dir: &Path, id: &str, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    let path = dir.join(RESTORED);
    let mut file = fs::File::create(&path)?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
    }
    fs::File::open(dir)?.sync_all()?;
    Ok(())
}
