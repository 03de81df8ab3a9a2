//! `logs`, `restart`, `scale`, `drain` and `wait`.

use super::client::{Client, segment};
use super::failure::{Failure, say};
use super::follow::{LOST, Seen, follow};
use super::operations;
use super::output::{plain, print, print_json};
use crate::code::Code;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks for new lines.
const FOLLOW: Duration = Duration::from_millis(300);
/// New lines asked for at each look.
const FOLLOW_LIMIT: usize = 5_000;
/// Lines that are kept to know them again.
const REMEMBERED_MAX: usize = 50_000;
/// Clocks of nodes differ by less.
const SKEW_S: i64 = 5;
/// Between two looks at a service that is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// For an instance that was asked to start anew: its grace, and a slow start.
const BACK_WITHIN: Duration = Duration::from_secs(300);

pub fn logs(
    client: &Client,
    service: &str,
    instance: Option<&str>,
    limit: usize,
    go_on: bool,
) -> Result<(), Failure> {
    // What is followed is remembered from the first look on, printed or not.
    let most = if go_on { limit.max(FOLLOW_LIMIT) } else { limit };
    let mut answer = ask(client, service, instance, most, None)?;
    if client.json && !go_on {
        tell_unheard(&answer["unheard"]);
        return print_json(&answer);
    }
    let mut printed = Printed::default();
    let mut unheard = Value::Null;
    let (mut heard, mut missing) = (Instant::now(), None);
    let mut newest = limit;
    loop {
        if answer["unheard"] != unheard {
            unheard = answer["unheard"].take();
            tell_unheard(&unheard);
        }
        missing = match unheard.as_array().is_some_and(|it| !it.is_empty()) {
            true => missing.or_else(|| Some(Instant::now())),
            false => None,
        };
        let wait = missing.is_some_and(|since: Instant| since.elapsed() < LOST);
        let new = printed.step(&lines(&answer), wait);
        tell(client, &new[new.len().saturating_sub(newest)..])?;
        if !go_on {
            return Ok(());
        }
        newest = usize::MAX;
        answer = loop {
            std::thread::sleep(FOLLOW);
            match ask(client, service, instance, FOLLOW_LIMIT, printed.after.as_deref()) {
                Ok(answer) => break answer,
                Err(failure) if heard.elapsed() > LOST => return Err(failure),
                Err(_) => {}
            }
        };
        heard = Instant::now();
    }
}

fn tell_unheard(unheard: &Value) {
    for it in unheard.as_array().into_iter().flatten() {
        say(&format!("{}: {}", plain(&it["node"]), plain(&it["why"])));
    }
}

/// What is shown already, as far as it may be found again.
#[derive(Debug, Default)]
struct Printed {
    lines: Vec<Value>,
    /// From when on lines are asked for.
    after: Option<String>,
}

impl Printed {
    /// Takes in what was found, and answers what of it is new. While a node is unheard for a moment,
    /// `wait`, its lines of the meantime are still to come.
    fn step(&mut self, found: &[Value], wait: bool) -> Vec<Value> {
        let new = fresh(&self.lines, found);
        self.lines.extend_from_slice(&new);
        if !wait || self.after.is_none() {
            // Lines of a node whose clock is behind come later than their times say.
            let newest = self.lines.iter().filter_map(|line| line["at"].as_str()).max();
            let since = newest.and_then(|at| at.parse::<jiff::Timestamp>().ok());
            let since =
                since.and_then(|at| at.checked_sub(jiff::SignedDuration::from_secs(SKEW_S)).ok());
            self.after = since.map(|at| format!("{at:.3}")).or(self.after.take());
        }
        let asked = |line: &Value| line["at"].as_str() > self.after.as_deref();
        self.lines.retain(asked);
        let too_many = self.lines.len().saturating_sub(REMEMBERED_MAX);
        self.lines.drain(..too_many);
        new
    }
}

/// What is found and was not printed: the same line may be there more than once.
fn fresh(printed: &[Value], found: &[Value]) -> Vec<Value> {
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for line in printed {
        *known.entry(line.to_string()).or_default() += 1;
    }
    let is_new = |line: &&Value| match known.get_mut(&line.to_string()) {
        Some(left @ 1..) => {
            *left -= 1;
            false
        }
        Some(0) | None => true,
    };
    found.iter().filter(is_new).cloned().collect()
}

