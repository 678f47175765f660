//! Traces on disk: the small one of this crate, and those that the environment names.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use malloc_api::LibcMalloc;
use malloc_trace::generate::{self, Histogram};
use malloc_trace::{Replay, Trace, decode, encode, run};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/mixed.trc");

/// Names a folder of trace files, uncompressed and ending in `.trc`, that are checked too.
const TRACES: &str = "MALLOC_TRACE_DIR";

fn read(path: &Path) -> Trace {
    let file = File::open(path).expect("a readable file");
    decode(BufReader::new(file)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The shipped trace is what the generator makes: format and generator change together or not at all.
#[test]
fn the_shipped_trace_is_the_generators() {
    let mut expected = Vec::new();
    encode(&mut expected, &Trace::new(generate::random(42, 1000, 2000))).expect("a vector");
    let shipped = std::fs::read(SHIPPED).expect("a readable file");
    assert!(shipped == expected, "{SHIPPED} is no longer what the generator makes");
}

#[test]
fn traces_run_and_replay() {
    let folder = std::env::var_os(TRACES).map(PathBuf::from);
    let named = folder.iter().flat_map(|folder| {
        let entries = std::fs::read_dir(folder).expect("a readable folder");
        entries.map(|entry| entry.expect("a readable folder").path())
    });
    let named = named.filter(|path| path.extension().is_some_and(|ending| ending == "trc"));
    for path in named.chain([PathBuf::from(SHIPPED)]) {
        let trace = read(&path);
        let summary = run(&trace.ops, &LibcMalloc);
        let summary = summary.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!((summary.ops, summary.failed), (trace.ops.len(), 0), "{}", path.display());
        assert!(summary.peak_blocks <= trace.slots as usize);
        drop(Replay::new(&trace.ops).pass([LibcMalloc; 3]).expect("memory"));
        let fitted = generate::fitted(1, trace.ops.len().min(100_000), &Histogram::of(&trace));
        run(&fitted, &LibcMalloc).expect("a correct allocator");
        println!("{}: {summary:?}", path.display());
    }
}
