//! Every shape of a report, line for line.

use std::ptr::NonNull;

use malloc_api::Malloc;
use memdebug::{Domain, FrameSink, Host, Tracing, Violation, install_fault_handler};
use rstest::rstest;

use crate::support::{COLLECTING, Hooks, hooks, hooks_of, seen};

const NOT_TRACED: &str = "Enable tracemalloc to get the memory block allocation traceback\n\n";
const PADS: &str = "    The 7 pad bytes at p-7 are FORBIDDENBYTE, as expected.\n";
const BOGUS: &str = "    Because memory is corrupted at the start, the count of bytes requested\n       may be bogus, and checking the trailing pad bytes may segfault.\n";

fn block(hooks: &Hooks, size: usize) -> *mut u8 {
    hooks.malloc(size).unwrap().as_ptr()
}

fn put(at: *mut u8, bytes: &[u8]) {
    for (offset, &byte) in bytes.iter().enumerate() {
        // SAFETY: a planted bug, within the hooks' own bytes.
        unsafe { at.wrapping_add(offset).write(byte) };
    }
}

/// Frees `p`, and gives the one violation of it.
fn free(hooks: &Hooks, p: *mut u8) -> Violation {
    // SAFETY: a planted bug.
    unsafe { hooks.free(NonNull::new(p)) };
    let mut seen = seen();
    assert_eq!(seen.len(), 1);
    seen.remove(0)
}

/// The report as a process writes it: its bytes.
fn bytes(violation: &Violation) -> Vec<u8> {
    struct Bytes(Vec<u8>);
    impl std::fmt::Write for Bytes {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.extend(text.as_bytes());
            Ok(())
        }
    }
    impl memdebug::DumpSink for Bytes {
        fn write_byte(&mut self, byte: u8) -> std::fmt::Result {
            self.0.push(byte);
            Ok(())
        }
    }
    let mut out = Bytes(Vec::new());
    violation.write_dump(&mut out).unwrap();
    out.0
}

fn tail_good(p: *mut u8, size: usize) -> String {
    format!("    The 8 pad bytes at tail={:#x} are FORBIDDENBYTE, as expected.\n", p.addr() + size)
}

#[test]
fn overflow_by_one_as_measured() {
    let hooks = hooks(Domain::Mem, "");
    let p = block(&hooks, 16);
    put(p.wrapping_add(16), b"x");
    let violation = free(&hooks, p);
    let (at, tail) = (p.addr(), p.addr() + 16);
    let expected = format!(
        "Debug memory block at address p={at:#x}: API 'm'\n    16 bytes originally requested\n{PADS}    \
         The 8 pad bytes at tail={tail:#x} are not all FORBIDDENBYTE (0xfd):\n        \
         at tail+0: 0x78 *** OUCH\n        at tail+1: 0xfd\n        at tail+2: 0xfd\n        at tail+3: 0xfd\n        \
         at tail+4: 0xfd\n        at tail+5: 0xfd\n        at tail+6: 0xfd\n        at tail+7: 0xfd\n    \
         Data at p: cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd\n\n{NOT_TRACED}"
    );
    assert_eq!(violation.to_string(), expected);
    assert_eq!(bytes(&violation), expected.as_bytes());
    assert_eq!(violation.func(), "_PyMem_DebugRawFree");
    assert_eq!(violation.message().to_string(), "bad trailing pad byte");
}

#[test]
fn underflow_by_two() {
    let hooks = hooks(Domain::Obj, "");
    let p = block(&hooks, 3);
    put(p.wrapping_sub(2), b"\0y");
    let violation = free(&hooks, p);
    let at = p.addr();
    let expected = format!(
        "Debug memory block at address p={at:#x}: API 'o'\n    3 bytes originally requested\n    \
         The 7 pad bytes at p-7 are not all FORBIDDENBYTE (0xfd):\n        at p-7: 0xfd\n        at p-6: 0xfd\n        \
         at p-5: 0xfd\n        at p-4: 0xfd\n        at p-3: 0xfd\n        at p-2: 0x00 *** OUCH\n        \
         at p-1: 0x79 *** OUCH\n{BOGUS}{}    Data at p: cd cd cd\n\n{NOT_TRACED}",
        tail_good(p, 3)
    );
    assert_eq!(violation.to_string(), expected);
    assert_eq!(violation.message().to_string(), "bad leading pad byte");
}

#[rstest]
#[case(Domain::Mem, Domain::Raw, "bad ID: Allocated using API 'm', verified using API 'r'")]
#[case(Domain::Raw, Domain::Obj, "bad ID: Allocated using API 'r', verified using API 'o'")]
fn wrong_domain(#[case] made: Domain, #[case] freed: Domain, #[case] message: &str) {
    for options in ["", "strict"] {
        let maker = hooks(made, options);
        let p = block(&maker, 0);
        let other = hooks(freed, options);
        // SAFETY: a planted bug.
        assert_eq!(unsafe { other.realloc(NonNull::new(p), 5) }, None);
        let violation = seen().remove(0);
        assert_eq!(violation.func(), "_PyMem_DebugRawRealloc");
        assert_eq!(violation.message().to_string(), message);
        let expected = format!(
            "Debug memory block at address p={:#x}: API '{}'\n    0 bytes originally requested\n{PADS}{}\n{NOT_TRACED}",
            p.addr(),
            char::from(made.letter()),
            tail_good(p, 0)
        );
        assert_eq!(violation.to_string(), expected);
    }
}

