//! Owns the crate's view of mimalloc: every C function that it calls, and the declarations that `libmimalloc-sys` lacks.
//!
//! All of them are non-static symbols of the mimalloc 3.3.2 that `libmimalloc-sys` 0.1.49 bundles. Some are internal
//! (leading underscore), which is why that crate is pinned to one version and why [`linked_version`] is compared before the
//! first heap is made. `tests::every_declaration_links` calls each of them.

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::Once;

pub(crate) use libmimalloc_sys::{
    MI_SMALL_SIZE_MAX, mi_block_visit_fun, mi_calloc, mi_collect, mi_free, mi_good_size,
    mi_heap_area_t, mi_heap_delete, mi_heap_destroy, mi_heap_new, mi_heap_t, mi_heap_visit_blocks,
    mi_malloc, mi_option_get, mi_option_set, mi_option_t, mi_realloc, mi_theap_t, mi_thread_done,
    mi_thread_init, mi_usable_size, mi_version, mi_zalloc_aligned,
};

/// The only mimalloc that this crate has been checked against: 3.3.2, as mimalloc itself writes it.
pub(crate) const SUPPORTED_VERSION: c_int = 30302;

/// The option that puts abandoned pages which came straight from the operating system on a list, so that visits see them.
pub(crate) const MI_OPTION_VISIT_ABANDONED: mi_option_t = 28;

/// The option that says after how many milliseconds what is free goes back; 0 for at once.
pub(crate) const MI_OPTION_PURGE_DELAY: mi_option_t = 15;

/// One statistic that rises and falls.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Count {
    pub(crate) total: i64,
    pub(crate) peak: i64,
    pub(crate) current: i64,
}

/// mimalloc's statistics of a heap or of the process: those that the release build keeps and we read, by name.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Stats {
    size: usize,
    version: usize,
    /// Pages with at least one block, owned and abandoned.
    pub(crate) pages: Count,
    _reserved: Count,
    _committed: Count,
    _reset: i64,
    /// Bytes given back to the system, ever.
    pub(crate) purged: i64,
    /// Every other statistic, in words.
    _rest: [i64; Self::REST_WORDS],
}

impl Stats {
    /// mimalloc's version of the structure.
    const VERSION: usize = 5;
    /// 15 counts and 21 counters by name, 4 of each in reserve, 74 malloc bins, 74 page bins and 6 chunk bins; less the three
    /// counts and two counters above.
    const REST_WORDS: usize = 3 * (15 + 4 + 74 + 74 + 6 - 3) + (21 + 4 - 2);

    /// An empty structure that mimalloc accepts as a target.
    pub(crate) const fn new() -> Self {
        const ZERO: Count = Count { total: 0, peak: 0, current: 0 };
        Self {
            size: size_of::<Self>(),
            version: Self::VERSION,
            pages: ZERO,
            _reserved: ZERO,
            _committed: ZERO,
            _reset: 0,
            purged: 0,
            _rest: [0; Self::REST_WORDS],
        }
    }
}

/// The beginning of `mi_page_t`: blocks of one size. All fields are the owner's, but for the two that are atomic.
#[repr(C)]
pub(crate) struct Page {
    /// The number of the thread that owns the page; another number where the page is full, has aligned blocks, or has no owner.
    pub(crate) owner: AtomicUsize,
    /// The block that is handed out next; each begins with a pointer to the next one.
    pub(crate) free: Cell<*mut c_void>,
    /// Blocks in use.
    pub(crate) used: Cell<u16>,
    /// Blocks that were made: they are in use, or were, or are in `free`. The others have never been touched.
    pub(crate) capacity: Cell<u16>,
    _reserved: u16,
    /// Above 0 where the page waits to be given back.
    pub(crate) retire_expire: Cell<u8>,
    /// Whether blocks in `free` are zero behind their first word.
    pub(crate) free_is_zero: Cell<bool>,
    /// The block that the owner freed last; each begins with a pointer to the one before.
    pub(crate) local_free: Cell<*mut c_void>,
    _thread_free: AtomicUsize,
    /// Bytes of a block.
    pub(crate) block_size: Cell<usize>,
    /// The first block.
    pub(crate) start: Cell<*mut c_void>,
}

