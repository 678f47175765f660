//! Owns what a worker replays: a trace file, checked and prepared once by the driver, mapped by every worker.
//!
//! Preparing makes the timed loop free of questions: each operation is legal, a size is never zero, a `realloc` of no
//! block has become a `malloc`, and what is alive at the end is listed behind the operations.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use anyhow::{Context, Result, bail, ensure};
use malloc_trace::{OpKind, Trace};

const ZSTD_MAGIC: &[u8; 4] = &[0x28, 0xb5, 0x2f, 0xfd];

/// What an operation asks for.
pub const MALLOC: u32 = 0;
/// Zeroed memory.
pub const CALLOC: u32 = 1;
/// Another size for the slot's block.
pub const REALLOC: u32 = 2;
/// The end of the slot's block.
pub const FREE: u32 = 3;

/// One prepared operation, 8 bytes: the slot, then from the lowest bit kind (2 bits), domain (2 bits) and size in bytes (28 bits).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Index of the block's pointer in the table of slots.
    pub slot: u32,
    /// Kind, domain and size.
    pub word: u32,
}

impl Step {
    /// Is it [`REALLOC`] or [`FREE`]?
    #[inline]
    pub fn has_block(self) -> bool {
        self.word & 2 != 0
    }

    /// Is it [`FREE`], given that it has a block?
    #[inline]
    pub fn ends_block(self) -> bool {
        self.word & 1 != 0
    }

    /// Is it [`CALLOC`], given that it has no block?
    #[inline]
    pub fn is_zeroed(self) -> bool {
        self.word & 1 != 0
    }

    /// [`MALLOC`], [`CALLOC`], [`REALLOC`] or [`FREE`].
    #[cfg(test)]
    fn kind(self) -> u32 {
        self.word & 3
    }

    /// 0 raw, 1 mem, 2 obj.
    #[inline]
    pub fn domain(self) -> usize {
        (self.word >> 2 & 3) as usize
    }

    /// Size in bytes; 0 for [`FREE`].
    #[inline]
    pub fn size(self) -> usize {
        (self.word >> 4) as usize
    }

    fn new(slot: u32, kind: u32, domain: u8, size: usize) -> Self {
        // `malloc_trace::Op::MAX_SIZE` has 28 bits.
        Self { slot, word: (size as u32) << 4 | u32::from(domain) << 2 | kind }
    }
}

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

