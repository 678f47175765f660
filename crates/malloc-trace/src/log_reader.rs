//! Owns the bytes of a call log, and [`LogReader`], which makes them the events of a trace.
//!
//! A log holds addresses where a trace has slots, so that a program that is recorded keeps no table of its blocks. All
//! numbers are little-endian. A head of one page, then one record a call, and zeros to the end of the file:
//!
//! ```text
//! head, 4096 bytes
//!      0               8               16              24              32                      4096
//!      +---------------+---------------+---------------+---------------+-----------------------+
//!      | "PYMLOG01"    | u64 dropped   | u64 stopped   | u64 threads   | zeros                 |
//!      +---------------+---------------+---------------+---------------+-----------------------+
//!        dropped: calls after the recording stopped         threads: how many were seen
//!        stopped: 0 not before the program, 1 the limit, 2 + n the system's error n
//!
//! record, 16 bytes; one that begins with zeros is the end
//!      0               8               16
//!      +---------------+---------------+
//!      | u64 block     | u64 call      |
//!      +---------------+---------------+
//!              |               +------ bits  0-1   domain: 0 raw, 1 mem, 2 obj
//!              |                       bits  2-17  thread, numbered as first seen
//!              |                       bits 18-63  size in bytes, saturating
//!              +---------------------- bits  0-3   kind, below
//!                                      bits  4-63  address
//! ```
//!
//! | kind | written | block |
//! | --- | --- | --- |
//! | 1, 2, 3 | after the call | a block of `malloc`, of `calloc`, of `realloc` of no block |
//! | 4 | before the call | the block that `free` gives up |
//! | 5 | before the call | the block that `realloc` resizes |
//! | 6 | after the call | where the same thread's block of kind 5 is now |
//! | 7 | after the call | the same thread's block of kind 5, which is what it was |

use std::collections::HashMap;
use std::io::{self, Read};
use std::ptr::NonNull;

use malloc_api::Domain;

use crate::codec::{read_up_to, words};
use crate::op::{Event, Op, OpKind};

pub(crate) const HEAD_BYTES: usize = 4096;
pub(crate) const RECORD_BYTES: usize = 16;
pub(crate) const MAGIC: [u8; 8] = *b"PYMLOG01";
/// Where the words of the head are, in words.
pub(crate) const DROPPED_WORD: usize = 1;
pub(crate) const STOPPED_WORD: usize = 2;
pub(crate) const THREADS_WORD: usize = 3;
/// Why a recording stopped: it reached its limit.
pub(crate) const LIMIT: u64 = 1;
/// The same, to which the system's error number is added.
pub(crate) const SYSTEM: u64 = 2;

const SIZE_BITS: u32 = 46;

/// What a record says of its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Malloc = 1,
    Calloc = 2,
    ReallocOfNone = 3,
    Free = 4,
    Moving = 5,
    Moved = 6,
    NotMoved = 7,
}

impl RecordKind {
    const ALL: [Self; 7] = [
        Self::Malloc,
        Self::Calloc,
        Self::ReallocOfNone,
        Self::Free,
        Self::Moving,
        Self::Moved,
        Self::NotMoved,
    ];
}

/// The two words of a record.
#[inline]
pub(crate) fn record(
    kind: RecordKind,
    block: NonNull<u8>,
    domain: Domain,
    thread: u16,
    size: usize,
) -> [u64; 2] {
    let size = (size as u64).min((1 << SIZE_BITS) - 1);
    [
        (block.addr().get() as u64) << 4 | kind as u64,
        size << 18 | u64::from(thread) << 2 | domain as u64,
    ]
}

/// Why a call log cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file does not begin with the magic.
    #[error(
        "not a call log: it begins with {found:02x?}; expected \"PYMLOG01\": give the file that the recorded process wrote"
    )]
    BadMagic {
        /// The first 8 bytes.
        found: [u8; 8],
    },
    /// The file ends within its head.
    #[error(
        "the call log ends within its head; expected {HEAD_BYTES} bytes or more: copy or record it again"
    )]
    TruncatedHead,
    /// A record is none of the kinds that there are, or of no domain.
    #[error(
        "record {index} is {:#x} {:#x}; expected a kind of 1 to 7 and a domain of 0 to 2: copy or record the log again",
        words[0],
        words[1]
    )]
    BadRecord {
        /// The record's index, from 0.
        index: u64,
        /// Its words.
        words: [u64; 2],
    },
    /// More blocks live at one time than a trace has slots.
    #[error(
        "more than {} blocks live at one time; a trace has no slots for them: record a shorter run",
        u32::MAX
    )]
    TooManyBlocks,
    /// The file itself failed.
    #[error("the call log could not be read; check the file")]
    Io(#[from] io::Error),
}

