//! Programs on real threads that check every byte they read. They keep to what ThreadSanitizer understands without an
//! instrumented standard library: spawned threads, leaked memory and `core`'s atomics. Each runs for a time, and every thread
//! of it at least one round, however late it is scheduled.
#![allow(dead_code, reason = "each binary runs what it wants")]

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pymem_sync::qsbr::{Delayed, Domain, Limits, Participant, Reclaim};
use pymem_sync::{Lock, Published, RemoteStack};

/// What a freed word holds.
const DEAD: usize = 0xDDDD_DDDD;

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn join<T>(threads: Vec<JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().expect("a thread failed")).collect()
}

/// Immutable once published; all words are equal.
struct Record([usize; 8]);

impl Record {
    fn whole(&self) -> usize {
        let first = self.0[0];
        assert_ne!(first, DEAD, "read after free");
        assert!(self.0.iter().all(|word| *word == first), "half a record: {:x?}", self.0);
        first
    }
}

struct Retired {
    record: NonNull<Record>,
    reclaimed: &'static AtomicUsize,
}

// SAFETY: a retired record belongs to whoever has the item.
unsafe impl Send for Retired {}

impl Reclaim for Retired {
    fn bytes(&self) -> usize {
        size_of::<Record>()
    }

    fn reclaim(self) {
        // SAFETY: from `Box::into_raw`, unlinked, and no reader can see it any more.
        let mut record = unsafe { Box::from_raw(self.record.as_ptr()) };
        record.0 = [DEAD; 8];
        self.reclaimed.fetch_add(1, Ordering::Relaxed);
    }
}

struct Table {
    domain: Domain<Retired>,
    links: [AtomicPtr<Record>; 4],
    retired: AtomicUsize,
    reclaimed: AtomicUsize,
}

fn boxed(value: usize) -> *mut Record {
    Box::into_raw(Box::new(Record([value; 8])))
}

/// Attaches and reads, detaches, and registers anew, all the time.
fn read(table: &'static Table, stop: &'static AtomicBool) {
    let mut rounds = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let participant =
            Participant::register(table.domain.collector()).expect("memory for a slot");
        for _ in 0..50 {
            participant.attach();
            for _ in 0..50 {
                let record = table.links[rounds % 4].load(Ordering::Acquire);
                // SAFETY: linked a moment ago, and this participant is attached until it has been read.
                unsafe { &*record }.whole();
                rounds += 1;
                participant.quiescent_state();
            }
            participant.detach();
        }
    }
}

/// A short life that replaces records and retires the old ones.
fn replace(table: &'static Table, seed: usize) {
    let participant = Participant::register(table.domain.collector()).expect("memory for a slot");
    let delayed = Delayed::new(&table.domain, Limits { items: 31, bytes: 4096 }).unwrap();
    participant.attach();
    for round in 0..500 {
        let new = boxed(seed + round);
        let old = table.links[(seed + round) % 4].swap(new, Ordering::AcqRel);
        let record = NonNull::new(old).expect("links are never null");
        let item = Retired { record, reclaimed: &table.reclaimed };
        table.retired.fetch_add(1, Ordering::Relaxed);
        // SAFETY: (1) swapped out; (2) readers attach around their reads; (3) they are joined before the end.
        assert!(unsafe { delayed.retire(item) }.is_ok());
        participant.quiescent_state();
        if round % 16 == 0 {
            delayed.process();
        }
    }
    participant.detach();
}

