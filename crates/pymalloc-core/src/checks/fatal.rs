//! Owns the end: what is done about a misuse that leaves nothing to return to.

/// A misuse that was recognised for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Misuse {
    /// A block was freed that is free.
    DoubleFree,
    /// An address was freed that begins no block.
    NotABlock,
    /// A freed block was written to before it was handed out again.
    WriteAfterFree,
}

impl Misuse {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::DoubleFree => "double free: the block is free already",
            Self::NotABlock => "invalid free: the address is inside of a pool but begins no block",
            Self::WriteAfterFree => "use after free: a freed block was written to",
        }
    }
}

#[cfg(feature = "std")]
pub(crate) use with_std::fatal;
#[cfg(not(feature = "std"))]
pub(crate) use without_std::fatal;

#[cfg(feature = "std")]
mod with_std {
    use super::Misuse;

    /// Writes one line to stderr, without allocating, and aborts.
    #[cold]
    #[inline(never)]
    pub(crate) fn fatal(misuse: Misuse, block: *mut u8) -> ! {
        use std::io::Write;
        // stderr is unbuffered, and formatting a pointer allocates nothing.
        let _ = writeln!(std::io::stderr(), "pymalloc-core: {} ({block:p})", misuse.text());
        std::process::abort()
    }
}

#[cfg(not(feature = "std"))]
mod without_std {
    use super::Misuse;

    /// Panics out of a function that cannot unwind, which aborts.
    #[cold]
    #[inline(never)]
    pub(crate) fn fatal(misuse: Misuse, block: *mut u8) -> ! {
        extern "C" fn end(misuse: Misuse, block: *mut u8) -> ! {
            panic!("pymalloc-core: {} ({block:p})", misuse.text())
        }
        end(misuse, block)
    }
}