/// The beginning of `mi_theap_t`.
#[repr(C)]
pub(crate) struct Theap {
    _other: [usize; 34],
    /// For each small size, in units of 16 bytes, the page that has its blocks; one without blocks where there is none. Then the page
    /// for sizes of eight bytes more, which is the next one's.
    pub(crate) pages: [(Cell<&'static Page>, Cell<&'static Page>); MI_SMALL_SIZE_MAX / 16 + 1],
}

/// Arenas that mimalloc has at most.
const ARENAS_MAX: usize = 160;

/// The beginning of `mi_heap_t`.
#[repr(C)]
struct Heap {
    _links_and_place: [usize; 8],
    theaps_lock: libc::pthread_mutex_t,
    _abandoned: [usize; 75 + 1],
    abandoned_lock: libc::pthread_mutex_t,
    _arena_pages: [usize; ARENAS_MAX],
    arena_pages_lock: libc::pthread_mutex_t,
}

/// The beginning of `mi_subproc_t`, of which a process has one.
#[repr(C)]
struct Subproc {
    _number_and_links: [usize; 3],
    arena_count: usize,
    _arenas: [usize; ARENAS_MAX],
    reserve_lock: libc::pthread_mutex_t,
    /// When some arena gives back what waits in it, in milliseconds; 0 while nothing waits.
    purge_expires: AtomicI64,
}

/// The beginning of `mi_tld_t`, as far as `_mi_arenas_collect` reads it.
#[repr(C)]
struct ThreadData {
    _thread: usize,
    /// With which arena to begin.
    sequence: usize,
    _numa_node: c_int,
    subproc: *const Subproc,
}

unsafe extern "C" {
    /// A static's address.
    fn mi_heap_main() -> *mut Heap;
    pub(crate) fn mi_heap_theap(heap: *mut mi_heap_t) -> *mut mi_theap_t;
    pub(crate) fn mi_heap_stats_get(heap: *mut mi_heap_t, stats: *mut Stats) -> bool;
    pub(crate) fn mi_stats_get(stats: *mut Stats) -> bool;
    pub(crate) fn mi_theap_malloc(theap: *mut mi_theap_t, size: usize) -> *mut c_void;
    pub(crate) fn mi_theap_zalloc(theap: *mut mi_theap_t, size: usize) -> *mut c_void;
    pub(crate) fn mi_theap_malloc_aligned(
        theap: *mut mi_theap_t,
        size: usize,
        alignment: usize,
    ) -> *mut c_void;
    pub(crate) fn mi_theap_realloc(
        theap: *mut mi_theap_t,
        ptr: *mut c_void,
        new_size: usize,
    ) -> *mut c_void;
    pub(crate) fn mi_theap_collect(theap: *mut mi_theap_t, force: bool);
    pub(crate) fn mi_theap_visit_blocks(
        theap: *const mi_theap_t,
        visit_blocks: bool,
        visitor: mi_block_visit_fun,
        arg: *mut c_void,
    ) -> bool;

    // Internal symbols of 3.3.2.
    pub(crate) fn _mi_theap_collect_abandon(theap: *mut mi_theap_t);
    pub(crate) fn _mi_theap_delete(theap: *mut mi_theap_t, acquire_tld_theaps_lock: bool);
    pub(crate) fn _mi_theap_area_visit_blocks(
        area: *const mi_heap_area_t,
        page: *mut c_void,
        visitor: mi_block_visit_fun,
        arg: *mut c_void,
    ) -> bool;
    pub(crate) fn _mi_heap_area_init(area: *mut mi_heap_area_t, page: *mut c_void);
    /// Parts of 8,192 pages each, by the address in units of 64 KiB. Set before the first block, and never changed.
    pub(crate) static _mi_page_map: *const *const *const Page;
    /// For a page whose last block was freed by its owner.
    pub(crate) fn _mi_page_retire(page: *const Page);
    pub(crate) fn _mi_page_free_collect(page: *mut c_void, force: bool);
    pub(crate) fn _mi_os_good_alloc_size(size: usize) -> usize;
    pub(crate) fn _mi_arenas_contain(ptr: *const c_void) -> bool;
    pub(crate) fn _mi_thread_local_get(key: usize) -> *mut c_void;
    pub(crate) fn _mi_thread_local_set(key: usize, value: *mut c_void) -> bool;
    pub(crate) fn _mi_is_main_thread() -> bool;
    fn _mi_preloading() -> bool;
    fn _mi_auto_process_init();
    /// A static's address.
    fn _mi_subproc_main() -> *const Subproc;
    fn _mi_arenas_collect(force_purge: bool, visit_all: bool, thread: *const ThreadData);
    /// The key under which mimalloc keeps the theap that its exit handler ends.
    static _mi_heap_default_key: libc::pthread_key_t;
    /// A theap that serves nothing: every allocation from it gives null. Opaque, so one byte stands for it.
    static _mi_theap_empty_wrong: u8;
}

