//! The layout and the fills of plain hooks, byte for byte.

use std::ptr::NonNull;

use malloc_api::testing::Counting;
use malloc_api::{LibcMalloc, Malloc};
use memdebug::{Call, DebugHooks, Domain, ViolationKind, install_fault_handler};
use rstest::rstest;

use crate::support::{COLLECTING, hooks, options, seen, without_gil};

/// An allocator whose blocks stay readable after their free, and which moves each block that is resized. A block lies
/// in 4 KiB of its own.
struct Keep {
    counting: Counting<LibcMalloc>,
    moves: bool,
}

impl Keep {
    fn new(moves: bool) -> Self {
        Self { counting: Counting::new(LibcMalloc), moves }
    }
}

// SAFETY: blocks are the C library's, never reused.
unsafe impl Malloc for Keep {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        self.calloc(1, size)
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        assert!(nelem * elsize <= 4096);
        self.counting.calloc(1, 4096)
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
        let old = ptr?;
        if !self.moves {
            return Some(old);
        }
        let new = self.malloc(size)?;
        // SAFETY: two blocks of 4 KiB.
        unsafe { new.copy_from_nonoverlapping(old, 4096) };
        Some(new)
    }

    unsafe fn free(&self, _: Option<NonNull<u8>>) {}
}

fn bytes(p: NonNull<u8>, from: isize, to: isize) -> Vec<u8> {
    // SAFETY: within the 4 KiB of a `Keep` block, whose data starts at 16.
    (from..to).map(|at| unsafe { p.as_ptr().wrapping_offset(at).read() }).collect()
}

fn write(p: NonNull<u8>, size: usize) {
    for at in 0..size {
        // SAFETY: the caller's block.
        unsafe { p.as_ptr().wrapping_add(at).write(at as u8) };
    }
}

#[rstest]
fn layout(#[values(0, 1, 5, 7, 8, 9, 16, 17, 100, 129, 513, 3000)] size: usize) {
    for domain in Domain::ALL {
        for serial in [false, true] {
            let word = if serial { "serial" } else { "" };
            let hooks = DebugHooks::new(Keep::new(true), domain);
            let hooks = hooks.with_options(&options(word)).unwrap();
            let end = size as isize;
            let check = |p: NonNull<u8>, number: u64, fill: u8| {
                let mut header = (size as u64).to_be_bytes().to_vec();
                header.extend([domain.letter(), 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd]);
                assert_eq!(bytes(p, -16, 0), header);
                assert_eq!(bytes(p, 0, end), vec![fill; size]);
                assert_eq!(bytes(p, end, end + 8), [0xfd; 8]);
                let after = if serial { number } else { 0 };
                assert_eq!(bytes(p, end + 8, end + 16), after.to_be_bytes());
                assert_eq!(bytes(p, end + 16, end + 32), [0; 16], "nothing beyond the block");
            };
            let p = hooks.malloc(size).unwrap();
            check(p, 1, 0xcd);
            let q = hooks.calloc(size, 1).unwrap();
            check(q, 2, 0);
            for block in [p, q] {
                // SAFETY: live; `Keep` leaves it readable.
                unsafe { hooks.free(Some(block)) };
                let whole = end + if serial { 16 } else { 8 };
                assert!(bytes(block, -16, whole).iter().all(|&b| b == 0xdd));
                assert_eq!(bytes(block, whole, whole + 16), [0; 16], "nothing beyond the block");
            }
        }
    }
}

#[test]
fn five_bytes_as_measured() {
    let hooks = DebugHooks::new(Keep::new(true), Domain::Mem);
    let p = hooks.malloc(5).unwrap();
    assert_eq!(
        bytes(p, -16, 13),
        [
            0, 0, 0, 0, 0, 0, 0, 5, 0x6d, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xcd, 0xcd,
            0xcd, 0xcd, 0xcd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd
        ]
    );
}

/// What `realloc` leaves behind in the old block, and keeps in the new one.
#[rstest]
fn realloc_erases(
    #[values(0, 1, 64, 127, 128, 129, 300, 1000)] old: usize,
    #[values(0, 1, 63, 64, 65, 128, 200, 280, 299, 300, 400, 2000)] new: usize,
    #[values("", "serial", "full_erase")] text: &str,
) {
    let hooks = DebugHooks::new(Keep::new(true), Domain::Obj).with_host(COLLECTING);
    let hooks = hooks.with_options(&options(text)).unwrap();
    let p = hooks.malloc(old).unwrap();
    write(p, old);
    // SAFETY: live; `Keep` leaves the old place readable.
    let q = unsafe { hooks.realloc(Some(p), new) }.unwrap();
    assert_ne!(p, q);
    let kept = old.min(new);
    let expected: Vec<u8> = (0..new).map(|at| if at < kept { at as u8 } else { 0xcd }).collect();
    assert_eq!(bytes(q, 0, new as isize), expected);
    assert_eq!(bytes(q, -16, -8), (new as u64).to_be_bytes());
    assert_eq!(bytes(q, new as isize, new as isize + 8), [0xfd; 8]);
    let whole_is_erased = old <= 128 || text == "full_erase";
    for at in -16..old as isize + 8 {
        let dead = whole_is_erased || at < 64 || at >= old as isize - 64;
        let expected = if dead { 0xdd } else { at as u8 };
        assert_eq!(bytes(p, at, at + 1), [expected], "at {at}");
    }
    if text == "serial" {
        assert_eq!(bytes(q, new as isize + 8, new as isize + 16), 2_u64.to_be_bytes());
    }
    assert!(seen().is_empty());
}

