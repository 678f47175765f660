//! Owns the bytes of a trace file, both versions: [`Reader`] and [`Writer`] stream them, [`decode`] and [`encode`]
//! take a whole file.
//!
//! All numbers are little-endian. A header, then one record an operation to the end of the file:
//!
//! ```text
//! header, 24 bytes
//!      0               8                       16                      24
//!      +---------------+-----------------------+-----------------------+
//!      | "PYMTRC01" or | u64 operations        | u64 slots             |   both words are u64::MAX while the
//!      | "PYMTRC02"    |                       |                       |   trace is being written: an unfinished
//!      +---------------+-----------------------+-----------------------+   trace ends with its last whole record
//!
//! record, 8 bytes (version 1) or 16 bytes (version 2)
//!      0       4       8               16
//!      +-------+-------+ - - - - - - - +
//!      | u32   | u32   | u64           |
//!      | slot  | bits  | version 2     |
//!      +-------+-------+ - - - - - - - +
//!              |       |
//!              |       +-- bits  0-15  thread, numbered as first seen
//!              |           bits 16-63  nanoseconds since the trace began, saturating
//!              +---------- bits  0-1   0 malloc, 1 calloc (size = nelem * elsize), 2 realloc, 3 free
//!                          bits  2-3   domain: 0 raw, 1 mem, 2 obj
//!                          bits  4-31  size in bytes, saturating at 0x0fffffff
//! ```

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::op::{Event, Op, Trace};

const HEADER_BYTES: usize = 24;
/// Stands for both counts while a trace is being written.
const UNFINISHED: u64 = u64::MAX;
/// Operations that are reserved for on the word of a header alone; more are allocated as they are read.
const TRUSTED_OPS: u64 = 1 << 16;

/// The version of a trace file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Operations only, 8 bytes each.
    V1,
    /// Operations with thread and time, 16 bytes each.
    V2,
}

impl Version {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::V1 => *b"PYMTRC01",
            Self::V2 => *b"PYMTRC02",
        }
    }

    const fn record_bytes(self) -> usize {
        match self {
            Self::V1 => 8,
            Self::V2 => 16,
        }
    }
}

/// What the header of a trace file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The version of the file.
    pub version: Version,
    /// Number of operations; `None` in a trace that was not finished.
    pub ops: Option<u64>,
    /// Length of the slot table; `None` in a trace that was not finished.
    pub slots: Option<u32>,
}

/// Why a trace cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file does not begin with the magic of a known version.
    #[error(
        "not a trace: it begins with {found:02x?}; expected \"PYMTRC01\" or \"PYMTRC02\": give a file that a recorder has written"
    )]
    BadMagic {
        /// The first 8 bytes.
        found: [u8; 8],
    },
    /// The file ends within its header.
    #[error(
        "the trace ends after {found} bytes; expected a header of {HEADER_BYTES}: copy or record it again"
    )]
    TruncatedHeader {
        /// Bytes in the file.
        found: usize,
    },
    /// The header counts more slots than operations, though a slot is first used by an operation.
    #[error(
        "the header counts {slots} slots for {ops} operations; expected no more slots than operations: copy or record it again"
    )]
    TooManySlots {
        /// The header's number of operations.
        ops: u64,
        /// The header's number of slots.
        slots: u64,
    },
    /// The file ends before the last operation that the header counts.
    #[error(
        "the trace ends after {found} operations; expected {expected}: copy or record it again"
    )]
    Truncated {
        /// The header's number of operations.
        expected: u64,
        /// Whole records in the file.
        found: u64,
    },
    /// The file goes on after the last operation that the header counts.
    #[error(
        "the trace goes on after its {expected} operations; expected the end of the file: copy or record it again"
    )]
    TrailingBytes {
        /// The header's number of operations.
        expected: u64,
    },
    /// An operation names domain 3.
    #[error(
        "operation {index} names domain 3; expected 0 (raw), 1 (mem) or 2 (obj): copy or record the trace again"
    )]
    BadDomain {
        /// The operation's index, from 0.
        index: u64,
    },
    /// An operation names a slot outside the table.
    #[error(
        "operation {index} names slot {slot}; expected one below {slots}: copy or record the trace again"
    )]
    BadSlot {
        /// The operation's index, from 0.
        index: u64,
        /// The slot.
        slot: u32,
        /// The length of the table.
        slots: u64,
    },
    /// The file itself failed.
    #[error("the trace could not be read or written; check the file and the room on its disk")]
    Io(#[from] io::Error),
}