/// The theap that serves nothing: every allocation from it gives null.
#[inline]
pub(crate) fn empty_theap() -> *mut mi_theap_t {
    (&raw const _mi_theap_empty_wrong).cast_mut().cast()
}

/// The calling thread's theap of the default heap, which `mi_malloc` uses; one without pages before the thread's first block, and after
/// its end.
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
#[inline]
pub(crate) fn default_theap() -> *mut mi_theap_t {
    let theap;
    // SAFETY: reads a variable of the thread, at the place that the linker has given it.
    unsafe {
        core::arch::asm!(
            "mov {0}, qword ptr [rip + __mi_theap_default@GOTTPOFF]",
            "mov {0}, qword ptr fs:[{0}]",
            out(reg) theap,
            options(nostack, preserves_flags, readonly, pure)
        );
    }
    theap
}

/// The theap that serves nothing, so that `mi_malloc` has every request.
#[cfg(not(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")))]
#[inline]
pub(crate) fn default_theap() -> *mut mi_theap_t {
    empty_theap()
}

/// Has mimalloc initialized, as its constructor does in programs whose linker has kept it. May be called from any thread.
pub(crate) fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // SAFETY: no preconditions.
        if unsafe { _mi_preloading() } {
            // SAFETY: what the constructor calls; it has not run, and this runs once.
            unsafe { _mi_auto_process_init() };
        }
    });
}

/// Keeps mimalloc's exit handler from ending the calling thread, which `thread.rs` does.
///
/// Also after it was ended: mimalloc leaves the default theap, which is freed by then, under the key, and the handler would
/// end the thread a second time, whoever has that memory then.
pub(crate) fn leave_thread_to_us() {
    // SAFETY: mimalloc has made the key when it was started, and does not change it.
    let key = unsafe { _mi_heap_default_key };
    // SAFETY: a live key; no destructor runs for null.
    unsafe { libc::pthread_setspecific(key, core::ptr::null()) };
}

/// When mimalloc would give back what waits in its arenas, in milliseconds; 0 while nothing waits.
#[inline]
pub(crate) fn purge_expires() -> &'static AtomicI64 {
    // SAFETY: no preconditions.
    let subproc = unsafe { _mi_subproc_main() };
    // SAFETY: a static, of which this field alone is used, which is atomic.
    unsafe { &(*subproc).purge_expires }
}

/// Gives back what has waited in any arena for as long as mimalloc's option says. Any thread may call it, also one that mimalloc does not
/// know; it allocates nothing, and takes no lock.
pub(crate) fn purge_expired() {
    // SAFETY: no preconditions.
    let subproc = unsafe { _mi_subproc_main() };
    let thread = ThreadData { _thread: 0, sequence: 0, _numa_node: 0, subproc };
    // SAFETY: of a thread it reads the two fields that are set.
    unsafe { _mi_arenas_collect(false, true, &raw const thread) };
}

/// Whether nobody is giving back what waits in arenas: mimalloc lets one thread at a time, by a static mark. Where nothing waits, as it
/// goes back at once or never, the answer is no.
pub(crate) fn may_purge() -> bool {
    // SAFETY: counts, null pointers, and a mutex that nobody uses.
    let mut subproc: Subproc = unsafe { core::mem::zeroed() };
    // One arena that is none, and a time in the future, which who may give back brings nearer.
    subproc.arena_count = 1;
    subproc.purge_expires = AtomicI64::new(i64::MAX);
    let thread = ThreadData { _thread: 0, sequence: 0, _numa_node: 0, subproc: &raw const subproc };
    // SAFETY: of a thread it reads the two fields that are set, of the subprocess the arenas and the time, which is atomic.
    unsafe { _mi_arenas_collect(false, true, &raw const thread) };
    subproc.purge_expires.load(Ordering::Relaxed) != i64::MAX
}

