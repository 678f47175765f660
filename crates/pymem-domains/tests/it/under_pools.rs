//! What works under the pools sees what they pass on to raw, and nothing else; and raw as it is then.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::Malloc;
use malloc_api::testing::{Counting, Counts};
use pymem_domains::{AllocatorName, AllocatorRecord, Domain, Domains, RawWatch};

type Watcher = Counting<AllocatorRecord>;

/// Every watcher that was asked for, the newest last.
static WATCHERS: Mutex<Vec<&'static Watcher>> = Mutex::new(Vec::new());

/// Large blocks that have ended.
static FREED: AtomicUsize = AtomicUsize::new(0);

const WATCH: RawWatch = RawWatch { wrap, freed: |_| _ = FREED.fetch_add(1, Relaxed) };

fn wrap(raw: AllocatorRecord) -> AllocatorRecord {
    let watcher: &Watcher = Box::leak(Box::new(Counting::new(raw)));
    WATCHERS.lock().unwrap().push(watcher);
    AllocatorRecord::new(watcher)
}

fn counts() -> Counts {
    WATCHERS.lock().unwrap().last().map(|watcher| watcher.counts()).unwrap_or_default()
}

/// The suite's own allocations are of other domains, so that `wrap` may allocate.
#[test]
fn watchers_see_what_the_pools_pass_on() {
    let domains = Domains::new(crate::profile(), Some(AllocatorName::Pymalloc)).unwrap();
    let [raw, obj] = [Domain::Raw, Domain::Obj].map(|domain| domains.get(domain));
    // SAFETY: 1: it passes every call on. 2: the suite allocates from the process's domains.
    let is_first = unsafe { domains.watch_raw_below(WATCH) };
    // SAFETY: as above.
    assert!(is_first && !unsafe { domains.watch_raw_below(WATCH) });
    // Under a memory checker there is no span.
    let large = usize::from(cfg!(any(feature = "asan", feature = "valgrind")));
    let cases =
        [(raw, 100, 0), (obj, 100, 0), (obj, 40_000, large), (obj, 0, 1), (obj, 1 << 20, 1)];
    for (domain, size, seen) in cases {
        let before = counts();
        FREED.store(0, Relaxed);
        let block = domain.malloc(size).unwrap();
        let live = counts().live_blocks;
        // SAFETY: live, of this domain, not used again.
        unsafe { domain.free(Some(block)) };
        let after = counts();
        assert_eq!(live - before.live_blocks, seen, "{size} bytes");
        assert_eq!((after.malloc - before.malloc, after.free - before.free), (seen, seen));
        let in_span = usize::from(size == 40_000 && large == 0);
        assert_eq!(FREED.load(Relaxed), in_span, "{size} bytes");
    }
    let inner: &AllocatorRecord = Box::leak(Box::new(domains.get_allocator(Domain::Raw)));
    let wrapper: &'static Counting<&AllocatorRecord> = Box::leak(Box::new(Counting::new(inner)));
    // SAFETY: the wrapper passes blocks through as they are.
    unsafe { domains.wrap_allocator(Domain::Raw, |_| AllocatorRecord::new(wrapper)) };
    let block = obj.malloc(40_000).unwrap();
    assert_eq!((counts().live_blocks, wrapper.counts().live_blocks), (1, 1), "raw is another now");
    // SAFETY: live, of this domain, not used again.
    unsafe { obj.free(Some(block)) };
    assert_eq!((counts().live_blocks, wrapper.counts().live_blocks), (0, 0));
}