/// Reads a trace file as a stream of events, in bounded memory.
///
/// The reader reads records in small pieces: give it a `BufReader`, or a decompressor. After an error the iterator ends. It
/// stops after the last operation that the header counts; later bytes are left unread.
///
/// # Examples
///
/// ```
/// use malloc_trace::{Domain, Op, Trace, codec};
///
/// let trace = Trace::new(vec![Op::malloc(0, Domain::Obj, 24), Op::free(0, Domain::Obj)]);
/// let mut file = Vec::new();
/// codec::encode(&mut file, &trace)?;
/// let sizes: usize = codec::Reader::new(&file[..])?.map(|event| event.map_or(0, |e| e.op.size())).sum();
/// assert_eq!(sizes, 24);
/// # Ok::<(), codec::TraceError>(())
/// ```
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    header: Header,
    read: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads and checks the header.
    ///
    /// # Errors
    ///
    /// [`TraceError::BadMagic`], [`TruncatedHeader`](TraceError::TruncatedHeader),
    /// [`TooManySlots`](TraceError::TooManySlots) or [`Io`](TraceError::Io).
    pub fn new(mut source: R) -> Result<Self, TraceError> {
        let mut bytes = [0; HEADER_BYTES];
        let found = read_up_to(&mut source, &mut bytes)?;
        let [magic, ops, slots] = words(&bytes);
        let version = match magic.to_le_bytes() {
            magic if magic == Version::V1.magic() => Version::V1,
            magic if magic == Version::V2.magic() => Version::V2,
            magic if found >= magic.len() => return Err(TraceError::BadMagic { found: magic }),
            _ => return Err(TraceError::TruncatedHeader { found }),
        };
        if found < HEADER_BYTES {
            return Err(TraceError::TruncatedHeader { found });
        }
        let header = if ops == UNFINISHED {
            Header { version, ops: None, slots: None }
        } else {
            let too_many = TraceError::TooManySlots { ops, slots };
            match u32::try_from(slots) {
                Ok(count) if slots <= ops => Header { version, ops: Some(ops), slots: Some(count) },
                _ => return Err(too_many),
            }
        };
        Ok(Self { source, header, read: 0, ended: false })
    }

    /// What the header says.
    pub const fn header(&self) -> Header {
        self.header
    }

    fn read_event(&mut self) -> Result<Option<Event>, TraceError> {
        if self.header.ops == Some(self.read) {
            return Ok(None);
        }
        let mut bytes = [0; 16];
        let record = &mut bytes[..self.header.version.record_bytes()];
        if read_up_to(&mut self.source, record)? < record.len() {
            return match self.header.ops {
                Some(expected) => Err(TraceError::Truncated { expected, found: self.read }),
                None => Ok(None),
            };
        }
        let [op, context] = words(&bytes);
        let index = self.read;
        let op = Op::from_words(op as u32, (op >> 32) as u32);
        let op = op.ok_or(TraceError::BadDomain { index })?;
        let slots = self.header.slots.map_or(u64::from(u32::MAX), u64::from);
        if u64::from(op.slot()) >= slots {
            return Err(TraceError::BadSlot { index, slot: op.slot(), slots });
        }
        self.read += 1;
        Ok(Some(Event { op, thread: context as u16, nanos: context >> 16 }))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = self.read_event().transpose();
        self.ended = !matches!(event, Some(Ok(_)));
        event
    }
}

/// Writes a trace file as a stream of events, in bounded memory.
///
/// The writer writes records in small pieces: give it a `BufWriter`. Until [`finish`](Writer::finish) the header says that the
/// trace is unfinished, which every reader accepts: a program that dies leaves a trace of what it wrote.
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    version: Version,
    ops: u64,
    slots: u32,
}

impl<W: Write> Writer<W> {
    /// Writes the header of an unfinished trace.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`].
    pub fn new(mut sink: W, version: Version) -> Result<Self, TraceError> {
        sink.write_all(&header_bytes(version, UNFINISHED, UNFINISHED))?;
        Ok(Self { sink, version, ops: 0, slots: 0 })
    }

    /// Appends an event; version 1 keeps only its operation.
    ///
    /// # Errors
    ///
    /// [`TraceError::BadSlot`] for slot `u32::MAX`, since no `u32` counts that many slots, or
    /// [`Io`](TraceError::Io).
    pub fn write(&mut self, event: Event) -> Result<(), TraceError> {
        let slot = event.op.slot();
        let Some(needed) = slot.checked_add(1) else {
            return Err(TraceError::BadSlot { index: self.ops, slot, slots: u64::from(u32::MAX) });
        };
        let bytes = record_bytes(event);
        self.sink.write_all(&bytes[..self.version.record_bytes()])?;
        self.ops += 1;
        self.slots = self.slots.max(needed);
        Ok(())
    }

