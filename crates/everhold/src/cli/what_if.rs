//! `what-if`.

use super::client::Client;
use super::failure::{Failure, say};
use super::output::{print, print_json, table};
use crate::spec;
use crate::what_if::{Reading, read};
use clap::Args;
use everhold_core::http::what_if::{Limits, Replay, Rule, Tally, Told};
use everhold_core::spec::Spec;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Clients that are named.
const WORST: usize = 10;

#[derive(Args)]
pub struct Options {
    /// The access logs of the gateways; files named alike but for a number at the end are one gateway's
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    log: Vec<PathBuf>,
    /// The other spec, beside the one in force
    #[arg(long)]
    spec: Option<PathBuf>,
    /// Show this route alone
    #[arg(long)]
    route: Option<String>,
}

/// Requests under one spec.
struct Under {
    name: String,
    told: Told,
}

/// What is shown.
struct View {
    reading: Reading,
    /// As it was recorded, as it would be now and, if one is given, under the other spec.
    all: Vec<Under>,
    only: Option<String>,
}

pub fn what_if(client: &Client, options: &Options) -> Result<(), Failure> {
    let other = options.spec.as_deref().map(spec::load_file_or_record).transpose();
    let other = other.map_err(Failure::Faults)?;
    let answer = client.get("/v1/spec")?;
    let in_force: Spec = serde_json::from_value(answer["spec"].clone())
        .map_err(|error| Failure::plain(format!("the spec in force can't be read: {error}")))?;
    let mut recorded = Told::default();
    let mut now = Replay::new(Limits::of(&in_force));
    let mut then = other.map(|spec| Replay::new(Limits::of(&spec)));
    let reading = read(&options.log, |it| {
        recorded.record(it);
        now.request(it);
        if let Some(then) = &mut then {
            then.request(it);
        }
    });
    let reading = reading.map_err(|error| Failure::plain(error.to_string()))?;
    let under = |name: &str, told| Under { name: name.to_string(), told };
    let mut all = vec![under("recorded", recorded), under("in force", now.end())];
    all.extend(then.map(|then| under("other spec", then.end())));
    let view = View { reading, all, only: options.route.clone() };
    if client.json { print_json(&view.json()) } else { view.print() }
}

impl View {
    fn routes(&self) -> BTreeSet<&String> {
        let all = self.all.iter().flat_map(|it| it.told.tallies.keys());
        all.filter(|it| self.only.as_ref().is_none_or(|only| only == *it)).collect()
    }

    fn print(&self) -> Result<(), Failure> {
        let Reading { gateways, requests, bad, bad_named, from_us, to_us, .. } = &self.reading;
        let time = |us: &Option<u64>| us.and_then(time).unwrap_or_default();
        let (from, to) = (time(from_us), time(to_us));
        let mut text = format!("{requests} requests of gateways: {gateways}, {from} to {to}\n\n");
        text += &table("", &self.rows());
        let worst = self.worst();
        if !worst.is_empty() {
            let mut head = vec!["refused".to_string(), "route".to_string()];
            head.extend(self.all.iter().map(|it| it.name.clone()));
            let row = |(route, client, counts): &(&String, IpAddr, Vec<u64>)| {
                let mut row = vec![client.to_string(), route.to_string()];
                row.extend(counts.iter().map(u64::to_string));
                row
            };
            let rows: Vec<_> = std::iter::once(head).chain(worst.iter().map(row)).collect();
            text += &format!("\n\n{}", table("", &rows));
        }
        print(&text)?;
        if *bad > 0 {
            say(&format!("lines that are no records: {bad}"));
            bad_named.iter().for_each(|it| say(&format!("  {it}")));
        }
        self.notes().iter().for_each(|it| say(it));
        Ok(())
    }

    /// A row for each route and spec, and the difference between the two.
    fn rows(&self) -> Vec<Vec<String>> {
        let refused = Rule::ALL.into_iter().filter(|rule| {
            let has = |it: &Tally| it.refused_by(*rule) > 0;
            self.all.iter().any(|it| it.told.tallies.values().any(has))
        });
        let refused: Vec<Rule> = refused.collect();
        let head = ["route", "under", "asked", "admitted", "kept", "waited", "p50 ms", "p99 ms"];
        let mut rows = vec![head.map(str::to_string).to_vec()];
        rows[0].extend(refused.iter().map(|it| it.name().replace('_', " ")));
        let counts = |it: &Tally| {
            let mut counts = vec![it.requests, it.admitted, it.kept, it.waits.count()];
            counts.extend(refused.iter().map(|rule| it.refused_by(*rule)));
            counts
        };
        for route in self.routes() {
            let mut push = |under: &str, counts: Vec<String>, waits: [String; 2]| {
                let mut row = vec![route.clone(), under.to_string()];
                row.extend(counts);
                row.splice(6..6, waits);
                rows.push(row);
            };
            let tallies: Vec<_> =
                self.all.iter().map(|it| (&it.name, it.told.tallies.get(route))).collect();
            for (name, tally) in &tallies {
                let Some(tally) = tally else { continue };
                let waits = [50, 99].map(|it| ms(tally.waits.percentile_us(it)));
                push(name, counts(tally).iter().map(u64::to_string).collect(), waits);
            }
            if let [_, (_, Some(now)), (_, Some(then))] = tallies.as_slice() {
                let (now, then) = (counts(now), counts(then));
                let by =
                    now.iter().zip(&then).map(|(now, then)| i128::from(*then) - i128::from(*now));
                let by = by.map(|it| if it == 0 { "0".to_string() } else { format!("{it:+}") });
                push("difference", by.collect(), [String::new(), String::new()]);
            }
        }
        rows
    }

