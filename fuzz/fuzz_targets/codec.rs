//! Any bytes as a trace file or a call log: a typed error, or a trace that can be replayed; never a panic. And a trace survives
//! the way out and back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use malloc_api::LibcMalloc;
use malloc_trace::{
    LogReader, Replay, Trace, TraceError, decode, encode, generate::ops_from_bytes, run,
};

fuzz_target!(|bytes: &[u8]| {
    let _any = decode(bytes);
    read_log(bytes);
    let mut log = vec![0; LOG_HEAD_BYTES];
    log[..8].copy_from_slice(b"PYMLOG01");
    log.extend_from_slice(bytes);
    read_log(&log);
    let trace = Trace::new(ops_from_bytes(bytes, 64, 1 << 20));
    let mut file = Vec::new();
    match encode(&mut file, &trace) {
        Err(TraceError::TooManySlots { ops, slots }) => return assert!(slots > ops),
        written => written.expect("a sink that takes everything"),
    }
    let back = decode(&file[..]).expect("what encode wrote");
    assert_eq!(back.ops, trace.ops);
    let damaged: Vec<u8> =
        file.iter().zip(bytes.iter().cycle()).map(|(a, b)| a ^ (b & 0x11)).collect();
    let _damaged = decode(&damaged[..]);
});

const LOG_HEAD_BYTES: usize = 4096;

/// Reads as far as the log goes; the events that came out are a program, whatever the bytes were.
fn read_log(bytes: &[u8]) {
    let Ok(reader) = LogReader::new(bytes) else { return };
    let ops: Vec<_> = reader.map_while(Result::ok).map(|event| event.op).collect();
    assert!(Replay::new(&ops).calls() <= 2 * ops.len());
    let small = ops.iter().all(|op| op.size() < 1 << 16);
    if small && ops.len() < 1 << 12 {
        run(&ops, &LibcMalloc).unwrap_or_else(|fault| panic!("{fault}"));
    }
}
