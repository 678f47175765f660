//! A heap whose blocks are freed by other threads, and which outlives its owner.

use std::ptr::NonNull;
use std::thread;

use pymem_sync::{AbandonedPool, Node, Owned, RemoteStack};

struct Heap {
    free: Vec<usize>,
}

static POOL: AbandonedPool<'static, Heap> = AbandonedPool::new();
static REMOTE: RemoteStack = RemoteStack::new();

fn main() {
    let blocks: Vec<usize> = (0..4)
        .map(|_| std::ptr::from_mut(Box::leak(Box::new([0_usize; 2]))).expose_provenance())
        .collect();
    let mut heap = Owned::new(Box::leak(Box::new(Node::new(Heap { free: blocks }))));

    // The owner allocates everything and exits; its heap waits for the next thread.
    let live = std::mem::take(&mut heap.free);
    POOL.give(heap);

    // Another thread frees the blocks and leaves them to the next owner.
    let freer = thread::spawn(move || {
        for address in live {
            let block =
                NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("a block");
            // SAFETY: (1) a leaked block of two words; (2) nobody else uses it.
            unsafe { REMOTE.push(block) };
        }
    });
    freer.join().expect("the freer");

    // A third one adopts the heap with everything that was freed into it.
    let mut adopted = POOL.take().expect("the heap");
    adopted.free.extend(REMOTE.drain().map(|block| block.as_ptr().expose_provenance()));
    assert_eq!(adopted.free.len(), 4);
    println!("adopted a heap with {} free blocks", adopted.free.len());
}
