//! Owns the replay of a program on several threads: who hands which block to whom, and how long it took.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use malloc_api::Malloc;

use crate::op::{Event, Op};
use crate::processor;
use crate::replay::{Fitter, OutOfMemory, Slot, by_bits, free_all, perform, standing};

/// Why a program was not replayed on its threads.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadsError {
    /// A call answered `None`.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The system cannot start as many threads as the program has.
    #[error(
        "{started} of {wanted} threads started: replay a trace of fewer threads, or raise the limits of threads and memory"
    )]
    Threads {
        /// Threads that started.
        started: usize,
        /// Threads of the program.
        wanted: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// A program of several threads made ready to be timed.
///
/// Each thread performs its own operations in their order. A thread that needs a block of another thread waits until that
/// thread is done with the block; nothing else synchronises the threads, so the same program may interleave differently
/// each time. Blocks are written and read as by [`Replay`](crate::Replay).
///
/// # Examples
///
/// ```
/// use malloc_api::LibcMalloc;
/// use malloc_trace::{ThreadedReplay, generate};
///
/// let mut replay = ThreadedReplay::new(generate::xmalloc(1, 2, 1000));
/// let times = replay.passes([&LibcMalloc; 3], 3)?;
/// assert_eq!((replay.threads(), times.len()), (2, 3));
/// # Ok::<(), malloc_trace::ThreadsError>(())
/// ```
#[derive(Debug)]
pub struct ThreadedReplay {
    programs: Vec<Program>,
    slots: usize,
}

/// What one thread does.
#[derive(Debug, Default)]
struct Program {
    /// Invariant 1: with the handovers, the operations fit the thread's table of slots, as those of a `Replay` do.
    ops: Vec<Op>,
    /// Ascending by `at`. At one place, gives come before takes: otherwise two threads might wait for each other.
    handovers: Vec<Handover>,
    /// Frees of the blocks that are live at the end, and this thread's.
    leftovers: Vec<Op>,
    outbox: Outbox,
}

/// The handing over of a block between two threads, seen from one of them.
#[derive(Debug, Clone, Copy)]
struct Handover {
    /// How many operations of the thread come before.
    at: usize,
    slot: u32,
    /// The thread from whose outbox the block is taken; `None` if the thread itself gives the block.
    from: Option<usize>,
    /// Which block of the outbox it is.
    place: usize,
}

/// A thread, and how many of its operations come before.
type Place = (usize, usize);

/// A thread publishes the number of blocks that it has given after so many blocks, and before it waits.
const BATCH: usize = 64;

/// The blocks that a thread gives to others, in the order of giving.
#[derive(Debug, Default)]
struct Outbox {
    /// Invariant 2: the thread that takes a block owns the block's cell once `given` is greater than the place; before, the
    /// giver owns the cell.
    blocks: Vec<UnsafeCell<Slot>>,
    /// How many blocks were given in this pass.
    given: Mutex<usize>,
}

// SAFETY: invariant 2 says which thread has a block, and the mutex orders its accesses; the allocators are `Sync`: any
// thread may use, resize and free a block.
unsafe impl Send for Outbox {}
// SAFETY: as above.
unsafe impl Sync for Outbox {}

impl Outbox {
    fn given(&self) -> MutexGuard<'_, usize> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `block` into `place`, or takes what is there.
    ///
    /// # Safety
    ///
    /// 1. The calling thread has the place by invariant 2.
    unsafe fn replace(&self, place: usize, block: Slot) -> Slot {
        // SAFETY: duty 1: no other thread reads or writes the cell now.
        unsafe { self.blocks[place].get().replace(block) }
    }
}

impl ThreadedReplay {
    /// Prepares `events`. Threads are those that the events name; the times are not used.
    #[must_use]
    pub fn new(events: impl IntoIterator<Item = Event>) -> Self {
        let mut programs: Vec<Program> = Vec::new();
        let mut fitter = Fitter::default();
        let mut numbers: HashMap<u16, usize> = HashMap::new();
        // The last user of each slot's block, and the handovers: from where, to where, of which slot.
        let mut holders: Vec<Place> = Vec::new();
        let mut ways: Vec<(Place, Place, u32)> = Vec::new();
        for Event { op, thread, .. } in events {
            let thread = *numbers.entry(thread).or_insert_with(|| {
                programs.push(Program::default());
                programs.len() - 1
            });
            for op in fitter.fit(op) {
                holders.resize(fitter.slots(), (0, 0));
                let holder = &mut holders[op.slot() as usize];
                let at = programs[thread].ops.len();
                if op.has_block() && holder.0 != thread {
                    ways.push((*holder, (thread, at), op.slot()));
                }
                programs[thread].ops.push(op);
                *holder = (thread, at + 1);
            }
        }
        ways.sort_unstable();
        for ((giver, given_at), (taker, at), slot) in ways {
            let Program { handovers, outbox, .. } = &mut programs[giver];
            let place = outbox.blocks.len();
            outbox.blocks.push(UnsafeCell::new(None));
            handovers.push(Handover { at: given_at, slot, from: None, place });
            programs[taker].handovers.push(Handover { at, slot, from: Some(giver), place });
        }
        for program in &mut programs {
            program.handovers.sort_by_key(|handover| (handover.at, handover.from.is_some()));
        }
        for op in fitter.leftovers() {
            programs[holders[op.slot() as usize].0].leftovers.push(op);
        }
        Self { programs, slots: fitter.slots() }
    }

    /// Number of threads that a replay starts.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.programs.len()
    }

    /// Number of calls that a pass makes on all threads before it frees the leftovers.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.programs.iter().map(|program| program.ops.len()).sum()
    }

    /// Replays the program `count` times on the same threads, with one allocator a domain (raw, mem, obj).
    ///
    /// Threads share the processors evenly. A time lasts from the start of the first thread to the end of the last. Each thread then frees the blocks that it
    /// leaves live, which is not part of the time.
    ///
    /// # Errors
    ///
    /// [`ThreadsError::OutOfMemory`] at a call that answered `None`; all threads stop and all blocks are freed then too.
    /// [`ThreadsError::Threads`] if the system cannot start the threads; nothing is called then.
    pub fn passes<A: Malloc + Copy + Sync>(
        &mut self,
        allocators: [A; 3],
        count: usize,
    ) -> Result<Vec<Duration>, ThreadsError> {
        let allocators = by_bits(allocators);
        let run = Run {
            allocators,
            programs: &self.programs,
            slots: self.slots,
            count,
            start: &RwLock::new(()),
            barrier: &Barrier::new(self.programs.len()),
            awake: &AtomicUsize::new(0),
            stop: &AtomicBool::new(false),
        };
        let ended = thread::scope(|scope| {
            let mut threads = Vec::new();
            let closed = run.start.write().unwrap_or_else(PoisonError::into_inner);
            let mut failed = None;
            for (number, program) in self.programs.iter().enumerate() {
                match run.spawn(scope, number, program) {
                    Ok(thread) => threads.push(thread),
                    Err(source) => {
                        run.stop.store(true, Relaxed);
                        failed = Some(source);
                        break;
                    }
                }
            }
            drop(closed);
            let started = threads.len();
            let join = |thread: ScopedJoinHandle<'_, Ended>| thread.join();
            let ended: Result<Vec<_>, _> = threads.into_iter().map(join).collect();
            let ended = ended.unwrap_or_else(|panic| resume_unwind(panic));
            match failed {
                None => Ok(ended),
                Some(source) => {
                    Err(ThreadsError::Threads { started, wanted: self.programs.len(), source })
                }
            }
        })?;
        if let Some(op) = ended.iter().find_map(|ended| ended.failed) {
            for program in &mut self.programs {
                for Handover { at, place, .. } in
                    program.handovers.iter().filter(|h| h.from.is_none())
                {
                    let block = program.outbox.blocks[*place].get_mut().take();
                    let domain = program.ops[at - 1].domain_bits();
                    // SAFETY: 1. live or `None`, given after the operation on it that has its domain; 2. taken.
                    unsafe { allocators[domain].free(block) };
                }
            }
            return Err(OutOfMemory { op }.into());
        }
        let spans = |pass| ended.iter().map(move |ended| ended.spans[pass]);
        let time = |pass| {
            let first = spans(pass).map(|(began, _)| began).min();
            let last = spans(pass).map(|(_, end)| end).max();
            first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first)
        };
        Ok((0..count).map(time).collect())
    }
}