/// What the head of a call log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogHead {
    /// Calls that were made after the recording had stopped.
    pub dropped: u64,
    /// Whether the recording stopped because the log had reached its limit.
    pub reached_limit: bool,
    /// The system's error number, if the recording stopped because the file could not grow.
    pub system_error: Option<i32>,
    /// How many threads made calls, at most 65,535.
    pub threads: u16,
}

/// What the trace of a log leaves out or adds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unread {
    /// Frees and reallocs of blocks that the log did not see made.
    pub unknown_blocks: u64,
    /// Blocks whose end the log did not see, known by another block at their address. The trace frees them there.
    pub unseen_frees: u64,
}

/// Reads a call log as a stream of events, whose times are 0.
///
/// The reader keeps a table of the blocks that live at one time. It reads records in small pieces: give it a
/// `BufReader`. A log whose writer died is complete up to that moment. After an error the iterator ends.
///
/// # Examples
///
/// ```
/// use std::fs::File;
/// use std::io::BufReader;
///
/// use malloc_api::{LibcMalloc, Malloc};
/// use malloc_trace::{CallLog, Domain, LogReader, Op, Recorder};
///
/// let path = std::env::temp_dir().join(format!("calls-{}.log", std::process::id()));
/// let log = CallLog::create(&path, 1 << 24, || ())?;
/// let obj = Recorder::new(LibcMalloc, Domain::Obj, &log);
/// let block = obj.malloc(24);
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { obj.free(block) };
///
/// let events: Result<Vec<_>, _> = LogReader::new(BufReader::new(File::open(&path)?))?.collect();
/// let ops: Vec<Op> = events?.iter().map(|event| event.op).collect();
/// assert_eq!(ops, [Op::malloc(0, Domain::Obj, 24), Op::free(0, Domain::Obj)]);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LogReader<R> {
    source: R,
    head: LogHead,
    read: u64,
    slots: Slots,
    /// The slot of each thread's block that is being resized; `None` for a block that is unknown.
    moving: HashMap<u16, Option<u32>>,
    unread: Unread,
    /// The second of two events of one record.
    next: Option<Event>,
    ended: bool,
}

impl<R: Read> LogReader<R> {
    /// Reads and checks the head.
    ///
    /// # Errors
    ///
    /// [`LogError::BadMagic`], [`TruncatedHead`](LogError::TruncatedHead) or [`Io`](LogError::Io).
    pub fn new(mut source: R) -> Result<Self, LogError> {
        let mut bytes = [0; HEAD_BYTES];
        let found = read_up_to(&mut source, &mut bytes)?;
        let words: [u64; HEAD_BYTES / 8] = words(&bytes);
        let magic = words[0].to_le_bytes();
        if found >= MAGIC.len() && magic != MAGIC {
            return Err(LogError::BadMagic { found: magic });
        }
        if found < HEAD_BYTES {
            return Err(LogError::TruncatedHead);
        }
        let stopped = words[STOPPED_WORD];
        let head = LogHead {
            dropped: words[DROPPED_WORD],
            reached_limit: stopped == LIMIT,
            system_error: stopped.checked_sub(SYSTEM).and_then(|number| number.try_into().ok()),
            threads: words[THREADS_WORD].try_into().unwrap_or(u16::MAX),
        };
        Ok(Self {
            source,
            head,
            read: 0,
            slots: Slots::default(),
            moving: HashMap::new(),
            unread: Unread::default(),
            next: None,
            ended: false,
        })
    }

    /// What the head says.
    pub const fn head(&self) -> LogHead {
        self.head
    }

    /// What was no event so far.
    pub const fn unread(&self) -> Unread {
        self.unread
    }

