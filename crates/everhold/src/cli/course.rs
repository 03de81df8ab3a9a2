//! A plan carried out step by step: each is checked, told, journaled and reported.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::output::duration;
use super::report::{Report, Step};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(50);

/// Whoever started it has had enough. It ends in order, since what it made is the whole database.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has Ctrl-C and SIGTERM end what is under way, not the process.
pub fn listen() -> std::io::Result<()> {
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
pub fn goes_on() -> Result<(), Failure> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(Failure::plain("it was interrupted")),
        false => Ok(()),
    }
}

/// Looks again and again until it is so. False: not in that time.
pub fn wait(within: Duration, mut is_so: impl FnMut() -> bool) -> Result<bool, Failure> {
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

impl<'a> Course<'a> {
    /// Of a drill, or of the act itself.
    pub fn new(client: &'a Client, drill: Option<&str>, service: &str, scratch: bool) -> Self {
        let report = Report::new(drill, service, scratch);
        Course { client, service: service.to_string(), report }
    }

    /// What came of it.
    pub fn ended<T>(self, ended: &Result<T, Failure>) -> Report {
        let mut report = self.report;
        let failed = ended.as_ref().err();
        report.failed =
            failed.map(|it| it.get("message").map_or_else(String::new, super::output::plain));
        report
    }

    /// Carries a step out: its check is that it returns. What it found is reported and journaled.
    pub fn step<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Report) -> Result<(T, String), Failure>,
    ) -> Result<T, Failure> {
        self.in_any_case(what, |report| goes_on().and_then(|()| work(report)))
    }

    /// The same, also after it was interrupted.
    pub fn in_any_case<T>(
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
        let text = format!("{}, {what}: {mark}, {found}", self.report.title());
        let path = format!("/v1/services/{}/notes", segment(&self.service));
        let noted = self.client.post(&path, &json!({ "text": text }));
        let journal = noted.ok().and_then(|it| it["journal"].as_str().map(str::to_string));
        self.report.steps.push(Step { what: what.to_string(), ok, took_ms, found, journal });
        result.map(|(value, _)| value)
    }
}
