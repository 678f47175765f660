//! Logs the calls of a domain as a trace, in Rust: a wrapper that records what a replay makes again. In C: `c/log_calls.c`.

use std::fs::{self, File};
use std::io::BufReader;
use std::{env, process};

use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::codec::Version;
use malloc_trace::{Op, Recorder, Recording, decode, run};
use pymem_domains::{AllocatorRecord, Domain, Domains, Profile};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domains = Domains::new(Profile::NEWEST, None)?;
    let obj = domains.get(Domain::Obj);

    // At most 100 blocks live at one time. The recording lives for ever, as every record does.
    let path = env::temp_dir().join(format!("calls-{}.trace", process::id()));
    let recording = Recording::new(File::create(&path)?, Version::V1, 100)?;
    let recording: &'static Recording<_> = Box::leak(Box::new(recording));
    let recorder = |inner| AllocatorRecord::leak(Recorder::new(inner, 2, recording));
    // SAFETY: a recorder serves the very blocks of what it wraps.
    let inner = unsafe { domains.wrap_allocator(Domain::Obj, recorder) };

    let block = obj.calloc(4, 8);
    // SAFETY: live, of the obj domain; the old pointer is not used again.
    let block = unsafe { obj.realloc(block, 64) };
    // SAFETY: live, of the obj domain, not used again.
    unsafe { obj.free(block) };
    domains.set_allocator(Domain::Obj, inner)?;

    let recorded = recording.finish()?;
    assert_eq!((recorded.written, recorded.dropped), (3, 0));
    let trace = decode(BufReader::new(File::open(&path)?))?;
    fs::remove_file(path)?;
    assert_eq!(trace.ops, [Op::calloc(0, 2, 32), Op::realloc(0, 2, 64), Op::free(0, 2)]);
    run(&trace.ops, &LibcMalloc)?;
    println!("{:?}", trace.ops);
    Ok(())
}
