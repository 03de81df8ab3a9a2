//! Random faults at random moments for as long as is asked; lost must be 0, and everything whole at
//! the end. `cargo bench --bench torture -- [hosts] SECONDS SEED`; `hosts`: on three machines, which
//! are network namespaces.

#[path = "../tests/hosts/mod.rs"]
mod hosts;
#[path = "../tests/stack/mod.rs"]
mod stack;

use stack::torture::run;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(300);
    let seed = numbers.get(1).copied().unwrap_or_else(stack::random::seed);
    if words.iter().any(|word| word == "hosts") {
        run::<hosts::torture::Torment>(seconds, seed);
    } else {
        run::<stack::Stack>(seconds, seed);
    }
}
