//! Owns [`ThreadMalloc`]: the malloc family for callers that carry no handle, through the calling thread's own heaps.

use core::cell::{Cell, OnceCell};
use core::ptr::{self, NonNull};

use malloc_api::Malloc;

use crate::heap::HeapKind;
use crate::interpreter_heaps::InterpreterHeaps;
use crate::mi_malloc::MiMalloc;
use crate::thread_heaps::{CURRENT, ThreadHeaps};

thread_local! {
    /// Whether calls must do without: the thread is attaching, or ending.
    static IS_WITHOUT: Cell<bool> = const { Cell::new(false) };
    /// The heaps of a thread that nobody attached.
    static OWN: Own = const { Own(OnceCell::new()) };
}

/// Heaps in a thread-local, whose destructor detaches the thread.
struct Own(OnceCell<ThreadHeaps>);

impl Drop for Own {
    fn drop(&mut self) {
        // Other destructors may still allocate and free: from here on without heaps of our own.
        IS_WITHOUT.set(true);
        CURRENT.set(ptr::null());
    }
}

/// The malloc family on the calling thread's heaps of one kind: a value of one byte that statics can hold.
///
/// Sizes are in bytes. A thread that calls it inside [`ThreadHeaps::enter`] uses those heaps. Any other thread is attached
/// to the [main interpreter](InterpreterHeaps::main) at its first call and detached by a thread-local destructor; while it
/// attaches, and after that destructor, its calls are served by [`MiMalloc`]. Blocks may be freed and resized on any thread.
///
/// # Examples
///
/// ```
/// use malloc_api::Malloc;
/// use mimalloc_heaps::ThreadMalloc;
///
/// let block = ThreadMalloc::MEM.malloc(100).expect("100 bytes");
/// // SAFETY: (1) `block` is live and (2) not used afterwards.
/// unsafe { ThreadMalloc::MEM.free(Some(block)) };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadMalloc {
    /// `None` for the thread's current kind.
    kind: Option<HeapKind>,
}

impl ThreadMalloc {
    /// Buffers: the mem domain.
    pub const MEM: Self = Self::new(HeapKind::Mem);
    /// Objects without the collector: the obj domain.
    pub const OBJECT: Self = Self::new(HeapKind::Object);
    /// Objects that the collector visits.
    pub const GC: Self = Self::new(HeapKind::Gc);
    /// Objects that the collector visits, with a header before them.
    pub const GC_PRE: Self = Self::new(HeapKind::GcPre);
    /// The kind that the calling thread has [set](ThreadHeaps::set_current_kind), as C callers expect it.
    pub const CURRENT: Self = Self { kind: None };

    /// The calling thread's heap of `kind`.
    #[must_use]
    pub const fn new(kind: HeapKind) -> Self {
        Self { kind: Some(kind) }
    }

    /// Apart from `malloc`, which has nothing to keep for a call of this.
    #[cold]
    #[inline(never)]
    fn first_malloc(self, size: usize) -> Option<NonNull<u8>> {
        match attach_this_thread() {
            Some(heaps) => heaps.malloc(self.kind(heaps), size),
            None => MiMalloc.malloc(size),
        }
    }

    #[inline]
    fn kind(self, heaps: &ThreadHeaps) -> HeapKind {
        match self.kind {
            Some(kind) => kind,
            None => heaps.current_kind(),
        }
    }
}

/// The heaps that the calling thread has entered or was attached to.
#[inline]
fn heaps<'a>() -> Option<&'a ThreadHeaps> {
    let heaps = CURRENT.get();
    // SAFETY: null, or set by `ThreadHeaps::enter`, which borrows the heaps for as long as it is set, or to `OWN`, which stays in place
    // and resets it in its destructor. Nothing that a call does with them ends either.
    unsafe { heaps.as_ref() }
}

/// Attaches a thread that nobody attached to the main interpreter; `None` if it must do without.
#[cold]
#[inline(never)]
fn attach_this_thread<'a>() -> Option<&'a ThreadHeaps> {
    if IS_WITHOUT.replace(true) {
        return None;
    }
    let attached = OWN.try_with(|own| {
        let heaps = InterpreterHeaps::main().ok()?.attach().ok()?;
        Some(NonNull::from(own.0.get_or_init(|| heaps)))
    });
    // An error says that the thread is ending: it stays without.
    let attached = attached.ok()?;
    IS_WITHOUT.set(false);
    CURRENT.set(attached.map_or(ptr::null(), |heaps| heaps.as_ptr()));
    heaps()
}

// SAFETY: 1: mimalloc's blocks are exclusive, `ThreadHeaps` and `MiMalloc` align them, and they outlive the thread; 2, 3 and
// 4: as those two promise; attaching allocates through other allocators, or through this one when it is Rust's global one,
// and is then served by `MiMalloc` (`IS_WITHOUT`); 5: blocks know their heap, whoever frees them.
unsafe impl Malloc for ThreadMalloc {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        match heaps() {
            Some(heaps) => heaps.malloc(self.kind(heaps), size),
            None => self.first_malloc(size),
        }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        match heaps().or_else(attach_this_thread) {
            Some(heaps) => heaps.calloc(self.kind(heaps), nelem, elsize),
            None => MiMalloc.calloc(nelem, elsize),
        }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        match heaps().or_else(attach_this_thread) {
            // SAFETY: the caller's 1 and 2.
            Some(heaps) => unsafe { heaps.realloc(self.kind(heaps), ptr, new_size) },
            // SAFETY: the caller's 1 and 2: mimalloc resizes a block of any of its heaps.
            None => unsafe { MiMalloc.realloc(ptr, new_size) },
        }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's 1 and 2: mimalloc takes back a block of any of its heaps on any thread.
        unsafe { MiMalloc.free(ptr) };
    }
}
