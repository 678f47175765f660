//! Magazines before a lock: nothing is lost, counted wrongly or kept when threads end, exchange blocks, or fork.

use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use malloc_api::testing::{alone, conformance};
use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::{CachedPymalloc, LockedPymalloc, MmapArenas, ReleaseLevel};
use pymem_sync::{ForkLock, HeldOverFork, Rank, hold_over_forks};

type Pools = LockedPymalloc<LibcMalloc, MmapArenas>;
type Cached = CachedPymalloc<LibcMalloc, MmapArenas>;

fn cached(pools: &'static Pools) -> &'static Cached {
    pools.cached().expect("this system has magazines")
}

fn malloc_many(alloc: &impl Malloc, count: usize) -> Vec<NonNull<u8>> {
    (0..count).map(|index| alloc.malloc(1 + index * 7 % 3000).expect("memory")).collect()
}

fn free_all(alloc: &impl Malloc, blocks: Vec<NonNull<u8>>) {
    // SAFETY: 1: live; 2: not used again.
    blocks.into_iter().for_each(|block| unsafe { alloc.free(Some(block)) });
}

/// Asserts that nothing is live, and that all memory can go back.
fn assert_empty(pools: &Pools) {
    pools.check_invariants();
    assert_eq!(pools.allocated_blocks(), 0);
    assert_eq!(pools.stats().bytes_in_use(), 0);
    pools.release(ReleaseLevel::Arenas);
    assert_eq!(pools.stats().arenas_current, 0, "a magazine pins a pool");
}

/// Waits for the whole ends of threads, which the end of their scope does not.
fn join(threads: Vec<thread::ScopedJoinHandle<'_, ()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

#[test]
fn magazines_conform() {
    static POOLS: Pools = Pools::new(LibcMalloc);
    conformance(cached(&POOLS));
    assert_empty(&POOLS);
}

#[test]
fn blocks_in_magazines_count_as_free_and_come_last_in_first_out() {
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    let mut blocks: Vec<_> = (0..100).map(|_| cached.malloc(48).expect("memory")).collect();
    let class = |pools: &Pools| pools.stats().classes[2];
    assert_eq!((POOLS.allocated_blocks(), class(&POOLS).blocks_in_use), (100, 100));
    let freed = blocks.split_off(90);
    free_all(cached, freed.clone());
    assert_eq!((POOLS.allocated_blocks(), class(&POOLS).blocks_in_use), (90, 90));
    // The records take the place of some blocks.
    let bytes = class(&POOLS).pools * pymalloc_core::POOL_BYTES - 4096;
    assert!(class(&POOLS).blocks_available >= bytes / 48 - 90 - 8 * class(&POOLS).pools);
    let again: Vec<_> = (0..10).map(|_| cached.malloc(48).expect("memory")).collect();
    assert!(again.iter().eq(freed.iter().rev()));
    blocks.extend(again);
    // Either face takes the other's blocks.
    free_all(&POOLS, blocks);
    free_all(cached, malloc_many(&POOLS, 1000));
    assert_empty(&POOLS);
}

#[test]
fn a_freed_block_waits_for_its_thread() {
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    let block = cached.malloc(48).expect("memory");
    // SAFETY: live, and not used again.
    unsafe { cached.free(Some(block)) };
    let address = block.addr();
    let of_another = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let block = cached.malloc(48).expect("memory");
            // SAFETY: live, and not used again.
            unsafe { cached.free(Some(block)) };
            block.addr()
        });
        other.join().expect("a thread")
    });
    assert_ne!(of_another, address);
    let again = cached.malloc(48).expect("memory");
    assert_eq!(again.addr(), address);
    free_all(cached, vec![again]);
    assert_empty(&POOLS);
}

/// Small classes have magazines, those above 4096 bytes and the fallback's blocks take the lock.
#[test]
fn a_resized_block_keeps_its_bytes() {
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    let mut block = cached.malloc(1).expect("memory");
    // SAFETY: a byte.
    unsafe { block.write(0x5A) };
    for size in [16, 40, 48, 44, 30, 4000, 8192, 8000, 100_000, 10, 513, 1] {
        // SAFETY: 1: live; 2: only the answer is used.
        block = unsafe { cached.realloc(Some(block), size) }.expect("memory");
        // SAFETY: a live block.
        assert_eq!(unsafe { block.read() }, 0x5A, "{size} bytes");
    }
    free_all(cached, vec![block]);
    let cleared = cached.calloc(3, 100).expect("memory");
    // SAFETY: a live block of 300 bytes.
    let bytes = unsafe { std::slice::from_raw_parts(cleared.as_ptr(), 300) };
    assert!(bytes.iter().all(|byte| *byte == 0));
    free_all(cached, vec![cleared]);
    assert_empty(&POOLS);
}

