//! Owns the way back from a block to its heap set: mimalloc knows a block's heap, this table knows whose heap it is.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::adopt::HeapSet;
use crate::ffi;
use crate::heap_kind::HeapKind;
use crate::registry::Registry;

/// Twice mimalloc's limit of 65,535 heaps, so the table is never more than half full. Untouched pages cost no memory.
const SLOTS: usize = 1 << 17;

/// A heap and its set: open addressing with linear steps. A deleted heap leaves its address without a set, which
/// the next heap on its way may take over.
struct Slot {
    /// The address of the `mi_heap_t`; 0 while the slot is free.
    heap: AtomicUsize,
    set: AtomicPtr<HeapSet>,
}

static TABLE: [Slot; SLOTS] =
    [const { Slot { heap: AtomicUsize::new(0), set: AtomicPtr::new(core::ptr::null_mut()) } };
        SLOTS];

/// The slots to look at for a heap, in order.
fn probe(heap: usize) -> impl Iterator<Item = &'static Slot> {
    // Fibonacci hashing; heaps are blocks of one size class, so their low bits are alike.
    let start = (heap as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SLOTS.trailing_zeros());
    (0..SLOTS).map(move |step| &TABLE[(start as usize + step) % SLOTS])
}

/// Remembers that `heap` belongs to `set`.
pub(crate) fn insert(
    _registry: &mut Registry,
    heap: NonNull<ffi::mi_heap_t>,
    set: &'static HeapSet,
) {
    let heap = heap.addr().get();
    let slot = probe(heap).find(|slot| slot.set.load(Ordering::Relaxed).is_null());
    if let Some(slot) = slot {
        slot.set.store(core::ptr::from_ref(set).cast_mut(), Ordering::Relaxed);
        slot.heap.store(heap, Ordering::Relaxed);
    }
}

/// Forgets `heap`, which is about to be deleted.
pub(crate) fn remove(_registry: &mut Registry, heap: NonNull<ffi::mi_heap_t>) {
    let heap = heap.addr().get();
    let slot = probe(heap).take_while(|slot| slot.heap.load(Ordering::Relaxed) != 0).find(|slot| {
        slot.heap.load(Ordering::Relaxed) == heap && !slot.set.load(Ordering::Relaxed).is_null()
    });
    if let Some(slot) = slot {
        slot.set.store(core::ptr::null_mut(), Ordering::Relaxed);
    }
}

/// The set and the kind of the heap that the block at `ptr` lives in; `None` if it is no block of any heap of ours.
///
/// Relaxed is enough: whoever holds a block has synchronised with the thread that allocated it, which did so after the
/// insertion. Slots that are being written at the moment belong to other heaps, and are compared by value only.
pub(crate) fn find(ptr: NonNull<u8>) -> Option<(&'static HeapSet, HeapKind)> {
    // SAFETY: mimalloc looks any address up in its page map.
    let heap = unsafe { ffi::mi_heap_of(ptr.as_ptr().cast()) };
    let heap = NonNull::new(heap)?;
    let address = heap.addr().get();
    let slot =
        probe(address).take_while(|slot| slot.heap.load(Ordering::Relaxed) != 0).find(|slot| {
            slot.heap.load(Ordering::Relaxed) == address
                && !slot.set.load(Ordering::Relaxed).is_null()
        })?;
    // SAFETY: stored before the heap's address by `insert`; sets live for ever.
    let set: &'static HeapSet = unsafe { slot.set.load(Ordering::Relaxed).as_ref() }?;
    let (kind, _) = set.heaps().find(|(_, candidate)| candidate.get() == Some(heap))?;
    Some((set, kind))
}
