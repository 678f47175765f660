//! Every error of the crate, as a person reads it: what was wrong, what was expected, what to do.

use std::io;

use malloc_api::testing::assert_reviewed;
use malloc_trace::{
    Domain, Fault, LogError, ModelError, Op, OpKind, OutOfMemory, RecordingError, ThreadsError,
    TraceError as E,
};

fn no_such_file() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

#[test]
fn every_error_is_as_it_was_reviewed() {
    let (address, size, offset) = (0x1008, 100, 7);
    let zeros = Fault::NotZeroed { offset, found: 1 };
    let calloc = Some(Op::new(OpKind::Calloc, 7, Domain::Obj, 100));
    let bad_magic = E::BadMagic { found: *b"PK\x03\x04\0\0\0\0" };
    let bad_magic_again = E::BadMagic { found: [0; 8] };
    let source = io::Error::from_raw_os_error(libc::EAGAIN);
    let threads = ThreadsError::Threads { started: 31, wanted: 200, source };
    let memory = OutOfMemory { op: Op::new(OpKind::Malloc, 7, Domain::Obj, 100) };
    assert_reviewed(
        include_str!("../refusals.txt"),
        &[
            ("malloc_trace::TraceError::BadMagic", &bad_magic),
            ("malloc_trace::TraceError::TruncatedHeader", &E::TruncatedHeader { found: 7 }),
            ("malloc_trace::TraceError::TooManySlots", &E::TooManySlots { ops: 3, slots: 4 }),
            ("malloc_trace::TraceError::Truncated", &E::Truncated { expected: 10, found: 9 }),
            ("malloc_trace::TraceError::TrailingBytes", &E::TrailingBytes { expected: 10 }),
            ("malloc_trace::TraceError::BadDomain", &E::BadDomain { index: 5 }),
            ("malloc_trace::TraceError::BadSlot", &E::BadSlot { index: 5, slot: 9, slots: 4 }),
            ("malloc_trace::TraceError::Io", &E::Io(no_such_file())),
            ("malloc_trace::LogError::BadMagic", &LogError::BadMagic { found: *b"PYMTRC01" }),
            ("malloc_trace::LogError::TruncatedHead", &LogError::TruncatedHead),
            ("malloc_trace::LogError::BadRecord", &LogError::BadRecord { index: 5, words: [0, 3] }),
            ("malloc_trace::LogError::TooManyBlocks", &LogError::TooManyBlocks),
            ("malloc_trace::LogError::Io", &LogError::Io(no_such_file())),
            ("malloc_trace::RecordingError::Trace", &RecordingError::Trace(bad_magic_again)),
            ("malloc_trace::RecordingError::Log", &RecordingError::Log(LogError::TruncatedHead)),
            (
                "malloc_trace::OutOfMemory",
                &OutOfMemory { op: Op::new(OpKind::Malloc, 7, Domain::Obj, 100) },
            ),
            ("malloc_trace::ThreadsError::OutOfMemory", &ThreadsError::OutOfMemory(memory)),
            ("malloc_trace::ThreadsError::Threads", &threads),
            ("malloc_trace::Fault::Misaligned", &Fault::Misaligned { address }),
            (
                "malloc_trace::Fault::Overlap",
                &Fault::Overlap { address, slot: 3, start: 0x1000, size },
            ),
            ("malloc_trace::Fault::NotZeroed", &zeros),
            ("malloc_trace::Fault::ContentLost", &Fault::ContentLost { offset, kept: 64 }),
            ("malloc_trace::Fault::FailedReallocTouched", &Fault::FailedReallocTouched { offset }),
            ("malloc_trace::Fault::Changed", &Fault::Changed { slot: 3, size, offset }),
            ("malloc_trace::ModelError", &ModelError { index: 12, op: calloc, fault: zeros }),
        ],
    );
}
