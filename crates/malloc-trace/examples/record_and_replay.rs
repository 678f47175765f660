//! Records what a collection asks for, checks the trace, and times it.

use std::io::Cursor;

use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::codec::Version;
use malloc_trace::{Functions, Recorder, Recording, Replay, decode, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut file = Cursor::new(Vec::new());
    let recording = Recording::new(&mut file, Version::V1, 1 << 10)?;
    let recorder = Recorder::new(LibcMalloc, 2, &recording);
    let mut list = None;
    for length in (0..100).map(|n| 56 + 8 * n) {
        // SAFETY: (1) `list` is `None` or live; (2) only the answer is used afterwards.
        list = unsafe { recorder.realloc(list, length) };
    }
    // SAFETY: (1) `list` is live; (2) it is not used afterwards.
    unsafe { recorder.free(list) };
    let recorded = recording.finish()?;
    assert_eq!((recorded.written, recorded.dropped), (101, 0));
    drop(recording);

    let trace = decode(&file.into_inner()[..])?;
    assert_eq!(trace.slots, 1);
    let summary = run(&trace.ops, &LibcMalloc)?;
    assert_eq!((summary.failed, summary.peak_bytes), (0, 56 + 8 * 99));

    let mut replay = Replay::new(&trace.ops);
    let pass = replay.pass([Functions::of(&LibcMalloc); 3], || ())?;
    println!("{} calls in {:?}", replay.calls(), pass.program);
    Ok(())
}
