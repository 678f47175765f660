//! Owns every C declaration that `libmimalloc-sys` lacks, and the only `extern` block of the crate.
//!
//! All of them are non-static symbols of the mimalloc 3.3.2 that `libmimalloc-sys` 0.1.49 bundles; some are internal
//! (leading underscore), which is why that crate is pinned and why [`version_is_supported`] is asked before the first
//! heap is made. Each has a link test below.

use core::ffi::{c_int, c_void};

pub(crate) use libmimalloc_sys::{
    mi_block_visit_fun, mi_calloc, mi_collect, mi_free, mi_heap_area_t, mi_heap_new, mi_heap_t,
    mi_heap_visit_blocks, mi_malloc, mi_malloc_aligned, mi_option_get, mi_option_set, mi_option_t,
    mi_realloc, mi_theap_t, mi_thread_done, mi_thread_init, mi_usable_size, mi_version,
    mi_zalloc_aligned,
};

/// The only mimalloc that this crate has been checked against: 3.3.2, written as mimalloc writes it.
pub(crate) const SUPPORTED_VERSION: c_int = 30302;

/// Lets abandoned pages that came straight from the operating system be visited.
pub(crate) const MI_OPTION_VISIT_ABANDONED: mi_option_t = 28;

unsafe extern "C" {
    pub(crate) fn mi_heap_theap(heap: *mut mi_heap_t) -> *mut mi_theap_t;
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
    pub(crate) fn mi_heap_of(ptr: *const c_void) -> *mut mi_heap_t;
    pub(crate) fn _mi_theap_collect_abandon(theap: *mut mi_theap_t);
    pub(crate) fn _mi_theap_delete(theap: *mut mi_theap_t, acquire_tld_theaps_lock: bool);
    pub(crate) fn _mi_thread_local_get(key: usize) -> *mut c_void;
    pub(crate) fn _mi_thread_local_set(key: usize, value: *mut c_void) -> bool;
    /// A theap that serves nothing: every allocation from it gives null.
    pub(crate) static _mi_theap_empty_wrong: mi_theap_t;
}

/// Whether the linked mimalloc is the one whose internals this crate relies on.
pub(crate) fn version_is_supported() -> bool {
    // SAFETY: `mi_version` has no preconditions.
    unsafe { mi_version() == SUPPORTED_VERSION }
}