/// Shrinking in place leaves dead bytes after the new guard where the block was erased: CPython's measured case.
#[test]
fn shrinks_in_place_as_measured() {
    let hooks = DebugHooks::new(Keep::new(false), Domain::Mem);
    let p = hooks.malloc(300).unwrap();
    write(p, 300);
    // SAFETY: live.
    let q = unsafe { hooks.realloc(Some(p), 280) }.unwrap();
    assert_eq!(p, q);
    let expected: Vec<u8> = (0..280).map(|at| at as u8).collect();
    assert_eq!(bytes(p, 0, 280), expected);
    assert_eq!(bytes(p, 280, 288), [0xfd; 8]);
    assert_eq!(bytes(p, 288, 308), [0xdd; 20]);
}

#[rstest]
fn a_failed_realloc_restores(
    #[values(0, 5, 128, 129, 500)] old: usize,
    #[values("", "serial", "full_erase", "strict")] text: &str,
) {
    use malloc_api::testing::FailAfter;
    let failing = FailAfter::new(LibcMalloc, usize::MAX);
    let hooks = DebugHooks::new(&failing, Domain::Mem).with_host(COLLECTING);
    let hooks = hooks.with_options(&options(text)).unwrap();
    let p = hooks.malloc(old).unwrap();
    write(p, old);
    let tail = if text == "serial" { 16 } else { 8 };
    let before = bytes(p, -16, old as isize + tail);
    failing.set(0);
    // SAFETY: live, and stays so.
    assert_eq!(unsafe { hooks.realloc(Some(p), old + 10) }, None);
    assert_eq!(bytes(p, -16, old as isize + tail), before);
    failing.disarm();
    // SAFETY: live, and not used again.
    unsafe { hooks.free(Some(p)) };
    hooks.release_quarantine();
    assert!(seen().is_empty());
}

/// Fills of the obj domain leave the host's fields alone, header and guard are filled all the same.
#[rstest]
fn debug_offset(#[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain) {
    let host = COLLECTING.with_debug_offset(|base| if base.is_none() { 40 } else { 56 });
    let hooks = DebugHooks::new(Keep::new(true), domain).with_host(host);
    let (skipped, kept) = if domain == Domain::Obj { (24, 40) } else { (0, 0) };
    let p = hooks.malloc(100).unwrap();
    assert_eq!(bytes(p, 0, skipped), vec![0; skipped as usize]);
    assert_eq!(bytes(p, skipped, 100), vec![0xcd; 100 - skipped as usize]);
    write(p, 100);
    // SAFETY: live; `Keep` leaves it readable.
    let q = unsafe { hooks.realloc(Some(p), 120) }.unwrap();
    assert_eq!(bytes(p, 0, 100), (0..100).collect::<Vec<u8>>(), "realloc does not erase");
    // SAFETY: as above.
    unsafe { hooks.free(Some(q)) };
    assert_eq!(bytes(q, -16, 0), [0xdd; 16]);
    assert_eq!(bytes(q, 0, kept), (0..kept as u8).collect::<Vec<u8>>());
    assert_eq!(bytes(q, kept, 128), vec![0xdd; 128 - kept as usize]);
    // A block shorter than the fields.
    let short = hooks.malloc(8).unwrap();
    assert_eq!(bytes(short, 0, 8), vec![if domain == Domain::Obj { 0 } else { 0xcd }; 8]);
    assert!(seen().is_empty());
}

#[test]
fn thread_rule() {
    let names = [
        (Call::Malloc, "_PyMem_DebugMalloc"),
        (Call::Calloc, "_PyMem_DebugCalloc"),
        (Call::Realloc, "_PyMem_DebugRealloc"),
        (Call::Free, "_PyMem_DebugFree"),
    ];
    for domain in Domain::ALL {
        let hooks = hooks(domain, "");
        without_gil(|| {
            let p = hooks.malloc(1);
            let q = hooks.calloc(1, 1);
            // SAFETY: live.
            let p = unsafe { hooks.realloc(p, 5) };
            // SAFETY: live, and not used again.
            unsafe { hooks.free(p) };
            // SAFETY: as above.
            unsafe { hooks.free(q) };
            // SAFETY: nothing to free.
            unsafe { hooks.free(None) };
        });
        let seen = seen();
        if domain == Domain::Raw {
            assert!(seen.is_empty());
            continue;
        }
        let calls = [Call::Malloc, Call::Calloc, Call::Realloc, Call::Free, Call::Free, Call::Free];
        assert_eq!(seen.len(), calls.len());
        for (violation, call) in seen.iter().zip(calls) {
            assert_eq!((violation.kind(), violation.call()), (ViolationKind::WrongThread, call));
            let (_, func) = names.iter().find(|(c, _)| *c == call).unwrap();
            assert_eq!(violation.func(), *func);
            let message = "Python memory allocator called without holding the GIL";
            assert_eq!(violation.message().as_bytes(), message.as_bytes());
            assert_eq!(violation.message().as_c_str().to_bytes(), message.as_bytes());
            assert_eq!(violation.to_string(), "", "there is no block to dump");
        }
    }
}

#[test]
fn wild_pointers_are_reported() {
    install_fault_handler().unwrap();
    let hooks = hooks(Domain::Mem, "");
    for wild in [1_usize, 16, 0x1000, 0xdddd_dddd_dddd_dddd, usize::MAX, usize::MAX - 15, 1 << 47] {
        let p = NonNull::new(std::ptr::without_provenance_mut(wild));
        // SAFETY: a planted bug.
        unsafe { hooks.free(p) };
        // SAFETY: a planted bug.
        assert_eq!(unsafe { hooks.realloc(p, 7) }, None);
        let kinds: Vec<_> = seen().iter().map(|v| v.kind()).collect();
        assert_eq!(kinds, [ViolationKind::ForeignPointer; 2], "{wild:#x}");
    }
}