/// The mutexes of mimalloc's that a thread may take in any call, no holder of which waits for one before: of the main heap's theaps, of new
/// arenas, of the main heap's arenas, and of its pages outside of arenas. Once mimalloc is [started](start), they stay.
pub(crate) fn own_mutexes() -> [NonNull<libc::pthread_mutex_t>; 4] {
    // SAFETY: no preconditions.
    let heap = unsafe { mi_heap_main() };
    // SAFETY: no preconditions.
    let subproc = unsafe { _mi_subproc_main() }.cast_mut();
    // SAFETY: a static, of which an address is taken.
    let theaps = unsafe { &raw mut (*heap).theaps_lock };
    // SAFETY: as above.
    let reserve = unsafe { &raw mut (*subproc).reserve_lock };
    // SAFETY: as above.
    let arena_pages = unsafe { &raw mut (*heap).arena_pages_lock };
    // SAFETY: as above.
    let abandoned = unsafe { &raw mut (*heap).abandoned_lock };
    // SAFETY: parts of statics, so none is null.
    [theaps, reserve, arena_pages, abandoned].map(|mutex| unsafe { NonNull::new_unchecked(mutex) })
}

/// The mutex that any thread may take which frees into a page of `heap` outside of the arenas; its holder waits for nothing.
///
/// # Safety
///
/// 1. `heap` is live.
pub(crate) unsafe fn abandoned_mutex(heap: NonNull<mi_heap_t>) -> NonNull<libc::pthread_mutex_t> {
    let heap = heap.cast::<Heap>().as_ptr();
    // SAFETY: a live heap (1), of which an address is taken.
    let mutex = unsafe { &raw mut (*heap).abandoned_lock };
    // SAFETY: a part of a live heap, so not null.
    unsafe { NonNull::new_unchecked(mutex) }
}

/// The version of the linked mimalloc, as it writes it: 30302 is 3.3.2.
pub(crate) fn linked_version() -> c_int {
    // SAFETY: `mi_version` has no preconditions.
    unsafe { mi_version() }
}

#[cfg(test)]
mod tests {
    use core::ptr;
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use malloc_api::testing::alone;

    use super::*;

    unsafe extern "C" fn count(
        _heap: *const mi_heap_t,
        _area: *const mi_heap_area_t,
        block: *mut c_void,
        _bytes: usize,
        blocks: *mut c_void,
    ) -> bool {
        // SAFETY: the tests below pass a counter.
        let blocks = unsafe { &mut *blocks.cast::<usize>() };
        *blocks += usize::from(!block.is_null());
        true
    }

    /// One life of a heap, through every declaration.
    #[test]
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one life of one heap, in order")]
    fn every_declaration_links() {
        assert_eq!(linked_version(), SUPPORTED_VERSION);
        start();
        // SAFETY: a heap of this thread's own; each pointer is live until it is freed, and no other thread knows any.
        unsafe {
            mi_thread_init();
            let _is_main = _mi_is_main_thread();
            let heap = mi_heap_new();
            let theap = mi_heap_theap(heap);
            let mut stats = Stats::new();
            assert!(mi_heap_stats_get(heap, &raw mut stats), "the layout of the statistics");
            assert_eq!(stats.pages.current, 0);
            assert!(mi_stats_get(&raw mut stats));
            assert!(stats.purged >= 0);
            assert_eq!(mi_option_get(MI_OPTION_PURGE_DELAY), 1000, "the option is another one");

            let small = mi_theap_malloc(theap, 64);
            let zeroed = mi_theap_zalloc(theap, 64);
            let aligned = mi_theap_malloc_aligned(theap, 64, 256);
            let block = mi_theap_realloc(theap, mi_theap_malloc(theap, 100), 5000);
            assert_eq!(aligned.addr() % 256, 0);
            assert!(_mi_arenas_contain(block));
            assert!(!_mi_arenas_contain(ptr::null()));

            let mut blocks = 0_usize;
            assert!(mi_theap_visit_blocks(theap, true, Some(count), (&raw mut blocks).cast()));
            assert_eq!(blocks, 4);
            let mut area = core::mem::zeroed::<mi_heap_area_t>();
            unsafe extern "C" fn keep(
                _heap: *const mi_heap_t,
                from: *const mi_heap_area_t,
                _block: *mut c_void,
                _bytes: usize,
                to: *mut c_void,
            ) -> bool {
                // SAFETY: mimalloc passes an area, the test a place for one.
                unsafe { to.cast::<mi_heap_area_t>().write(*from) };
                false
            }
            assert!(!mi_heap_visit_blocks(heap, false, Some(keep), (&raw mut area).cast()));
            _mi_page_free_collect(area.reserved1, true);
            _mi_heap_area_init(&raw mut area, area.reserved1);
            blocks = 0;
            let page = area.reserved1;
            assert!(_mi_theap_area_visit_blocks(
                &raw const area,
                page,
                Some(count),
                (&raw mut blocks).cast()
            ));
            assert_eq!(blocks, area.used);

            let key = heap.cast::<usize>().add(4).read();
            assert_eq!(_mi_thread_local_get(key), theap.cast());
            mi_theap_collect(theap, true);
            _mi_theap_collect_abandon(theap);
            _mi_theap_delete(theap, true);
            assert!(_mi_thread_local_set(key, ptr::null_mut()));
            assert!(mi_heap_stats_get(heap, &raw mut stats));
            assert_ne!(stats.pages.current, 0);
            for block in [small, zeroed, aligned, block] {
                mi_free(block);
            }
            assert!(mi_heap_stats_get(heap, &raw mut stats));
            assert_eq!(stats.pages.current, 0, "the last free of an abandoned page gives it back");
            assert!(mi_theap_malloc(empty_theap(), 10).is_null());
            mi_collect(false);
        }
    }