    /// The clients that are refused most, with how often under each.
    fn worst(&self) -> Vec<(&String, IpAddr, Vec<u64>)> {
        let mut worst = Vec::new();
        for route in self.routes() {
            let tallies = || self.all.iter().map(|it| it.told.tallies.get(route));
            let first = tallies().flatten().flat_map(|it| it.worst.first(WORST));
            let clients: BTreeSet<IpAddr> = first.map(|(client, _)| client).collect();
            for client in clients {
                let counts = tallies().map(|it| it.map_or(0, |it| it.worst.of(client)));
                worst.push((route, client, counts.collect::<Vec<_>>()));
            }
        }
        worst.sort_by_key(|(_, _, counts)| u64::MAX - counts.iter().max().unwrap_or(&0));
        worst.truncate(WORST);
        worst
    }

    /// What the answer doesn't know.
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "taken as recorded: each request's route, what the cache had, and how long instances \
             took, however many they are asked at once"
                .to_string(),
        ];
        for Under { name, told } in &self.all {
            if told.estimated > 0 {
                notes.push(format!(
                    "{name}: {} requests had never been tried: taken to last as long as half of \
                     their route's did till then, and to come to what the last one tried came to",
                    told.estimated
                ));
            }
            if told.unrouted > 0 {
                let count = told.unrouted;
                notes.push(format!("{name}: {count} requests are of routes that it doesn't have"));
            }
            if told.late > 0 {
                let count = told.late;
                notes.push(format!("{name}: {count} requests were put in later than they came"));
            }
            for route in &told.by_address {
                notes.push(format!(
                    "{name}: clients of route {route} are told apart by address alone: headers, \
                     cookies and tokens are in no log"
                ));
            }
        }
        notes
    }

    fn json(&self) -> Value {
        let routes = self.routes().into_iter().map(|route| {
            let of = |it: &Under| {
                let tally = it.told.tallies.get(route).map(told);
                (it.name.replace(' ', "_"), tally.unwrap_or(Value::Null))
            };
            (route.clone(), Value::Object(self.all.iter().map(of).collect()))
        });
        let worst = self.worst().into_iter().map(|(route, client, counts)| {
            let counts =
                self.all.iter().zip(counts).map(|(it, count)| (it.name.replace(' ', "_"), count));
            let counts: Map<String, Value> = counts.map(|(name, it)| (name, it.into())).collect();
            json!({ "route": route, "client": client, "refused": counts })
        });
        let Reading { gateways, requests, routeless, bad, bad_named, from_us, to_us } =
            &self.reading;
        json!({
            "gateways": gateways, "requests": requests, "routeless": routeless,
            "from": from_us.and_then(time), "to": to_us.and_then(time),
            "bad_lines": bad, "bad_lines_first": bad_named,
            "routes": Value::Object(routes.collect()), "worst": worst.collect::<Vec<_>>(),
            "notes": self.notes(),
        })
    }
}

fn told(it: &Tally) -> Value {
    let refused: Map<String, Value> = Rule::ALL
        .iter()
        .map(|rule| (rule.name().to_string(), it.refused_by(*rule).into()))
        .collect();
    json!({
        "requests": it.requests, "admitted": it.admitted, "kept": it.kept,
        "waited": it.waits.count(), "wait_p50_us": it.waits.percentile_us(50),
        "wait_p99_us": it.waits.percentile_us(99), "refused": refused,
    })
}

fn ms(us: Option<u64>) -> String {
    us.map_or("-".to_string(), |us| format!("{:.1}", us as f64 / 1e3))
}

fn time(us: u64) -> Option<String> {
    let at = Timestamp::from_microsecond(i64::try_from(us).ok()?).ok()?;
    Some(format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::http::what_if::{Fate, Recorded};

    fn told(admitted: u64, refused: u64) -> Told {
        let mut told = Told::default();
        for number in 0..admitted + refused {
            let fate = match number < admitted {
                true => Fate::LetIn { took_us: 1_000, tries: 1, status: 200 },
                false => Fate::Refused(Rule::RateLimit),
            };
            told.record(&Recorded {
                at_us: 0,
                gateway: 0,
                client: [10, 0, 0, 1].into(),
                route: "api".to_string(),
                waited_us: 0,
                fate,
            });
        }
        told
    }

    #[test]
    fn differences_stand_in_one_table() {
        let all = [("recorded", 7, 1), ("in force", 8, 0), ("other spec", 5, 3)];
        let all = all.map(|(name, admitted, refused)| Under {
            name: name.to_string(),
            told: told(admitted, refused),
        });
        let mut view = View { reading: Reading::default(), all: all.into(), only: None };
        let expected = "\
            route  under       asked  admitted  kept  waited  p50 ms  p99 ms  rate limit\n\
            api    recorded    8      7         0     0       -       -       1\n\
            api    in force    8      8         0     0       -       -       0\n\
            api    other spec  8      5         0     0       -       -       3\n\
            api    difference  0      -3        0     0                       +3";
        assert_eq!(table("", &view.rows()), expected);
        let worst = view.json()["worst"][0].clone();
        assert_eq!(worst["refused"], json!({ "recorded": 1, "in_force": 0, "other_spec": 3 }));
        assert_eq!(view.json()["routes"]["api"]["other_spec"]["refused"]["rate_limit"], 3);
        view.only = Some("web".to_string());
        assert_eq!(view.rows().len(), 1);
    }
}
