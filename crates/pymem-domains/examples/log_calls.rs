//! Logs the calls of a domain as a trace, in Rust: a wrapper that records what a replay makes again. In C: `c/log_calls.c`.

use std::fs::{self, File};
use std::io::BufReader;
use std::{env, process};

use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{CallLog, LogReader, Op, Recorder, run};
use pymem_domains::{AllocatorRecord, Domain, Domains, Profile};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domains = Domains::new(Profile::NEWEST, None)?;
    let obj = domains.get(Domain::Obj);

    // The log lives for ever, as every record does.
    let path = env::temp_dir().join(format!("calls-{}.log", process::id()));
    let log: &'static CallLog = Box::leak(Box::new(CallLog::create(&path, 1 << 24, || ())?));
    let recorder = |inner| AllocatorRecord::leak(Recorder::new(inner, Domain::Obj, log));
    // SAFETY: a recorder serves the very blocks of what it wraps.
    let inner = unsafe { domains.wrap_allocator(Domain::Obj, recorder) };

    let block = obj.calloc(4, 8);
    // SAFETY: live, of the obj domain; the old pointer is not used again.
    let block = unsafe { obj.realloc(block, 64) };
    // SAFETY: live, of the obj domain, not used again.
    unsafe { obj.free(block) };
    domains.set_allocator(Domain::Obj, inner)?;

    let events = LogReader::new(BufReader::new(File::open(&path)?))?;
    let ops: Vec<Op> = events.map(|event| event.map(|event| event.op)).collect::<Result<_, _>>()?;
    fs::remove_file(path)?;
    let expected =
        [Op::calloc(0, Domain::Obj, 32), Op::realloc(0, Domain::Obj, 64), Op::free(0, Domain::Obj)];
    assert_eq!(ops, expected);
    run(&ops, &LibcMalloc)?;
    println!("{ops:?}");
    Ok(())
}
