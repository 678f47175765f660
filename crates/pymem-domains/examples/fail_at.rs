//! Injects a failure at every n-th allocation in turn, in Rust: the program below must survive each of them. In C:
//! `c/fail_at.c`.

use malloc_api::Malloc;
use malloc_api::testing::FailAfter;
use pymem_domains::{AllocatorRecord, Domain, Domains, Profile, TypedMalloc};

/// Builds an array and grows it; `None` when there was no memory, with nothing lost.
fn program(mem: &impl Malloc) -> Option<()> {
    let mut array = Some(mem.new_array::<u64>(8)?);
    // SAFETY: the array is live and of this allocator; only the new pointer is used afterwards.
    let grown = unsafe { mem.resize(&mut array, 1_000) };
    // SAFETY: `array` is live whether or not it grew, and not used again.
    unsafe { mem.free(array.map(|array| array.cast())) };
    grown.ok()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domains = Domains::new(Profile::NEWEST, None)?;
    let inner = domains.get_allocator(Domain::Mem);
    let failing: &FailAfter<AllocatorRecord> = Box::leak(Box::new(FailAfter::new(inner, 0)));
    // SAFETY: it serves the very blocks of what it wraps.
    unsafe { domains.wrap_allocator(Domain::Mem, |_| AllocatorRecord::new(failing)) };

    let mem = domains.get(Domain::Mem);
    let mut survived = 0;
    loop {
        failing.set(survived);
        let done = program(&mem);
        if failing.failures() == 0 {
            assert!(done.is_some());
            break;
        }
        assert!(done.is_none());
        survived += 1;
    }
    assert_eq!(survived, 2);
    println!("the program survives the failure of each of its {survived} allocations");
    Ok(())
}
