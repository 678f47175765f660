//! Owns the replay of a program on several threads: who waits for whom, and how long it took.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use malloc_api::Malloc;

use crate::fitting::Fitting;
use crate::op::{DOMAINS, Event, Op};
use crate::replay::{OutOfMemory, call};

/// A program of several threads made ready to be timed.
///
/// Each thread performs its own operations in their order. An operation on a block that several threads use waits
/// until the operations before it on the same slot are done; nothing else synchronises the threads, so the same
/// program may interleave differently each time. Blocks are written and read as by [`Replay`](crate::Replay).
///
/// # Examples
///
/// ```
/// use malloc_api::LibcMalloc;
/// use malloc_trace::{ThreadedReplay, generate};
///
/// let replay = ThreadedReplay::new(&generate::xmalloc(1, 2, 1000));
/// let time = replay.pass([&LibcMalloc; 3])?;
/// assert_eq!(replay.threads(), 2);
/// assert!(time.as_nanos() > 0);
/// # Ok::<(), malloc_trace::OutOfMemory>(())
/// ```
#[derive(Debug)]
pub struct ThreadedReplay {
    programs: Vec<Program>,
    shared_slots: u32,
}

/// What one thread does.
#[derive(Debug, Default)]
struct Program {
    steps: Vec<Step>,
    own_slots: u32,
}

/// An operation, whose slot is an index into the thread's own table or the shared one.
#[derive(Debug, Clone, Copy)]
struct Step {
    op: Op,
    /// For a shared slot: how many operations on it come before this one.
    turn: Option<u32>,
}

/// A block with its domain, on its way from one thread to another.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    block: Option<NonNull<u8>>,
    domain: u8,
}

// SAFETY: the block is the holder's alone, and the allocators are `Sync`: any thread may use, resize and free it.
unsafe impl Send for Held {}

/// A slot that several threads use, and how many operations on it are done.
#[derive(Debug, Default)]
struct Shared {
    turn: u32,
    held: Held,
}

/// What a thread leaves behind.
struct Ended {
    own: Vec<Held>,
    failed: Option<Op>,
    began: Instant,
    ended: Instant,
}

impl ThreadedReplay {
    /// Prepares `events`. Threads are those that the events name; the times are not used.
    #[must_use]
    pub fn new(events: &[Event]) -> Self {
        let fitting = Fitting::new(events.iter().copied());
        let mut owners: Vec<Owner> = vec![Owner::Nobody; fitting.slots as usize];
        for event in &fitting.events {
            let owner = &mut owners[event.op.slot() as usize];
            *owner = owner.and(event.thread);
        }
        let mut replay = Self { programs: Vec::new(), shared_slots: 0 };
        let mut threads: HashMap<u16, usize> = HashMap::new();
        let mut places: HashMap<u32, u32> = HashMap::new();
        let mut turns: Vec<u32> = Vec::new();
        for Event { op, thread, .. } in fitting.events {
            let thread = *threads.entry(thread).or_insert_with(|| {
                replay.programs.push(Program::default());
                replay.programs.len() - 1
            });
            let program = &mut replay.programs[thread];
            let is_shared = owners[op.slot() as usize] == Owner::Many;
            let next = if is_shared { &mut replay.shared_slots } else { &mut program.own_slots };
            let place = *places.entry(op.slot()).or_insert_with(|| {
                *next += 1;
                *next - 1
            });
            let turn = is_shared.then(|| {
                turns.resize(turns.len().max(place as usize + 1), 0);
                turns[place as usize] += 1;
                turns[place as usize] - 1
            });
            program.steps.push(Step { op: op.with_slot(place), turn });
        }
        replay
    }

