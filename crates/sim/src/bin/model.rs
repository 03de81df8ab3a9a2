//! Runs the exhaustive check of the failover protocol and prints a row per run.
//!
//! `model all`: protocol and negative controls; `model quick`, `model deep`; `model N5 B1`: these
//! alone; `-t`: with a shortest trace of each violation.

use everhold_sim::model::plan::{Expect, Plan};
use everhold_sim::model::{runs, search};
use std::process::ExitCode;
use std::time::Instant;

/// n nodes, S of them and k in the first set, k of later ones, epochs, records; then faults.
const HEAD: &str =
    "run   n S k0 k e r crash cut change wipe      states transitions   reopened depth";

/// Beyond it a run is cut short and says so: about 12 GB.
const STATES_MAX: u64 = 200_000_000;

fn main() -> ExitCode {
    let (flags, wanted): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|arg| arg.starts_with('-'));
    let trace = flags.iter().any(|flag| flag == "-t");
    let plans = plans(&wanted);
    if plans.is_empty() || flags.iter().any(|flag| flag != "-t") {
        eprintln!("usage: model [-t] all | quick | negative | deep | RUN...");
        return ExitCode::from(2);
    }
    println!("{HEAD}");
    let begun = Instant::now();
    let good = plans.iter().filter(|plan| run(plan, trace)).count();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{good} of {} as expected, {seconds:.0} s", plans.len());
    if good == plans.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn plans(wanted: &[String]) -> Vec<Plan> {
    let mut plans = Vec::new();
    for name in wanted {
        match name.as_str() {
            "all" => plans.extend(runs::protocol().into_iter().chain(runs::negative())),
            "quick" => plans.extend(runs::quick()),
            "negative" => plans.extend(runs::negative()),
            "deep" => plans.extend(runs::deep()),
            name => {
                let all = [runs::protocol(), runs::negative(), runs::deep(), runs::quick()];
                plans.extend(all.concat().into_iter().filter(|plan| plan.name == name));
            }
        }
    }
    plans
}

/// True: as expected.
fn run(plan: &Plan, trace: bool) -> bool {
    let begun = Instant::now();
    let (outcome, seen) = search::explore(plan, STATES_MAX);
    let seconds = begun.elapsed().as_secs_f64();
    let b = &plan.bounds;
    let expected = match plan.expect {
        Expect::Safe => outcome.violation.is_none() && outcome.complete,
        Expect::Violation => outcome.violation.is_some(),
    };
    let end = match (&outcome.violation, outcome.complete) {
        (Some(_), _) => "found",
        (None, true) => "complete",
        (None, false) => "CAPPED",
    };
    let text = outcome.violation.as_ref().map_or("no violation", |v| v.text.as_str());
    let bounds = format!(
        "{} {} {:>2} {} {} {} {:>5} {:>3} {:>6} {:>4}",
        b.nodes,
        b.standbys,
        b.first_k,
        b.k,
        b.epochs,
        b.records,
        b.crashes,
        b.cuts,
        b.changes,
        b.wipes
    );
    let size = format!(
        "{:>11} {:>11} {:>10} {:>5}",
        outcome.states, outcome.transitions, outcome.reopened, outcome.depth
    );
    let odd = if expected { "" } else { "UNEXPECTED " };
    println!(
        "{:<5} {bounds} {size} {end:<8} {seconds:>6.1} s  {odd}{}: {text}",
        plan.name, plan.about
    );
    if let Some(violation) = outcome.violation.as_ref().filter(|_| trace) {
        for (step, state) in search::trace(plan, &seen, violation) {
            println!("    {step:?}");
            println!("        {state}");
        }
    }
    expected
}
