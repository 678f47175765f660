//! Owns recording: `Recording`, where events go, and `Recorder<A>`, which sends the calls of one domain there.

use std::cell::Cell;
use std::io::{BufWriter, Seek, Write};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use malloc_api::Malloc;

use crate::address_table::AddressTable;
use crate::codec::{TraceError, Version, Writer};
use crate::op::{DOMAINS, Event, Op};

/// Bytes of events that are held back before they go to the sink.
const BUFFER_BYTES: usize = 1 << 16;

/// A trace being written, shared by the recorders of all domains and threads.
///
/// All memory is allocated by [`new`](Recording::new): about 36 bytes for each block that may live at one time, and a
/// buffer of 64 KiB. Recording an event allocates nothing, so the global allocator may itself be recorded. What the
/// sink allocates while it writes is served but not recorded.
///
/// A recording that is dropped without [`finish`](Recording::finish) leaves an unfinished trace, which readers accept.
#[derive(Debug)]
pub struct Recording<W: Write> {
    state: Mutex<State<W>>,
    /// Relaxed: a call that sees the old value is recorded, or not, as if it had come earlier.
    active: AtomicBool,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct State<W: Write> {
    /// `None` once the recording is finished.
    writer: Option<Writer<BufWriter<W>>>,
    blocks: AddressTable,
    start: Instant,
    has_times: bool,
    /// Why recording stopped early.
    failed: Option<TraceError>,
}

/// How a recording went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// Events in the trace.
    pub written: u64,
    /// Calls that are not in the trace: more blocks lived than the recording was made for, or the sink made them.
    pub dropped: u64,
}

/// What is told of a call once the table has a slot for its block.
type OpOfSlot = fn(u32, u8, usize) -> Op;

thread_local! {
    // Neither has a destructor nor an initialiser: they work at any time in a thread's life, and allocate nothing.
    /// Whether this thread is recording an event, and thus calls of its sink must not be recorded.
    static RECORDS: Cell<bool> = const { Cell::new(false) };
    /// The number of this thread, one more than in events; 0 if it has none yet.
    static THREAD: Cell<u16> = const { Cell::new(0) };
}

/// Threads of the process that recorded an event so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);

impl<W: Write> Recording<W> {
    /// Starts a trace with room for `max_live_blocks` blocks that live at one time.
    ///
    /// Version 1 has no threads and times, version 2 costs a clock reading an event. 0 blocks count as 1.
    ///
    /// # Errors
    ///
    /// [`TraceError::Io`] if the header cannot be written.
    pub fn new(sink: W, version: Version, max_live_blocks: u32) -> Result<Self, TraceError> {
        let state = State {
            writer: Some(Writer::new(BufWriter::with_capacity(BUFFER_BYTES, sink), version)?),
            blocks: AddressTable::new(max_live_blocks),
            start: Instant::now(),
            has_times: version == Version::V2,
            failed: None,
        };
        let active = AtomicBool::new(true);
        Ok(Self { state: Mutex::new(state), active, dropped: AtomicU64::new(0) })
    }

