//! Forks beside threads that come and go, and what the child does with what it inherits.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use malloc_api::testing::{alone, resident_bytes};
use malloc_api::{Malloc as _, ReleaseLevel};
use mimalloc_heaps::{BarrierWorld, HeapKind, InterpreterHeaps, MiMalloc, World};

use crate::threads::{Parcel, check, fill};
use crate::visit::{quiet_world, visit_blocks};

/// Processor time after which a child counts as hung, in seconds; it needs milliseconds.
const SPINNING: u64 = 1;
/// So often does a child that waits for a lock for ever go to sleep; others do some dozen times.
const WAITING: u64 = 10_000;
/// So many looks at a child that sleeps, one every `NAP`, show that it never wakes.
const LOOKS: usize = 100;
const NAP: Duration = Duration::from_millis(5);

/// The times that all threads of a process have gone to sleep, and whether all sleep at the moment.
///
/// A thread that waits for a processor, however long on a busy machine, is not asleep.
fn sleeps(process: libc::pid_t) -> Option<(u64, bool)> {
    let (mut sleeps, mut asleep) = (0, true);
    for thread in fs::read_dir(format!("/proc/{process}/task")).ok()? {
        let status = fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        let value = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        asleep &= value("State:")?.starts_with('S');
        sleeps += value("voluntary_ctxt_switches:")?.parse::<u64>().ok()?;
    }
    Some((sleeps, asleep))
}

/// Forks, runs `in_child` in the child, and returns its exit status; `None` if it hung and was killed.
fn in_fork(in_child: impl FnOnce() -> i32) -> Option<i32> {
    // SAFETY: the child calls nothing that the lock of a dead thread could block, or hangs, which is what is tested.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork failed");
    if child == 0 {
        let limit = libc::rlimit { rlim_cur: SPINNING, rlim_max: SPINNING + 1 };
        // SAFETY: a filled structure; past the limit the system ends the child by a signal.
        unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) };
        let status = in_child();
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(status) };
    }
    let start = Instant::now();
    let mut status = 0;
    let (mut last, mut looks) = (None, 0);
    while looks < LOOKS {
        // SAFETY: the child's id and a valid place.
        if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
            if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGXCPU {
                return None;
            }
            assert!(libc::WIFEXITED(status), "the child died of signal {}", libc::WTERMSIG(status));
            return Some(libc::WEXITSTATUS(status));
        }
        // Most children end at once, and looking costs more than they do.
        if start.elapsed() < NAP {
            thread::sleep(Duration::from_micros(20));
            continue;
        }
        thread::sleep(NAP);
        let now = sleeps(child);
        if now.is_some_and(|(sleeps, _)| sleeps > WAITING) {
            break;
        }
        looks = if now.is_some_and(|(_, asleep)| asleep) && now == last { looks + 1 } else { 0 };
        last = now;
    }
    // SAFETY: the child's id.
    unsafe { libc::kill(child, libc::SIGKILL) };
    // SAFETY: the child's id and a valid place.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    None
}

/// Runs `work` on a thread of its own, to its end.
///
/// Not a thread of Rust's: those take a lock of the standard library's when they begin and end, which a child may inherit
/// taken. It would hang for that, whatever the allocator does.
fn on_thread(work: impl Fn() + Sync) {
    extern "C" fn run<W: Fn() + Sync>(work: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: what `on_thread` passes, and it waits for this thread.
        let work = unsafe { &*work.cast::<W>() };
        work();
        core::ptr::null_mut()
    }
    fn routine<W: Fn() + Sync>(_: &W) -> extern "C" fn(*mut libc::c_void) -> *mut libc::c_void {
        run::<W>
    }
    let mut thread = 0;
    let argument = (&raw const work).cast_mut().cast();
    // SAFETY: places that outlive the thread, which is joined below, and a function for this argument.
    let error = unsafe {
        libc::pthread_create(&raw mut thread, core::ptr::null(), routine(&work), argument)
    };
    assert_eq!(error, 0, "no thread");
    // SAFETY: a thread that was made just now, joined once.
    assert_eq!(unsafe { libc::pthread_join(thread, core::ptr::null_mut()) }, 0);
}

