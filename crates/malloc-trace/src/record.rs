//! Owns `Recording`: a trace that is written while the program runs. Leaves the calls to `journal.rs`.

use std::io::{BufWriter, Seek, Write};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::address_table::AddressTable;
use crate::caller::{Outermost, thread_number};
use crate::codec::{TraceError, Version, Writer};
use crate::journal::Journal;
use crate::op::{Event, Op, OpKind};

/// Bytes of events that are held back before they go to the sink.
const BUFFER_BYTES: usize = 1 << 16;

/// A trace being written, shared by the recorders of all domains and threads.
///
/// All memory is allocated by [`new`](Recording::new): about 36 bytes for each block that may live at one time, and a
/// buffer of 64 KiB. Recording an event allocates nothing, so the global allocator may itself be recorded. What the
/// sink allocates while it writes is served but not recorded; nor are calls on blocks from before the recording.
///
/// Calls are recorded one at a time: threads wait for each other for the time of one event.
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
    /// Calls that are not in the trace, as more blocks lived than the recording was made for.
    pub dropped: u64,
}

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
        let _not_recorded = Outermost::enter();
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

    /// Runs `record` on the state unless recording is over.
    fn enter<T>(&self, record: impl FnOnce(&mut State<W>) -> T) -> Option<T> {
        if !self.active.load(Relaxed) {
            return None;
        }
        let mut state = self.lock();
        let answer = record(&mut state);
        if state.failed.is_some() {
            self.active.store(false, Relaxed);
        }
        Some(answer)
    }
}

impl<W: Write> Journal for Recording<W> {
    /// The block's slot; `None` for one from before the recording, or one that was dropped: it stays unknown.
    type Moving = Option<u32>;

    fn made(&self, kind: OpKind, domain: u8, block: NonNull<u8>, size: usize) {
        let recorded = self.enter(|state| match state.blocks.insert(block.addr().get()) {
            Some(slot) => {
                state.write(Op::new(kind, slot, domain, size));
                true
            }
            None => false,
        });
        if recorded == Some(false) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    fn moving(&self, _domain: u8, block: NonNull<u8>) -> Option<u32> {
        self.enter(|state| state.blocks.take(block.addr().get())).flatten()
    }

    fn moved(&self, slot: Option<u32>, domain: u8, block: NonNull<u8>, new_size: Option<usize>) {
        let Some(slot) = slot else { return };
        self.enter(|state| {
            state.blocks.insert_with(block.addr().get(), slot);
            if let Some(size) = new_size {
                state.write(Op::realloc(slot, domain, size));
            }
        });
    }

    fn freed(&self, domain: u8, block: NonNull<u8>) {
        self.enter(|state| {
            if let Some(slot) = state.blocks.take(block.addr().get()) {
                state.blocks.release(slot);
                state.write(Op::free(slot, domain));
            }
        });
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
