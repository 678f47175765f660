//! Any bytes as a trace file: a typed error or a trace, never a panic; and a trace survives the way out and back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use malloc_trace::{Trace, TraceError, decode, encode, generate::ops_from_bytes};

fuzz_target!(|bytes: &[u8]| {
    let _any = decode(bytes);
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
