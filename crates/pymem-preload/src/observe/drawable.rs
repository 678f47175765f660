//! Owns the allocators behind mem and obj of a process whose heap is to be drawn: such that any thread may walk them at any
//! time. Leaves when that happens, and the picture, to `heap_map.rs`.
//!
//! The pools have a lock. mimalloc's heaps are each thread's own, and every call of them, the exit of a thread included, is
//! made under one lock, so that who holds it has stopped the world.

use core::cell::OnceCell;
use core::ptr::NonNull;

use heap_report::Snapshot;
use malloc_api::{Malloc, immortal};
use mimalloc_heaps::{HeapError, HeapKind, InterpreterHeaps, MiMalloc, ThreadHeaps, World};
use pymalloc_core::{LargeRuns, LockedPymalloc, MmapArenas};
use pymem_domains::{AllocatorRecord, Backend, Domain, DomainAllocator, Domains};
use pymem_sync::{ForkLock, Lock, LockGuard, Rank, hold_over_forks};

/// Heaps that can be walked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Drawable {
    /// The pools behind both domains.
    Pools(&'static Pools),
    /// The heaps of every thread.
    Heaps(&'static InterpreterHeaps),
}

/// Of the type that other processes have too: another one would be the same code once more.
type Pools = LockedPymalloc<LargeRuns<DomainAllocator>, MmapArenas>;

impl Drawable {
    /// Heaps that serve as `backend` does in `domains`; `None` for the C library's.
    ///
    /// # Errors
    ///
    /// What keeps mimalloc's heaps from being there.
    pub(crate) fn new(backend: Backend, domains: Domains) -> Result<Option<Self>, HeapError> {
        match backend {
            Backend::Pymalloc => {
                let large = LargeRuns::new(domains.raw_for_allocators());
                let pools = LockedPymalloc::with_source(large, MmapArenas::new());
                Ok(Some(Self::Pools(immortal::leak(pools))))
            }
            Backend::Mimalloc => {
                let heaps = InterpreterHeaps::main()?;
                // Without memory for the handlers a child may find the lock held, as without this call.
                let _ = hold_over_forks(&HELD);
                Ok(Some(Self::Heaps(heaps)))
            }
            Backend::Malloc => Ok(None),
        }
    }

    /// The record that serves `domain`, mem or obj.
    pub(crate) fn record(self, domain: Domain) -> AllocatorRecord {
        match self {
            Self::Pools(pools) => AllocatorRecord::rare(pools),
            Self::Heaps(heaps) => {
                let kind = if domain == Domain::Mem { HeapKind::Mem } else { HeapKind::Object };
                AllocatorRecord::leak(WorldHeaps { heaps, kind })
            }
        }
    }

    /// What the heaps look like now.
    pub(crate) fn snapshot(self, name: String) -> Snapshot {
        match self {
            Self::Pools(pools) => Snapshot::of_pymalloc(name, |visit| pools.for_each_pool(visit)),
            Self::Heaps(heaps) => Snapshot::of_mimalloc(name, heaps, &LockedWorld),
        }
    }

    /// The pools, for their counts and to give memory back; `None` where mimalloc serves.
    pub(crate) fn pools(self) -> Option<&'static Pools> {
        match self {
            Self::Pools(pools) => Some(pools),
            Self::Heaps(_) => None,
        }
    }
}

/// Held in every call of mimalloc's heaps, and by who has stopped the world.
static WORLD: Lock<()> = Lock::new(());

/// Keeps the lock usable in forked children.
static HELD: ForkLock = ForkLock::new(Rank::Wrapper, &WORLD);

/// The world as the threads that are in no call of the heaps.
struct LockedWorld;

// SAFETY: 1: blocks and heaps of the interpreter are reached by `WorldHeaps` and by `Own` alone, both under the lock, which
// `stop` waits for. 2: the lock hands over what its holders did. 3: nothing is passed to a delayed free.
unsafe impl World for LockedWorld {
    fn stop(&self) {
        WORLD.raw().lock();
    }

    unsafe fn start(&self) {
        // SAFETY: 1: locked by `stop` (duty 1).
        unsafe { WORLD.raw().unlock() };
    }
}