#[test]
fn a_thread_that_ends_leaves_nothing_behind_and_the_next_one_begins_anew() {
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    for _ in 0..20 {
        let blocks = thread::spawn(move || {
            let blocks = malloc_many(cached, 500).into_iter().map(|block| block.addr().get());
            free_all(cached, malloc_many(cached, 500));
            blocks.collect::<Vec<_>>()
        });
        let blocks = blocks.join().expect("no panic");
        assert_eq!(POOLS.allocated_blocks(), 500);
        let block = |address| NonNull::new(std::ptr::with_exposed_provenance_mut(address));
        free_all(cached, blocks.into_iter().filter_map(block).collect());
    }
    assert_empty(&POOLS);
}

/// A block on its way to another thread.
struct Sent(NonNull<u8>);

// SAFETY: the sender forgets the block.
unsafe impl Send for Sent {}

#[test]
fn threads_free_each_others_blocks() {
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    let (mut senders, receivers): (Vec<_>, Vec<_>) =
        (0..4).map(|_| mpsc::sync_channel::<Sent>(100)).unzip();
    senders.rotate_left(1);
    thread::scope(|scope| {
        let ends = senders.into_iter().zip(receivers).enumerate();
        let threads = ends.map(|(seed, (sender, receiver))| {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed as u64);
                for _ in 0..20_000 {
                    let size = random.usize(1..700);
                    let block = cached.malloc(size).expect("memory");
                    // SAFETY: a live block.
                    unsafe { block.write_bytes(seed as u8, size) };
                    if let Err(mpsc::TrySendError::Full(Sent(block))) = sender.try_send(Sent(block))
                    {
                        // SAFETY: a live block that nobody else has.
                        assert_eq!(unsafe { block.read() }, seed as u8);
                        free_all(cached, vec![block]);
                    }
                    while let Ok(Sent(block)) = receiver.try_recv() {
                        // SAFETY: a live block that nobody else has.
                        assert_eq!(usize::from(unsafe { block.read() }), (seed + 3) % 4);
                        free_all(cached, vec![block]);
                    }
                }
                drop(sender);
                receiver.iter().for_each(|Sent(block)| free_all(cached, vec![block]));
            })
        });
        join(threads.collect());
    });
    assert_empty(&POOLS);
}

#[test]
fn allocators_beyond_the_eighth_do_without() {
    static POOLS: [Pools; 20] = [const { Pools::new(LibcMalloc) }; 20];
    for pools in &POOLS {
        let cached = cached(pools);
        let blocks = malloc_many(cached, 100);
        assert_eq!(pools.allocated_blocks(), 100);
        free_all(cached, blocks);
        assert_empty(pools);
    }
}

/// Ends a forked child: 0 if `works`.
fn end_child(works: bool) -> ! {
    // SAFETY: the child ends here.
    unsafe { libc::_exit(i32::from(!works)) }
}

fn wait_for(child: libc::pid_t) -> bool {
    assert!(child > 0, "the system forks");
    let mut status = 0;
    // SAFETY: a child of ours, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status == 0
}

/// Forks as a program with handlers does, which hold the lock.
fn fork(pools: &Pools) -> libc::pid_t {
    pools.lock_for_fork();
    // SAFETY: the child calls what may follow a fork, and ends without unwinding.
    let child = unsafe { libc::fork() };
    // SAFETY: 1: taken above.
    unsafe { pools.unlock_after_fork() };
    if child == 0 {
        // SAFETY: a child that hangs ends by the alarm.
        unsafe { libc::alarm(10) };
    }
    child
}

/// What waits in magazines of threads that a child has not got pins no pool there, and the forking thread keeps its own.
#[test]
fn a_child_takes_over_the_magazines_of_lost_threads() {
    alone("cached::a_child_takes_over_the_magazines_of_lost_threads", || {
        static POOLS: Pools = Pools::new(LibcMalloc);
        static BARRIER: Barrier = Barrier::new(4);
        let cached = cached(&POOLS);
        free_all(cached, malloc_many(cached, 300));
        thread::scope(|scope| {
            let live = || {
                free_all(cached, malloc_many(cached, 300));
                BARRIER.wait();
                BARRIER.wait();
            };
            let threads = (0..3).map(|_| scope.spawn(live)).collect();
            BARRIER.wait();
            let child = fork(&POOLS);
            if child == 0 {
                free_all(cached, malloc_many(cached, 300));
                POOLS.release(ReleaseLevel::Arenas);
                end_child(POOLS.stats().arenas_current == 0 && POOLS.allocated_blocks() == 0);
            }
            let works = wait_for(child);
            BARRIER.wait();
            join(threads);
            assert!(works, "a lost thread's magazine pins a pool");
        });
        assert_empty(&POOLS);
    });
}

