//! Counts what a Rust program allocates.

use malloc_api::testing::Counting;
use malloc_api::{GlobalAdapter, LibcMalloc};

#[global_allocator]
static GLOBAL: GlobalAdapter<Counting<LibcMalloc>> = GlobalAdapter::new(Counting::new(LibcMalloc));

fn main() {
    let before = GLOBAL.inner().counts();
    let words: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let after = GLOBAL.inner().counts();
    assert_eq!(words.len(), 100);
    assert!(after.live_blocks >= before.live_blocks + 101);
    println!("{} calls for {} words", after.calls() - before.calls(), words.len());
}