fn ask(
    client: &Client,
    service: &str,
    instance: Option<&str>,
    limit: usize,
    after: Option<&str>,
) -> Result<Value, Failure> {
    let mut path = format!("/v1/services/{}/logs?limit={limit}", segment(service));
    for (name, value) in [("instance", instance), ("after", after)] {
        path += &value.map(|it| format!("&{name}={}", segment(it))).unwrap_or_default();
    }
    client.get(&path)
}

fn lines(answer: &Value) -> Vec<Value> {
    answer["lines"].as_array().cloned().unwrap_or_default()
}

fn tell(client: &Client, lines: &[Value]) -> Result<(), Failure> {
    lines.iter().try_for_each(|line| match client.json {
        true => print(&line.to_string()),
        false => print(&format!(
            "{} {} {}",
            plain(&line["at"]),
            plain(&line["instance"]),
            plain(&line["text"])
        )),
    })
}

/// One instance, or all of them one by one, which is a rollout.
pub fn restart(client: &Client, service: &str, instance: Option<&str>) -> Result<(), Failure> {
    let Some(instance) = instance else {
        return operations::rollout(client, Some(service), false, false);
    };
    let path = format!("/v1/services/{}/instances/{}/restart", segment(service), segment(instance));
    let answer = client.post(&path, &json!({}))?;
    let lost = || {
        let text = format!("nobody tells of {instance} any more");
        Failure::new(Code::NoAnswer, text, "`everhold status` says how things stand")
    };
    let begun = Instant::now();
    let pid = follow(client, lost, |status| {
        let now = &status["services"][service]["instances"][instance];
        if now["state"] == "running" && now["pid"] != answer["pid"] {
            return Ok(Seen::Ended(now["pid"].clone()));
        }
        if begun.elapsed() > BACK_WITHIN {
            return Err(lost_patience(instance, &plain(&now["state"])));
        }
        Ok(match now["state"].as_str() {
            Some(state) => Seen::Doing(Some(format!("· {instance} {state}"))),
            None => Seen::Unknown,
        })
    })?;
    match client.json {
        true => print_json(&json!({ "instance": instance, "pid": pid })),
        false => print(&format!("{instance} runs anew, process {}", plain(&pid))),
    }
}

fn lost_patience(what: &str, state: &str) -> Failure {
    let text = format!("{what} is {state}");
    Failure::new(Code::NotInTime, text, "`everhold logs` and `everhold status` say why")
}

/// A revision of the spec; the nodes follow it.
pub fn scale(client: &Client, service: &str, instances: u32) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/scale", segment(service));
    let answer = client.post(&path, &json!({ "instances": instances }))?;
    say("Write it into your spec file too: the next `everhold apply` goes by that.");
    match client.json {
        true => print_json(&answer),
        false => {
            print(&format!("{service}: {instances} instances, {} before", plain(&answer["was"])))
        }
    }
}

/// Takes an instance out of use and waits until nothing is on its way to it, or takes it back.
pub fn drain(
    client: &Client,
    service: &str,
    instance: &str,
    (undo, force, no_wait): (bool, bool, bool),
) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/instances/{}/drain", segment(service), segment(instance));
    let answer = client.post(&path, &json!({ "drained": !undo, "force": force }))?;
    if !undo && !no_wait {
        say("Waiting; Ctrl-C ends the waiting, not the act.");
        let mut known = false;
        let drain =
            |status: &Value| status["services"][service]["instances"][instance]["drain"].clone();
        let last = operations::watch(client, |status| await_drain(&drain(status), &mut known))?;
        if drain(&last)["state"] != "out" {
            let text = format!("{instance} was taken back meanwhile");
            return Err(Failure::new(Code::NotInTime, text, "`everhold journal` says by whom"));
        }
    }
    if client.json {
        return print_json(&answer);
    }
    print(&match (undo, no_wait) {
        (true, _) => format!("{instance} is used again"),
        (false, true) => {
            format!("{instance} gets nothing new; `everhold status` shows what is left")
        }
        (false, false) => format!("{instance} gets nothing new, and none of its requests is left"),
    })
}

/// `None`: it is out, or back; else what is waited for. `known`: the drain was seen.
fn await_drain(drain: &Value, known: &mut bool) -> Option<String> {
    if drain["state"] == "out" || (drain.is_null() && *known) {
        return None;
    }
    if drain.is_null() {
        return Some("the nodes are told".to_string());
    }
    *known = true;
    let silent: Vec<String> = drain["silent"].as_array().into_iter().flatten().map(plain).collect();
    Some(match (silent.is_empty(), drain["requests"].as_u64()) {
        (false, _) => format!("nothing is heard of these gateways: {}", silent.join(", ")),
        (true, Some(0) | None) => "gateways leave it".to_string(),
        (true, Some(left)) => format!("{left} under way"),
    })
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// All of it is well
    Up,
    /// Somebody serves
    Serving,
    /// Nobody serves
    Down,
}

