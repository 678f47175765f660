//! Logs what a collection asks for, checks the program, and times it. Linux only, as the log is.

use std::fs::{self, File};
use std::io::BufReader;
use std::time::Instant;

use malloc_api::{AllocatorRecord, LibcMalloc, Malloc};
use malloc_trace::{CallLog, Domain, LogReader, Op, Recorder, Replay, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("list-{}.log", std::process::id()));
    let log = CallLog::create(&path, 1 << 24, || ())?;
    let recorder = Recorder::new(LibcMalloc, Domain::Obj, &log);
    let mut list = None;
    for length in (0..100).map(|n| 56 + 8 * n) {
        // SAFETY: (1) `list` is `None` or live; (2) only the answer is used afterwards.
        list = unsafe { recorder.realloc(list, length) };
    }
    // SAFETY: (1) `list` is live; (2) it is not used afterwards.
    unsafe { recorder.free(list) };

    let events = LogReader::new(BufReader::new(File::open(&path)?))?;
    let ops: Vec<Op> = events.map(|event| event.map(|event| event.op)).collect::<Result<_, _>>()?;
    fs::remove_file(path)?;
    assert_eq!(ops.len(), 101);
    let summary = run(&ops, &LibcMalloc)?;
    assert_eq!((summary.failed, summary.peak_bytes), (0, 56 + 8 * 99));

    let mut replay = Replay::new(&ops);
    let libc = AllocatorRecord::new(&LibcMalloc);
    let start = Instant::now();
    let live = replay.pass([libc; 3])?;
    let time = start.elapsed();
    drop(live);
    println!("{} calls in {time:?}", replay.calls());
    Ok(())
}