/// Reads the trace at `path`, plain or compressed by zstd, and writes its prepared form into `folder`.
///
/// # Errors
///
/// Where the file cannot be read or is no trace; the message says what was expected.
pub fn prepare(path: &Path, folder: &Path) -> Result<Prepared> {
    let bytes =
        std::fs::read(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
    let trace = if bytes.starts_with(ZSTD_MAGIC) {
        malloc_trace::decode(zstd::Decoder::new(bytes.as_slice())?)
    } else {
        malloc_trace::decode(bytes.as_slice())
    };
    let trace = trace.with_context(|| format!("{} is no usable trace", path.display()))?;
    let file_name = path.file_name().context("a trace path needs a file name")?.to_string_lossy();
    let name = file_name.trim_end_matches(".zst").trim_end_matches(".trc");
    prepare_ops(name, &trace, folder)
        .with_context(|| format!("{} is no usable trace", path.display()))
}

/// Writes the prepared form of `trace` into `folder`.
///
/// # Errors
///
/// Where an operation allocates into a slot whose block is alive, or the file cannot be written.
pub fn prepare_ops(name: &str, trace: &Trace, folder: &Path) -> Result<Prepared> {
    let slots = trace.slots as usize;
    let mut domains: Vec<Option<u8>> = vec![None; slots];
    let mut steps = Vec::with_capacity(trace.ops.len());
    for (at, op) in trace.ops.iter().enumerate() {
        let (slot, size) = (op.slot(), op.size().max(1));
        let live = domains
            .get_mut(slot as usize)
            .with_context(|| format!("operation {at} is outside the table"))?;
        match (op.kind(), *live) {
            (OpKind::Free, None) => {}
            (OpKind::Free, Some(domain)) => {
                steps.push(Step::new(slot, FREE, domain, 0));
                *live = None;
            }
            (OpKind::Realloc, Some(domain)) => steps.push(Step::new(slot, REALLOC, domain, size)),
            (_, Some(_)) => {
                bail!("operation {at} allocates into slot {slot}, whose block is alive")
            }
            (kind, None) => {
                let kind = if kind == OpKind::Calloc { CALLOC } else { MALLOC };
                steps.push(Step::new(slot, kind, op.domain(), size));
                *live = Some(op.domain());
            }
        }
    }
    let operations = steps.len();
    for (slot, domain) in (0..).zip(&domains) {
        if let Some(domain) = domain {
            steps.push(Step::new(slot, FREE, *domain, 0));
        }
    }
    let file = folder.join(format!("{name}.steps"));
    let mut out = BufWriter::new(File::create(&file)?);
    for step in &steps {
        out.write_all(&step.slot.to_ne_bytes())?;
        out.write_all(&step.word.to_ne_bytes())?;
    }
    out.flush()?;
    Ok(Prepared {
        name: name.to_owned(),
        file,
        operations,
        leftovers: steps.len() - operations,
        slots,
    })
}

/// A prepared trace in memory with its table of slots; neither came from a heap, and both are resident.
#[derive(Debug)]
pub struct Mapped {
    /// The timed operations.
    pub steps: &'static [Step],
    /// The frees of what they leave alive.
    pub leftovers: &'static [Step],
    /// The table of slots, all empty.
    pub slots: &'static mut [Option<NonNull<u8>>],
}

/// Maps a prepared trace; the mapping lasts until the process ends.
///
/// # Errors
///
/// Where the file cannot be opened or the system refuses the memory.
pub fn map(trace: &Prepared) -> Result<Mapped> {
    let file = File::open(&trace.file)?;
    let count = trace.operations + trace.leftovers;
    ensure!(
        file.metadata()?.len() == 8 * count as u64,
        "{} has another length",
        trace.file.display()
    );
    let steps = map_pages(8 * count, libc::MAP_PRIVATE | libc::MAP_POPULATE, file.as_raw_fd())?;
    let table_flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    let table = map_pages(8 * trace.slots, table_flags, -1)?;
    // SAFETY: the mapping has `8 * count` bytes, is page-aligned, never unmapped, and any 8 bytes are a `Step`.
    let all: &'static [Step] = unsafe { std::slice::from_raw_parts(steps.cast(), count) };
    // SAFETY: fresh zeroed pages of `8 * slots` bytes, never unmapped, not shared; `None` is all zeros.
    let slots: &'static mut [Option<NonNull<u8>>] =
        unsafe { std::slice::from_raw_parts_mut(table.cast(), trace.slots) };
    let (steps, leftovers) = all.split_at(trace.operations);
    Ok(Mapped { steps, leftovers, slots })
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
    use malloc_trace::{Op, Trace};

    use super::{CALLOC, FREE, MALLOC, REALLOC, map, prepare_ops};

    /// Slot, kind and size.
    type Parts = (u32, u32, usize);

    /// Every step, and how many of them are leftovers.
    fn prepared(ops: Vec<Op>) -> anyhow::Result<(Vec<Parts>, usize)> {
        let folder = tempfile::tempdir()?;
        let prepared = prepare_ops("test", &Trace::new(ops), folder.path())?;
        let mapped = map(&prepared)?;
        let all = mapped.steps.iter().chain(mapped.leftovers);
        Ok((
            all.map(|step| (step.slot, step.kind(), step.size())).collect(),
            mapped.leftovers.len(),
        ))
    }

    #[test]
    fn what_is_alive_at_the_end_is_freed_behind_the_operations() {
        let (steps, leftovers) =
            prepared(vec![Op::malloc(0, 2, 24), Op::calloc(1, 1, 64)]).unwrap();
        let expected = [(0, MALLOC, 24), (1, CALLOC, 64), (0, FREE, 0), (1, FREE, 0)];
        assert_eq!((&steps[..], leftovers), (&expected[..], 2));
    }

    #[test]
    fn zero_bytes_and_reallocs_of_nothing_become_plain_requests() {
        let ops = vec![Op::realloc(0, 2, 0), Op::realloc(0, 2, 40), Op::free(0, 2), Op::free(0, 2)];
        let (steps, leftovers) = prepared(ops).unwrap();
        let expected = [(0, MALLOC, 1), (0, REALLOC, 40), (0, FREE, 0)];
        assert_eq!((&steps[..], leftovers), (&expected[..], 0));
    }

    #[test]
    fn a_block_that_nobody_freed_is_not_lost() {
        let error = prepared(vec![Op::malloc(0, 2, 24), Op::malloc(0, 2, 24)]).unwrap_err();
        assert!(error.to_string().contains("operation 1 allocates into slot 0"), "{error}");
    }
}
