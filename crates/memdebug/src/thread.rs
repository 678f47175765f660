//! Owns the question whether the calling thread may call: what a host supplies for it, and the gate that asks.
//!
//! The full answer is a function of the host's, which is long. Where the host names a [`ThreadWord`], the gate keeps the
//! value that it had when the function last said yes, and a call costs a load and a comparison. The same comparison
//! keeps calls from the plain path while an option is on: the gate is shut.

use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Says whether the calling thread may call this domain: it holds the GIL, or has an attached thread state.
pub type ThreadCheck = fn() -> bool;

/// A word of memory by which a thread is known to pass a [`ThreadCheck`] again, without a call.
///
/// It is 0 where the check must be asked. Only x86-64 and AArch64 use it; elsewhere every call asks.
#[derive(Clone, Copy, Debug)]
pub struct ThreadWord {
    /// The word, or where each thread has one its distance from the thread pointer.
    base: *const u8,
    /// All ones if it is a distance, else 0.
    own: usize,
}

// SAFETY: any thread may read the word (duties 1 of the constructors), and nobody writes it through this.
unsafe impl Send for ThreadWord {}
// SAFETY: as above.
unsafe impl Sync for ThreadWord {}

impl ThreadWord {
    /// The word at `word`, which all threads share: it tells which thread passes, as CPython's current thread state did
    /// before 3.12.
    ///
    /// # Safety
    ///
    /// 1. `word` is readable for ever, and aligned as a `usize`.
    /// 2. A thread that passed the check while the word had a value other than 0 passes it whenever it has that value.
    #[must_use]
    pub const unsafe fn of_process(word: *const usize) -> Self {
        Self { base: word.cast(), own: 0 }
    }

    /// The word `offset` bytes from the thread pointer, of which each thread has its own: the thread passes while it is
    /// not 0, as with CPython's current thread state since 3.12.
    ///
    /// # Safety
    ///
    /// 1. The word is readable in every thread that calls the hooks, and aligned as a `usize`.
    /// 2. A thread passes the check whenever its word is not 0.
    #[must_use]
    pub const unsafe fn of_thread(offset: isize) -> Self {
        Self { base: ptr::without_provenance(offset as usize), own: usize::MAX }
    }

    /// What the word holds for the calling thread.
    #[inline(always)]
    #[must_use]
    pub fn get(self) -> usize {
        self.load(thread_pointer())
    }

    /// What the word holds for the thread with this thread pointer.
    #[inline(always)]
    fn load(self, thread: usize) -> usize {
        let at = self.base.expose_provenance().wrapping_add(thread & self.own);
        let word: *const AtomicUsize = ptr::with_exposed_provenance(at);
        // SAFETY: duty 1 of the constructors; others may write it meanwhile.
        unsafe { &*word }.load(Relaxed)
    }
}

/// A number that no other thread has while this one lives: the thread pointer on x86-64 and AArch64, elsewhere the address of a
/// variable of the thread, and 0 where there is neither.
///
/// It costs one instruction where there is a thread pointer; a thread-local variable of a library may cost a call.
#[inline(always)]
#[must_use]
pub fn thread_pointer() -> usize {
    pointer::get()
}

/// The thread pointer is in a register, and by the processor's ABI for ELF the first word that it leads to is its own address.
#[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64"))]
mod pointer {
    /// Whether words of a thread have a distance from its pointer.
    pub(super) const IS_BASE: bool = true;

    #[inline(always)]
    pub(super) fn get() -> usize {
        let pointer;
        // SAFETY: reads the first word of this thread's control block; nothing is changed.
        unsafe {
            core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, pure, readonly, preserves_flags))
        };
        pointer
    }
}

/// The thread pointer is in a register.
#[cfg(all(feature = "std", target_os = "linux", target_arch = "aarch64"))]
mod pointer {
    pub(super) const IS_BASE: bool = true;

    #[inline(always)]
    pub(super) fn get() -> usize {
        let pointer;
        // SAFETY: the register holds the address of the thread's control block; nothing is changed.
        unsafe {
            core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, nomem, nostack, preserves_flags))
        };
        pointer
    }
}

/// A thread is told by a variable of its own.
#[cfg(all(
    feature = "std",
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))
))]
mod pointer {
    pub(super) const IS_BASE: bool = false;

    pub(super) fn get() -> usize {
        std::thread_local! {
            static ANCHOR: u8 = const { 0 };
        }
        ANCHOR.with(|anchor| core::ptr::from_ref(anchor).addr())
    }
}

/// Nothing is known of threads.
#[cfg(not(feature = "std"))]
mod pointer {
    pub(super) const IS_BASE: bool = false;

    pub(super) fn get() -> usize {
        0
    }
}

/// The word of hosts that have none.
static NO_WORD: AtomicUsize = AtomicUsize::new(0);

/// Equal to no value of a gate's word: it is no address, and no sum of an address and a turned one.
const SHUT: usize = usize::MAX;

