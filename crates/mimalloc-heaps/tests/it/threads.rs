//! Threads that come and go: adoption, blocks freed elsewhere, exits in every order.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::mpsc;
use std::thread;

use malloc_api::{Malloc, ReleaseLevel};
use mimalloc_heaps::{HeapError, HeapKind, InterpreterHeaps, ThreadHeaps, ThreadMalloc};

use crate::visit::{blocks_of, kind_of, quiet_world};

/// A block on its way to another thread.
pub(crate) struct Parcel(pub(crate) NonNull<u8>);
// SAFETY: mimalloc takes back blocks on any thread, and the sender keeps no copy.
unsafe impl Send for Parcel {}

/// Fills a block, so that a later check sees whether somebody else wrote to it.
pub(crate) fn fill(block: NonNull<u8>, bytes: usize, tag: u8) {
    // SAFETY: a live block of at least `bytes` bytes.
    unsafe { block.as_ptr().write_bytes(tag, bytes) };
}

/// Checks what `fill` wrote.
pub(crate) fn check(block: NonNull<u8>, bytes: usize, tag: u8) {
    // SAFETY: a live block that `fill` has filled.
    let content = unsafe { std::slice::from_raw_parts(block.as_ptr(), bytes) };
    assert!(content.iter().all(|&byte| byte == tag), "the block at {block:?} lost its content");
}

fn free(heaps: &ThreadHeaps, block: NonNull<u8>) {
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
}

#[test]
fn a_second_attach_of_one_thread_is_refused() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let first = interpreter.attach().unwrap();
    assert_eq!(interpreter.attach().unwrap_err(), HeapError::AlreadyAttached);
    drop(first);
    drop(interpreter.attach().unwrap());
}

#[test]
fn one_thread_can_serve_two_interpreters() {
    let (one, two) = (InterpreterHeaps::new().unwrap(), InterpreterHeaps::new().unwrap());
    let (in_one, in_two) = (one.attach().unwrap(), two.attach().unwrap());
    let (a, b) =
        (in_one.malloc(HeapKind::Gc, 48).unwrap(), in_two.malloc(HeapKind::Gc, 48).unwrap());
    assert_eq!((kind_of(&one, a), kind_of(&one, b)), (Some(HeapKind::Gc), None));
    drop(in_one); // not the last one that was attached
    assert_eq!(one.attach().map(drop), Ok(()));
    free(&in_two, a);
    free(&in_two, b);
}

#[test]
fn the_next_thread_adopts_the_heaps_and_what_is_left_in_them() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let parcels: Vec<Parcel> = thread::scope(|scope| {
        let leaver = scope.spawn(|| {
            let heaps = interpreter.attach().unwrap();
            (0..1000)
                .map(|_| heaps.malloc(HeapKind::Object, 40).unwrap())
                .inspect(|block| fill(*block, 40, 7))
                .map(Parcel)
                .collect()
        });
        leaver.join().unwrap()
    });
    let heaps = interpreter.attach().unwrap();
    let world = quiet_world();
    let before = interpreter.statistics(&world);
    assert_eq!(before.heaps.len(), 1, "the second thread has the first one's heaps");
    assert_eq!(before.of_kind(HeapKind::Object).blocks, 1000);
    // Half of the room goes back through a remote free, and the adopter finds it again.
    for (index, Parcel(block)) in parcels.iter().enumerate() {
        check(*block, 40, 7);
        if index % 2 == 0 {
            free(&heaps, *block);
        }
    }
    let areas = before.total().areas;
    let again: Vec<_> = (0..400).map(|_| heaps.malloc(HeapKind::Object, 40).unwrap()).collect();
    assert_eq!(blocks_of(&interpreter, HeapKind::Object), 900);
    assert!(
        interpreter.statistics(&world).total().areas <= areas,
        "new pages beside half empty ones"
    );
    again.into_iter().for_each(|block| free(&heaps, block));
    parcels.iter().skip(1).step_by(2).for_each(|parcel| free(&heaps, parcel.0));
    assert_eq!(blocks_of(&interpreter, HeapKind::Object), 0);
}

