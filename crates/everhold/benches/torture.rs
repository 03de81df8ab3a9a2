//! Random faults at random moments for as long as is asked; lost must be 0, and the stack whole at
//! the end. `cargo bench --bench torture -- SECONDS SEED`.

#[path = "../tests/stack/mod.rs"]
mod stack;
#[path = "../tests/stack/torture.rs"]
mod torture;

fn main() {
    let words: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let seconds = words.first().copied().unwrap_or(300);
    let seed = words.get(1).copied().unwrap_or_else(stack::random::seed);
    torture::run(seconds, seed);
}