    /// Number of threads that a pass starts.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.programs.len()
    }

    /// Number of calls that a pass makes on all threads before it frees the leftovers.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.programs.iter().map(|program| program.steps.len()).sum()
    }

    /// Replays the program once, with one allocator a domain (raw, mem, obj), and frees what it leaves live.
    ///
    /// The time is that from the start of the first thread to the end of the last; freeing the leftovers, which the
    /// calling thread does, is not part of it.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] at a call that answered `None`; all threads stop and all blocks are freed then too.
    ///
    /// # Panics
    ///
    /// If the system cannot start the threads.
    pub fn pass<A: Malloc + Sync + ?Sized>(
        &self,
        allocators: [&A; DOMAINS],
    ) -> Result<Duration, OutOfMemory> {
        let shared: Vec<Mutex<Shared>> = (0..self.shared_slots).map(|_| Mutex::default()).collect();
        let barrier = Barrier::new(self.programs.len());
        let stop = AtomicBool::new(false);
        let run = Run { allocators, shared: &shared, barrier: &barrier, stop: &stop };
        let ended: Vec<Ended> = thread::scope(|scope| {
            let start = |program| scope.spawn(move || run.thread(program));
            let threads: Vec<_> = self.programs.iter().map(start).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join();
            let ended: Result<_, _> = threads.into_iter().map(join).collect();
            ended.unwrap_or_else(|panic| resume_unwind(panic))
        });
        let shared = shared.into_iter().map(|shared| into_inner(shared).held);
        for held in ended.iter().flat_map(|ended| ended.own.iter().copied()).chain(shared) {
            // SAFETY: (1) the block is live, or `None`, and its domain's own; (2) its table ends here.
            unsafe { allocators[usize::from(held.domain)].free(held.block) };
        }
        if let Some(op) = ended.iter().find_map(|ended| ended.failed) {
            return Err(OutOfMemory { op });
        }
        let began = ended.iter().map(|ended| ended.began).min();
        let last = ended.iter().map(|ended| ended.ended).max();
        Ok(began.zip(last).map_or(Duration::ZERO, |(began, last)| last - began))
    }
}

/// Who uses a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    One(u16),
    Many,
}

impl Owner {
    fn and(self, thread: u16) -> Self {
        match self {
            Self::Nobody => Self::One(thread),
            Self::One(owner) if owner == thread => self,
            Self::One(_) | Self::Many => Self::Many,
        }
    }
}

/// What the threads of one pass share.
struct Run<'a, A: ?Sized> {
    allocators: [&'a A; DOMAINS],
    shared: &'a [Mutex<Shared>],
    barrier: &'a Barrier,
    /// Set when a thread ran out of memory. Relaxed: it only ends waits, and orders nothing.
    stop: &'a AtomicBool,
}

impl<A: ?Sized> Clone for Run<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A: ?Sized> Copy for Run<'_, A> {}

impl<A: Malloc + ?Sized> Run<'_, A> {
    fn thread(self, program: &Program) -> Ended {
        let mut own = vec![Held::default(); program.own_slots as usize];
        self.barrier.wait();
        let began = Instant::now();
        let failed = program.steps.iter().find(|step| match step.turn {
            None => !self.perform(step.op, &mut own[step.op.slot() as usize]),
            Some(turn) => !self.perform_in_turn(step.op, turn),
        });
        if failed.is_some() {
            self.stop.store(true, Relaxed);
        }
        Ended { own, failed: failed.map(|step| step.op), began, ended: Instant::now() }
    }

    fn perform(&self, op: Op, held: &mut Held) -> bool {
        held.domain = op.domain();
        call(&self.allocators[usize::from(op.domain())], op, &mut held.block)
    }

    /// Performs `op` once the `turn` operations before it on its slot are done; the lock is not held meanwhile.
    fn perform_in_turn(&self, op: Op, turn: u32) -> bool {
        let shared = &self.shared[op.slot() as usize];
        let mut held = loop {
            let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.turn == turn {
                break shared.held;
            }
            drop(shared);
            if self.stop.load(Relaxed) {
                return false;
            }
            thread::yield_now();
        };
        let succeeded = self.perform(op, &mut held);
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.held = held;
        shared.turn += 1;
        succeeded
    }
}

fn into_inner(shared: Mutex<Shared>) -> Shared {
    shared.into_inner().unwrap_or_else(PoisonError::into_inner)
}
