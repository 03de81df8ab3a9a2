//! `restore`: a database as it was, beside the cluster, with or without one that runs.

use super::client::Client;
use super::failure::{Failure, say};
use super::output::{bytes, duration, print, print_json};
use super::point::Point;
use super::{repository, serve};
use crate::backup::restore::{Order, Standing, restore};
use crate::log;
use crate::spec::load_file_or_record;
use anyhow::anyhow;
use everhold_core::spec::Spec;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Options {
    service: String,
    /// An empty or new directory
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    point: Point,
    /// The directory is that of a stopped server: write only what differs
    #[arg(long)]
    over: bool,
    /// Leave the server running until Ctrl-C, to look at it
    #[arg(long)]
    run: bool,
    /// The spec to go by, or what `repository spec` printed; without it: that of the running cluster
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
}

pub fn run(
    log: log::Format,
    data: Option<&Path>,
    json: bool,
    options: Options,
) -> Result<(), Failure> {
    let spec = match &options.spec {
        Some(file) => load_file_or_record(file).map_err(Failure::Faults)?,
        None => repository::spec(&Client::find(data, json)?)?,
    };
    let order = order(&options)?;
    serve(log, async move { restored(&spec, &order, options.run, json).await })
}

fn order(options: &Options) -> Result<Order, Failure> {
    let aim = options.point.aim().map_err(|why| {
        let next = "write it as `everhold restore --help` shows";
        Failure::new(crate::code::Code::TargetUnknown, why, next)
    })?;
    Ok(Order {
        along: None,
        service: options.service.clone(),
        to: options.to.clone(),
        aim,
        before: None,
        over: options.over,
        throwaway: false,
    })
}

async fn restored(spec: &Spec, order: &Order, stay: bool, json: bool) -> anyhow::Result<()> {
    let standing = restore(spec, order, say).await?;
    let report = standing.report(order);
    let Standing { server, backup, took_ms, bytes_written, log_end } = standing;
    let failed = |_| anyhow!("cannot print");
    if json {
        print_json(&report).map_err(failed)?;
    } else {
        let text = format!(
            "{} is restored in {}: backup {}, the log to {log_end}; {} written, {}",
            order.service,
            order.to.display(),
            backup.id,
            bytes(bytes_written),
            duration(took_ms),
        );
        print(&text).map_err(failed)?;
        say("Its roles have the passwords they had at that point.");
    }
    if stay {
        let socket = server.run_dir().display().to_string();
        say(&format!("It runs: psql -h {socket} -U everhold postgres. Ctrl-C stops it."));
        tokio::signal::ctrl_c().await?;
    }
    let run_dir = server.run_dir().to_path_buf();
    server.stop().await?;
    let _ = std::fs::remove_dir_all(run_dir);
    Ok(())
}