/// Some 30 operations on heaps of the child's own, and on those that it adopts; some on a thread of its own.
fn use_heaps(interpreter: &InterpreterHeaps) -> i32 {
    let attach_and_allocate = |interpreter: &InterpreterHeaps| {
        let heaps = interpreter.attach().expect("memory");
        for kind in HeapKind::ALL {
            let block = heaps.malloc(kind, 300).expect("memory");
            fill(block, 300, 3);
            check(block, 300, 3);
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(block)) };
        }
    };
    let own = InterpreterHeaps::new().expect("memory");
    attach_and_allocate(&own);
    attach_and_allocate(interpreter);
    on_thread(|| attach_and_allocate(interpreter));
    0
}

/// Visits heaps of its own again and again, until `done`.
///
/// A visitor runs under the lock that is held around all of mimalloc's. By giving up its time slice there, this thread makes
/// a fork find the lock taken often, on any number of processors and under any load.
fn hold_the_lock_often(done: &AtomicBool) {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    let block = heaps.malloc(HeapKind::Mem, 100).unwrap();
    while !done.load(Ordering::Relaxed) {
        let visited = visit_blocks(&interpreter, &quiet_world(), HeapKind::Mem, |_| {
            thread::yield_now();
            ControlFlow::Break(())
        });
        assert!(visited.is_break(), "no block, and so no visitor");
        thread::yield_now();
    }
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
}

/// Forks `forks` times beside two threads that attach and exit, and one that runs `third` until its flag is set; returns how
/// many children hung, at most `enough`.
fn hung_children(forks: usize, enough: usize, third: fn(&AtomicBool)) -> usize {
    let interpreter = InterpreterHeaps::new().unwrap();
    let life = || {
        let heaps = interpreter.attach().unwrap();
        for kind in HeapKind::ALL {
            let block = heaps.malloc(kind, 100).unwrap();
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(block)) };
        }
    };
    hung_beside(forks, enough, life, third, || use_heaps(&interpreter))
}

/// Forks `forks` times beside two threads that keep starting one of `life` and waiting for its end, and one that runs `third`
/// until its flag is set; returns how many children hung in `in_child`, at most `enough`.
fn hung_beside(
    forks: usize,
    enough: usize,
    life: impl Fn() + Sync,
    third: fn(&AtomicBool),
    in_child: impl Fn() -> i32,
) -> usize {
    let done = AtomicBool::new(false);
    let mut hung = 0;
    thread::scope(|scope| {
        scope.spawn(|| third(&done));
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    on_thread(&life);
                }
            });
        }
        for _ in 0..forks {
            match in_fork(&in_child) {
                Some(status) => assert_eq!(status, 0),
                None => hung += 1,
            }
            if hung >= enough {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    hung
}

#[test]
fn no_child_of_1000_hangs() {
    alone("fork::no_child_of_1000_hangs", || assert_eq!(hung_children(1000, 3, |_| ()), 0));
}

#[test]
fn no_child_hangs_on_a_lock_that_another_thread_held() {
    alone("fork::no_child_hangs_on_a_lock_that_another_thread_held", || {
        assert_eq!(hung_children(200, 3, hold_the_lock_often), 0);
    });
}

/// mimalloc begins and ends a thread that is attached to nothing under a lock of its own.
#[test]
fn no_child_hangs_on_a_lock_of_mimallocs_own() {
    let life = || {
        let block = MiMalloc.malloc(100);
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { MiMalloc.free(block) };
    };
    alone("fork::no_child_hangs_on_a_lock_of_mimallocs_own", || {
        mimalloc_heaps::hold_over_forks().unwrap();
        let in_child = || {
            on_thread(life);
            0
        };
        assert_eq!(hung_beside(3000, 3, life, |_| (), in_child), 0);
    });
}

/// The checks above are ones: without the handlers a child hangs soon.
#[test]
fn without_handlers_children_hang() {
    alone("fork::without_handlers_children_hang", || {
        mimalloc_heaps::control_without_fork_handlers();
        let hung = hung_children(200, 1, hold_the_lock_often);
        assert_ne!(hung, 0, "no child hung without fork handlers");
    });
}

/// mimalloc lets one thread at a time give memory back, under a mark of its own that a child may inherit.
#[test]
fn every_child_gives_memory_back() {
    fn give_back(done: &AtomicBool) {
        let interpreter = InterpreterHeaps::new().unwrap();
        let heaps = interpreter.attach().unwrap();
        while !done.load(Ordering::Relaxed) {
            let block = heaps.malloc(HeapKind::Mem, 32 << 20).unwrap();
            fill(block, 32 << 20, 1);
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(block)) };
            heaps.release(ReleaseLevel::Pages);
        }
    }
    alone("fork::every_child_gives_memory_back", || {
        const BYTES: usize = 16 << 20;
        let interpreter = InterpreterHeaps::new().unwrap();
        let use_and_free = || {
            let heaps = interpreter.attach().unwrap();
            let block = heaps.malloc(HeapKind::Mem, BYTES).unwrap();
            fill(block, BYTES, 1);
            let before = resident_bytes();
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { heaps.free(Some(block)) };
            heaps.release(ReleaseLevel::Pages);
            before - resident_bytes().min(before)
        };
        let done = AtomicBool::new(false);
        let kept = thread::scope(|scope| {
            scope.spawn(|| give_back(&done));
            scope.spawn(|| give_back(&done));
            let kept = (0..100).filter(|_| {
                // The child's child too.
                let in_child = || {
                    let in_grandchild = in_fork(|| i32::from(use_and_free() < BYTES / 2));
                    in_grandchild.unwrap_or(2) + 4 * i32::from(use_and_free() < BYTES / 2)
                };
                in_fork(in_child) != Some(0)
            });
            let kept = kept.count();
            done.store(true, Ordering::Relaxed);
            kept
        });
        assert_eq!(kept, 0, "children that keep what is free");
    });
}

