//! Owns every C declaration that `libmimalloc-sys` lacks, and the only `extern` block of the crate.
//!
//! All of them are non-static symbols of the mimalloc 3.3.2 that `libmimalloc-sys` 0.1.49 bundles. Some are internal
//! (leading underscore), which is why that crate is pinned to one version and why [`linked_version`] is compared before the
//! first heap is made. `tests::every_declaration_links` calls each of them.

use core::ffi::{c_int, c_void};

pub(crate) use libmimalloc_sys::{
    MI_SMALL_SIZE_MAX, mi_block_visit_fun, mi_calloc, mi_collect, mi_free, mi_heap_area_t,
    mi_heap_new, mi_heap_t, mi_heap_visit_blocks, mi_malloc, mi_option_set, mi_option_t, mi_realloc,
    mi_theap_t, mi_thread_done, mi_thread_init, mi_usable_size, mi_version, mi_zalloc_aligned,
};

/// The only mimalloc that this crate has been checked against: 3.3.2, as mimalloc itself writes it.
pub(crate) const SUPPORTED_VERSION: c_int = 30302;

/// The option that puts abandoned pages which came straight from the operating system on a list, so that visits see them.
pub(crate) const MI_OPTION_VISIT_ABANDONED: mi_option_t = 28;

/// One statistic that rises and falls.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) total: i64,
    pub(crate) peak: i64,
    pub(crate) current: i64,
}

/// mimalloc's statistics of one heap. Of the release build's few, the first is the one that we read.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Stats {
    size: usize,
    version: usize,
    /// Pages with at least one block, owned and abandoned.
    pub(crate) pages: Count,
    /// Every other statistic, in words.
    _rest: [i64; Self::REST_WORDS],
}

impl Stats {
    /// mimalloc's version of the structure.
    const VERSION: usize = 5;
    /// 19 counts and 25 counters by name and in reserve, then 74 malloc bins, 74 page bins and 5 chunk bins, less `pages`.
    const REST_WORDS: usize = 3 * (COUNTS + 4) + (COUNTERS + 4) + 3 * (74 + 74 + 5) - 3;

    /// An empty structure that mimalloc accepts as a target.
    pub(crate) const fn new() -> Self {
        Self {
            size: size_of::<Self>(),
            version: Self::VERSION,
            pages: Count { total: 0, peak: 0, current: 0 },
            _rest: [0; Self::REST_WORDS],
        }
    }
}

/// Named statistics that rise and fall.
const COUNTS: usize = 15;
/// Named statistics that only rise.
const COUNTERS: usize = 21;

unsafe extern "C" {
    pub(crate) fn mi_heap_theap(heap: *mut mi_heap_t) -> *mut mi_theap_t;
    pub(crate) fn mi_heap_of(ptr: *const c_void) -> *mut mi_heap_t;
    pub(crate) fn mi_heap_stats_get(heap: *mut mi_heap_t, stats: *mut Stats) -> bool;
    pub(crate) fn mi_theap_malloc(theap: *mut mi_theap_t, size: usize) -> *mut c_void;
    pub(crate) fn mi_theap_malloc_small(theap: *mut mi_theap_t, size: usize) -> *mut c_void;
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
    pub(crate) fn _mi_page_free_collect(page: *mut c_void, force: bool);
    pub(crate) fn _mi_arenas_contain(ptr: *const c_void) -> bool;
    pub(crate) fn _mi_thread_local_get(key: usize) -> *mut c_void;
    pub(crate) fn _mi_thread_local_set(key: usize, value: *mut c_void) -> bool;
    pub(crate) fn _mi_is_main_thread() -> bool;
    /// A theap that serves nothing: every allocation from it gives null. Opaque, so one byte stands for it.
    static _mi_theap_empty_wrong: u8;
}

/// The theap that serves nothing: every allocation from it gives null.
#[inline]
pub(crate) fn empty_theap() -> *mut mi_theap_t {
    (&raw const _mi_theap_empty_wrong).cast_mut().cast()
}

/// The version of the linked mimalloc, as it writes it: 30302 is 3.3.2.
pub(crate) fn linked_version() -> c_int {
    // SAFETY: `mi_version` has no preconditions.
    unsafe { mi_version() }
}
