//! Bug classes x domains x sizes x offsets, in this process: each is reported once, with the right class.

use std::ptr::NonNull;

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{Domain, Violation, ViolationKind, install_fault_handler};
use rstest::rstest;

use crate::support::{Bug, COLLECTING, Layered, SIZES, another, hooks, seen};

/// Whether `kind` is the class that `bug` must be given. `certain` with a registry: nothing is guessed then.
fn is_right(bug: Bug, kind: ViolationKind, domain: Domain, size: usize, certain: bool) -> bool {
    use ViolationKind as V;
    match bug {
        // Reads are for guard pages, which end a process.
        Bug::None | Bug::Read(_) | Bug::ReadAfterFree(_) => false,
        Bug::Overflow(_) | Bug::ReallocOverflow(_) => kind == V::TrailingPad,
        // From the eighth byte on the id is gone too: without a registry it may be any block, or none.
        Bug::Underflow(count) if count >= 8 && !certain => kind == V::BadId,
        Bug::Underflow(_) => kind == V::LeadingPad,
        // The memory of a large block may be gone with its first free.
        Bug::DoubleFree if !certain && size > 100_000 => {
            matches!(kind, V::ForeignPointer | V::DoubleFree)
        }
        Bug::DoubleFree => kind == V::DoubleFree,
        Bug::WriteAfterFree(at) => {
            matches!(kind, V::UseAfterFree { offset, found: 0x41, changed: 1 } if offset == at)
        }
        Bug::Interior(_) => {
            matches!(kind, V::InteriorPointer { size: found, .. } if found == size)
        }
        Bug::Stack | Bug::Static | Bug::Unmapped => kind == V::ForeignPointer,
        Bug::NoHooks if !certain => kind == V::BadId,
        Bug::NoHooks => kind == V::ForeignPointer,
        Bug::WrongDomain => kind == V::WrongDomain { allocated: domain },
        Bug::NoGil => kind == V::WrongThread,
    }
}

#[rstest]
fn each_bug_is_named(
    #[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain,
    #[values("", "serial", "full_erase", "quarantine", "strict", "strict,serial,backtrace=4")]
    options: &str,
) {
    install_fault_handler().unwrap();
    let certain = options.contains("strict");
    let quarantine = certain || options.contains("quarantine");
    let ours = hooks(domain, options);
    let other = hooks(another(domain), options);
    for size in SIZES {
        for bug in Bug::all(size, quarantine) {
            bug.plant(&ours, &other, size);
            let mut found = seen();
            // Another thread may have had the memory between the two frees, and have left no block there or some other; rarely a
            // hundred times in a row.
            for _ in 0..100 {
                let is_spoilt = bug == Bug::DoubleFree && !quarantine;
                let is_other = |report: &Violation| {
                    matches!(report.kind(), ViolationKind::BadId | ViolationKind::LeadingPad)
                };
                if !is_spoilt || !found.iter().all(is_other) {
                    break;
                }
                bug.plant(&ours, &other, size);
                found = seen();
            }
            if bug == Bug::NoGil && domain == Domain::Raw {
                assert!(found.is_empty(), "raw has no thread rule");
                continue;
            }
            let kinds: Vec<_> = found.iter().map(Violation::kind).collect();
            let context = format!("{bug:?}, {size} bytes, {domain:?}, {options:?}: {kinds:?}");
            // A wrong free leaves the block alone: the right one after it must find nothing.
            assert_eq!(kinds.len(), 1, "{context}");
            assert!(
                is_right(
                    bug,
                    kinds[0],
                    domain,
                    size,
                    certain || quarantine && bug == Bug::DoubleFree
                ),
                "{context}"
            );
        }
    }
}

#[rstest]
fn no_bug_is_no_report(
    #[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain,
    #[values(
        "",
        "serial",
        "full_erase",
        "quarantine",
        "strict",
        "guard=1/1",
        "guard=1/3,strict,serial"
    )]
    options: &str,
) {
    let ours = hooks(domain, options);
    let other = hooks(another(domain), options);
    for size in SIZES {
        Bug::None.plant(&ours, &other, size);
    }
    ours.release_quarantine();
    assert!(seen().is_empty());
}

/// A block of hooks over hooks lies in a block of those below, which may be a guarded one: as large blocks of a debug row do,
/// which its pools take from raw.
#[rstest]
fn guarded_blocks_hold_other_hooks_blocks(
    #[values("quarantine", "strict", "guard=1/3")] options_above: &str,
) {
    install_fault_handler().unwrap();
    let below = Layered::new(LibcMalloc, COLLECTING, Domain::Raw, "guard=1/1");
    let above = Layered::new(&below, COLLECTING, Domain::Obj, options_above);
    for size in SIZES {
        let block = above.malloc(size).unwrap();
        // SAFETY: live.
        let block = unsafe { above.realloc(Some(block), size + 100) };
        // SAFETY: live, and not used again.
        unsafe { above.free(block) };
        let inside = above.calloc(size + 64, 1).unwrap();
        assert!(seen().is_empty(), "{size} bytes");
        // SAFETY: a planted bug: 32 bytes into the block.
        unsafe { above.free(NonNull::new(inside.as_ptr().wrapping_add(32))) };
        assert_eq!(seen().len(), 1, "{size} bytes");
        // SAFETY: live, and not used again.
        unsafe { above.free(Some(inside)) };
        assert!(seen().is_empty(), "{size} bytes");
    }
    above.release_quarantine();
    assert!(seen().is_empty());
}
