//! `AllocatorAdapter` under real collections.

use malloc_api::testing::Counting;
use malloc_api::{AllocatorAdapter, LibcMalloc};

#[test]
fn serves_a_vec_and_a_hash_map_at_once() {
    let counting = Counting::new(LibcMalloc);
    let allocator = AllocatorAdapter::new(&counting);
    let mut numbers = allocator_api2::vec::Vec::new_in(allocator);
    let mut squares = hashbrown::HashMap::new_in(allocator);
    for n in 0..1000_u64 {
        numbers.push(n);
        squares.insert(n, n * n);
    }
    assert_eq!(numbers.iter().map(|n| squares[n]).sum::<u64>(), 332_833_500);
    assert!(counting.counts().peak_blocks >= 2);
    drop((numbers, squares));
    assert_eq!(counting.counts().live_blocks, 0);
}
