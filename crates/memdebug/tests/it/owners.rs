//! Hooks beside hooks, and hooks that go: whose blocks are whose, and what a drop does.

use std::ptr::NonNull;

use malloc_api::testing::Counting;
use malloc_api::{LibcMalloc, Malloc};
use memdebug::{
    ConfigureError, DebugHooks, Domain, Options, QuarantineBounds, Violation, ViolationKind,
};
use rstest::rstest;

use crate::support::{COLLECTING, hooks, options, seen};

fn kinds() -> Vec<ViolationKind> {
    seen().iter().map(Violation::kind).collect()
}

/// A drop verifies what the quarantine holds, and gives it back.
#[rstest]
fn dropped_hooks_empty_their_quarantine(
    #[values("quarantine", "strict", "strict,serial")] text: &str,
) {
    let counting = Counting::new(LibcMalloc);
    let hooks = DebugHooks::new(&counting, Domain::Mem).with_host(COLLECTING);
    let hooks = hooks.with_options(&options(text)).unwrap();
    let blocks = [24, 600, 40_000].map(|size| hooks.malloc(size).unwrap());
    for block in blocks {
        // SAFETY: live; the quarantine keeps it.
        unsafe { hooks.free(Some(block)) };
    }
    // SAFETY: a planted bug, into a held block.
    unsafe { blocks[1].as_ptr().wrapping_add(5).write(0x58) };
    assert_eq!((counting.counts().live_blocks, kinds().len()), (3, 0));
    drop(hooks);
    assert_eq!(kinds(), [ViolationKind::UseAfterFree { offset: 5, found: 0x58, changed: 1 }]);
    assert_eq!(counting.counts().live_blocks, 0);
}

/// A walk looks at the hooks' own blocks: those of dropped hooks may be memory of others by now, or gone.
#[test]
fn a_walk_leaves_blocks_of_dropped_hooks_alone() {
    let ours = hooks(Domain::Obj, "registry");
    let theirs = hooks(Domain::Obj, "registry");
    let left = theirs.malloc(100).unwrap();
    drop(theirs);
    // SAFETY: nobody else's, as the hooks of the block are gone.
    unsafe { left.as_ptr().wrapping_sub(16).write_bytes(7, 16) };
    assert_eq!(ours.check_all(), 0);
    assert!(seen().is_empty());
}

/// A block of other hooks of the same domain is foreign to these, and stays live.
#[test]
fn blocks_of_other_hooks_are_refused() {
    let ours = hooks(Domain::Mem, "strict");
    let theirs = hooks(Domain::Mem, "strict");
    let block = theirs.malloc(100);
    // SAFETY: a planted bug.
    unsafe { ours.free(block) };
    assert_eq!(kinds(), [ViolationKind::ForeignPointer]);
    // SAFETY: a planted bug.
    assert_eq!(unsafe { ours.realloc(block, 8) }, None);
    assert_eq!(kinds(), [ViolationKind::ForeignPointer]);
    // SAFETY: live, and not used again.
    unsafe { theirs.free(block) };
    assert!(seen().is_empty());
}

/// Bits above the 48th make a pointer a wild one, and not the block below them.
#[test]
fn high_bits_make_a_pointer_foreign() {
    memdebug::install_fault_handler().unwrap();
    let hooks = hooks(Domain::Mem, "strict");
    let block = hooks.malloc(100).unwrap();
    for bit in [48, 56, 62] {
        let wild = NonNull::new(block.as_ptr().map_addr(|address| address | 1 << bit));
        // SAFETY: a planted bug.
        unsafe { hooks.free(wild) };
        assert_eq!(kinds(), [ViolationKind::ForeignPointer], "bit {bit}");
    }
    // SAFETY: live, and not used again.
    unsafe { hooks.free(Some(block)) };
    assert!(seen().is_empty());
}

/// Options stay on when a host comes after them.
#[test]
fn a_host_may_come_after_the_options() {
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem);
    let hooks = hooks.with_options(&options("strict,serial")).unwrap().with_host(COLLECTING);
    let block = hooks.malloc(32).unwrap();
    assert_eq!(hooks.serial(), 1);
    // SAFETY: live; the quarantine keeps it.
    unsafe { hooks.free(Some(block)) };
    // SAFETY: a planted bug, into a held block.
    unsafe { block.write(0x58) };
    assert_eq!(hooks.release_quarantine(), 1);
    assert_eq!(kinds(), [ViolationKind::UseAfterFree { offset: 0, found: 0x58, changed: 1 }]);
}

/// Values that no word can have are refused when they are switched on, not met by an allocation.
#[test]
fn fields_out_of_range_are_refused() {
    let refused = |change: fn(&mut Options)| {
        let mut options = Options::strict();
        change(&mut options);
        DebugHooks::new(LibcMalloc, Domain::Mem).with_options(&options).map(drop)
    };
    assert_eq!(refused(|_| {}), Ok(()));
    for (option, result) in [
        ("backtrace", refused(|options| options.backtrace = 200)),
        ("quarantine", refused(|options| options.quarantine = bounds(0, 9))),
        ("quarantine", refused(|options| options.quarantine = bounds(1 << 20, 0))),
        ("quarantine", refused(|options| options.quarantine = bounds(1 << 20, usize::MAX))),
        ("quarantine", refused(|options| options.quarantine = bounds(usize::MAX, 9))),
    ] {
        let error = result.unwrap_err();
        assert!(
            matches!(error, ConfigureError::OutOfRange { option: of, .. } if of == option),
            "{error}"
        );
    }
    let mut small = Options::new();
    small.quarantine = bounds(1, 1);
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_options(&small).unwrap();
    let block = hooks.malloc(100);
    // SAFETY: live, and not used again.
    unsafe { hooks.free(block) };
    assert_eq!(hooks.quarantined(), (0, 0));
}

fn bounds(bytes: usize, blocks: usize) -> Option<QuarantineBounds> {
    Some(QuarantineBounds { bytes, blocks })
}

/// Hooks that come and go do not use up the registry's owners.
#[test]
fn many_hooks_may_have_a_registry_one_after_the_other() {
    for _ in 0..3000 {
        let hooks = hooks(Domain::Raw, "registry");
        let block = hooks.malloc(8);
        // SAFETY: live, and not used again.
        unsafe { hooks.free(block) };
    }
    assert!(seen().is_empty());
}