/// Decides by a comparison whether a call may take the plain path, and asks the host where it must.
pub(crate) struct ThreadGate {
    word: ThreadWord,
    /// All ones if the word tells threads apart only together with the thread, else 0.
    shared: usize,
    /// The value with which a thread passed last; [`SHUT`] before, and while an option is on.
    passed: AtomicUsize,
    /// The same whatever options are on.
    known: AtomicUsize,
    check: Option<ThreadCheck>,
    /// Whether a value with which a thread passed lets it pass again.
    learns: bool,
}

impl ThreadGate {
    /// The gate of a domain without a rule for threads.
    pub(crate) const fn open() -> Self {
        Self {
            word: ThreadWord { base: (&raw const NO_WORD).cast(), own: 0 },
            shared: 0,
            passed: AtomicUsize::new(0),
            known: AtomicUsize::new(SHUT),
            check: None,
            learns: false,
        }
    }

    /// The gate with this check and its shortcut.
    pub(crate) const fn new(check: ThreadCheck, word: Option<ThreadWord>) -> Self {
        let mut gate = Self::open();
        gate.check = Some(check);
        gate.passed = AtomicUsize::new(SHUT);
        if let (Some(word), true) = (word, pointer::IS_BASE) {
            gate.word = word;
            gate.shared = !word.own;
            gate.learns = true;
        }
        gate
    }

    /// Whether the call may take the plain path.
    #[inline(always)]
    pub(crate) fn passes(&self) -> bool {
        let thread = thread_pointer();
        self.value(self.word.load(thread), thread) == self.passed.load(Relaxed)
    }

    /// States' addresses differ in their low 47 bits, and the turned ones of threads in their high bits.
    #[inline(always)]
    fn value(&self, word: usize, thread: usize) -> usize {
        word.wrapping_add(thread.rotate_left(usize::BITS / 2) & self.shared)
    }

    /// Whether the thread may call. If it may, its word lets it pass next time, unless the gate is to stay shut.
    #[inline]
    pub(crate) fn ask(&self, shut: bool) -> bool {
        let Some(check) = self.check else {
            return true;
        };
        let thread = thread_pointer();
        // Read before the check: of a thread that passes, the word was the same then.
        let word = self.word.load(thread);
        let value = self.value(word, thread);
        if shut && value == self.known.load(Relaxed) {
            return true;
        }
        let passes = check();
        if passes && self.learns && word != 0 {
            self.known.store(value, Relaxed);
            if !shut {
                self.passed.store(value, Relaxed);
            }
        }
        passes
    }

    /// Keeps every call from the plain path from now on.
    pub(crate) fn shut(&self) {
        self.passed.store(SHUT, Relaxed);
    }

    /// The gate, shut.
    pub(crate) const fn into_shut(mut self) -> Self {
        self.passed = AtomicUsize::new(SHUT);
        self
    }
}

#[cfg(all(test, feature = "std", target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    static ASKED: AtomicUsize = AtomicUsize::new(0);
    static WORD: AtomicUsize = AtomicUsize::new(0);

    fn asks() -> bool {
        ASKED.fetch_add(1, Relaxed);
        true
    }

    #[test]
    fn a_thread_passes_again_while_word_and_thread_are_the_same() {
        // SAFETY: 1: a static. 2: every thread passes.
        let word = unsafe { ThreadWord::of_process(WORD.as_ptr().cast_const()) };
        let gate = ThreadGate::new(asks, Some(word));
        assert!(!gate.passes(), "nobody was asked");
        assert!(gate.ask(false));
        assert!(!gate.passes(), "a word of 0 tells nothing");
        WORD.store(0x7f00_0000_1000, Relaxed);
        assert!(gate.ask(false));
        assert!(gate.passes());
        let passes_elsewhere = thread::scope(|scope| scope.spawn(|| gate.passes()).join());
        assert!(!passes_elsewhere.unwrap(), "another thread");
        WORD.store(0x7f00_0000_2000, Relaxed);
        assert!(!gate.passes(), "another word");
        WORD.store(0x7f00_0000_1000, Relaxed);
        assert!(gate.passes());
        gate.shut();
        assert!(!gate.passes(), "an option is on");
        let asked = ASKED.load(Relaxed);
        assert!(gate.ask(true));
        assert_eq!(ASKED.load(Relaxed), asked, "known without asking");
    }

    #[test]
    fn a_word_of_each_thread_and_no_rule() {
        fn never() -> bool {
            false
        }
        // SAFETY: 1: the thread's control block begins with its own address. 2: no thread passes but by this word.
        let word = unsafe { ThreadWord::of_thread(0) };
        let gate = ThreadGate::new(never, Some(word));
        assert!(!gate.passes() && !gate.ask(false) && !gate.passes(), "it failed the check");
        assert!(ThreadGate::open().passes() && ThreadGate::open().ask(false));
        assert!(!ThreadGate::open().into_shut().passes());
    }
}
