//! Owns what a worker replays: a trace file, checked and prepared once by the driver, mapped by every worker.
//!
//! Preparing makes the timed loop free of questions: each operation is legal, a size is never zero, a `realloc` of no
//! block has become a `malloc`, and what is alive at the end is listed behind the operations.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const MAGIC: &[u8; 8] = b"PYMTRC01";
const ZSTD_MAGIC: &[u8; 4] = &[0x28, 0xb5, 0x2f, 0xfd];

/// What an operation asks for.
pub const MALLOC: u32 = 0;
/// Zeroed memory.
pub const CALLOC: u32 = 1;
/// Another size for the slot's block.
pub const REALLOC: u32 = 2;
/// The end of the slot's block.
pub const FREE: u32 = 3;

/// One operation, 8 bytes: the slot, then from the lowest bit kind (2 bits), domain (2 bits) and size in bytes (28 bits).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// Index of the block's pointer in the table of slots.
    pub slot: u32,
    /// Kind, domain and size.
    pub word: u32,
}

impl Op {
    /// [`MALLOC`], [`CALLOC`], [`REALLOC`] or [`FREE`].
    #[inline]
    pub fn kind(self) -> u32 {
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

    fn new(slot: u32, kind: u32, domain: u32, size: u32) -> Self {
        Self { slot, word: size << 4 | domain << 2 | kind }
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
    let bytes = read(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
    let file_name = path.file_name().context("a trace path needs a file name")?.to_string_lossy();
    let name = file_name.trim_end_matches(".zst").trim_end_matches(".trc").to_owned();
    prepare_bytes(&name, &bytes, folder)
        .with_context(|| format!("{} is not a usable trace", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path)?;
    if bytes.starts_with(ZSTD_MAGIC) {
        let mut plain = Vec::new();
        zstd::Decoder::new(bytes.as_slice())?.read_to_end(&mut plain)?;
        bytes = plain;
    }
    Ok(bytes)
}

fn prepare_bytes(name: &str, bytes: &[u8], folder: &Path) -> Result<Prepared> {
    ensure!(bytes.starts_with(MAGIC), "expected the magic PYMTRC01");
    let word = |at: usize| -> Result<usize> {
        let bytes = bytes.get(at..at + 8).context("the header of 24 bytes is cut short")?;
        Ok(usize::try_from(u64::from_le_bytes(bytes.try_into()?))?)
    };
    let (count, slots) = (word(8)?, word(16)?);
    let body = &bytes[24..];
    ensure!(
        body.len() / 8 >= count,
        "expected {count} operations of 8 bytes, found {} bytes",
        body.len()
    );

    let mut domains: Vec<Option<u32>> = vec![None; slots];
    let mut ops = Vec::with_capacity(count);
    for (at, raw) in body.chunks_exact(8).take(count).enumerate() {
        let half = |from: usize| {
            u32::from_le_bytes([raw[from], raw[from + 1], raw[from + 2], raw[from + 3]])
        };
        let op = Op { slot: half(0), word: half(4) };
        let (kind, domain) = (op.kind(), op.word >> 2 & 3);
        let Some(live) = domains.get_mut(op.slot as usize) else {
            bail!("operation {at} uses slot {} of {slots}", op.slot);
        };
        ensure!(domain < 3, "operation {at} names domain {domain}; there are 0, 1 and 2");
        let size = (op.word >> 4).max(1);
        match (kind, *live) {
            (FREE, None) => continue,
            (FREE, Some(domain)) => {
                ops.push(Op::new(op.slot, FREE, domain, 0));
                *live = None;
            }
            (REALLOC, Some(domain)) => ops.push(Op::new(op.slot, REALLOC, domain, size)),
            (_, Some(_)) => {
                bail!("operation {at} allocates into slot {}, whose block is alive", op.slot)
            }
            (kind, None) => {
                ops.push(Op::new(
                    op.slot,
                    if kind == CALLOC { CALLOC } else { MALLOC },
                    domain,
                    size,
                ));
                *live = Some(domain);
            }
        }
    }
    let operations = ops.len();
    for (slot, domain) in (0..).zip(&domains) {
        if let Some(domain) = domain {
            ops.push(Op::new(slot, FREE, *domain, 0));
        }
    }
    let file = folder.join(format!("{name}.ops"));
    let mut out = BufWriter::new(File::create(&file)?);
    for op in &ops {
        out.write_all(&op.slot.to_ne_bytes())?;
        out.write_all(&op.word.to_ne_bytes())?;
    }
    out.flush()?;
    Ok(Prepared {
        name: name.to_owned(),
        file,
        operations,
        leftovers: ops.len() - operations,
        slots,
    })
}

/// A prepared trace in memory with its table of slots; neither came from a heap, and both are resident.
#[derive(Debug)]
pub struct Mapped {
    /// The timed operations.
    pub ops: &'static [Op],
    /// The frees of what they leave alive.
    pub leftovers: &'static [Op],
    /// The table of slots, all null.
    pub slots: &'static mut [*mut u8],
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
    let ops = map_pages(8 * count, libc::MAP_PRIVATE | libc::MAP_POPULATE, file.as_raw_fd())?;
    let table_flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    let table = map_pages(8 * trace.slots, table_flags, -1)?;
    // SAFETY: the mapping has `8 * count` bytes, is page-aligned, never unmapped, and any 8 bytes are an `Op`.
    let all: &'static [Op] = unsafe { std::slice::from_raw_parts(ops.cast(), count) };
    // SAFETY: fresh zeroed pages of `8 * slots` bytes, never unmapped, not shared; a null pointer is all zeros.
    let slots: &'static mut [*mut u8] =
        unsafe { std::slice::from_raw_parts_mut(table.cast(), trace.slots) };
    let (ops, leftovers) = all.split_at(trace.operations);
    Ok(Mapped { ops, leftovers, slots })
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
