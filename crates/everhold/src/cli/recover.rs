//! `recover`: a service put back to how it was, in its place.

use super::client::{Client, segment};
use super::course::Course;
use super::failure::{Failure, say};
use super::follow::{Seen, follow};
use super::output::{duration, plain, print, print_json};
use super::point::Point;
use crate::code::Code;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// From the restored leader to writes: it may wait for a standby to be copied.
const SERVES_WITHIN: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub struct Options {
    service: String,
    #[command(flatten)]
    point: Point,
    /// The node that is restored and leads afterwards; without it: a standby
    #[arg(long)]
    node: Option<String>,
    /// Also if not every node that may acknowledge can be reached, or none has data any more
    #[arg(long)]
    force: bool,
    /// What the first answer gave: it names what is given up
    #[arg(long)]
    token: Option<String>,
    /// Where a report of the steps is left, as FILE.json and FILE.html
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What a recovery came to.
pub struct Recovered {
    pub backup: String,
    /// Where the log ends that was replayed.
    pub end: String,
}

pub fn run(client: &Client, options: &Options) -> Result<(), Failure> {
    let service = &options.service;
    let mut body = json!(options.point);
    body["node"] = json!(options.node);
    body["force"] = json!(options.force);
    body["token"] = json!(options.token);
    let begun = Instant::now();
    let answer = client.post(&path(service), &body);
    let answer = answer.map_err(|failure| with_token(options, failure))?;
    let (node, journal) = (plain(&answer["node"]), plain(&answer["journal"]));
    say(&format!("{node} restores it; Ctrl-C ends the waiting, not the act."));
    let mut course = Course::new(client, None, service, false);
    let done = steps(&mut course, &node, &answer, begun);
    let report = course.ended(&done);
    // A report that can't be written takes nothing from what was done.
    let written = options.report.as_deref().map(|file| report.write(file)).transpose();
    if let Ok(Some(files)) = &written {
        say(&format!("The report: {}", files.join(", ")));
    }
    let Recovered { backup, end } = done?;
    let took_ms = report.rto_ms;
    if client.json {
        print_json(&json!({
            "service": service, "node": node, "backup": backup, "end": end, "took_ms": took_ms,
            "journal": journal, "steps": report.steps,
        }))?;
        return written.map(drop);
    }
    let took = took_ms.map_or_else(String::new, duration);
    print(&format!("{service} is back after {took}, from backup {backup}, led by {node}"))?;
    // Without a token there was no data, so these are other machines, with another secret.
    if options.token.is_none() {
        say(&connects_anew(service));
    }
    written.map(drop)
}

/// What a drill does as well, here for real.
fn steps(
    course: &mut Course<'_>,
    node: &str,
    answer: &Value,
    begun: Instant,
) -> Result<Recovered, Failure> {
    let (client, service) = (course.client, course.service.clone());
    let recovered = course.step("recover the service", |_| {
        let recovered = ended(client, &service, answer, &mut || Ok(()))?;
        let found = format!("from backup {}, with all log to {}", recovered.backup, recovered.end);
        Ok((recovered, found))
    })?;
    course.step("see it take writes", |report| {
        let until = Instant::now() + SERVES_WITHIN;
        let of = loop {
            let of = client.get("/v1/status")?["services"][&service].take();
            if of["serving"] == true {
                break of;
            }
            if Instant::now() > until {
                let text = format!("{service} takes no writes yet");
                return Err(Failure::new(Code::NotInTime, text, "`everhold status` says why"));
            }
            std::thread::sleep(LOOK);
        };
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.rto_ms = Some(took_ms);
        let instances = of["instances"].as_object().into_iter().flatten();
        let others = instances.filter(|(name, _)| *name != node);
        let others: String =
            others.map(|(name, it)| format!(", {name} is {}", plain(&it["state"]))).collect();
        Ok(((), format!("{} after it was asked for: {node} leads{others}", duration(took_ms))))
    })?;
    Ok(recovered)
}

/// What clients of the machines before need.
fn connects_anew(service: &str) -> String {
    format!(
        "The owner's password and the cluster's certificates are those of this cluster: hand its \
         clients what `everhold dsn {service}` prints. Roles of your own have their passwords of then."
    )
}

/// Where a recovery is asked for.
pub fn path(service: &str) -> String {
    format!("/v1/services/{}/recovery", segment(service))
}

/// The same command with the token is what to run next.
fn with_token(options: &Options, failure: Failure) -> Failure {
    let Some(token) = failure.get("token").map(plain) else { return failure };
    let mut next = format!("everhold recover {}{}", options.service, options.point.flags());
    if let Some(node) = &options.node {
        next += &format!(" --node '{node}'");
    }
    if options.force {
        next += " --force";
    }
    next += &format!(" --token '{token}'");
    match failure {
        Failure::Error { mut error, exit } => {
            error.insert("next".to_string(), next.into());
            Failure::Error { error, exit }
        }
        other => other,
    }
}

/// Waits until the recovery that was begun with that answer has ended.
/// `goes_on` says whether to wait any longer.
pub fn ended(
    client: &Client,
    service: &str,
    answer: &Value,
    goes_on: &mut dyn FnMut() -> Result<(), Failure>,
) -> Result<Recovered, Failure> {
    let lost = || {
        let text = format!("the agent of {} knows of no recovery any more", plain(&answer["node"]));
        Failure::new(Code::RecoveryFailed, text, Code::RecoveryFailed.next())
    };
    follow(client, lost, |status| {
        goes_on()?;
        let recovery = &status["services"][service]["recovery"];
        if recovery["journal"] != answer["journal"] {
            return Ok(Seen::Unknown);
        }
        match (recovery["backup"].as_str(), recovery["failed"].as_str()) {
            (Some(backup), _) => {
                let (backup, end) = (backup.to_string(), plain(&recovery["end"]));
                Ok(Seen::Ended(Recovered { backup, end }))
            }
            (None, Some(why)) => Err(Failure::of_text_or(why, Code::RecoveryFailed)),
            (None, None) => Ok(Seen::Doing(Some(plain(&recovery["step"])))),
        }
    })
}
