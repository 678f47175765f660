//! Owns what a worker replays: a trace file, prepared once by the driver, mapped by every worker.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use malloc_trace::{Op, Recording, Replay};

const ZSTD_MAGIC: &[u8; 4] = &[0x28, 0xb5, 0x2f, 0xfd];

/// A prepared trace on disk, which workers map.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Prepared {
    /// The trace's name: its file name without endings.
    pub name: String,
    /// The file with the operations, then the frees of what is alive at the end.
    pub file: PathBuf,
    /// Operations that are timed.
    pub operations: usize,
    /// Frees behind them, not timed.
    pub leftovers: usize,
    /// Length of the table of slots.
    pub slots: usize,
}

/// Reads the trace or call log at `path`, plain or compressed by zstd, and writes its prepared form into `folder`.
///
/// # Errors
///
/// Where the file cannot be read or is no trace; the message says what was expected.
pub fn prepare(path: &Path, folder: &Path) -> Result<Prepared> {
    let bytes =
        std::fs::read(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
    let recording = if bytes.starts_with(ZSTD_MAGIC) {
        Recording::read(zstd::Decoder::new(bytes.as_slice())?)
    } else {
        Recording::read(bytes.as_slice())
    };
    let ops = recording.with_context(|| format!("{} is no usable trace", path.display()))?.ops;
    let file_name = path.file_name().context("a trace path needs a file name")?.to_string_lossy();
    let name = file_name.trim_end_matches(".zst").trim_end_matches(".trc").trim_end_matches(".log");
    prepare_ops(name, &ops, folder)
}

/// Writes the prepared form of `ops` into `folder`.
///
/// # Errors
///
/// Where the file cannot be written.
pub fn prepare_ops(name: &str, ops: &[Op], folder: &Path) -> Result<Prepared> {
    let replay = Replay::new(ops);
    let file = folder.join(format!("{name}.steps"));
    let mut out = BufWriter::new(File::create(&file)?);
    for (slot, bits) in replay.ops().iter().map(|op| op.to_words()) {
        out.write_all(&slot.to_ne_bytes())?;
        out.write_all(&bits.to_ne_bytes())?;
    }
    out.flush()?;
    Ok(Prepared {
        name: name.to_owned(),
        file,
        operations: replay.calls(),
        leftovers: replay.ops().len() - replay.calls(),
        slots: replay.slots(),
    })
}

/// Maps the operations of a prepared trace; the mapping lasts until the process ends, and is resident.
///
/// # Errors
///
/// Where the file cannot be opened or the system refuses the memory.
pub fn map(trace: &Prepared) -> Result<&'static [Op]> {
    let file = File::open(&trace.file)?;
    let count = trace.operations + trace.leftovers;
    ensure!(
        file.metadata()?.len() == 8 * count as u64,
        "{} has another length",
        trace.file.display()
    );
    let ops = map_pages(8 * count, libc::MAP_PRIVATE | libc::MAP_POPULATE, file.as_raw_fd())?;
    // SAFETY: the mapping has `8 * count` bytes, is page-aligned and never unmapped; an `Op` is two words of any bits.
    Ok(unsafe { std::slice::from_raw_parts(ops.cast(), count) })
}

/// A replay of a prepared trace; neither program nor table is in a heap, and both are resident.
///
/// # Errors
///
/// Where the file cannot be mapped, or is not what the driver wrote.
pub fn replay(trace: &Prepared) -> Result<Replay> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    let table = map_pages(8 * trace.slots, flags, -1)?;
    // SAFETY: fresh zeroed pages of `8 * slots` bytes, never unmapped, not shared; `None` is all zeros.
    let slots: &'static mut [Option<NonNull<u8>>] =
        unsafe { std::slice::from_raw_parts_mut(table.cast(), trace.slots) };
    Replay::lent(map(trace)?, trace.operations, slots)
        .with_context(|| format!("{} does not fit its slots", trace.file.display()))
}

fn map_pages(bytes: usize, flags: libc::c_int, fd: libc::c_int) -> Result<*mut libc::c_void> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes.max(1), protection, flags, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("cannot map the trace");
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use malloc_trace::generate;

    use super::*;

    #[test]
    fn a_prepared_trace_is_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let ops = generate::random(1, 10_000, 500);
        let prepared = prepare_ops("test", &ops, folder.path()).unwrap();
        let (expected, mapped) = (Replay::new(&ops), replay(&prepared).unwrap());
        assert!(prepared.leftovers > 0);
        assert_eq!((mapped.ops(), mapped.calls()), (expected.ops(), expected.calls()));
        std::fs::write(&prepared.file, [0; 8]).unwrap();
        assert!(replay(&prepared).unwrap_err().to_string().contains("another length"));
    }
}