/// The heaps of a thread, which it gives up under the lock when it exits.
struct Own(OnceCell<ThreadHeaps>);

impl Drop for Own {
    fn drop(&mut self) {
        let _world = WORLD.lock();
        drop(self.0.take());
    }
}

thread_local! {
    static OWN: Own = const { Own(OnceCell::new()) };
}

/// mimalloc's heaps of the calling thread, of one kind, used under the lock.
struct WorldHeaps {
    heaps: &'static InterpreterHeaps,
    kind: HeapKind,
}

impl WorldHeaps {
    /// Calls `work` with the calling thread's heaps; `None` if it has none: it is ending, or there is no memory.
    fn with<T>(&self, work: impl FnOnce(&ThreadHeaps) -> T) -> (Option<T>, LockGuard<'static, ()>) {
        let world = WORLD.lock();
        let answer = OWN.try_with(|own| {
            if own.0.get().is_none() {
                // A thread that cannot attach now may the next time.
                let _ = own.0.set(self.heaps.attach().ok()?);
            }
            own.0.get().map(work)
        });
        (answer.ok().flatten(), world)
    }
}

// SAFETY: 1: mimalloc's blocks are exclusive, `ThreadHeaps` and `MiMalloc` align them, and they outlive the thread; 2, 3 and
// 4: as those two promise; attaching allocates from other allocators; 5: blocks know their heap, whoever frees them.
unsafe impl Malloc for WorldHeaps {
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        let (answer, _world) = self.with(|heaps| heaps.malloc(self.kind, size));
        answer.unwrap_or_else(|| MiMalloc.malloc(size))
    }

    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        let (answer, _world) = self.with(|heaps| heaps.calloc(self.kind, nelem, elsize));
        answer.unwrap_or_else(|| MiMalloc.calloc(nelem, elsize))
    }

    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        let (answer, _world) = self.with(|heaps| {
            // SAFETY: the caller's 1 and 2.
            unsafe { heaps.realloc(self.kind, ptr, new_size) }
        });
        match answer {
            Some(block) => block,
            // SAFETY: the caller's 1 and 2: mimalloc resizes a block of any of its heaps.
            None => unsafe { MiMalloc.realloc(ptr, new_size) },
        }
    }

    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        let _world = WORLD.lock();
        // SAFETY: the caller's 1 and 2: mimalloc takes back a block of any of its heaps on any thread.
        unsafe { MiMalloc.free(ptr) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    use malloc_api::testing::{alone, forked};
    use pymem_domains::Profile;

    use super::*;

    /// Makes a block and frees it.
    fn use_heaps(record: &AllocatorRecord) {
        let block = record.malloc(100);
        assert!(block.is_some());
        // SAFETY: live, of this record, not used again.
        unsafe { record.free(block) };
    }

    #[test]
    fn a_child_allocates_although_other_threads_were_in_their_heaps() {
        let name = "observe::drawable::tests::a_child_allocates_although_other_threads_were_in_their_heaps";
        alone(name, || {
            let domains = Domains::new(Profile::NEWEST, None).expect("domains");
            let drawable =
                Drawable::new(Backend::Mimalloc, domains).expect("heaps").expect("of mimalloc");
            let record = drawable.record(Domain::Obj);
            let (stop, begun) = (AtomicBool::new(false), Barrier::new(2));
            let ended = thread::scope(|scope| {
                scope.spawn(|| {
                    use_heaps(&record);
                    begun.wait();
                    while !stop.load(Relaxed) {
                        use_heaps(&record);
                    }
                });
                begun.wait();
                let ended = (0..40).all(|_| child_ends(&record));
                stop.store(true, Relaxed);
                ended
            });
            assert!(ended, "a child waits for a thread that only its parent has");
        });
    }

    /// Forks; whether the child comes to its end after an allocation.
    fn child_ends(record: &AllocatorRecord) -> bool {
        // SAFETY: 1: the child only allocates, which the handlers keep possible.
        unsafe { forked(|| use_heaps(record)) }.1.success()
    }
}