/// A fork in the middle of other threads' calls, which take no lock, leaves the child whole pools.
#[test]
fn a_child_of_threads_that_allocate_has_whole_pools() {
    alone("cached::a_child_of_threads_that_allocate_has_whole_pools", || {
        static POOLS: Pools = Pools::new(LibcMalloc);
        static IS_OVER: AtomicBool = AtomicBool::new(false);
        let cached = cached(&POOLS);
        thread::scope(|scope| {
            let live = || {
                while !IS_OVER.load(Ordering::Relaxed) {
                    free_all(cached, malloc_many(cached, 20));
                }
            };
            let threads = (0..3).map(|_| scope.spawn(live)).collect();
            let mut broken = 0;
            for _ in 0..100 {
                let child = fork(&POOLS);
                if child == 0 {
                    let mut blocks = malloc_many(cached, 2000);
                    blocks.sort_unstable();
                    let is_unique = blocks.windows(2).all(|pair| pair[0] != pair[1]);
                    free_all(cached, blocks);
                    POOLS.check_invariants();
                    // What the threads had in use at that moment stays in use.
                    end_child(is_unique && POOLS.allocated_blocks() <= 3 * 20);
                }
                broken += usize::from(!wait_for(child));
            }
            IS_OVER.store(true, Ordering::Relaxed);
            join(threads);
            assert_eq!(broken, 0, "of 100 children");
        });
        assert_empty(&POOLS);
    });
}

/// A child whose lost threads kept much memory before the lock comes out of the handlers of its fork: what becomes free then wants a
/// thread that is registered with the handlers, whose list is locked.
#[test]
fn a_fork_with_much_free_memory_ends() {
    struct Held;
    static POOLS: Pools = Pools::new(LibcMalloc);
    static BARRIER: Barrier = Barrier::new(2);
    static HELD: ForkLock = ForkLock::new(Rank::Allocator, &Held);
    impl HeldOverFork for Held {
        fn hold(&self) {
            POOLS.lock_for_fork();
        }

        unsafe fn release(&self) {
            // SAFETY: 1: the caller's.
            unsafe { POOLS.unlock_after_fork() };
        }
    }

    alone("cached::a_fork_with_much_free_memory_ends", || {
        hold_over_forks(&HELD).expect("memory for the handlers");
        let cached = cached(&POOLS);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                let malloc = |_| cached.malloc(500).expect("memory");
                let (last, blocks): (Vec<_>, Vec<_>) =
                    (0..6000).map(malloc).enumerate().partition(|(index, _)| index % 1000 == 0);
                let free = |blocks: Vec<(usize, _)>| {
                    free_all(cached, blocks.into_iter().map(|(_, block)| block).collect());
                };
                free(blocks);
                // Each pins a pool from the thread's magazine.
                free(last);
                BARRIER.wait();
                BARRIER.wait();
            });
            BARRIER.wait();
            // SAFETY: the child calls what may follow a fork, and ends without unwinding.
            let child = unsafe { libc::fork() };
            if child == 0 {
                free_all(cached, malloc_many(cached, 300));
                POOLS.release(ReleaseLevel::Arenas);
                end_child(POOLS.stats().arenas_current == 0 && POOLS.allocated_blocks() == 0);
            }
            let works = ends_soon(child) && wait_for(child);
            BARRIER.wait();
            join(vec![other]);
            assert!(works, "the child does not end");
        });
        assert_empty(&POOLS);
    });
}

