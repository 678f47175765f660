//! A config that readers follow without a lock while a writer replaces it: old ones are freed once nobody can see them.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::thread;

use pymem_sync::qsbr::{Delayed, Domain, Limits, Participant, Reclaim};

const REPLACEMENTS: usize = 1000;
static FREED: AtomicUsize = AtomicUsize::new(0);

struct Old(NonNull<String>);

// SAFETY: an unlinked config belongs to whoever has the item.
unsafe impl Send for Old {}

impl Reclaim for Old {
    fn reclaim(self) {
        // SAFETY: from `Box::into_raw`, and no reader can see it any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        FREED.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() {
    let domain = Domain::new();
    let collector = domain.collector();
    let config = AtomicPtr::new(Box::into_raw(Box::new(String::from("config 0"))));
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = Participant::register(collector).expect("memory for a slot");
            reader.attach();
            for _ in 0..10_000 {
                // SAFETY: linked a moment ago, and this reader is attached until it has been read.
                let config = unsafe { &*config.load(Ordering::Acquire) };
                assert!(config.starts_with("config"));
                reader.quiescent_state(); // `config` is not used below
            }
            reader.detach();
        });
        let delayed = Delayed::new(&domain, Limits::default()).unwrap();
        for number in 1..=REPLACEMENTS {
            let new = Box::into_raw(Box::new(format!("config {number}")));
            let old = NonNull::new(config.swap(new, Ordering::AcqRel)).expect("never null");
            // SAFETY: (1) swapped out; (2) the reader attaches; (3) it is joined before `domain` is dropped.
            assert!(unsafe { delayed.retire(Old(old)) }.is_ok());
        }
    });
    domain.process();
    assert_eq!(FREED.load(Ordering::Relaxed), REPLACEMENTS);
    // SAFETY: from `Box::into_raw`, and nobody reads it any more.
    drop(unsafe { Box::from_raw(config.into_inner()) });
    println!("{REPLACEMENTS} configs freed");
}
