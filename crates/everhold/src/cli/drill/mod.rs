//! `drill`: a recovery plan carried out, step by step, each with its check, and what it took.

mod plans;
mod scratch;
mod writer;

use super::client::Client;
use super::course::{Course, listen};
use super::failure::{Failure, say};
use super::output::{print, print_json};
use crate::code::Code;
use clap::{Subcommand, ValueEnum};
use scratch::Scratch;
use std::path::PathBuf;

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Carry a plan out, on a scratch cluster made from the repositories unless told otherwise
    Run(Run),
}

#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    plan: Plan,
    #[arg(default_value = "main")]
    service: String,
    /// Where the report is left, as FILE.json and FILE.html
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where the scratch cluster lives for as long as it lasts; without it: a temporary directory
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// On the cluster itself; node-loss only, and it has to be named: `--real SERVICE`
    #[arg(long, value_name = "SERVICE")]
    real: Option<String>,
}

/// What is practised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plan {
    /// All machines are gone; the service comes back from nothing but a repository
    RegionLoss,
    /// The leader's node dies under load
    NodeLoss,
    /// A bit of a standby's data is flipped on its disk
    Corruption,
    /// Everything in a table is deleted, and the service goes back to the moment before
    OperatorMistake,
}

impl Plan {
    fn name(self) -> &'static str {
        match self {
            Plan::RegionLoss => "region-loss",
            Plan::NodeLoss => "node-loss",
            Plan::Corruption => "corruption",
            Plan::OperatorMistake => "operator-mistake",
        }
    }
}

pub fn run(client: &Client, command: &Command) -> Result<(), Failure> {
    let Command::Run(run) = command;
    let real = real(run)?;
    listen().map_err(|error| Failure::plain(format!("cannot wait for signals: {error}")))?;
    let mut course = Course::new(client, Some(run.plan.name()), &run.service, !real);
    let ended = match (real, run.plan) {
        (true, _) => plans::node_loss(&mut course, None),
        (false, plan) => {
            let scratch = Scratch::new(client, &run.service, run.scratch.as_deref());
            scratch.and_then(|mut scratch| {
                let ended = plans::on_scratch(plan, &mut course, &mut scratch);
                let removed = course.in_any_case("take the scratch cluster away", |_| {
                    scratch.remove().map(|()| ((), "nothing of it is left".to_string()))
                });
                ended.and(removed)
            })
        }
    };
    let report = course.ended(&ended);
    let file = run.report.clone().unwrap_or_else(|| report.file_name());
    let files = report.write(&file)?;
    if client.json {
        print_json(&report.json())?;
    } else {
        print(&report.summary())?;
    }
    say(&format!("The report: {}", files.join(", ")));
    ended
}

/// Whether it is on the cluster itself, which only what gives nothing up may be.
fn real(run: &Run) -> Result<bool, Failure> {
    let Some(named) = &run.real else { return Ok(false) };
    let refused = |text: String, next: &str| Err(Failure::new(Code::Refused, text, next));
    if *named != run.service {
        let text = format!("--real names {named}, and the drill is of {}", run.service);
        return refused(text, "name the service twice to confirm");
    }
    match run.plan {
        Plan::NodeLoss => Ok(true),
        Plan::RegionLoss | Plan::OperatorMistake | Plan::Corruption => refused(
            format!("{} on the cluster itself would harm what it holds", run.plan.name()),
            "leave out --real; for the act itself there is `everhold recover`",
        ),
    }
}
