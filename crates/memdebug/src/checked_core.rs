//! Owns the options that need an operating system, where there is none: they are refused. Twin of `checked.rs`.

use core::ptr::NonNull;

use malloc_api::Malloc;

use crate::error::ConfigureError;
use crate::hooks::DebugHooks;
use crate::host::Host;
use crate::options::Options;
use crate::sites::capture::Outermost;
use malloc_api::Domain;

/// No block is.
pub(crate) fn is_guarded(_: NonNull<u8>) -> bool {
    false
}

#[derive(Debug)]
pub(crate) struct Checked;

impl Checked {
    pub(crate) const fn new() -> Self {
        Self
    }

    /// `Ok(false)`: nothing of this file is on.
    pub(crate) fn configure(
        &self,
        options: &Options,
        _: Domain,
        _: &Host,
    ) -> Result<bool, ConfigureError> {
        let asked = [
            ("quarantine", options.quarantine.is_some()),
            ("registry", options.needs_registry()),
            ("guard", options.guard.is_some()),
        ];
        match asked.iter().find(|(_, asked)| *asked) {
            Some(&(option, _)) => Err(ConfigureError::Unsupported { option }),
            None => Ok(false),
        }
    }
}

// Never called: `configure` switches none of this on. What they do is right all the same.
impl<A: Malloc> DebugHooks<A> {
    pub(crate) fn malloc_guarded(&self, _: usize) -> Option<NonNull<u8>> {
        None
    }

    pub(crate) fn malloc_checked(&self, size: usize, _: Outermost) -> Option<NonNull<u8>> {
        self.malloc_numbered(size)
    }

    pub(crate) fn calloc_checked(&self, size: usize, _: Outermost) -> Option<NonNull<u8>> {
        self.calloc_bytes(size)
    }

    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    pub(crate) unsafe fn realloc_checked(
        &self,
        p: NonNull<u8>,
        new: usize,
        _: Outermost,
    ) -> Option<NonNull<u8>> {
        // SAFETY: 1 and 2: the caller's.
        unsafe { self.realloc_numbered(p, new) }
    }

    /// # Safety
    ///
    /// As [`Malloc::free`].
    pub(crate) unsafe fn free_checked(&self, p: NonNull<u8>, _: Outermost) {
        if let Some(size) = self.intact_size(p) {
            // SAFETY: 1: the caller's; the block is intact.
            unsafe { self.free_numbered(p, size) };
        }
    }
}