/// The first eight bytes; all of them if there are no more than eight others; else the last eight.
#[rstest]
#[case(1, " 00")]
#[case(8, " 00 01 02 03 04 05 06 07")]
#[case(10, " 00 01 02 03 04 05 06 07 08 09")]
#[case(16, " 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f")]
#[case(17, " 00 01 02 03 04 05 06 07 ... 09 0a 0b 0c 0d 0e 0f 10")]
#[case(600, " 00 01 02 03 04 05 06 07 ... 50 51 52 53 54 55 56 57")]
fn data(#[case] size: usize, #[case] shown: &str) {
    let hooks = hooks(Domain::Raw, "");
    let p = block(&hooks, size);
    put(p, &(0..size).map(|n| n as u8).collect::<Vec<_>>());
    let text = hooks.dump(NonNull::new(p)).to_string();
    let expected = format!(
        "Debug memory block at address p={:#x}: API 'r'\n    {size} bytes originally requested\n{PADS}{}    \
         Data at p:{shown}\n\n{NOT_TRACED}",
        p.addr(),
        tail_good(p, size)
    );
    assert_eq!(text, expected);
    // SAFETY: live, and not used again.
    unsafe { hooks.free(NonNull::new(p)) };
}

#[test]
fn null() {
    assert_eq!(
        hooks(Domain::Raw, "").dump(None).to_string(),
        "Debug memory block at address p=(nil):\n"
    );
}

#[test]
fn serial_number() {
    let hooks = hooks(Domain::Mem, "serial");
    for _ in 0..41 {
        let p = hooks.malloc(1);
        // SAFETY: live, and not used again.
        unsafe { hooks.free(p) };
    }
    let p = block(&hooks, 2);
    let text = hooks.dump(NonNull::new(p)).to_string();
    let line = format!(
        "{}    The block was made by call #42 to debug malloc/realloc.\n    Data at p: cd cd\n",
        tail_good(p, 2)
    );
    assert!(text.contains(&line), "{text}");
    // SAFETY: live, and not used again.
    unsafe { hooks.free(NonNull::new(p)) };
}

#[rstest]
#[case(
    Tracing::Known,
    "Memory block allocated at (most recent call first):\n  File \"<string>\", line 1\n  File \"b\\xe9\\u20ac\\U0001f600.py\", line 22\n\n"
)]
#[case(Tracing::Unknown, "")]
#[case(Tracing::Off, NOT_TRACED)]
fn traceback(#[case] tracing: Tracing, #[case] part: &str) {
    fn known(_: usize, out: &mut dyn FrameSink) -> Tracing {
        out.frame("<string>", 1, Some("f"));
        out.frame("b\u{e9}\u{20ac}\u{1f600}.py", 22, None);
        Tracing::Known
    }
    let host = match tracing {
        Tracing::Known => COLLECTING.with_traceback(known),
        Tracing::Unknown => COLLECTING.with_traceback(|_, _| Tracing::Unknown),
        Tracing::Off => COLLECTING.with_traceback(|_, _| Tracing::Off),
    };
    let hooks = hooks_of(host, Domain::Mem, "");
    let p = block(&hooks, 1);
    let text = hooks.dump(NonNull::new(p)).to_string();
    let end = format!("    Data at p: cd\n\n{part}");
    assert!(text.ends_with(&end), "{text}");
    // SAFETY: live, and not used again.
    unsafe { hooks.free(NonNull::new(p)) };
}

#[test]
fn nothing_at_the_pointer() {
    install_fault_handler().unwrap();
    let hooks = hooks(Domain::Mem, "");
    let violation = free(&hooks, std::ptr::without_provenance_mut(0x40));
    let expected = format!(
        "Debug memory block at address p=0x40:\n    The 16 header bytes at p-16 cannot be read.\n\n{NOT_TRACED}\
         memdebug: foreign pointer: these hooks never returned it, or its memory is already gone.\n\n"
    );
    assert_eq!(violation.to_string(), expected);
    assert_eq!(violation.message().to_string(), "pointer that is no block");
}

