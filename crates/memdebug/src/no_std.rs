//! Owns what stands in for the operating system in a build without one: each module has the names of its twin in the rooms.

/// Twin of `checks/checked.rs`: the options that need an operating system are refused.
pub(crate) mod checked {
    use core::ptr::NonNull;

    use malloc_api::{Domain, Malloc};

    use super::native::Outermost;
    use super::site::Depth;
    use crate::calls::Blocks;
    use crate::options::{ConfigureError, Options};

    #[derive(Debug)]
    pub(crate) struct Checked;

    /// Checks that are on: there are none.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum State {}

    impl Checked {
        pub(crate) const fn new() -> Self {
            Self
        }

        pub(crate) fn state(&self) -> Option<&State> {
            None
        }

        /// `Ok(false)`: nothing of this module is on.
        pub(crate) fn configure(
            &self,
            options: &Options,
            _: Domain,
        ) -> Result<bool, ConfigureError> {
            let asked = [
                ("quarantine", options.quarantine.is_some()),
                ("registry", options.needs_registry()),
                ("backtrace", options.backtrace > 0),
            ];
            match asked.iter().find(|(_, asked)| *asked) {
                Some(&(option, _)) => Err(ConfigureError::Unsupported { option }),
                None => Ok(false),
            }
        }
    }

    impl State {
        pub(crate) fn allocate<A: Malloc>(
            &self,
            _: &Blocks<A>,
            _: usize,
            _: bool,
            _: Outermost,
        ) -> Option<NonNull<u8>> {
            match *self {}
        }

        pub(crate) fn depth(&self) -> Option<Depth> {
            match *self {}
        }

        pub(crate) fn close<A: Malloc>(&self, _: &Blocks<A>) {
            match *self {}
        }

        /// # Safety
        ///
        /// 1. None.
        pub(crate) unsafe fn realloc<A: Malloc>(
            &self,
            _: &Blocks<A>,
            _: NonNull<u8>,
            _: usize,
            _: Outermost,
        ) -> Option<NonNull<u8>> {
            match *self {}
        }

        /// # Safety
        ///
        /// 1. None.
        pub(crate) unsafe fn free<A: Malloc>(&self, _: &Blocks<A>, _: NonNull<u8>, _: Outermost) {
            match *self {}
        }
    }
}

/// Twin of `report/handler.rs`: there is nowhere to write to.
pub mod handler {
    use crate::report::violation::{Violation, ViolationHandler};

    pub(crate) const DEFAULT: ViolationHandler = panic;

    /// Panics with the dump and the fatal error as message.
    ///
    /// # Panics
    ///
    /// Always.
    pub fn panic(violation: &Violation) {
        panic!("{violation}{}: {}", violation.func(), violation.message());
    }
}

/// Twin of `sites/native.rs`: nobody asks for backtraces.
pub(crate) mod native {
    #[derive(Clone, Copy)]
    pub(crate) struct Outermost;

    impl Outermost {
        #[inline(always)]
        pub(crate) fn here() -> Self {
            Self
        }
    }
}

/// Twin of `sites/site.rs`: there are no sites.
pub(crate) mod site {
    use core::fmt;

    use super::native::Outermost;
    use crate::report::frames::HostStacks;

    /// Which frames a site has.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Depth {}

    /// Where a block was allocated or freed. Without the `std` feature there is no value of this type.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub enum Site {}

    impl Site {
        pub(crate) fn of_caller(
            _: Option<Depth>,
            _: Option<&'static HostStacks>,
            _: Outermost,
        ) -> Option<Self> {
            None
        }
    }

    impl fmt::Display for Site {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }
}

/// Twin of `os/probe.rs`: an address is read as it is.
///
/// Pads and sizes are still checked before they are trusted, but a pointer into memory that is not there faults.
pub(crate) mod probe {
    /// Reads the bytes at `address`; `false` for addresses that no block can have.
    pub(crate) fn read(address: usize, bytes: &mut [u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let Some(last) = address.checked_add(bytes.len() - 1) else {
            return false;
        };
        if address == 0 || last > isize::MAX as usize {
            return false;
        }
        let start = core::ptr::with_exposed_provenance::<u8>(address);
        for (offset, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: a freed or live block's memory on systems without memory protection. A pointer to nowhere is the
            // remaining case, which has no answer here.
            *byte = unsafe { start.wrapping_add(offset).read_volatile() };
        }
        true
    }

    /// Reads `N` bytes at `address`.
    pub(crate) fn peek<const N: usize>(address: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        read(address, &mut bytes).then_some(bytes)
    }

    /// Whether no heap can be at `address`: not known here.
    pub(crate) fn is_no_heap(_address: usize) -> bool {
        false
    }
}