/// What a thread leaves behind.
struct Ended {
    /// When each pass began and ended.
    spans: Vec<(Instant, Instant)>,
    /// The call of this thread that answered `None`.
    failed: Option<Op>,
}

/// What the threads of one replay share.
struct Run<'a, A> {
    allocators: [A; 4],
    programs: &'a [Program],
    slots: usize,
    count: usize,
    /// Locked for writing until every thread has started, or one could not.
    start: &'a RwLock<()>,
    barrier: &'a Barrier,
    /// How often a thread came out of a barrier into a pass. Relaxed: a start in common, which orders nothing.
    awake: &'a AtomicUsize,
    /// Set when a thread ran out of memory or did not start. Relaxed: locks and barriers order what depends on it.
    stop: &'a AtomicBool,
}

impl<'a, A: Malloc + Sync> Run<'a, A> {
    fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        number: usize,
        program: &'scope Program,
    ) -> io::Result<ScopedJoinHandle<'scope, Ended>> {
        Builder::new().spawn_scoped(scope, move || self.thread(number, program))
    }

    fn thread(&self, number: usize, program: &Program) -> Ended {
        processor::stay_on(number);
        let mut slots: Vec<Slot> = vec![None; self.slots];
        let mut ended = Ended { spans: Vec::with_capacity(self.count), failed: None };
        drop(self.start.read().unwrap_or_else(PoisonError::into_inner));
        // Nobody sets `stop` between the two barriers, so all threads read the same.
        while !self.stop.load(Relaxed) && ended.spans.len() < self.count {
            *program.outbox.given() = 0;
            self.barrier.wait();
            self.wait_until_awake(ended.spans.len() + 1);
            let began = Instant::now();
            let failed = self.pass(program, &mut slots);
            ended.spans.push((began, Instant::now()));
            match failed {
                Ok(()) => {
                    // SAFETY: 1. the slots are the table's; 2. the frees fit behind the operations (invariant 1).
                    let _no_failure =
                        unsafe { perform(&program.leftovers, &mut slots, &self.allocators) };
                }
                Err(Stopped { standing, failed }) => {
                    self.stop.store(true, Relaxed);
                    // SAFETY: 1. these stand, and `pass` empties the slots of blocks that it gives.
                    unsafe { free_all(standing, &mut slots, &self.allocators) };
                    ended.failed = failed;
                }
            }
            self.barrier.wait();
        }
        ended
    }

    /// Waits until every thread has come out of the barrier before the pass with this number: a thread that sleeps takes longer to
    /// wake up than a short pass lasts.
    fn wait_until_awake(&self, pass: usize) {
        self.awake.fetch_add(1, Relaxed);
        while self.awake.load(Relaxed) < pass * self.programs.len() {
            thread::yield_now();
        }
    }

    /// Performs the thread's operations, handovers in between.
    fn pass<'p>(&self, program: &'p Program, slots: &mut [Slot]) -> Result<(), Stopped<'p>> {
        let ops = program.ops.as_slice();
        let go = |slots: &mut [Slot], from: usize, to: usize| {
            // SAFETY: 1. the slots are the table's; 2. invariant 1: operations and handovers are performed in their order.
            let performed = unsafe { perform(&ops[from..to], slots, &self.allocators) };
            performed.map_err(|at| Stopped {
                standing: standing(ops, from + at),
                failed: Some(ops[from + at]),
            })
        };
        let (mut done, mut given) = (0, 0);
        let mut seen = vec![0; self.programs.len()];
        for &Handover { at, slot, from, place } in &program.handovers {
            go(slots, done, at)?;
            done = at;
            let slot = &mut slots[slot as usize];
            let Some(from) = from else {
                // SAFETY: 1. not given yet.
                unsafe { program.outbox.replace(place, slot.take()) };
                given = place + 1;
                if given % BATCH == 0 {
                    *program.outbox.given() = given;
                }
                continue;
            };
            if seen[from] <= place {
                // Whoever waits must not be waited for.
                *program.outbox.given() = given;
                seen[from] = self.wait_for(from, place);
            }
            if seen[from] <= place {
                return Err(Stopped { standing: &ops[..at], failed: None });
            }
            // SAFETY: 1. given, and this thread is the one that takes it.
            *slot = unsafe { self.programs[from].outbox.replace(place, None) };
        }
        *program.outbox.given() = given;
        go(slots, done, ops.len())
    }

    /// How many blocks the thread `from` has given, once that is more than `place` or nobody gives any more.
    fn wait_for(&self, from: usize, place: usize) -> usize {
        loop {
            let given = *self.programs[from].outbox.given();
            if given > place || self.stop.load(Relaxed) {
                return given;
            }
            thread::yield_now();
        }
    }
}

/// Why a thread stopped.
struct Stopped<'p> {
    /// The operations whose effect stands.
    standing: &'p [Op],
    /// The call that answered `None`; none if the thread waited in vain.
    failed: Option<Op>,
}
