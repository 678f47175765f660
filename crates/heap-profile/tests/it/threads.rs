//! Threads: their counts add up, blocks cross, and what a source allocates is not recorded.

use std::sync::mpsc;
use std::thread;

use heap_profile::{
    ExactProfiler, Frame, Location, Options, Profile, SampledProfiler, StackSource, Walk,
};
use malloc_api::{Domain, LibcMalloc, Malloc};

use crate::script::{profile, run, serialized};

/// Makes blocks in four threads, which another four free, all counting at once.
fn cross(heap: &(impl Malloc + Sync)) {
    thread::scope(|scope| {
        for _ in 0..4 {
            let (sender, receiver) = mpsc::channel::<usize>();
            scope.spawn(move || {
                for block in receiver {
                    let block =
                        std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(block));
                    // SAFETY: (1) sent live; (2) the sender does not use it again.
                    run(&[9], || unsafe { heap.free(block) });
                }
            });
            scope.spawn(move || {
                for step in 0..20_000_usize {
                    let block = run(&[step % 5], || heap.malloc(1 + step % 300)).unwrap();
                    sender.send(block.as_ptr().expose_provenance()).unwrap();
                }
            });
        }
    });
}

#[test]
fn blocks_that_cross_threads_are_counted_exactly() {
    let (_, profile) = profile(32);
    cross(&ExactProfiler::new(LibcMalloc, profile, Domain::Raw));
    let snapshot = profile.snapshot();
    let bytes: u64 = (0..20_000).map(|step| 1 + step % 300).sum();
    assert_eq!((snapshot.live().bytes, snapshot.live().blocks), (0, 0));
    assert_eq!((snapshot.total().bytes, snapshot.total().blocks), (4 * bytes, 80_000));
}

/// As [`blocks_that_cross_threads_are_counted_exactly`], where calls have not overlapped before.
#[test]
fn a_shared_profile_counts_calls_that_overlap() {
    let (_, profile) = serialized();
    profile.share();
    cross(&ExactProfiler::new(LibcMalloc, profile, Domain::Obj));
    let total = profile.snapshot().total();
    assert_eq!((profile.live_bytes(), total.blocks), (0, 80_000));
}

#[test]
fn sampled_blocks_that_cross_threads_all_go() {
    let (_, profile) = profile(32);
    cross(&SampledProfiler::new(LibcMalloc, profile, Domain::Raw, 64));
    assert_eq!(profile.live_bytes(), 0);
    assert!(profile.snapshot().total().blocks > 40_000);
}

/// A source that allocates from the very allocator that is profiled.
struct Greedy;

static HEAP: LibcMalloc = LibcMalloc;

impl StackSource for Greedy {
    fn capture(&self, walk: &mut Walk<'_>) {
        let profile = PROFILE.get().copied();
        if let Some(profile) = profile {
            let heap = ExactProfiler::new(HEAP, profile, Domain::Mem);
            let block = heap.malloc(77);
            // SAFETY: (1) live; (2) not used again.
            unsafe { heap.free(block) };
        }
        let _ = walk.visit(1, Frame { code: 1, at: 1 });
    }

    fn locate(&self, _: Frame) -> Location {
        Location::default()
    }
}

static PROFILE: std::sync::OnceLock<&'static Profile<Greedy>> = std::sync::OnceLock::new();

#[test]
fn what_a_source_allocates_is_not_recorded() {
    let profile = PROFILE.get_or_init(|| Profile::new(Greedy, Options::default()).unwrap());
    let heap = ExactProfiler::new(HEAP, profile, Domain::Mem);
    let block = heap.malloc(10);
    assert_eq!(profile.snapshot().total().bytes, 10);
    // SAFETY: (1) live; (2) not used again.
    unsafe { heap.free(block) };
}