    /// The next event; `None` at the end.
    fn read_event(&mut self) -> Result<Option<Event>, LogError> {
        if let Some(event) = self.next.take() {
            return Ok(Some(event));
        }
        loop {
            let mut bytes = [0; RECORD_BYTES];
            let whole = read_up_to(&mut self.source, &mut bytes)? == RECORD_BYTES;
            let words = words(&bytes);
            if !whole || words[0] == 0 {
                return Ok(None);
            }
            let bad = LogError::BadRecord { index: self.read, words };
            let [block, call] = words;
            let kind = RecordKind::ALL.into_iter().find(|kind| *kind as u64 == block & 15);
            let domain = Domain::ALL.get((call & 3) as usize);
            let (Some(kind), Some(&domain)) = (kind, domain) else { return Err(bad) };
            self.read += 1;
            if let Some(event) = self.follow(kind, block >> 4, domain, call)? {
                return Ok(Some(event));
            }
        }
    }

    /// What a record is an event of, if of any.
    fn follow(
        &mut self,
        kind: RecordKind,
        block: u64,
        domain: Domain,
        call: u64,
    ) -> Result<Option<Event>, LogError> {
        let thread = (call >> 2) as u16;
        let size = usize::try_from(call >> 18).unwrap_or(usize::MAX);
        let event = |op| Event { op, thread, nanos: 0 };
        // The operation, and the slot of an older block at the address, which must have ended unseen.
        let (op, ended) = match kind {
            RecordKind::Malloc | RecordKind::Calloc | RecordKind::ReallocOfNone => {
                let (slot, is_taken) = self.slots.insert(block)?;
                let op = match kind {
                    RecordKind::Calloc => OpKind::Calloc,
                    RecordKind::ReallocOfNone => OpKind::Realloc,
                    _ => OpKind::Malloc,
                };
                (Some(Op::new(op, slot, domain, size)), is_taken.then_some(slot))
            }
            RecordKind::Free => {
                let slot = self.take(block);
                self.slots.free.extend(slot);
                (slot.map(|slot| Op::free(slot, domain)), None)
            }
            RecordKind::Moving => {
                let slot = self.take(block);
                let lost = self.moving.insert(thread, slot);
                // The log has no end of this thread's last `realloc`: the thread may have been ended within.
                self.slots.free.extend(lost.flatten());
                (None, None)
            }
            RecordKind::Moved | RecordKind::NotMoved => {
                let Some(slot) = self.moving.remove(&thread).flatten() else { return Ok(None) };
                let op = (kind == RecordKind::Moved).then(|| Op::realloc(slot, domain, size));
                (op, self.slots.put(block, slot))
            }
        };
        let Some(ended) = ended else { return Ok(op.map(event)) };
        self.unread.unseen_frees += 1;
        self.next = op.map(event);
        Ok(Some(event(Op::free(ended, domain))))
    }

    /// Forgets an address and gives its slot, which stays taken.
    fn take(&mut self, address: u64) -> Option<u32> {
        let slot = self.slots.live.remove(&address);
        self.unread.unknown_blocks += u64::from(slot.is_none());
        slot
    }
}

impl<R: Read> Iterator for LogReader<R> {
    type Item = Result<Event, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = self.read_event().transpose();
        self.ended = !matches!(event, Some(Ok(_)));
        event
    }
}

/// Which slot stands for which address.
#[derive(Debug, Default)]
struct Slots {
    /// With a seeded hash: a log may come from anywhere, and addresses that collide would take time without bound.
    live: HashMap<u64, u32>,
    free: Vec<u32>,
    used: u32,
}

impl Slots {
    /// A slot for an address, and whether an older block has the slot, which must have ended unseen.
    fn insert(&mut self, address: u64) -> Result<(u32, bool), LogError> {
        if let Some(&slot) = self.live.get(&address) {
            return Ok((slot, true));
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.used < u32::MAX => {
                self.used += 1;
                self.used - 1
            }
            None => return Err(LogError::TooManyBlocks),
        };
        self.live.insert(address, slot);
        Ok((slot, false))
    }

    /// Gives an address a slot that was taken. If an older block at the address must have ended unseen, frees and returns the
    /// older block's slot.
    fn put(&mut self, address: u64, slot: u32) -> Option<u32> {
        let ended = self.live.insert(address, slot)?;
        self.free.push(ended);
        Some(ended)
    }
}
