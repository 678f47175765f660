//! Owns where the hooks were entered, for backtraces that a build without an operating system does not take. Twin of
//! `capture.rs`.

/// Nothing: nobody asks.
#[derive(Clone, Copy)]
pub(crate) struct Outermost;

impl Outermost {
    #[inline(always)]
    pub(crate) fn here() -> Self {
        Self
    }
}
