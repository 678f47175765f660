//! The codec: bytes as drawn, both ways, and a typed error for everything else.

use std::io::{self, Cursor, Read};

use malloc_trace::codec::{Header, Reader, Version, Writer};
use malloc_trace::{Domain, Event, Op, Trace, TraceError, decode, encode, generate};
use proptest::prelude::*;
use rstest::rstest;

/// Three operations, written by hand from the drawing.
const FILE: &[u8] = b"PYMTRC01\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\
    \0\0\0\0\x88\x01\0\0\
    \x01\0\0\0\xf5\xff\xff\xff\
    \0\0\0\0\x0b\0\0\0";

fn ops() -> Vec<Op> {
    vec![
        Op::malloc(0, Domain::Obj, 24),
        Op::calloc(1, Domain::Mem, usize::MAX),
        Op::free(0, Domain::Obj),
    ]
}

fn encoded(trace: &Trace) -> Vec<u8> {
    let mut file = Vec::new();
    encode(&mut file, trace).expect("a vector takes everything");
    file
}

fn streamed(version: Version, events: &[Event]) -> Vec<u8> {
    let mut writer = Writer::new(Cursor::new(Vec::new()), version).expect("a vector");
    for &event in events {
        writer.write(event).expect("a vector");
    }
    writer.finish().expect("a vector").into_inner()
}

#[test]
fn bytes_are_as_drawn() {
    let trace = decode(FILE).expect("a trace");
    assert_eq!((&trace.ops, trace.slots), (&ops(), 2));
    assert_eq!(encoded(&trace), FILE);
    let events: Vec<Event> = ops().into_iter().map(Event::from).collect();
    assert_eq!(streamed(Version::V1, &events), FILE);
}

#[test]
fn version_2_adds_thread_and_time() {
    let events = [
        Event { op: Op::malloc(0, Domain::Obj, 24), thread: 0x1234, nanos: 0x5678_9abc },
        Event { op: Op::free(0, Domain::Obj), thread: 1, nanos: u64::MAX },
    ];
    let file = streamed(Version::V2, &events);
    assert_eq!(&file[..8], b"PYMTRC02");
    assert_eq!(&file[24..40], b"\0\0\0\0\x88\x01\0\0\x34\x12\xbc\x9a\x78\x56\0\0");
    let reader = Reader::new(&file[..]).expect("a header");
    let header = Header { version: Version::V2, ops: Some(2), slots: Some(1) };
    assert_eq!(reader.header(), header);
    let read: Result<Vec<_>, _> = reader.collect();
    let saturated = Event { nanos: Event::MAX_NANOS, ..events[1] };
    assert_eq!(read.expect("events"), [events[0], saturated]);
    assert_eq!(decode(&file[..]).expect("a trace").ops, events.map(|event| event.op));
}

#[test]
fn an_unfinished_trace_has_what_was_written() {
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, Version::V1).expect("a vector");
    for op in ops() {
        writer.write(op.into()).expect("a vector");
    }
    assert_eq!(Reader::new(&file[..]).expect("a header").header().ops, None);
    assert_eq!(decode(&file[..]).expect("a trace"), Trace::new(ops()));
    // A crash in the middle of a record.
    for cut in 1..8 {
        let trace = decode(&file[..file.len() - cut]).expect("a trace");
        assert_eq!(trace.ops, ops()[..2]);
    }
}

#[test]
fn finish_keeps_what_stands_before_the_trace() {
    let mut sink = Cursor::new(b"before".to_vec());
    sink.set_position(6);
    let mut writer = Writer::new(sink, Version::V1).expect("a vector");
    writer.write(Op::malloc(0, Domain::Raw, 1).into()).expect("a vector");
    assert_eq!(writer.written(), 1);
    let file = writer.finish().expect("a vector").into_inner();
    assert_eq!(&file[..6], b"before");
    assert_eq!(decode(&file[6..]).expect("a trace").ops, [Op::malloc(0, Domain::Raw, 1)]);
}

/// The file with one byte changed.
fn with_byte(at: usize, byte: u8) -> Vec<u8> {
    let mut file = FILE.to_vec();
    file[at] = byte;
    file
}