#[test]
fn the_last_remote_free_into_abandoned_heaps_gives_the_pages_back() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let (to_freer, from_leaver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let heaps = interpreter.attach().unwrap();
            for size in (16..40_000).step_by(160) {
                to_freer.send(Parcel(heaps.malloc(HeapKind::Mem, size).unwrap())).unwrap();
            }
        });
    });
    drop(to_freer);
    assert_ne!(interpreter.statistics(&quiet_world()).total().areas, 0);
    // A thread that only frees: without any heap of its own.
    let heaps = InterpreterHeaps::new().unwrap();
    let heaps = heaps.attach().unwrap();
    from_leaver.into_iter().for_each(|parcel: Parcel| free(&heaps, parcel.0));
    assert_eq!(interpreter.statistics(&quiet_world()).total(), Default::default());
}

#[test]
fn heaps_dropped_by_a_late_thread_local_destructor_are_given_back_too() {
    struct Late(RefCell<Option<ThreadHeaps>>);
    impl Drop for Late {
        fn drop(&mut self) {
            if let Some(heaps) = &*self.0.borrow() {
                let block = heaps.malloc(HeapKind::Mem, 100).expect("heaps work to the end");
                free(heaps, block);
            }
        }
    }
    thread_local!(static LATE: Late = const { Late(RefCell::new(None)) });
    let interpreter = InterpreterHeaps::new().unwrap();
    for _ in 0..3 {
        thread::scope(|scope| {
            let leaver =
                scope.spawn(|| LATE.with(|late| *late.0.borrow_mut() = interpreter.attach().ok()));
            leaver.join().unwrap(); // a scope waits for the closure, this for the destructors too
        });
    }
    let statistics = interpreter.statistics(&quiet_world());
    assert_eq!((statistics.abandoned_sets, statistics.attached_threads), (1, 0));
}

/// A C host keeps its per-thread state under a pthread key, whose destructors run beside mimalloc's own.
#[test]
fn heaps_dropped_after_mimalloc_has_ended_the_thread_are_given_back_too() {
    unsafe extern "C" fn drop_heaps(heaps: *mut libc::c_void) {
        // SAFETY: from `Box::into_raw` below; the destructor runs once.
        drop(unsafe { Box::from_raw(heaps.cast::<ThreadHeaps>()) });
    }
    let interpreter = InterpreterHeaps::new().unwrap();
    let mut key: libc::pthread_key_t = 0;
    // SAFETY: a valid place and a destructor for what is stored below.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(drop_heaps)) }, 0);
    for _ in 0..3 {
        thread::scope(|scope| {
            let leaver = scope.spawn(|| {
                let heaps = Box::new(interpreter.attach().unwrap());
                assert!(heaps.malloc(HeapKind::Object, 64).is_some());
                // SAFETY: the key exists.
                unsafe { libc::pthread_setspecific(key, Box::into_raw(heaps).cast()) };
            });
            leaver.join().unwrap();
        });
    }
    let statistics = interpreter.statistics(&quiet_world());
    assert_eq!((statistics.abandoned_sets, statistics.attached_threads), (1, 0));
    assert_eq!(statistics.total().blocks, 3);
}

/// Heaps in a leaked box, or forgotten by unwinding code of a host: their theaps die with the thread.
#[test]
fn heaps_that_were_forgotten_are_given_back_at_the_end_of_the_thread() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let other = InterpreterHeaps::new().unwrap();
    for round in 1..=3 {
        thread::scope(|scope| {
            let leaver = scope.spawn(|| {
                let heaps = interpreter.attach().unwrap();
                assert!(heaps.malloc(HeapKind::Object, 64).is_some());
                std::mem::forget(heaps);
                // Not the first one of the thread's list.
                std::mem::forget(other.attach().unwrap());
            });
            leaver.join().unwrap();
        });
        let statistics = interpreter.statistics(&quiet_world());
        assert_eq!((statistics.abandoned_sets, statistics.attached_threads), (1, 0));
        assert_eq!(statistics.total().blocks, round);
        interpreter.release(&quiet_world(), ReleaseLevel::Pages);
        other.release(&quiet_world(), ReleaseLevel::Pages);
    }
}