    /// Hands what was written so far to the system.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`].
    pub fn flush(&mut self) -> Result<(), TraceError> {
        Ok(self.sink.flush()?)
    }

    /// Number of events written.
    pub const fn written(&self) -> u64 {
        self.ops
    }
}

impl<W: Write + Seek> Writer<W> {
    /// Completes the header, flushes, and gives the sink back.
    ///
    /// # Errors
    ///
    /// [`TraceError::TooManySlots`] if the slots written have gaps so wide that they outnumber the operations, or
    /// [`Io`](TraceError::Io).
    pub fn finish(mut self) -> Result<W, TraceError> {
        if u64::from(self.slots) > self.ops {
            return Err(TraceError::TooManySlots { ops: self.ops, slots: u64::from(self.slots) });
        }
        let end = self.sink.stream_position()?;
        let start = end - HEADER_BYTES as u64 - self.ops * self.version.record_bytes() as u64;
        self.sink.seek(SeekFrom::Start(start))?;
        self.sink.write_all(&header_bytes(self.version, self.ops, u64::from(self.slots)))?;
        self.sink.seek(SeekFrom::Start(end))?;
        self.sink.flush()?;
        Ok(self.sink)
    }
}

/// Reads a whole trace of either version, without threads and times.
///
/// Memory is bounded by the operations that are really there, never by what the header claims.
///
/// # Errors
///
/// Any [`TraceError`]; also for bytes after the last operation.
pub fn decode(source: impl Read) -> Result<Trace, TraceError> {
    let mut reader = Reader::new(source)?;
    let reserved = reader.header.ops.unwrap_or(0).min(TRUSTED_OPS);
    let mut ops = Vec::with_capacity(reserved as usize);
    for event in &mut reader {
        ops.push(event?.op);
    }
    if let Some(expected) = reader.header.ops {
        if read_up_to(&mut reader.source, &mut [0])? > 0 {
            return Err(TraceError::TrailingBytes { expected });
        }
    }
    let mut trace = Trace::new(ops);
    let (ops, slots) = (trace.ops.len() as u64, u64::from(trace.slots));
    if slots > ops {
        return Err(TraceError::TooManySlots { ops, slots });
    }
    trace.slots = reader.header.slots.unwrap_or(trace.slots);
    Ok(trace)
}

/// Writes a whole trace as version 1.
///
/// # Errors
///
/// [`TraceError::TooManySlots`] if the trace has more slots than operations, [`BadSlot`](TraceError::BadSlot) for an
/// operation outside its slot table, or [`Io`](TraceError::Io).
pub fn encode(mut sink: impl Write, trace: &Trace) -> Result<(), TraceError> {
    let (ops, slots) = (trace.ops.len() as u64, u64::from(trace.slots));
    if slots > ops {
        return Err(TraceError::TooManySlots { ops, slots });
    }
    sink.write_all(&header_bytes(Version::V1, ops, slots))?;
    for (index, &op) in (0..).zip(&trace.ops) {
        if op.slot() >= trace.slots {
            return Err(TraceError::BadSlot { index, slot: op.slot(), slots });
        }
        sink.write_all(&record_bytes(op.into())[..Version::V1.record_bytes()])?;
    }
    Ok(())
}

fn header_bytes(version: Version, ops: u64, slots: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&version.magic());
    bytes[8..16].copy_from_slice(&ops.to_le_bytes());
    bytes[16..].copy_from_slice(&slots.to_le_bytes());
    bytes
}

fn record_bytes(event: Event) -> [u8; 16] {
    let (slot, bits) = event.op.to_words();
    let context = event.nanos.min(Event::MAX_NANOS) << 16 | u64::from(event.thread);
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&slot.to_le_bytes());
    bytes[4..8].copy_from_slice(&bits.to_le_bytes());
    bytes[8..].copy_from_slice(&context.to_le_bytes());
    bytes
}

/// The little-endian words that `bytes` are.
pub(crate) fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u64; WORDS] {
    const { assert!(BYTES == 8 * WORDS) };
    core::array::from_fn(|i| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * i..8 * i + 8]);
        u64::from_le_bytes(word)
    })
}

/// Fills `bytes` until the source ends, and returns the number of bytes read.
pub(crate) fn read_up_to(source: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match source.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
