//! The obj domain as the global allocator of every program that links this crate. At exit it prints what it served.

use std::alloc::{GlobalAlloc, Layout};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use malloc_api::GlobalAdapter;
use pymem_domains::global::{self, Obj};

struct Counted(GlobalAdapter<Obj>);

#[global_allocator]
static GLOBAL: Counted = Counted(GlobalAdapter::new(Obj));

/// Blocks made or resized.
static SERVED: AtomicUsize = AtomicUsize::new(0);
/// Whether each `realloc` loses the last byte that it should keep.
static LOSES_A_BYTE: AtomicBool = AtomicBool::new(false);

// SAFETY: every call goes to the obj domain. The lost byte breaks the promise on purpose.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        SERVED.fetch_add(1, Relaxed);
        // SAFETY: the caller's duties.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        SERVED.fetch_add(1, Relaxed);
        // SAFETY: the caller's duties.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        SERVED.fetch_add(1, Relaxed);
        // SAFETY: the caller's duties.
        let block = unsafe { self.0.realloc(ptr, layout, new_size) };
        if LOSES_A_BYTE.load(Relaxed) && !block.is_null() {
            // SAFETY: `realloc` is never asked for 0 bytes or of them, so the block has this byte.
            let last = unsafe { block.add(layout.size().min(new_size) - 1) };
            // SAFETY: as above.
            unsafe { last.write(0) };
        }
        block
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties.
        unsafe { self.0.dealloc(ptr, layout) }
    }
}

/// The loader runs this before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: a C string.
    let flaw = unsafe { libc::getenv(c"PYMEM_LOSE_A_BYTE".as_ptr()) };
    LOSES_A_BYTE.store(!flaw.is_null(), Relaxed);
    // SAFETY: a function that the process has until it ends.
    unsafe { libc::atexit(report) };
}

extern "C" fn report() {
    let (row, served) = (global::domains().row().name(), SERVED.load(Relaxed));
    // Ignore write errors: there is nowhere to report them.
    let _ = writeln!(std::io::stderr(), "served by {row}: {served}");
}
