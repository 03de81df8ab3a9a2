//! The simulator's command line: runs seeds, says what failed and how to see it again.

use everhold_core::decide::RULES;
use everhold_core::view::Guard;
use everhold_sim::{GUARDS, Options, Outcome, run};
use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: everhold-sim [--seeds FROM..TO] [--seed N] [--without GUARD] \
[--trace] [--keep-going] [--guards] [--rules]";

struct Asked {
    seeds: Range<u64>,
    without: Option<Guard>,
    trace: bool,
    keep_going: bool,
    guards: bool,
    rules: bool,
}

fn main() -> ExitCode {
    let asked = match parse() {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if asked.guards {
        return controls(&asked);
    }
    seeds(&asked)
}

fn parse() -> Result<Asked, String> {
    let mut asked = Asked {
        seeds: 0..100,
        without: None,
        trace: false,
        keep_going: false,
        guards: false,
        rules: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--seeds" => asked.seeds = range(&value()?)?,
            "--seed" => {
                let text = value()?;
                let seed = text.parse().map_err(|_| format!("`{text}` is not a seed"))?;
                asked.seeds = seed..seed + 1;
            }
            "--without" => asked.without = Some(guard(&value()?)?),
            "--trace" => asked.trace = true,
            "--keep-going" => asked.keep_going = true,
            "--guards" => asked.guards = true,
            "--rules" => asked.rules = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(asked)
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is not FROM..TO");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    Ok(from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?)
}

fn guard(name: &str) -> Result<Guard, String> {
    let found = GUARDS.into_iter().find(|guard| guard_name(*guard) == name);
    let names: Vec<String> = GUARDS.into_iter().map(guard_name).collect();
    found.ok_or(format!("no guard `{name}`; there are {}", names.join(", ")))
}

fn guard_name(guard: Guard) -> String {
    let mut name = String::new();
    for letter in format!("{guard:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

fn seeds(asked: &Asked) -> ExitCode {
    let began = Instant::now();
    let (mut failed, mut faults, mut acked, mut events, mut lost) = (0, 0, 0, 0, 0);
    let mut fired: BTreeMap<String, u64> = BTreeMap::new();
    let mut outages: BTreeMap<&'static str, Vec<(u64, u64)>> = BTreeMap::new();
    let mut ran = 0;
    for seed in asked.seeds.clone() {
        let Outcome {
            violation,
            faults: f,
            acknowledged,
            events: e,
            outages: o,
            fired: rules,
            lost_by_force,
            ..
        } = run(Options { seed, without: asked.without, trace: asked.trace });
        ran += 1;
        faults += f;
        acked += acknowledged;
        events += e;
        lost += lost_by_force;
        for (rule, times) in rules {
            *fired.entry(rule).or_default() += times;
        }
        for (kind, ms) in o {
            outages.entry(kind).or_default().push((ms, seed));
        }
        if let Some(what) = violation {
            failed += 1;
            let without =
                asked.without.map_or(String::new(), |g| format!(" --without {}", guard_name(g)));
            println!("seed {seed} {what}");
            println!("  again: cargo run -p everhold-sim -- --seed {seed}{without} --trace");
            if !asked.keep_going {
                break;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{ran} seeds in {seconds:.1} s: {:.1} seeds/s, {:.0} faults, {:.0} acknowledged writes, {:.0} events a seed; {failed} failed, {lost} writes lost by force",
        f64::from(ran) / seconds,
        faults as f64 / f64::from(ran),
        acked as f64 / f64::from(ran),
        events as f64 / f64::from(ran),
    );
    for (kind, mut ms) in outages {
        ms.sort_unstable();
        let at = |share: usize| ms[(ms.len() - 1) * share / 100].0;
        let worst = ms.last().map_or(0, |(_, seed)| *seed);
        println!(
            "outage after {kind:<16} {:>5} times: median {} ms, p90 {} ms, p99 {} ms, worst {} ms (seed {worst})",
            ms.len(),
            at(50),
            at(90),
            at(99),
            at(100)
        );
    }
    let silent: Vec<&str> = RULES.iter().copied().filter(|r| !fired.contains_key(*r)).collect();
    if asked.rules || !silent.is_empty() {
        for (rule, times) in &fired {
            println!("{times:>9} {rule}");
        }
    }
    if !silent.is_empty() {
        println!("rules that never fired: {}", silent.join(", "));
    }
    let unknown: Vec<&String> = fired.keys().filter(|r| !RULES.contains(&r.as_str())).collect();
    if !unknown.is_empty() {
        println!("rules that RULES does not name: {unknown:?}");
    }
    // A handful of seeds can't fire everything.
    let few = ran < 100;
    if failed > 0 || !unknown.is_empty() || (!few && !silent.is_empty()) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Takes each guard away in turn: something has to notice.
fn controls(asked: &Asked) -> ExitCode {
    let mut blind = 0;
    for guard in GUARDS {
        let began = Instant::now();
        let caught = asked.seeds.clone().find_map(|seed| {
            let outcome = run(Options { seed, without: Some(guard), trace: false });
            outcome.violation.map(|what| (seed, what))
        });
        let seconds = began.elapsed().as_secs_f64();
        match caught {
            Some((seed, what)) => {
                let line = what.lines().next().unwrap_or_default().to_string();
                println!(
                    "{:<16} caught by seed {seed:<4} {seconds:>5.1} s  {line}",
                    guard_name(guard)
                );
            }
            None => {
                blind += 1;
                println!("{:<16} NOT CAUGHT within {:?}", guard_name(guard), asked.seeds);
            }
        }
    }
    if blind > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
