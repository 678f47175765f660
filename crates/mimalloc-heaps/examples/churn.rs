//! The churn of the tests for as long as you like; checks that the memory stays flat within 10 %.
//!
//! `cargo run --release -p mimalloc-heaps --example churn -- SECONDS` (2 unless told otherwise).

use std::env;
use std::time::Duration;

use mimalloc_heaps::InterpreterHeaps;

#[path = "../tests/it/churn.rs"]
mod churn;

fn main() {
    let seconds = env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(2);
    let interpreter = InterpreterHeaps::new().expect("heaps");
    let churn = churn::Churn::default();
    let [early, late] = churn.run(&interpreter, Duration::from_secs(seconds));
    println!(
        "{seconds} s: {} lives, {} operations, {} blocks freed by others; resident {:.1} MiB in the second quarter, {:.1} MiB in the last",
        churn.lives.into_inner(),
        churn.operations.into_inner(),
        churn.freed_by_others.into_inner(),
        early as f64 / 1048576.0,
        late as f64 / 1048576.0,
    );
    assert!(early.abs_diff(late) <= early / 10 || seconds < 20, "the memory is not flat");
}
