//! An extension module whose Rust memory Python sees: `import extension`, on any CPython from 3.9 on.
//!
//! ```python
//! import tracemalloc, extension
//! tracemalloc.start()
//! extension.leak(1 << 20)  # this line holds 1 MiB
//! ```

use std::cell::RefCell;
use std::mem;

use pymem_raw_alloc::PyMemRaw;
use pyo3::prelude::*;

#[global_allocator]
static GLOBAL: PyMemRaw = PyMemRaw;

thread_local! {
    /// What a thread keeps until its end: the main thread's ends after the interpreter.
    static KEPT: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A page of its own.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Extension functions.
#[pymodule]
mod extension {
    use super::*;

    /// Allocates `bytes` bytes that nobody frees.
    #[pyfunction]
    fn leak(bytes: usize) {
        mem::forget(vec![1_u8; bytes]);
    }

    /// Keeps `bytes` bytes until the thread ends.
    #[pyfunction]
    fn keep(bytes: usize) {
        KEPT.with_borrow_mut(|kept| kept.push(vec![2; bytes].into_boxed_slice()));
    }

    /// Where a page in the heap is, and how many zeros it has.
    #[pyfunction]
    fn page() -> (usize, usize) {
        let page = Box::new(Page([0; 4096]));
        (page.0.as_ptr().addr(), page.0.iter().filter(|byte| **byte == 0).count())
    }

    /// The bug: writes a sixth byte into five.
    #[pyfunction]
    fn overrun() {
        let mut name = Box::new(*b"Monty");
        // SAFETY: none: the block ends here.
        unsafe { name.as_mut_ptr().wrapping_add(5).write(0) };
    }
}
