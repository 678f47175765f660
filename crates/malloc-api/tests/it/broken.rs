//! `conformance` fails for each way to break each line of the trait's table.

use std::mem::discriminant;

use malloc_api::MAX_REQUEST;
use malloc_api::testing::{Nonconformance, conformance, try_conformance};
use rstest::rstest;

use crate::toy::{Bug, Toy};

const HALF_BITS: u32 = usize::BITS / 2;

fn refused(method: &'static str, size: usize) -> Nonconformance {
    Nonconformance::Refused { method, size }
}

fn misaligned(method: &'static str, size: usize) -> Nonconformance {
    Nonconformance::Misaligned { method, size, address: 0 }
}

fn overlap(method: &'static str, size: usize) -> Nonconformance {
    Nonconformance::Overlap { method, size, address: 0 }
}

fn oversize(method: &'static str, nelem: usize, elsize: usize) -> Nonconformance {
    Nonconformance::Oversize { method, nelem, elsize }
}

/// Addresses and bytes differ from run to run: they are not compared.
fn without_chance(broken: Nonconformance) -> Nonconformance {
    match broken {
        Nonconformance::Misaligned { method, size, .. } => misaligned(method, size),
        Nonconformance::Overlap { method, size, .. } => overlap(method, size),
        Nonconformance::NotZeroed { size, offset, .. } => {
            Nonconformance::NotZeroed { size, offset, found: 0 }
        }
        other => other,
    }
}

#[rstest]
#[case(Bug::MallocMisaligns, misaligned("malloc", 100))]
#[case(Bug::MallocOfZeroRefused, refused("malloc", 0))]
#[case(Bug::MallocOfZeroShared, overlap("malloc", 0))]
#[case(Bug::MallocTruncatesOversize, oversize("malloc", 1, MAX_REQUEST + 1))]
#[case(Bug::MallocOverlaps, overlap("malloc", 512))]
#[case(Bug::CallocLeavesLastByteDirty, Nonconformance::NotZeroed { size: 1, offset: 0, found: 0 })]
#[case(Bug::CallocMisaligns, misaligned("calloc", 0))]
#[case(Bug::CallocProductWraps, oversize("calloc", 1 << HALF_BITS, 1 << HALF_BITS))]
#[case(Bug::CallocServesOversize, oversize("calloc", 1, MAX_REQUEST + 1))]
#[case(Bug::CallocOfZeroRefused, refused("calloc", 0))]
#[case(Bug::ReallocOfNoneRefused, refused("realloc", 0))]
#[case(Bug::ReallocOfNoneServesOversize, oversize("realloc", 1, MAX_REQUEST + 1))]
#[case(Bug::ReallocToZeroFrees, refused("realloc", 0))]
#[case(Bug::ReallocToZeroFreesQuietly, overlap("malloc", 0))]
#[case(
    Bug::ReallocLosesLastByte,
    Nonconformance::ContentLost { old_size: 1, new_size: 1, offset: 0 }
)]
#[case(
    Bug::ReallocLosesOnShrink,
    Nonconformance::ContentLost { old_size: 8, new_size: 1, offset: 0 }
)]
#[case(Bug::ReallocMisaligns, misaligned("realloc", 0))]
#[case(Bug::ReallocServesOversize, oversize("realloc", 1, MAX_REQUEST + 1))]
#[case(Bug::ReallocFailureFrees, overlap("malloc", 0))]
#[case(
    Bug::ReallocFailureTouches,
    Nonconformance::FailedReallocTouched { old_size: 1, offset: 0 }
)]
#[case(Bug::ReallocOverruns, Nonconformance::Changed { size: 1, offset: 0 })]
#[case(Bug::FreeOfNoneFrees, overlap("malloc", 0))]
#[case(Bug::FreeScribbles, Nonconformance::Changed { size: 0, offset: 0 })]
fn each_bug_is_seen(#[case] bug: Bug, #[case] expected: Nonconformance) {
    let seen = try_conformance(&Toy::new(bug)).expect_err("the bug must be seen");
    let seen = without_chance(seen);
    match expected {
        // Which block is hit depends on the order of the free lists.
        Nonconformance::Changed { .. } => assert_eq!(discriminant(&seen), discriminant(&expected)),
        _ => assert_eq!(seen, expected),
    }
}

#[test]
fn without_a_bug_nothing_is_seen() {
    assert_eq!(try_conformance(&Toy::new(Bug::None)), Ok(()));
}

#[test]
#[should_panic(
    expected = "not a conforming Malloc: malloc of 0 bytes answered None; expected a block"
)]
fn the_panic_says_what_was_wrong() {
    conformance(&Toy::new(Bug::MallocOfZeroRefused));
}