/// Contract: pages that belonged to other threads become the child's.
#[test]
fn a_child_reclaims_what_its_dead_threads_had() {
    alone("fork::a_child_reclaims_what_its_dead_threads_had", || {
        const BLOCKS: usize = 2500;
        let interpreter = InterpreterHeaps::new().unwrap();
        let world = BarrierWorld::new();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            // SAFETY: (1) the heaps are used between checkpoints only; (2) nothing is read lock-free.
            let main = unsafe { world.join() };
            let heaps = interpreter.attach().unwrap();
            let (sender, receiver) = std::sync::mpsc::channel();
            for _ in 0..3 {
                let (sender, interpreter, world, done) =
                    (sender.clone(), &interpreter, &world, &done);
                scope.spawn(move || {
                    // SAFETY: as above.
                    let thread = unsafe { world.join() };
                    let heaps = interpreter.attach().unwrap();
                    for number in 0..BLOCKS {
                        let block = heaps.malloc(HeapKind::Gc, 128).unwrap();
                        fill(block, 128, number as u8);
                        sender.send((Parcel(block), number as u8)).unwrap();
                    }
                    for _ in 0..5 {
                        let block = heaps.malloc(HeapKind::Mem, 50).unwrap();
                        // SAFETY: (1) live, and freed by nobody else; (2), (3) no reader knows of it.
                        unsafe { heaps.free_delayed(Some(block)) }.unwrap();
                    }
                    drop(sender);
                    while !done.load(Ordering::Relaxed) {
                        thread.checkpoint();
                        thread::yield_now();
                    }
                });
            }
            drop(sender);
            let parcels: Vec<(Parcel, u8)> = main.blocking(|| receiver.iter().collect());
            assert_eq!(parcels.len(), 3 * BLOCKS);
            main.stop();
            let status = in_fork(|| {
                // SAFETY: (1) just forked; (2) the world was stopped.
                unsafe { mimalloc_heaps::after_fork_in_child() };
                // SAFETY: (1) stopped before the fork.
                unsafe { main.start_in_child() };
                let before = interpreter.statistics(&main);
                assert_eq!((before.attached_threads, before.abandoned_sets), (1, 3));
                assert_eq!(before.of_kind(HeapKind::Gc).blocks, 3 * BLOCKS);
                heaps.quiescent();
                heaps.process_delayed();
                assert_eq!(
                    interpreter.count_blocks(&main, HeapKind::Mem),
                    0,
                    "delayed by the dead"
                );
                for (Parcel(block), tag) in &parcels {
                    check(*block, 128, *tag);
                    // SAFETY: (1) live in this process and (2) not used afterwards.
                    unsafe { heaps.free(Some(*block)) };
                }
                let after = interpreter.statistics(&main).of_kind(HeapKind::Gc);
                assert_eq!((after.blocks, after.areas), (0, 0), "pages of dead threads are kept");
                0
            });
            // SAFETY: (1) stopped above.
            unsafe { main.start() };
            assert_eq!(status, Some(0));
            // The parent goes on as before.
            assert_eq!(interpreter.count_blocks(&main, HeapKind::Gc), 3 * BLOCKS);
            done.store(true, Ordering::Relaxed);
            drop(heaps);
            drop(main);
        });
    });
}