/// CPython faults in the middle of this line.
#[test]
fn a_freed_header_leads_nowhere() {
    let hooks = hooks(Domain::Mem, "");
    let p = block(&hooks, 64);
    put(p.wrapping_sub(16), &[0xdd; 88]);
    let violation = free(&hooks, p);
    let pads: String =
        (1..=7).rev().map(|k| format!("        at p-{k}: 0xdd *** OUCH\n")).collect();
    let expected = format!(
        "Debug memory block at address p={:#x}: API 'Ý'\n    15987178197214944733 bytes originally requested\n    \
         The 7 pad bytes at p-7 are not all FORBIDDENBYTE (0xfd):\n{pads}{BOGUS}    \
         No block has 15987178197214944733 bytes: the trailing pad bytes are not read.\n\n{NOT_TRACED}\
         memdebug: double free: the block was freed before.\n\n",
        p.addr()
    );
    assert_eq!(violation.to_string(), expected);
    let raw = bytes(&violation);
    assert!(raw.windows(9).any(|w| w == b": API '\xdd'"), "the byte itself, as printf writes it");
    let message = b"bad ID: Allocated using API '\xdd', verified using API 'm'";
    assert_eq!(violation.message().as_bytes(), message);
}

#[test]
fn a_size_that_leads_to_a_hole() {
    install_fault_handler().unwrap();
    let hooks = hooks(Domain::Mem, "");
    let p = block(&hooks, 64);
    put(p.wrapping_sub(16), &(1_u64 << 45).to_be_bytes());
    let violation = free(&hooks, p);
    let expected = format!(
        "Debug memory block at address p={:#x}: API 'm'\n    35184372088832 bytes originally requested\n{PADS}    \
         The 8 pad bytes at tail={:#x} cannot be read.\n    Data at p cannot be read.\n\n{NOT_TRACED}",
        p.addr(),
        p.addr() + (1 << 45)
    );
    assert_eq!(violation.to_string(), expected);
    assert_eq!(violation.message().to_string(), "bad leading pad byte");
}

#[test]
fn interior_pointer() {
    let hooks = hooks(Domain::Mem, "");
    let p = block(&hooks, 200);
    let violation = free(&hooks, p.wrapping_add(64));
    let verdict = format!(
        "memdebug: interior pointer: it points 64 bytes into the block of 200 bytes at {:#x}.\n\n",
        p.addr()
    );
    let text = violation.to_string();
    assert!(text.ends_with(&format!("{NOT_TRACED}{verdict}")), "{text}");
    let message = b"bad ID: Allocated using API '\xcd', verified using API 'm'";
    assert_eq!(violation.message().as_bytes(), message);
    // SAFETY: live, and not used again.
    unsafe { hooks.free(NonNull::new(p)) };
}

#[test]
fn use_after_free() {
    let hooks = hooks(Domain::Mem, "quarantine");
    let p = block(&hooks, 20);
    // SAFETY: live; the quarantine keeps it.
    unsafe { hooks.free(NonNull::new(p)) };
    put(p.wrapping_add(2), &[1, 2]);
    hooks.release_quarantine();
    let violation = seen().remove(0);
    let expected = format!(
        "Debug memory block at address p={:#x}: API 'm'\n    20 bytes originally requested\n    \
         The block is freed, and held in the quarantine.\n    \
         Data at p: dd dd 01 02 dd dd dd dd ... dd dd dd dd dd dd dd dd\n\n{NOT_TRACED}\
         memdebug: use after free: 2 of the freed block's bytes changed, the first at p+2 is 0x01 instead of DEADBYTE \
         (0xdd). Found by a later check of the block.\n\n",
        p.addr()
    );
    assert_eq!(violation.to_string(), expected);
    assert_eq!(violation.message().to_string(), "write to a freed block");
}

#[test]
fn guarded_block() {
    let hooks = hooks(Domain::Raw, "guard=1/1");
    let p = block(&hooks, 4);
    // SAFETY: live.
    unsafe { hooks.free(NonNull::new(p)) };
    let violation = free(&hooks, p);
    let expected = format!(
        "Debug memory block at address p={:#x}: API 'r'\n    4 bytes originally requested\n    \
         The block stands between guard pages.\n    Data at p cannot be read.\n\n{NOT_TRACED}\
         memdebug: double free: the block was freed before.\n\n",
        p.addr()
    );
    assert_eq!(violation.to_string(), expected);
    assert_eq!(violation.message().to_string(), "double free");
}

#[test]
fn words_of_a_free_threaded_host() {
    let host = Host::new().with_thread_message(Host::WITHOUT_THREAD_STATE);
    let host = host.with_handler(|v| {
        assert_eq!(
            v.message().to_string(),
            "Python memory allocator called without an active thread state. Are you trying to call it inside of a \
             Py_BEGIN_ALLOW_THREADS block?"
        );
        std::panic::panic_any("seen");
    });
    let hooks = hooks_of(host.with_thread_check(|| false), Domain::Mem, "");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hooks.malloc(1)));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"seen"));
}

#[test]
#[should_panic(expected = "_PyMem_DebugRawFree: bad trailing pad byte")]
fn panics_where_asked() {
    let hooks = hooks_of(Host::new().with_handler(memdebug::handler::panic), Domain::Mem, "");
    let p = block(&hooks, 1);
    put(p.wrapping_add(1), b"!");
    // SAFETY: a planted bug.
    unsafe { hooks.free(NonNull::new(p)) };
}