    #[test]
    fn what_waits_in_arenas_is_where_mimalloc_has_it() {
        let clock = || -> f64 {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            text.split(' ').next().unwrap().parse().unwrap()
        };
        // What other tests give back meanwhile ends the time, or makes it a tenth.
        let mut seen = Vec::new();
        let is_there = (0..20).any(|_| {
            // SAFETY: no preconditions.
            unsafe { mi_collect(true) };
            let before = clock();
            // SAFETY: no preconditions.
            let block = unsafe { mi_malloc(8 << 20) };
            // SAFETY: a live block.
            unsafe { mi_free(block) };
            let expires = purge_expires().load(Ordering::Relaxed) as f64 / 1000.0;
            let after = clock();
            seen.push((before, after, expires));
            (before..after + 1.5).contains(&expires)
        });
        assert!(is_there, "{seen:?}");
    }

    /// What takes a mutex waits for whoever holds it, and goes on afterwards.
    #[test]
    fn mutexes_are_where_mimalloc_has_them() {
        fn begin_a_thread() {
            // SAFETY: no preconditions.
            unsafe { mi_thread_init() };
        }
        /// Of a GiB, which is in no arena that has a page: the new one's first page is for it.
        fn make_an_arena() {
            // SAFETY: no preconditions.
            let block = unsafe { mi_malloc(1 << 30) };
            // SAFETY: a live block.
            assert!(unsafe { _mi_arenas_contain(block) });
        }
        /// Aligned to more than arenas have, so that each block has a page of its own, which is given up when the next one is made.
        fn give_up_a_page_outside_arenas() {
            for _ in 0..20 {
                // SAFETY: a power of two.
                let block = unsafe { mi_zalloc_aligned(300_000, 128 << 10) };
                assert!(!block.is_null());
            }
        }
        alone("ffi::tests::mutexes_are_where_mimalloc_has_them", || {
            start();
            // SAFETY: an option of 3.3.2.
            unsafe { mi_option_set(MI_OPTION_VISIT_ABANDONED, 1) };
            make_an_arena();
            let actions =
                [begin_a_thread, make_an_arena, make_an_arena, give_up_a_page_outside_arenas];
            for (index, (mutex, action)) in own_mutexes().into_iter().zip(actions).enumerate() {
                let (to_main, from_thread) = channel();
                // SAFETY: an initialised mutex, which the calling thread does not hold.
                assert_eq!(unsafe { libc::pthread_mutex_lock(mutex.as_ptr()) }, 0);
                let thread = std::thread::spawn(move || {
                    if index != 0 {
                        begin_a_thread();
                    }
                    to_main.send(()).unwrap();
                    action();
                    to_main.send(()).unwrap();
                });
                from_thread.recv().unwrap();
                let early = from_thread.recv_timeout(Duration::from_millis(200));
                assert_eq!(early, Err(RecvTimeoutError::Timeout), "mutex {index} is not taken");
                // SAFETY: held by the calling thread.
                assert_eq!(unsafe { libc::pthread_mutex_unlock(mutex.as_ptr()) }, 0);
                assert_eq!(from_thread.recv_timeout(Duration::from_secs(60)), Ok(()), "{index}");
                thread.join().unwrap();
            }
        });
    }
}