/// Two readers of records that a stream of short-lived threads replaces.
pub(crate) fn readers_and_reclaimers(duration: Duration) {
    let table = leak(Table {
        domain: Domain::new(),
        links: std::array::from_fn(|link| AtomicPtr::new(boxed(link))),
        retired: AtomicUsize::new(0),
        reclaimed: AtomicUsize::new(0),
    });
    let stop = leak(AtomicBool::new(false));
    let readers: Vec<_> = (0..2).map(|_| thread::spawn(|| read(table, stop))).collect();
    let end = Instant::now() + duration;
    for seed in (1000..).step_by(1000) {
        join((0..2).map(|thread| thread::spawn(move || replace(table, seed + thread))).collect());
        if Instant::now() > end {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    join(readers);
    table.domain.process();
    let retired = table.retired.load(Ordering::Relaxed);
    assert!(retired >= 1000, "the program has done nothing");
    assert_eq!(table.reclaimed.load(Ordering::Relaxed), retired, "once each");
}

const HEAPS: usize = 3;
const BLOCKS: usize = 32;

/// A block of four words; the first is the link while it waits.
#[repr(C)]
struct Block {
    words: UnsafeCell<[usize; 4]>,
}

/// Owned by one thread at a time; its stack is shared.
struct Heap {
    number: usize,
    free: Vec<NonNull<Block>>,
}

// SAFETY: blocks on the free list belong to the heap.
unsafe impl Send for Heap {}

struct World {
    pool: Lock<Vec<Heap>>,
    stacks: [RemoteStack; HEAPS],
    /// Blocks on their way to the threads that free them.
    mail: RemoteStack,
}

fn words(block: NonNull<Block>) -> NonNull<[usize; 4]> {
    // SAFETY: blocks are leaked.
    let words = unsafe { block.as_ref() }.words.get();
    NonNull::new(words).expect("inside a block")
}

/// Takes a heap, allocates from it and mails the blocks, leaves it.
fn own(world: &'static World, stop: &'static AtomicBool) -> usize {
    let mut sent = 0;
    while sent == 0 || !stop.load(Ordering::Relaxed) {
        let Some(mut heap) = world.pool.lock().pop() else {
            thread::yield_now();
            continue;
        };
        let stack = &world.stacks[heap.number];
        for round in 0..200 {
            let Some(block) = heap.free.pop() else {
                heap.free.extend(stack.drain().map(NonNull::cast));
                continue;
            };
            let seal = heap.number << 16 | round;
            // SAFETY: the block came from the free list, so nobody else has it.
            unsafe { words(block).write([0, heap.number, seal, !seal]) };
            // SAFETY: (1) a block of four words; (2) ours until here.
            unsafe { world.mail.push(block.cast()) };
            sent += 1;
        }
        assert!(heap.free.len() <= BLOCKS, "a block was doubled");
        world.pool.lock().push(heap);
    }
    sent
}

/// Frees what arrives; returns how much.
fn free(world: &'static World, stop: &'static AtomicBool) -> usize {
    let mut freed = 0;
    while !stop.load(Ordering::Relaxed) || !world.mail.is_empty() {
        for block in world.mail.drain() {
            // SAFETY: drained here, so it is ours.
            let [_, number, seal, inverse] = unsafe { words(block.cast()).read() };
            assert_eq!(seal, !inverse, "torn contents");
            assert_eq!(seal >> 16, number, "another heap's contents");
            // SAFETY: (1) a block of four words; (2) ours until here.
            unsafe { world.stacks[number].push(block) };
            freed += 1;
        }
        thread::yield_now();
    }
    freed
}

/// Heaps that change owners while their blocks are freed by other threads.
pub(crate) fn owners_and_freers(duration: Duration) {
    let world = leak(World {
        pool: Lock::new(Vec::new()),
        stacks: std::array::from_fn(|_| RemoteStack::new()),
        mail: RemoteStack::new(),
    });
    for number in 0..HEAPS {
        let block = |_| NonNull::from(leak(Block { words: UnsafeCell::new([0; 4]) }));
        let heap = Heap { number, free: (0..BLOCKS).map(block).collect() };
        world.pool.lock().push(heap);
    }
    let [stop, done] = [leak(AtomicBool::new(false)), leak(AtomicBool::new(false))];
    let owners = (0..2).map(|_| thread::spawn(|| own(world, stop))).collect();
    let freers = (0..2).map(|_| thread::spawn(|| free(world, done))).collect();
    thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    let sent: usize = join(owners).into_iter().sum();
    done.store(true, Ordering::Relaxed);
    let freed: usize = join(freers).into_iter().sum();
    assert!(sent > 0, "the program has done nothing");
    assert_eq!(freed, sent);
    let mut blocks = 0;
    while let Some(heap) = world.pool.lock().pop() {
        blocks += heap.free.len() + world.stacks[heap.number].drain().count();
    }
    assert_eq!(blocks, HEAPS * BLOCKS, "stranded or doubled");
}

/// One thread publishes new records while two read.
pub(crate) fn publishers_and_readers(duration: Duration) {
    let published = leak(Published::new(leak(Record([1; 8]))));
    let stop = leak(AtomicBool::new(false));
    let reading = leak(AtomicUsize::new(0));
    let read = || {
        let (mut last, mut changes) = (0, 0_usize);
        loop {
            let is_last = stop.load(Ordering::Acquire);
            let now = published.load().whole();
            assert!(now >= last, "an old record came back");
            if last == 0 {
                reading.fetch_add(1, Ordering::Relaxed);
            }
            changes += usize::from(now != last);
            last = now;
            if is_last {
                return changes;
            }
        }
    };
    let readers: Vec<_> = (0..2).map(|_| thread::spawn(read)).collect();
    while reading.load(Ordering::Relaxed) < readers.len()
        && !readers.iter().any(JoinHandle::is_finished)
    {
        thread::yield_now();
    }
    let end = Instant::now() + duration;
    // Records are for ever, so they are few.
    for number in 2..20_000 {
        let new = leak(Record([number; 8]));
        published.store(new);
        thread::yield_now();
        if Instant::now() > end {
            break;
        }
    }
    // Release: whoever sees the flag sees the last record too, when it reads once more.
    stop.store(true, Ordering::Release);
    assert!(join(readers).into_iter().all(|changes| changes >= 2), "a reader has seen one record");
}

/// Three threads keep two plain words equal.
pub(crate) fn lockers(duration: Duration) {
    let pair = leak(Lock::new([0_usize; 2]));
    let end = Instant::now() + duration;
    let add = move || {
        let mut added = 0;
        while Instant::now() < end {
            let mut pair = pair.lock();
            assert_eq!(pair[0], pair[1], "two owners");
            pair[0] += 1;
            pair[1] += 1;
            added += 1;
        }
        added
    };
    let added: usize = join((0..3).map(|_| thread::spawn(add)).collect()).into_iter().sum();
    assert_eq!(*pair.lock(), [added; 2]);
}

/// A race on purpose, to see that the tool at work reports races.
pub(crate) fn race() {
    struct Plain(UnsafeCell<usize>);
    // SAFETY: none, on purpose: this is the fault that ThreadSanitizer must find.
    unsafe impl Sync for Plain {}
    impl Plain {
        fn write(&self) {
            // SAFETY: none, on purpose.
            unsafe { self.0.get().write_volatile(1) };
        }
    }
    let plain = leak(Plain(UnsafeCell::new(0)));
    join((0..2).map(|_| thread::spawn(|| plain.write())).collect());
}