impl Wanted {
    fn is(self, service: &Value) -> bool {
        match self {
            Wanted::Up => service["health"] == "up",
            Wanted::Serving => service["serving"] == true,
            Wanted::Down => service["serving"] == false,
        }
    }
}

pub fn wait(
    client: &Client,
    service: &str,
    wanted: Wanted,
    timeout: Duration,
) -> Result<(), Failure> {
    let until = Instant::now() + timeout;
    loop {
        let status = client.get("/v1/status");
        let found = status.map(|status| status["services"][service].clone());
        match found {
            Ok(Value::Null) => {
                let text = format!("there is no service {service}");
                return Err(Failure::new(Code::UnknownName, text, Code::UnknownName.next()));
            }
            Ok(found) if wanted.is(&found) => {
                return match client.json {
                    true => print_json(&found),
                    false => print(&format!("{service} is {}", plain(&found["health"]))),
                };
            }
            Ok(found) if Instant::now() > until => {
                return Err(lost_patience(service, &plain(&found["health"])));
            }
            Err(failure) if Instant::now() > until => return Err(failure),
            Ok(_) | Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// `10s`, as in a spec.
pub fn duration(text: &str) -> Result<Duration, String> {
    crate::spec::duration_ms(text).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_is_waited_for_until_it_is_out_or_back() {
        let leaving = json!({ "state": "leaving", "requests": 3, "silent": [] });
        let mut known = false;
        // A status from before the act says nothing of it.
        assert!(await_drain(&Value::Null, &mut known).is_some());
        assert_eq!(await_drain(&leaving, &mut known), Some("3 under way".to_string()));
        assert!(await_drain(&Value::Null, &mut known).is_none());
        assert!(await_drain(&json!({ "state": "out" }), &mut false).is_none());
    }

    #[test]
    fn what_was_printed_is_not_printed_again() {
        let line = |at: &str, text: &str| json!({ "at": at, "instance": "a.1", "text": text });
        let printed = [line("1", "x"), line("1", "x"), line("2", "y")];
        let found =
            [line("1", "x"), line("1", "x"), line("1", "x"), line("2", "y"), line("3", "z")];
        assert_eq!(fresh(&printed, &found), [line("1", "x"), line("3", "z")]);
    }

    /// Each look: lines as `SECOND.INSTANCE`, `?` if a node is unheard; then what is new, and the
    /// second from which on it is asked next.
    #[test]
    fn each_line_is_printed_once() {
        let check = |looks: &[(&str, &str, Option<u32>)]| {
            let mut printed = Printed::default();
            for (found, expected, after) in looks {
                let line = |word: &str| {
                    let (second, instance) = word.split_once('.').expect("an instance");
                    json!({ "at": format!("2026-01-01T00:00:{second}.000Z"), "instance": instance })
                };
                let lines = |text: &str| -> Vec<Value> {
                    text.split_whitespace().filter(|it| *it != "?").map(line).collect()
                };
                let new = printed.step(&lines(found), found.contains('?'));
                assert_eq!(new, lines(expected), "{found}");
                let after = after.map(|second| format!("2026-01-01T00:00:{second:02}.000Z"));
                assert_eq!(printed.after, after, "{found}");
            }
        };
        check(&[("", "", None), ("10.a", "10.a", Some(5)), ("10.a", "", Some(5))]);
        // One clock is behind; what is said twice is there twice.
        check(&[
            ("10.a 20.b", "10.a 20.b", Some(15)),
            ("17.a 20.b 20.b", "17.a 20.b", Some(15)),
            ("17.a 20.b 20.b 21.b", "21.b", Some(16)),
        ]);
        // A node is unheard for a look: its lines are known still, and those of the meantime come.
        check(&[
            ("10.a 11.b", "10.a 11.b", Some(6)),
            ("? 11.b 30.b", "30.b", Some(6)),
            ("10.a 11.b 12.a 30.b", "12.a", Some(25)),
        ]);
        // Others say so much that older lines are not among the newest for a look.
        check(&[
            ("10.a 10.b", "10.a 10.b", Some(5)),
            ("11.b 12.b", "11.b 12.b", Some(7)),
            ("10.a 10.b 11.b 12.b", "", Some(7)),
        ]);
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "s", "10", "1d", "1.5s", "999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