#[rstest]
#[case::empty(vec![], "the trace ends after 0 bytes; expected a header of 24: copy or record it again")]
#[case::magic_cut(FILE[..7].to_vec(), "the trace ends after 7 bytes; expected a header of 24: copy or record it again")]
#[case::header_cut(FILE[..23].to_vec(), "the trace ends after 23 bytes; expected a header of 24: copy or record it again")]
#[case::magic(
    with_byte(7, b'3'),
    "not a trace: it begins with [50, 59, 4d, 54, 52, 43, 30, 33]; expected \"PYMTRC01\" or \"PYMTRC02\": give a file that a recorder has written"
)]
#[case::more_slots_than_ops(
    with_byte(16, 4),
    "the header counts 4 slots for 3 operations; expected no more slots than operations: copy or record it again"
)]
#[case::cut_between_records(
    FILE[..40].to_vec(),
    "the trace ends after 2 operations; expected 3: copy or record it again"
)]
#[case::cut_within_a_record(
    FILE[..47].to_vec(),
    "the trace ends after 2 operations; expected 3: copy or record it again"
)]
#[case::too_long(
    [FILE, b"x"].concat(),
    "the trace goes on after its 3 operations; expected the end of the file: copy or record it again"
)]
#[case::domain(
    with_byte(28, 0x8c),
    "operation 0 names domain 3; expected 0 (raw), 1 (mem) or 2 (obj): copy or record the trace again"
)]
#[case::slot(
    with_byte(32, 2),
    "operation 1 names slot 2; expected one below 2: copy or record the trace again"
)]
fn corrupt_files_are_refused(#[case] file: Vec<u8>, #[case] text: &str) {
    let error = decode(&file[..]).expect_err("corrupt");
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_header_cannot_claim_memory() {
    // 2^62 operations and 2^31 slots, and nothing after it.
    let mut file = b"PYMTRC01".to_vec();
    file.extend((1_u64 << 62).to_le_bytes());
    file.extend((1_u64 << 31).to_le_bytes());
    let error = decode(&file[..]).expect_err("truncated");
    assert!(matches!(error, TraceError::Truncated { found: 0, .. }), "{error}");
    // An unfinished trace of one operation on a far slot.
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, Version::V1).expect("a vector");
    writer.write(Op::malloc(u32::MAX - 1, Domain::Raw, 1).into()).expect("a vector");
    let error = decode(&file[..]).expect_err("too many slots");
    assert!(matches!(error, TraceError::TooManySlots { ops: 1, .. }), "{error}");
}

#[test]
fn what_no_reader_would_take_is_not_written() {
    let far = Trace { ops: vec![Op::malloc(5, Domain::Raw, 1)], slots: 1 };
    assert!(matches!(
        encode(Vec::new(), &far),
        Err(TraceError::BadSlot { index: 0, slot: 5, slots: 1 })
    ));
    let wide = Trace { ops: vec![Op::malloc(0, Domain::Raw, 1)], slots: 2 };
    assert!(matches!(
        encode(Vec::new(), &wide),
        Err(TraceError::TooManySlots { ops: 1, slots: 2 })
    ));
    let mut writer = Writer::new(Cursor::new(Vec::new()), Version::V1).expect("a vector");
    let last = Op::malloc(u32::MAX, Domain::Raw, 1);
    assert!(matches!(writer.write(last.into()), Err(TraceError::BadSlot { .. })));
    writer.write(Op::malloc(7, Domain::Raw, 1).into()).expect("a vector");
    assert!(matches!(writer.finish(), Err(TraceError::TooManySlots { ops: 1, slots: 8 })));
}

#[test]
fn errors_of_the_file_are_passed_on() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        }
    }
    let error = decode(FILE[..30].chain(Broken)).expect_err("broken");
    assert!(matches!(error, TraceError::Io(_)), "{error}");
    let mut reader = Reader::new(FILE[..30].chain(Broken)).expect("a header");
    assert!(matches!(reader.next(), Some(Err(_))));
    assert!(reader.next().is_none(), "the iterator ends after an error");
}

/// A source that gives one byte at a time, as a pipe may.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

proptest! {
    #[test]
    fn round_trip(seed: u64, n_ops in 0_usize..300) {
        let trace = Trace::new(generate::random(seed, n_ops, Op::MAX_SIZE));
        // A random program may name a far slot early; the codec wants no more slots than operations.
        prop_assume!(trace.slots as usize <= n_ops);
        let file = encoded(&trace);
        prop_assert_eq!(&decode(&file[..]).expect("a trace"), &trace);
        prop_assert_eq!(&decode(Trickle(&file)).expect("a trace"), &trace);
    }

    #[test]
    fn events_round_trip(seed: u64, n_ops in 0_usize..300, threads in 1_u16..5) {
        let events = generate::xmalloc(seed, threads, n_ops);
        let file = streamed(Version::V2, &events);
        let read: Result<Vec<_>, _> = Reader::new(&file[..]).expect("a header").collect();
        prop_assert_eq!(read.expect("events"), events);
    }

    /// Whatever is in a file, reading it ends without a panic.
    #[test]
    fn damaged_files_never_panic(
        seed: u64,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut: prop::sample::Index,
    ) {
        let mut file = streamed(Version::V2, &generate::larson(seed, 2, 50));
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file.truncate(cut.index(file.len() + 1));
        if let Ok(trace) = decode(&file[..]) {
            prop_assert!(trace.ops.iter().all(|op| op.slot() < trace.slots));
            prop_assert!(trace.slots as usize <= trace.ops.len());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), v2: bool) {
        let magic = if v2 { b"PYMTRC02" } else { b"PYMTRC01" };
        let file = [&magic[..], &bytes[..]].concat();
        if let Ok(trace) = decode(&file[..]) {
            prop_assert!(trace.ops.len() * 8 <= bytes.len());
        }
    }
}
