//! Owns the word of each thread that leads to what the thread remembers.
//!
//! A variable of a thread in a library costs a call wherever the compiler cannot know that the library is loaded with the program.
//! Where that call has a short form, the word is written by hand: two loads.

/// What a word leads to that leads to nothing else.
#[repr(C)]
pub(crate) struct Nothing {
    /// Where what a thread remembers has the address of a tree.
    tree: usize,
    /// So that no two are one.
    which: u8,
}

/// In place of the address of a tree: where nothing is remembered.
const NOTHING: usize = 0;
/// In place of the address of a tree: where none is wanted. Nobody remembers this one.
pub(crate) const NO_TREE: usize = 1;

/// What the word of a thread leads to at first.
pub(crate) static NOT_YET: Nothing = Nothing { tree: NOTHING, which: 1 };
/// What it leads to while the thread does a profiler's own work, and after the thread's end.
pub(crate) static BUSY: Nothing = Nothing { tree: NOTHING, which: 2 };

#[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu", not(miri)))]
mod word {
    use std::arch::{asm, global_asm};

    use super::NOT_YET;

    /// The name of the variable, of which each version of the crate has one.
    macro_rules! name {
        () => {
            concat!(
                "heap_profile_own_",
                env!("CARGO_PKG_VERSION_MAJOR"),
                "_",
                env!("CARGO_PKG_VERSION_MINOR"),
                "_",
                env!("CARGO_PKG_VERSION_PATCH")
            )
        };
    }

    global_asm!(
        ".pushsection .tdata.heap_profile_own,\"awT\",@progbits",
        concat!(".globl ", name!()),
        concat!(".hidden ", name!()),
        concat!(".type ", name!(), ",@object"),
        concat!(".size ", name!(), ", 8"),
        ".p2align 3",
        concat!(name!(), ":"),
        ".quad {not_yet}",
        ".popsection",
        not_yet = sym NOT_YET,
    );

    #[inline(always)]
    pub(crate) fn get() -> *const usize {
        let word: *const usize;
        // SAFETY: the thread's own variable, by the distance from the thread pointer that the linker or the loader writes.
        unsafe {
            asm!(
                concat!("mov {word}, qword ptr [rip + ", name!(), "@GOTTPOFF]"),
                "mov {word}, qword ptr fs:[{word}]",
                word = out(reg) word,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        word
    }

    pub(crate) fn set(word: *const usize) {
        // SAFETY: as above.
        unsafe {
            asm!(
                concat!("mov {at}, qword ptr [rip + ", name!(), "@GOTTPOFF]"),
                "mov qword ptr fs:[{at}], {word}",
                at = out(reg) _,
                word = in(reg) word,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu", not(miri))))]
mod word {
    use std::cell::Cell;

    use super::NOT_YET;

    thread_local! {
        static WORD: Cell<*const usize> = const { Cell::new(&raw const NOT_YET.tree) };
    }

    #[inline(always)]
    pub(crate) fn get() -> *const usize {
        WORD.get()
    }

    pub(crate) fn set(word: *const usize) {
        WORD.set(word);
    }
}

/// What the calling thread's word leads to: what [`replace`] has put there, or [`NOT_YET`]. Its first word can be read.
#[inline(always)]
pub(crate) fn get() -> *const usize {
    word::get()
}

/// Has the word lead to something else.
///
/// # Safety
///
/// 1. A word can be read there for as long as the thread's word leads to it.
pub(crate) unsafe fn replace(with: *const usize) -> *const usize {
    let before = word::get();
    word::set(with);
    before
}

impl Nothing {
    /// As the word of a thread has it.
    pub(crate) const fn word(&'static self) -> *const usize {
        &raw const self.tree
    }

    /// Whether the word of a thread leads here.
    pub(crate) fn is(&'static self, word: *const usize) -> bool {
        word == self.word()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn each_thread_has_a_word_of_its_own() {
        static THERE: usize = 7;
        let look = || {
            assert!(NOT_YET.is(get()));
            // SAFETY: 1: it lives for ever.
            assert!(NOT_YET.is(unsafe { replace(&raw const THERE) }));
            thread::spawn(|| assert!(NOT_YET.is(get()))).join().expect("no word of another thread");
            // SAFETY: 1: as above.
            assert_eq!(unsafe { replace(BUSY.word()) }, &raw const THERE);
            assert!(BUSY.is(get()));
            // SAFETY: 1: as above.
            unsafe { replace(NOT_YET.word()) };
        };
        look();
        thread::spawn(look).join().expect("a word that is written and read");
    }
}