    /// Hands buffered events to the system, unless a thread is recording at this moment; whether it did.
    ///
    /// It never waits, so that a crash handler may call it.
    pub fn try_flush(&self) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return false };
        state.writer.as_mut().is_some_and(|writer| writer.flush().is_ok())
    }

    /// Stops recording without writing anything and without waiting: what the child of a `fork` must call, since its
    /// parent goes on writing the same trace.
    pub fn abandon(&self) {
        self.active.store(false, Relaxed);
    }

    /// Calls that are not in the trace so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `record` on the state unless recording is over or this thread is in the sink already.
    fn enter<T>(&self, record: impl FnOnce(&mut State<W>) -> T) -> Option<T> {
        if !self.active.load(Relaxed) {
            return None;
        }
        if RECORDS.replace(true) {
            self.dropped.fetch_add(1, Relaxed);
            return None;
        }
        let mut state = self.lock();
        let answer = record(&mut state);
        if state.failed.is_some() {
            self.active.store(false, Relaxed);
        }
        drop(state);
        RECORDS.set(false);
        Some(answer)
    }

    /// Records a call that made a block.
    fn made(&self, block: Option<NonNull<u8>>, domain: u8, size: usize, op: OpOfSlot) {
        let Some(block) = block else { return };
        let recorded = self.enter(|state| match state.blocks.insert(block.addr().get()) {
            Some(slot) => {
                state.write(op(slot, domain, size));
                true
            }
            None => false,
        });
        if recorded == Some(false) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl<W: Write + Seek> Recording<W> {
    /// Ends the trace and completes its header; later calls are served but not recorded.
    ///
    /// # Errors
    ///
    /// The [`TraceError`] that stopped recording early, or that of the last write. The trace is then unfinished and
    /// has the events before it.
    pub fn finish(&self) -> Result<Recorded, TraceError> {
        self.abandon();
        let mut state = self.lock();
        if let Some(failed) = state.failed.take() {
            return Err(failed);
        }
        let written = match state.writer.take() {
            Some(writer) => {
                let written = writer.written();
                writer.finish()?;
                written
            }
            None => 0,
        };
        Ok(Recorded { written, dropped: self.dropped() })
    }
}

impl<W: Write> State<W> {
    fn write(&mut self, op: Op) {
        let nanos = if self.has_times { self.start.elapsed().as_nanos() as u64 } else { 0 };
        let event = Event { op, thread: thread_number(), nanos };
        if let Some(Err(error)) = self.writer.as_mut().map(|writer| writer.write(event)) {
            self.failed = Some(error);
        }
    }
}

/// The number of the calling thread; all threads after the 65,535th share one.
fn thread_number() -> u16 {
    if THREAD.get() == 0 {
        let next = THREADS.fetch_add(1, Relaxed).saturating_add(1);
        THREAD.set(u16::try_from(next).unwrap_or(u16::MAX));
    }
    THREAD.get() - 1
}

/// Serves one domain through `A` and records every call that succeeds.
///
/// Calls of `free(None)`, calls that fail, and calls on blocks from before the recording are served but not recorded.
/// Calls of one recording are recorded one at a time: threads wait for each other for the time of one event.
///
/// # Examples
///
/// ```
/// use std::io::Cursor;
///
/// use malloc_api::{LibcMalloc, Malloc};
/// use malloc_trace::{Op, Recorder, Recording, codec, decode};
///
/// let mut file = Cursor::new(Vec::new());
/// let recording = Recording::new(&mut file, codec::Version::V1, 1000)?;
/// let obj = Recorder::new(LibcMalloc, 2, &recording);
/// let block = obj.malloc(24);
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { obj.free(block) };
/// assert_eq!(recording.finish()?.written, 2);
/// # drop(recording);
///
/// let trace = decode(&file.into_inner()[..])?;
/// assert_eq!(trace.ops, [Op::malloc(0, 2, 24), Op::free(0, 2)]);
/// # Ok::<(), codec::TraceError>(())
/// ```
#[derive(Debug)]
pub struct Recorder<'a, A, W: Write> {
    inner: A,
    domain: u8,
    recording: &'a Recording<W>,
}

impl<'a, A, W: Write> Recorder<'a, A, W> {
    /// Wraps `inner`, which serves `domain`: 0 raw, 1 mem, 2 obj.
    ///
    /// # Panics
    ///
    /// If `domain` is greater than 2.
    #[must_use]
    pub const fn new(inner: A, domain: u8, recording: &'a Recording<W>) -> Self {
        assert!((domain as usize) < DOMAINS, "a domain is 0 (raw), 1 (mem) or 2 (obj)");
        Self { inner, domain, recording }
    }

    /// The wrapped allocator.
    pub const fn inner(&self) -> &A {
        &self.inner
    }
}

// SAFETY: every method answers what the same method of `A` answers (1-3, 5); recording neither unwinds nor calls `A`
// (4): its memory was allocated beforehand.
unsafe impl<A: Malloc, W: Write> Malloc for Recorder<'_, A, W> {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let block = self.inner.malloc(size);
        self.recording.made(block, self.domain, size, Op::malloc);
        block
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let block = self.inner.calloc(nelem, elsize);
        // The product does not overflow where it matters: then there is no block.
        self.recording.made(block, self.domain, nelem.wrapping_mul(elsize), Op::calloc);
        block
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        // The old address may be handed out to another thread before this call returns: forget it first.
        let old = ptr.and_then(|old| {
            self.recording.enter(|state| state.blocks.take(old.addr().get())).flatten()
        });
        // SAFETY: the caller's duties 1 and 2 are those of `A::realloc`.
        let block = unsafe { self.inner.realloc(ptr, new_size) };
        match (old, ptr) {
            (Some(slot), _) => {
                let Some(live) = block.or(ptr) else { return block };
                self.recording.enter(|state| {
                    state.blocks.insert_with(live.addr().get(), slot);
                    if block.is_some() {
                        state.write(Op::realloc(slot, self.domain, new_size));
                    }
                });
            }
            (None, None) => self.recording.made(block, self.domain, new_size, Op::realloc),
            // A block from before the recording, or one that was dropped: it stays unknown.
            (None, Some(_)) => {}
        }
        block
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        if let Some(block) = ptr {
            // Before the block can be handed out again.
            self.recording.enter(|state| {
                if let Some(slot) = state.blocks.take(block.addr().get()) {
                    state.blocks.release(slot);
                    state.write(Op::free(slot, self.domain));
                }
            });
        }
        // SAFETY: the caller's duties 1 and 2 are those of `A::free`.
        unsafe { self.inner.free(ptr) };
    }
}
