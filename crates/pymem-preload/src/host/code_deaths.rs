//! Owns `Deaths`: how many code objects have died, by address, as the destructor of their type tells from when it is first watched on.
//! No free of another object is looked at, and no name has to keep its code.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU16, AtomicUsize, Ordering::Relaxed};

use crate::host::capi::PyObject;

/// How many code objects have died.
#[derive(Debug)]
pub(crate) struct Deaths {
    all: AtomicUsize,
    /// By a hash of their addresses.
    at: [AtomicU16; PLACES],
}

const PLACES: usize = 4096;

/// Those of this process.
static DEATHS: Deaths = Deaths::new(0);

/// An age that no source says, nor the walk of a thread that was told none.
pub(crate) static NEVER: Deaths = Deaths::new(usize::MAX - 1);

/// The bits of a frame's code that count the deaths; no address has any of them.
pub(crate) const DEATH_BITS: u32 = u16::BITS;

/// The address of a code object alone.
#[inline]
pub(crate) const fn without_deaths(code: usize) -> usize {
    code << DEATH_BITS >> DEATH_BITS
}

/// Frees an object of a type.
type Destructor = unsafe extern "C" fn(*mut PyObject);

/// What the interpreter itself frees code objects by.
static DESTRUCTOR: OnceLock<Destructor> = OnceLock::new();

/// Counts the death of a code object, whose address may stand for another one afterwards.
///
/// # Safety
///
/// 1. That of a destructor: an object of the type whose slot has this function, to which nothing refers any more.
unsafe extern "C" fn count_and_destroy(code: *mut PyObject) {
    DEATHS.count(code.addr());
    if let Some(destroy) = DESTRUCTOR.get() {
        // SAFETY: duty 1.
        unsafe { destroy(code) };
    }
}

impl Deaths {
    /// So many deaths so far, by no address.
    const fn new(all: usize) -> Self {
        Self { all: AtomicUsize::new(all), at: [const { AtomicU16::new(0) }; PLACES] }
    }

    /// Those of the objects that the function in `slot` frees, which are counted from now on.
    ///
    /// # Safety
    ///
    /// 1. `slot` lives for ever, and has the destructor of a type.
    pub(crate) unsafe fn watched(slot: &'static AtomicPtr<()>) -> &'static Self {
        DESTRUCTOR.get_or_init(|| {
            // Relaxed: a thread that still calls the old one frees what no stack has named yet.
            let destroy = slot.load(Relaxed);
            slot.store(count_and_destroy as *mut (), Relaxed);
            // SAFETY: a function of this type (duty 1), which is never null for a type with objects.
            unsafe { std::mem::transmute::<*mut (), Destructor>(destroy) }
        });
        &DEATHS
    }

    /// How many there were, and other reasons to look at code again.
    #[inline]
    pub(crate) fn age(&self) -> usize {
        // Relaxed: who runs code got it after the death of what was there before, in an order that the interpreter makes.
        self.all.load(Relaxed)
    }

    #[inline]
    fn of(&self, code: usize) -> &AtomicU16 {
        // Blocks are 16-aligned, and code objects some hundred bytes long.
        &self.at[(code >> 4 ^ code >> 16) % PLACES]
    }

    /// The address of a code object, which may have a count of deaths, and the deaths at the address.
    #[inline]
    pub(crate) fn counted(&self, code: usize) -> usize {
        let code = without_deaths(code);
        // Relaxed: who runs the code got it in an order that the interpreter makes.
        code | usize::from(self.of(code).load(Relaxed)).rotate_right(DEATH_BITS)
    }

    fn count(&self, code: usize) {
        self.of(code).fetch_add(1, Relaxed);
        self.grow_older();
    }

    /// Has every thread look at the code of its calls again.
    pub(crate) fn grow_older(&self) {
        self.all.fetch_add(1, Relaxed);
    }
}
