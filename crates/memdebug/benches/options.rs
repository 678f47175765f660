//! What each option costs: time a call, and with an option's text as argument one run of it for a counter of
//! instructions (`valgrind --tool=callgrind TARGET 'strict'`).

use std::hint::black_box;
use std::time::Instant;

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{DebugHooks, Domain, GuardSampler, Options};

/// Blocks that are live at a time.
const LIVE: usize = 1000;

/// An interpreter's sort of program: small blocks of a few sizes, one in sixteen resized, half of them freed soon.
fn program(allocator: &impl Malloc, rounds: usize) {
    let mut random = fastrand::Rng::with_seed(42);
    let mut blocks = [None; LIVE];
    for _ in 0..rounds {
        let bits = random.u32(..);
        let slot = bits as usize % LIVE;
        let size = match bits >> 28 {
            0 => 600 + (bits >> 16) as usize % 2000,
            1..4 => 128 + (bits >> 16) as usize % 384,
            _ => 16 + (bits >> 16) as usize % 96,
        };
        // SAFETY: a live block or none, replaced below.
        let block = match bits >> 12 & 15 {
            // SAFETY: as above.
            0 => unsafe { allocator.realloc(blocks[slot], size) },
            _ => {
                // SAFETY: as above.
                unsafe { allocator.free(blocks[slot]) };
                allocator.malloc(size)
            }
        };
        blocks[slot] = black_box(block);
    }
    for block in blocks {
        // SAFETY: live or none, and not used again.
        unsafe { allocator.free(block) };
    }
}

fn run(text: &str, rounds: usize) {
    if text == "bare" {
        return program(&LibcMalloc, rounds);
    }
    let options: Options = text.parse().expect("an option's word");
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem);
    let hooks = hooks.with_options(&options.for_hooks()).expect("memory");
    if options.guard.is_none() {
        return program(&hooks, rounds);
    }
    let sampler = GuardSampler::new(hooks, Domain::Mem);
    program(&sampler.with_options(&options.for_sampler()).expect("pages"), rounds);
}

fn main() {
    let alone = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    if let Some(text) = alone {
        return run(&text, 200_000);
    }
    const ROUNDS: usize = 2_000_000;
    const WORDS: [&str; 11] = [
        "bare",
        "",
        "serial",
        "full_erase",
        "registry",
        "quarantine",
        "strict",
        "leaks=json",
        "guard=1/1000",
        "guard=1/10",
        "backtrace=8",
    ];
    let mut bare = 0.0;
    for text in WORDS {
        let rounds =
            if text == "backtrace=8" || text == "guard=1/10" { ROUNDS / 20 } else { ROUNDS };
        let best = (0..3)
            .map(|_| {
                let start = Instant::now();
                run(text, rounds);
                start.elapsed().as_nanos() as f64 / rounds as f64
            })
            .fold(f64::INFINITY, f64::min);
        if text == "bare" {
            bare = best;
        }
        let name = if text.is_empty() { "plain hooks" } else { text };
        println!("{name:14} {best:8.1} ns a free and malloc, {:5.2} x bare", best / bare);
    }
}
