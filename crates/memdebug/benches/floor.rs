//! What the layout of debug blocks costs at the least: the bytes of header and guard, with what is lost to rounding to 16,
//! of the blocks that a program holds when it holds most. No allocator that keeps the layout and the alignment adds
//! less to the program's memory.
//!
//! `cargo bench -p memdebug --bench floor -- LOG[=MIB]...` takes logs of calls, each with the peak of resident memory that the
//! program has without hooks.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use malloc_trace::{Domain, LogReader, OpKind};
use memdebug::{HEADER_BYTES, TAIL_BYTES};

const HOOKS_BYTES: usize = HEADER_BYTES + TAIL_BYTES;
/// What the C library puts in front of each of its blocks.
const CHUNK_BYTES: usize = 8;

/// Bytes that a block of `size` bytes takes, multiples of 16.
fn footprint(size: usize, domain: Domain) -> usize {
    let chunk = if domain == Domain::Raw { CHUNK_BYTES } else { 0 };
    (size + chunk).max(1).next_multiple_of(16)
}

/// Bytes and blocks that are live, and their peak.
#[derive(Clone, Copy, Default)]
struct Live {
    bytes: usize,
    blocks: usize,
    peak_bytes: usize,
    blocks_at_peak: usize,
}

impl Live {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.blocks += 1;
        if self.bytes > self.peak_bytes {
            self.peak_bytes = self.bytes;
            self.blocks_at_peak = self.blocks;
        }
    }

    fn remove(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.blocks -= 1;
    }
}

/// The same program without hooks and with them.
#[derive(Default)]
struct Program {
    sizes: Vec<Option<(usize, Domain)>>,
    plain: Live,
    hooked: Live,
}

impl Program {
    fn set(&mut self, slot: usize, block: Option<(usize, Domain)>) {
        if slot >= self.sizes.len() {
            self.sizes.resize(slot + 1, None);
        }
        if let Some((size, domain)) = std::mem::replace(&mut self.sizes[slot], block) {
            self.plain.remove(footprint(size, domain));
            self.hooked.remove(footprint(size + HOOKS_BYTES, domain));
        }
        if let Some((size, domain)) = block {
            self.plain.add(footprint(size, domain));
            self.hooked.add(footprint(size + HOOKS_BYTES, domain));
        }
    }
}

fn main() {
    println!(
        "{:24} {:>10} {:>10} {:>10} {:>9} {:>7}",
        "", "blocks", "live MiB", "hooks MiB", "base MiB", "floor"
    );
    for argument in std::env::args().skip(1).filter(|argument| !argument.starts_with("--")) {
        let (path, base) = argument.split_once('=').unwrap_or((&argument, ""));
        let log = BufReader::new(File::open(path).expect("a log of calls"));
        let mut program = Program::default();
        for event in LogReader::new(log).expect("a log of calls") {
            let op = event.expect("a log that is whole").op;
            let block = (op.kind() != OpKind::Free).then(|| (op.size(), op.domain()));
            program.set(op.slot() as usize, block);
        }
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let added = mib(program.hooked.peak_bytes - program.plain.peak_bytes);
        let name = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
        let live = mib(program.plain.peak_bytes);
        print!("{name:24} {:>10} {live:>10.1} {added:>10.1}", program.hooked.blocks_at_peak);
        match base.parse::<f64>() {
            Ok(base) => println!(" {base:>9.1} {:>6.1}%", 100.0 * added / base),
            Err(_) => println!(),
        }
    }
}
