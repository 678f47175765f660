//! What the tests need of AddressSanitizer where they are built for it; `ASAN_OPTIONS` goes before it.
//!
//! A bad block stays allocated for ever, so the tool's own search for leaks would find each planted bug. A request that
//! cannot be met gives null. Locals are where the thread's stack is, not on a heap of the tool's own.

const OPTIONS: &core::ffi::CStr =
    c"detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0";

// SAFETY: the name under which the tool looks for a program's own options; nobody else calls it.
#[unsafe(no_mangle)]
extern "C" fn __asan_default_options() -> *const core::ffi::c_char {
    OPTIONS.as_ptr()
}
