//! Owns the calls with options beyond CPython's.

use core::ptr::NonNull;

use malloc_api::Malloc;

use crate::hooks::DebugHooks;
use crate::options::Options;

/// Why options cannot be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigureError {
    /// They were switched on before.
    #[error("options of these hooks are already set: they can be set once")]
    AlreadySet,
}

pub(crate) struct Checked;

impl Checked {
    pub(crate) const fn new() -> Self {
        Self
    }

    pub(crate) fn configure(&self, _options: &Options) -> Result<bool, ConfigureError> {
        Ok(false)
    }
}

impl<A: Malloc> DebugHooks<A> {
    pub(crate) fn malloc_checked(&self, size: usize) -> Option<NonNull<u8>> {
        self.malloc_numbered(size)
    }
    pub(crate) fn calloc_checked(&self, size: usize) -> Option<NonNull<u8>> {
        self.calloc_bytes(size)
    }
    pub(crate) unsafe fn realloc_checked(
        &self,
        _p: NonNull<u8>,
        _new: usize,
    ) -> Option<NonNull<u8>> {
        None
    }
    pub(crate) unsafe fn free_checked(&self, _p: NonNull<u8>) {}
}