/// Whether `child` ends within ten seconds; it is ended then.
fn ends_soon(child: libc::pid_t) -> bool {
    for _ in 0..1000 {
        // SAFETY: all zeros are a valid record.
        let mut ended: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: a child of ours, and a place for what is known of it.
        unsafe { libc::waitid(libc::P_PID, child as libc::id_t, &raw mut ended, flags) };
        // SAFETY: filled by the call above, or zero.
        if unsafe { ended.si_pid() } == child {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    // SAFETY: a child of ours.
    unsafe { libc::kill(child, libc::SIGKILL) };
    wait_for(child)
}

/// Has the calling thread wait for the lock, which another thread holds, until `done`.
fn meet(pools: &Pools, cached: &Cached, done: impl Fn() -> bool) {
    let (is_held, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                pools.for_each_pool(|_| {
                    is_held.store(true, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(200));
                });
                thread::yield_now();
            }
        });
        for _ in 0..100_000 {
            while !is_held.swap(false, Ordering::Relaxed) {
                thread::yield_now();
            }
            // Zero bytes are the fallback's, behind the lock.
            free_all(cached, vec![cached.malloc(0).expect("memory")]);
            if done() {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(done(), "a thread that waits is noticed");
}

#[test]
fn a_thread_that_waits_often_has_arenas_of_its_own_until_it_ends() {
    const COUNT: usize = 200;
    /// Of so many blocks that the thread allocates, one outlives the thread.
    const PINNING: usize = 8;
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    let arena = |block: &NonNull<u8>| block.addr().get() >> 20;
    let malloc =
        |count| (0..count).map(|_| cached.malloc(1024).expect("memory")).collect::<Vec<_>>();
    // The one pool with which half magazines of 16, 32 and 64 blocks come out even: it is first in its list, and full.
    let even = |count| (0..count).map(|_| cached.malloc(144).expect("memory")).collect::<Vec<_>>();
    let mine = [malloc(1), even(1)].concat();
    let first = arena(&mine[0]);
    let others: Vec<usize> = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            meet(&POOLS, cached, || {
                let block = malloc(1);
                let own = arena(&block[0]);
                free_all(cached, block);
                own != first
            });
            let (pinning, freed): (Vec<_>, Vec<_>) =
                malloc(COUNT).into_iter().enumerate().partition(|(index, _)| index % PINNING == 0);
            POOLS.check_invariants();
            free_all(cached, freed.into_iter().map(|(_, block)| block).collect());
            let pinning = pinning.into_iter().map(|(_, block)| block).chain(even(113));
            pinning.map(|block| block.as_ptr().expose_provenance()).collect()
        });
        thread.join().expect("no panic")
    });
    POOLS.check_invariants();
    let block = |at| NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(at));
    let others: Vec<_> = others.into_iter().filter_map(block).collect();
    assert!(others.iter().all(|block| arena(block) != first));
    let more = malloc(COUNT);
    let taken_over = more.iter().filter(|block| arena(block) != first).count();
    assert!(taken_over > COUNT / 2, "{taken_over} blocks of the pools that the thread has left");
    POOLS.check_invariants();
    free_all(cached, [mine, more, others].concat());
    assert_empty(&POOLS);
}

/// At a limit of memory the blocks that the first lane has free come before the fallback's.
#[test]
fn a_lane_that_cannot_grow_takes_from_the_first() {
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    let malloc =
        |count| (0..count).map(|_| cached.malloc(1024).expect("memory")).collect::<Vec<_>>();
    let (live, freed): (Vec<_>, Vec<_>) =
        malloc(3000).into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    let live: Vec<_> = live.into_iter().map(|(_, block)| block).collect();
    free_all(cached, freed.into_iter().map(|(_, block)| block).collect());
    let first: Vec<_> = live.iter().map(|block| block.addr().get() >> 20).collect();
    let arenas = POOLS.stats().arenas_current;
    POOLS.set_memory_limit((arenas + 1) * pymalloc_core::ARENA_BYTES);
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            meet(&POOLS, cached, || {
                let block = malloc(1);
                let is_own = !first.contains(&(block[0].addr().get() >> 20));
                free_all(cached, block);
                is_own
            });
            let blocks = malloc(2000);
            let pooled = blocks.iter().filter(|block| POOLS.owns(block.as_ptr())).count();
            free_all(cached, blocks);
            assert_eq!(pooled, 2000, "blocks of the pools");
        });
        join(vec![thread]);
    });
    free_all(cached, live);
    assert_empty(&POOLS);
}

#[test]
fn threads_that_meet_lose_nothing() {
    const THREADS: usize = 4;
    static POOLS: Pools = Pools::new(LibcMalloc);
    let cached = cached(&POOLS);
    let (to_next, from_before): (Vec<_>, Vec<_>) =
        (0..THREADS).map(|_| mpsc::channel::<Vec<usize>>()).unzip();
    thread::scope(|scope| {
        let mut ways = from_before.into_iter();
        let mut threads = Vec::new();
        for number in 0..THREADS {
            let (to, from) = (to_next[(number + 1) % THREADS].clone(), ways.next().expect("a way"));
            threads.push(scope.spawn(move || {
                for round in 0..200 {
                    let blocks = malloc_many(cached, 200 + 50 * ((round + number) % 20));
                    let half = blocks.len() / 2;
                    free_all(cached, blocks[half..].to_vec());
                    let given =
                        blocks[..half].iter().map(|block| block.as_ptr().expose_provenance());
                    to.send(given.collect()).expect("the next thread lives");
                    let taken = from.recv().expect("the thread before lives").into_iter();
                    let block = |at| NonNull::new(std::ptr::with_exposed_provenance_mut(at));
                    free_all(cached, taken.filter_map(block).collect());
                }
            }));
        }
        join(threads);
    });
    assert_empty(&POOLS);
}
