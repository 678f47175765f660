//! A list that one thread replaces while others read it without a lock, as an interpreter without a global lock does: what
//! it replaced is freed once no reader can see it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;

use mimalloc_heaps::{HeapError, HeapKind, InterpreterHeaps, ThreadHeaps};

const REPLACEMENTS: u64 = 1000;

/// What the list points to: a block of the mem heap.
type Storage = [u64; 16];

fn storage(heaps: &ThreadHeaps, value: u64) -> NonNull<Storage> {
    let block = heaps.malloc(HeapKind::Mem, size_of::<Storage>()).expect("memory").cast();
    // SAFETY: a new block of the size, aligned to 16.
    unsafe { block.write([value; 16]) };
    block
}

fn main() -> Result<(), HeapError> {
    let interpreter = InterpreterHeaps::new()?;
    let heaps = interpreter.attach()?;
    let list = AtomicPtr::new(storage(&heaps, 0).as_ptr());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let own = interpreter.attach().expect("heaps of its own");
                for _ in 0..10_000 {
                    // SAFETY: linked a moment ago, and not freed before this thread is quiescent.
                    let seen = unsafe { &*list.load(Ordering::Acquire) };
                    assert!(seen.iter().all(|value| *value == seen[0]), "whole and not freed");
                    own.quiescent(); // `seen` is not used below
                }
            });
        }
        for value in 1..=REPLACEMENTS {
            let new = storage(&heaps, value);
            let old = NonNull::new(list.swap(new.as_ptr(), Ordering::AcqRel)).map(NonNull::cast);
            // SAFETY: (1) live, and freed by nobody else; (2) swapped out; (3) readers are attached until they are quiescent.
            unsafe { heaps.free_delayed(old) }.expect("memory for the queue");
            heaps.quiescent();
        }
    });
    heaps.flush_delayed(); // asks for a last grace period, for which only this thread is waited
    heaps.quiescent();
    heaps.process_delayed();
    assert_eq!(heaps.pending_delayed().items, 0, "the readers have gone: nobody is waited for");
    // SAFETY: the last storage, live, and not used again.
    unsafe { heaps.free(NonNull::new(list.into_inner()).map(NonNull::cast)) };
    println!("{REPLACEMENTS} lists replaced under two readers, and every one freed");
    Ok(())
}
