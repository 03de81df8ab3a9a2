//! The table that benchmarks print: one row per fault.

use std::time::Duration;

/// One row: name, target, what to do.
pub type Row<S> = (&'static str, &'static str, fn(&mut S) -> Figures);

/// What a row's runs were like.
#[derive(Default)]
pub struct Figures {
    pub outages: Vec<Duration>,
    pub lost: usize,
    pub note: String,
}

/// Prints the rows whose name contains one of the command line's words, or all; each has a stack of
/// its own.
pub fn print<S>(rows: &[Row<S>], start: impl Fn(&str) -> S) {
    println!("| fault | target | median | worst | runs | lost | note |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    more(rows, start);
}

/// The same below a table that has begun.
pub fn more<S>(rows: &[Row<S>], start: impl Fn(&str) -> S) {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    for (name, target, run) in rows {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let mut figures = run(&mut start(name));
        figures.outages.sort();
        let seconds = |outage: Option<&Duration>| outage.copied().unwrap_or_default().as_secs_f64();
        println!(
            "| {name} | {target} | {:.3} s | {:.3} s | {} | {} | {} |",
            seconds(figures.outages.get(figures.outages.len() / 2)),
            seconds(figures.outages.last()),
            figures.outages.len(),
            figures.lost,
            figures.note
        );
    }
}
