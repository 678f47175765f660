//! Every point at which memory can run out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pymem_sync::qsbr::{Collector, Delayed, Domain, Limits, Participant, Reclaim};

thread_local! {
    /// Allocations of this thread that still succeed.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Bytes that this thread has allocated and not freed.
    static LIVE: Cell<usize> = const { Cell::new(0) };
    /// Called in this thread's next allocation.
    static NEXT: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// The system's allocator, until the calling thread has used up what it has left.
struct OnDemand;

// SAFETY: the system's allocator, or a failure.
unsafe impl GlobalAlloc for OnDemand {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(next) = NEXT.take() {
            next();
        }
        let left = LEFT.get();
        if left == 0 {
            return std::ptr::null_mut();
        }
        LEFT.set(left - 1);
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: OnDemand = OnDemand;

/// Runs `body` while every allocation of this thread fails.
fn without_memory<R>(body: impl FnOnce() -> R) -> R {
    with_allocations(0, body)
}

/// Runs `body`, in which the thread's first `count` allocations succeed and all others fail.
fn with_allocations<R>(count: usize, body: impl FnOnce() -> R) -> R {
    LEFT.set(count);
    let result = body();
    LEFT.set(usize::MAX);
    result
}

thread_local! {
    static RECLAIMED: Cell<usize> = const { Cell::new(0) };
}

struct Numbered(usize);

impl Reclaim for Numbered {
    fn bytes(&self) -> usize {
        8
    }

    fn reclaim(self) {
        RECLAIMED.with(|count| count.set(count.get() + 1));
    }
}

#[test]
fn a_collector_gives_every_chunk_of_slots_back() {
    let before = LIVE.get();
    let collector = Collector::new();
    let readers: Vec<_> =
        (0..40).map(|_| Participant::register(&collector).expect("memory")).collect();
    let slots = collector.slots();
    assert!(slots >= 40, "{slots}");
    drop(readers);
    drop(collector);
    assert_eq!(LIVE.get(), before);
}

#[test]
fn an_item_that_finds_no_memory_comes_back() {
    let domain = Domain::new();
    let collector = domain.collector();
    let delayed = Delayed::new(&domain, Limits { items: 1_000_000, bytes: usize::MAX }).unwrap();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    let mut queued = 0;
    let refused = without_memory(|| {
        loop {
            // SAFETY: (1), (2), (3) nobody can reach a number.
            match unsafe { delayed.retire(Numbered(queued)) } {
                Ok(()) => queued += 1,
                Err(error) => break error,
            }
        }
    });
    assert_eq!(refused.0.0, queued, "the very item");
    assert_eq!(delayed.pending().items, queued);
    assert_eq!(delayed.pending().bytes, 8 * queued, "a refused item does not count");
    assert!(refused.to_string().contains("no memory to queue"), "{refused}");
    // With memory again, the same item is queued, and nothing was lost.
    // SAFETY: as above.
    assert!(unsafe { delayed.retire(refused.0) }.is_ok());
    reader.detach();
    assert_eq!(delayed.flush(), queued + 1);
    assert_eq!(RECLAIMED.with(Cell::get), queued + 1);
}

/// Every allocation of a thread's life in turn is the first that fails: each item is reclaimed once, or comes back.
#[test]
fn no_item_is_lost_whichever_allocation_fails_first() {
    const ITEMS: usize = 400;
    let mut refused_at = Vec::new();
    for count in 0.. {
        let domain = Domain::new();
        let collector = domain.collector();
        let readers: Vec<_> = (0..8).map(|_| Participant::register(collector).unwrap()).collect();
        readers.iter().for_each(|reader| reader.attach());
        RECLAIMED.set(0);
        let limits = Limits { items: 50, bytes: usize::MAX };
        let (mut queued, mut refused) = (0, 0);
        let ended = with_allocations(count, || {
            let own = Participant::register(collector).ok()?;
            let delayed = Delayed::new(&domain, limits)?;
            own.attach();
            for number in 0..ITEMS {
                // SAFETY: (1), (2), (3) nobody can reach a number.
                match unsafe { delayed.retire(Numbered(number)) } {
                    Ok(()) => queued += 1,
                    Err(_) => refused += 1,
                }
                if number % 120 == 100 {
                    delayed.process();
                    readers.iter().chain([&own]).for_each(|reader| reader.quiescent_state());
                }
            }
            own.detach();
            Some(())
        });
        readers.iter().for_each(|reader| reader.detach());
        let late = domain.process();
        assert_eq!(RECLAIMED.get(), queued, "{count} allocations, {late} of them late");
        assert!(!domain.has_abandoned());
        assert_eq!(queued + refused, if ended.is_some() { ITEMS } else { 0 });
        refused_at.push(refused);
        if ended.is_some() && refused == 0 {
            break;
        }
    }
    assert!(refused_at.len() >= 6, "{refused_at:?}");
    assert_eq!(refused_at[..2], [0, 0], "no slot, and no queue");
}

#[test]
fn a_full_queue_makes_room_by_processing() {
    let domain = Domain::new();
    let collector = domain.collector();
    let delayed = Delayed::new(&domain, Limits { items: 1_000_000, bytes: usize::MAX }).unwrap();
    // SAFETY: (1), (2), (3) nobody can reach a number.
    let retire = |number| unsafe { delayed.retire(Numbered(number)) }.is_ok();
    assert!((0..4).all(retire));
    delayed.process(); // a deferred goal for the four
    let _ = collector.advance(); // which somebody's advance reaches
    // The queue has room for a few; once it has none, those that are ready make room.
    let queued = without_memory(|| (4..100).take_while(|number| retire(*number)).count());
    assert_eq!(queued, 96, "nobody is attached, so there is always something to reclaim");
    assert!(RECLAIMED.with(Cell::get) >= 90);
}

#[test]
fn a_hand_over_needs_no_memory() {
    let domain = Domain::new();
    let collector = domain.collector();
    let delayed = Delayed::new(&domain, Limits::default()).unwrap();
    let reader = Participant::register(collector).unwrap();
    reader.attach();
    for number in 0..10 {
        // SAFETY: (1), (2), (3) nobody can reach a number.
        assert!(unsafe { delayed.retire(Numbered(number)) }.is_ok());
    }
    without_memory(|| drop(delayed));
    assert!(domain.has_abandoned());
    reader.detach();
    assert_eq!(domain.process(), 10, "also those that never got a goal of their own");
    assert!(!domain.has_abandoned());
}

#[test]
fn registration_without_memory_is_an_error_and_can_be_repeated() {
    let collector = &Collector::new();
    let first: Vec<_> = (0..8).map(|_| Participant::register(collector).unwrap()).collect();
    let error = without_memory(|| Participant::register(collector).map(drop)).unwrap_err();
    assert!(error.to_string().contains("register again"), "{error}");
    assert_eq!(collector.slots(), 8);
    let ninth = Participant::register(collector).unwrap();
    assert_eq!(collector.slots(), 16);
    drop((first, ninth));
    let again = without_memory(|| Participant::register(collector).map(drop));
    assert!(again.is_ok(), "a free slot needs no memory");
}

thread_local! {
    static QUEUE: Cell<Option<&'static Delayed<'static, Numbered>>> = const { Cell::new(None) };
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

/// Contract: an allocator that retires into the queue that grows has its item back.
#[test]
fn an_allocator_may_retire_while_the_queue_grows() {
    fn retire_again() {
        let queue = QUEUE.get().unwrap();
        // SAFETY: (1) no reader knows of it; (2), (3) there is none.
        let refused = unsafe { queue.retire(Numbered(7)) };
        let number = refused.map_err(|error| error.0.0);
        // SAFETY: (1) there is no reader.
        let reclaimed = unsafe { queue.reclaim_all() } + queue.process();
        REFUSED.set(usize::from(number == Err(7) && reclaimed == 0));
    }
    let domain: &'static Domain<Numbered> = Box::leak(Box::new(Domain::new()));
    let queue = Box::leak(Box::new(Delayed::new(domain, Limits::default()).unwrap()));
    QUEUE.set(Some(queue));
    NEXT.set(Some(retire_again));
    // SAFETY: (1) no reader knows of it; (2), (3) there is none.
    unsafe { queue.retire(Numbered(0)) }.unwrap();
    assert_eq!(REFUSED.get(), 1);
    assert_eq!(queue.pending().items, 1);
    assert_eq!(queue.flush(), 1);
}
