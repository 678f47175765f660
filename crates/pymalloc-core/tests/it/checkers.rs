//! Bugs that a memory checker must report although the blocks are ours, and programs without one that it must not.
//!
//! Each bug is a child of its own. With the feature `valgrind` it runs in memcheck, where that is installed; with `asan` it
//! needs a build for AddressSanitizer, as `cargo xtask asan` makes.

use std::process::Output;
use std::ptr::NonNull;

use malloc_api::testing::under_memory_checker;
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{generate, run};
use pymalloc_core::{LocalPymalloc, OwnedPymalloc, ReleaseLevel};
use rstest::rstest;

const VARIABLE: &str = "PYMALLOC_TEST_BUG";

/// What the child runs; in the parent there is nothing to run but a program without a bug.
#[test]
fn program() {
    let pool = LocalPymalloc::new(LibcMalloc);
    let Ok(bug) = std::env::var(VARIABLE) else {
        let summary = run(&generate::random(1, 2_000, 9_000), &pool).expect("no fault");
        return assert_eq!(summary.failed, 0);
    };
    let (bug, size) = bug.rsplit_once(' ').expect("a bug and a size");
    let size: usize = size.parse().expect("a size");
    // Live neighbours, so that the bytes around are somebody's.
    let neighbours: Vec<_> = (0..40).map(|_| pool.malloc(size).expect("memory")).collect();
    let block = neighbours[20].as_ptr();
    let access = |at: *mut u8| {
        // SAFETY: the planted bug.
        unsafe { at.write_volatile(1) };
    };
    let read = |at: *mut u8| {
        // SAFETY: the planted bug.
        std::hint::black_box(unsafe { at.read_volatile() });
    };
    match bug {
        "none" => programs_without_a_bug(),
        "read past the end" => read(block.wrapping_add(size)),
        "read before the start" => read(block.wrapping_sub(1)),
        "read after free" => {
            free(&pool, block);
            read(block.wrapping_add(size / 2));
        }
        "free of the stack" => {
            let mut local = [0_u64; 16];
            free(&pool, std::hint::black_box(local.as_mut_ptr()).wrapping_add(2).cast());
        }
        "overflow" => access(block.wrapping_add(size)),
        "overflow by 8" => access(block.wrapping_add(size + 7)),
        "underflow" => access(block.wrapping_sub(1)),
        "use after free" => {
            free(&pool, block);
            access(block.wrapping_add(size - 1));
        }
        "use after shrinking" => {
            // SAFETY: a live block; it stays where it is or moves.
            let block = unsafe { pool.realloc(NonNull::new(block), size - 1) }.expect("memory");
            access(block.as_ptr().wrapping_add(size - 1));
        }
        "double free" => {
            free(&pool, block);
            free(&pool, block);
        }
        "uninitialised" => {
            // SAFETY: the planted bug.
            if unsafe { block.read_volatile() } == 7 {
                println!("seven");
            }
        }
        _ => panic!("no bug is called {bug:?}"),
    }
}

fn free(pool: &impl Malloc, block: *mut u8) {
    // SAFETY: a live block, or the planted bug.
    unsafe { pool.free(NonNull::new(block)) };
}

fn programs_without_a_bug() {
    let pool = LocalPymalloc::new(LibcMalloc);
    for seed in 0..3 {
        let summary = run(&generate::random(seed, 1_000, 9_000), &pool).expect("no fault");
        assert_eq!(summary.failed, 0);
        pool.check_invariants();
        pool.release(ReleaseLevel::Pages);
    }
    let owned = OwnedPymalloc::new(LibcMalloc);
    let blocks: Vec<usize> = (0..2_000)
        .map(|n| owned.malloc(n % 700).expect("memory").as_ptr().expose_provenance())
        .collect();
    let remote = owned.remote();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for block in blocks {
                let block = NonNull::new(std::ptr::with_exposed_provenance_mut(block));
                // SAFETY: (1) live blocks of `owned`; (2) not used again.
                unsafe { remote.free(block) };
            }
        });
    });
    owned.collect();
    assert_eq!(owned.allocated_blocks(), 0);
}

/// Runs a bug under the tool of this build; `None`, and says so, where it is not there.
fn child(bug: &str, size: usize) -> Option<Output> {
    let mut command = under_memory_checker("checkers::program")?;
    Some(command.env(VARIABLE, format!("{bug} {size}")).output().expect("the child starts"))
}

#[rstest]
#[case::overflow("overflow", "use-after-poison", "0 bytes after a block of size")]
#[case::overflow_by_8("overflow by 8", "use-after-poison", "7 bytes after a block of size")]
#[case::underflow("underflow", "use-after-poison", "Invalid write of size 1")]
#[case::use_after_free("use after free", "use-after-poison", "free'd")]
#[case::shrunk("use after shrinking", "use-after-poison", "Invalid write of size 1")]
#[case::double_free("double free", "use-after-poison", "free'd")]
#[case::read_past("read past the end", "use-after-poison", "Invalid read of size 1")]
#[case::read_before("read before the start", "use-after-poison", "Invalid read of size 1")]
#[case::read_after_free("read after free", "use-after-poison", "Invalid read of size 1")]
#[case::stack("free of the stack", "attempting free on address", "Invalid free()")]
#[case::uninitialised("uninitialised", "", "depends on uninitialised value")]
fn a_bug_in_a_pool_is_reported(
    #[case] bug: &str,
    #[case] asan: &str,
    #[case] memcheck: &str,
    #[values(24, 512, 4096)] size: usize,
) {
    if cfg!(feature = "hardened") && bug == "double free" {
        return; // The allocator itself sees it first: `hardened.rs` has that test.
    }
    let words = if cfg!(pymem_asan) { asan } else { memcheck };
    let Some(output) = child(bug, size).filter(|_| !words.is_empty()) else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(99), "{bug}, {size} bytes: {text}");
    assert!(text.contains(words), "{bug}, {size} bytes: {text}");
}

#[test]
fn no_bug_is_no_report() {
    let Some(output) = child("none", 24) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