#[test]
fn calls_without_a_handle_use_the_entered_heaps_and_kind() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    let main = InterpreterHeaps::main().unwrap();
    let kind_in = |interpreter: &InterpreterHeaps, malloc: ThreadMalloc| {
        let block = malloc.malloc(32).unwrap();
        let kind = kind_of(interpreter, block);
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { malloc.free(Some(block)) };
        kind
    };
    assert_eq!(kind_in(main, ThreadMalloc::CURRENT), Some(HeapKind::Object));
    heaps.enter(|| {
        assert_eq!(kind_in(&interpreter, ThreadMalloc::MEM), Some(HeapKind::Mem));
        assert_eq!(kind_in(&interpreter, ThreadMalloc::CURRENT), Some(HeapKind::Object));
        heaps.with_kind(HeapKind::GcPre, || {
            assert_eq!(kind_in(&interpreter, ThreadMalloc::CURRENT), Some(HeapKind::GcPre));
        });
        assert_eq!(heaps.set_current_kind(HeapKind::Gc), HeapKind::Object);
        assert_eq!(heaps.current_kind(), HeapKind::Gc);
    });
    assert_eq!(kind_in(&interpreter, ThreadMalloc::CURRENT), None);
}

#[test]
fn calls_without_a_handle_still_work_in_late_destructors() {
    struct Late;
    impl Drop for Late {
        fn drop(&mut self) {
            let block = ThreadMalloc::OBJECT.calloc(1, 200).expect("served by plain mimalloc");
            check(block, 200, 0);
            // SAFETY: (1) live and (2) not used afterwards.
            unsafe { ThreadMalloc::OBJECT.free(Some(block)) };
        }
    }
    thread_local!(static LATE: Late = const { Late });
    let join = thread::spawn(|| {
        LATE.with(|_| ()); // its destructor runs after that of the heaps
        let block = ThreadMalloc::OBJECT.malloc(10).unwrap();
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { ThreadMalloc::OBJECT.free(Some(block)) };
    });
    join.join().unwrap();
}

#[test]
fn aligned_blocks_are_aligned_and_live_in_their_heap() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let heaps = interpreter.attach().unwrap();
    for align in (0..20).map(|shift| 1_usize << shift) {
        for size in [0, 1, 24, 1000, 70_000] {
            let block = heaps.malloc_aligned(HeapKind::Gc, size, align).unwrap();
            assert_eq!(block.addr().get() % align.max(malloc_api::MIN_ALIGN), 0, "{size} {align}");
            assert_eq!(kind_of(&interpreter, block), Some(HeapKind::Gc));
            // SAFETY: (1) live.
            assert!(unsafe { heaps.usable_size(block) } >= size);
            fill(block, size, 1);
            free(&heaps, block);
        }
    }
    assert_eq!(heaps.malloc_aligned(HeapKind::Gc, 8, 24), None);
    assert_eq!(heaps.malloc_aligned(HeapKind::Gc, usize::MAX, 16), None);
}

#[test]
fn sets_are_pooled_not_piled_up() {
    let interpreter = InterpreterHeaps::new().unwrap();
    for _ in 0..100 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let heaps = interpreter.attach().unwrap();
                    let block = heaps.malloc(HeapKind::Object, 64).unwrap();
                    free(&heaps, block);
                });
            }
        });
    }
    assert!(interpreter.statistics(&quiet_world()).abandoned_sets <= 4);
}
