//! Owns the C record of an allocator, and its use.

use std::ffi::c_void;

/// `PyMemAllocatorEx`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) ctx: *mut c_void,
    pub(crate) malloc: Option<unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void>,
    pub(crate) calloc: Option<unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void>,
    pub(crate) realloc:
        Option<unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void>,
    pub(crate) free: Option<unsafe extern "C" fn(*mut c_void, *mut c_void)>,
}

// SAFETY: an allocator's context is for every thread that may call the allocator.
unsafe impl Send for Record {}

impl Record {
    /// Allocates by `malloc` and `calloc`, resizes and frees.
    pub(crate) fn exercise(&self, size: usize) {
        let (Some(malloc), Some(calloc)) = (self.malloc, self.calloc) else { panic!("{self:?}") };
        let (Some(realloc), Some(free)) = (self.realloc, self.free) else { panic!("{self:?}") };
        // SAFETY: any size may be asked for.
        let block = unsafe { malloc(self.ctx, size) };
        // SAFETY: as above.
        let zeroed = unsafe { calloc(self.ctx, size, 1) };
        assert!(!block.is_null() && !zeroed.is_null() && block != zeroed, "{size} bytes");
        // SAFETY: the block has `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(zeroed.cast::<u8>(), size) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        // SAFETY: the block has `size` bytes.
        unsafe { block.cast::<u8>().write_bytes(0x5a, size) };
        // SAFETY: a live block of this record, replaced by the answer.
        let block = unsafe { realloc(self.ctx, block, 2 * size + 1) };
        assert!(!block.is_null());
        // SAFETY: the block has at least `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(block.cast::<u8>(), size) };
        assert!(bytes.iter().all(|byte| *byte == 0x5a));
        for block in [block, zeroed, std::ptr::null_mut()] {
            // SAFETY: live blocks of this record, not used again; or null.
            unsafe { free(self.ctx, block) };
        }
    }
}
