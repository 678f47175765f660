//! A heap whose blocks are freed by another thread.

use std::ptr::NonNull;
use std::thread;

use pymem_sync::RemoteStack;

static REMOTE: RemoteStack = RemoteStack::new();

fn main() {
    let blocks: Vec<usize> = (0..4)
        .map(|_| std::ptr::from_mut(Box::leak(Box::new([0_usize; 2]))).expose_provenance())
        .collect();

    // Another thread frees what this one has allocated, without a lock.
    let freer = thread::spawn(move || {
        for address in blocks {
            let block =
                NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("a block");
            // SAFETY: (1) a leaked block of two words; (2) nobody else uses it.
            unsafe { REMOTE.push(block) };
        }
    });
    freer.join().expect("the freer");

    // The owner finds them when it next looks, all at once.
    let free: Vec<NonNull<u8>> = REMOTE.drain().collect();
    assert_eq!(free.len(), 4);
    println!("{} blocks came back", free.len());
}
