//! `drill`: a recovery plan carried out, step by step, each with its check, and what it took.

mod plans;
mod report;
mod scratch;
mod writer;

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::output::{duration, print, print_json};
use crate::code::Code;
use clap::{Subcommand, ValueEnum};
use report::{Report, Step};
use scratch::Scratch;
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

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

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Whoever started it has had enough. It ends in order, since what it made is the whole database.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has Ctrl-C and SIGTERM end the drill, not the process.
fn listen() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        say("It is ended; what it made is taken away first.");
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// An error once it is to end.
fn goes_on() -> Result<(), Failure> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(Failure::plain("it was interrupted")),
        false => Ok(()),
    }
}

/// Looks again and again until it is so. False: not in that time.
fn wait(within: Duration, mut is_so: impl FnMut() -> bool) -> Result<bool, Failure> {
    let until = Instant::now() + within;
    loop {
        goes_on()?;
        if is_so() {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
}

/// A plan under way.
pub struct Course<'a> {
    /// The cluster whose plan it is.
    pub client: &'a Client,
    pub service: String,
    pub report: Report,
}

impl Course<'_> {
    /// Carries a step out: its check is that it returns. What it found is reported and journaled.
    pub fn step<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Report) -> Result<(T, String), Failure>,
    ) -> Result<T, Failure> {
        self.in_any_case(what, |report| goes_on().and_then(|()| work(report)))
    }

    /// The same, also after the drill was interrupted.
    fn in_any_case<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Report) -> Result<(T, String), Failure>,
    ) -> Result<T, Failure> {
        say(&format!("{}. {what}", self.report.steps.len() + 1));
        let begun = Instant::now();
        let result = work(&mut self.report);
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let found = match &result {
            Ok((_, found)) => found.clone(),
            Err(failure) => {
                failure.get("message").map_or("failed".to_string(), super::output::plain)
            }
        };
        let ok = result.is_ok();
        let mark = if ok { "done" } else { "FAILED" };
        say(&format!("   {mark} in {}: {found}", duration(took_ms)));
        let text = format!("drill {}, {what}: {mark}, {found}", self.report.drill);
        let path = format!("/v1/services/{}/notes", segment(&self.service));
        let noted = self.client.post(&path, &json!({ "text": text }));
        let journal = noted.ok().and_then(|it| it["journal"].as_str().map(str::to_string));
        self.report.steps.push(Step { what: what.to_string(), ok, took_ms, found, journal });
        result.map(|(value, _)| value)
    }
}

pub fn run(client: &Client, command: &Command) -> Result<(), Failure> {
    let Command::Run(run) = command;
    let real = real(run)?;
    listen().map_err(|error| Failure::plain(format!("cannot wait for signals: {error}")))?;
    let report = Report::new(run.plan.name(), &run.service, !real);
    let mut course = Course { client, service: run.service.clone(), report };
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
    let mut report = course.report;
    if let Err(failure) = &ended {
        report.failed = Some(failure.get("message").map_or_else(String::new, super::output::plain));
    }
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
