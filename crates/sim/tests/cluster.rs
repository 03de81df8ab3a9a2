//! Seeds of the simulated cluster, and what each guard is good for.

use everhold_core::decide::RULES;
use everhold_sim::faults::FAULTS_MIN;
use everhold_sim::{GUARDS, Options, Outcome, run};
use std::collections::BTreeSet;

/// Seeds that found something once. The number alone is kept: what it draws changes with the
/// simulation, so each is one more seed that is always run.
const REGRESSIONS: &str = include_str!("regressions.txt");
const SEEDS: u64 = 500;
/// A build without a guard is caught within these.
const CONTROL: u64 = 100;

fn seed(seed: u64) -> Outcome {
    run(Options { seed, without: None, trace: false })
}

/// Runs seeds on all cores; the outcomes in the order of the seeds.
fn all(seeds: Vec<u64>) -> Vec<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let work = |part: usize| {
            let mine = seeds.iter().skip(part).step_by(threads).copied().collect::<Vec<u64>>();
            move || mine.into_iter().map(seed).collect::<Vec<Outcome>>()
        };
        let handles: Vec<_> = (0..threads).map(|part| scope.spawn(work(part))).collect();
        handles.into_iter().flat_map(|h| h.join().expect("a simulation panicked")).collect()
    });
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

#[test]
fn nothing_is_lost_nor_stuck_and_every_rule_fires() {
    let kept = REGRESSIONS.lines().filter(|line| !line.starts_with('#'));
    let kept = kept.filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let outcomes = all((0..SEEDS).chain(kept.filter(|seed| *seed >= SEEDS)).collect());
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|o| o.violation.as_ref().map(|what| (o.seed, what)))
        .map(|(seed, what)| {
            format!("{what}\n  again: cargo run -p everhold-sim -- --seed {seed} --trace")
        })
        .collect();
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n"));
    let idle = outcomes.iter().find(|outcome| outcome.faults < FAULTS_MIN);
    assert!(idle.is_none(), "seed {:?} had too few faults", idle.map(|outcome| outcome.seed));
    let fired: BTreeSet<&str> =
        outcomes.iter().flat_map(|outcome| outcome.fired.keys().map(String::as_str)).collect();
    let rules: BTreeSet<&str> = RULES.into_iter().collect();
    assert_eq!(fired, rules, "left: fired, right: known");
}

#[test]
fn a_seed_repeats() {
    let (one, two) = (seed(7), seed(7));
    assert_eq!((one.events, one.acknowledged), (two.events, two.acknowledged));
    assert_ne!(one.events, seed(8).events);
}

#[test]
fn each_guard_is_missed() {
    let blind: Vec<_> = GUARDS
        .into_iter()
        .filter(|guard| {
            !(0..CONTROL).any(|seed| {
                run(Options { seed, without: Some(*guard), trace: false }).violation.is_some()
            })
        })
        .collect();
    assert!(blind.is_empty(), "nothing noticed that these were gone: {blind:?}");
}
