//! The process-wide domains: configured once, by code or by the environment, and used through [`raw`], [`mem`] and
//! [`obj`], or through the types [`Raw`], [`Mem`] and [`Obj`] wherever an allocator is asked for.
//!
//! The first call of any domain configures them if nothing did before: from `PYTHONMALLOC` and `PYTHONDEVMODE`, with
//! CPython's precedence, for [`Profile::NEWEST`], a release build with the GIL. A `PYTHONMALLOC` that is not accepted then
//! ends the process as it ends CPython: [`UNKNOWN_ALLOCATOR_TEXT`] on stderr, exit status 1. A program that wants another
//! profile, a free-threaded or a debug build for instance, or another name or answer, calls [`configure`] or
//! [`configure_from_env`] before its first allocation.
//!
//! # Examples
//!
//! ```
//! use pymem_domains::global::{self, mem};
//! use pymem_domains::{AllocatorName, Profile};
//!
//! global::configure(Profile::NEWEST, Some(AllocatorName::Debug))?;
//! let block = mem::calloc(10, 4).expect("40 bytes");
//! // SAFETY: the block is live, of the mem domain, and not used again.
//! unsafe { mem::free(Some(block)) };
//! # Ok::<(), pymem_domains::GlobalError>(())
//! ```

use std::io::Write as _;

use malloc_api::{AllocatorRecord, Domain, Forward, ThreadSafety};
use pymem_sync::{ForkLock, HeldOverFork, Lock, Published, Rank, hold_over_forks};

use crate::debug::DebugConfig;
use crate::domain_allocator::{Gate, Gated};
use crate::domains::Domains;
use crate::error::{DomainsError, GlobalError};
use crate::name::UNKNOWN_ALLOCATOR_TEXT;
use crate::preconfig::{Environment, Preconfig};
use crate::profile::Profile;
use crate::shared::{Cells, Shared};
use crate::table::{AllocatorName, Row};

/// What stands behind the cells until the domains are configured.
struct Global {
    shared: Lock<Option<&'static Shared>>,
}

static GLOBAL: Global = Global { shared: Lock::new(None) };
static HELD: ForkLock = ForkLock::new(Rank::Domains, &GLOBAL);
static GATES: [Gate<Global>; 3] =
    [Gate::new(&GLOBAL, 0), Gate::new(&GLOBAL, 1), Gate::new(&GLOBAL, 2)];
static CLOSED: [AllocatorRecord; 3] = [
    AllocatorRecord::new(&GATES[0]),
    AllocatorRecord::new(&GATES[1]),
    AllocatorRecord::new(&GATES[2]),
];
static CELLS: Cells =
    [Published::new(&CLOSED[0]), Published::new(&CLOSED[1]), Published::new(&CLOSED[2])];

/// Configures the process-wide domains for `profile` by `name`; `None`, "not set", is the profile's default.
///
/// # Errors
///
/// [`GlobalError::AlreadyConfigured`] after an earlier call or the first allocation; otherwise as [`Domains::new`].
pub fn configure(profile: Profile, name: Option<AllocatorName>) -> Result<Domains, GlobalError> {
    configure_with(profile, name, DebugConfig::new())
}

/// [`configure`] with what the debug hooks are to do.
///
/// # Errors
///
/// As [`configure`].
pub fn configure_with(
    profile: Profile,
    name: Option<AllocatorName>,
    debug: DebugConfig,
) -> Result<Domains, GlobalError> {
    let row = Domains::row_of(&profile, name)?;
    GLOBAL.configure(profile, row, debug).map(Domains::of)
}

/// Configures the process-wide domains for `profile` from the environment, with CPython's precedence.
///
/// `preconfig` says what the program itself knows: its own choice, whether the environment counts, and `-X dev`. Its two
/// variables are read from the environment where they are `None`.
///
/// # Errors
///
/// [`GlobalError::AlreadyConfigured`] after an earlier call or the first allocation, and
/// [`DomainsError::UnknownAllocator`] for a `PYTHONMALLOC` that the profile rejects.
pub fn configure_from_env(
    profile: Profile,
    preconfig: Preconfig<'_>,
) -> Result<Domains, GlobalError> {
    let environment = Environment::new();
    let name = environment.complete(preconfig).choose(&profile).map_err(DomainsError::from)?;
    configure(profile, name)
}

/// The process-wide domains, configured from the environment if nothing configured them before.
#[must_use]
pub fn domains() -> Domains {
    Domains::of(GLOBAL.shared())
}

impl Global {
    fn configure(
        &self,
        profile: Profile,
        row: &'static Row,
        debug: DebugConfig,
    ) -> Result<&'static Shared, GlobalError> {
        // Without memory for the handlers, forks go unguarded.
        let _ = hold_over_forks(&HELD);
        let mut slot = self.shared.lock();
        if let Some(shared) = *slot {
            return Err(GlobalError::AlreadyConfigured { name: shared.row.name() });
        }
        // SAFETY: 1: any thread may call.
        let shared = unsafe { Shared::make(profile, row, debug, &CELLS, ThreadSafety::AnyThread) }?;
        *slot = Some(shared);
        Ok(shared)
    }

    fn shared(&self) -> &'static Shared {
        if let Some(shared) = *self.shared.lock() {
            return shared;
        }
        let environment = Environment::new();
        let chosen = environment.complete(Preconfig::default()).lookup(&Profile::NEWEST);
        let row = chosen
            .and_then(|name| name.unwrap_or(AllocatorName::Default).row(&Profile::NEWEST))
            .unwrap_or_else(|_| unknown_allocator());
        match self.configure(Profile::NEWEST, row, DebugConfig::new()) {
            Ok(shared) => shared,
            // The crate has every allocator of this profile, so its rows can be made: another thread was quicker.
            Err(_) => self.shared.lock().expect("configured by another thread"),
        }
    }
}

impl Gated for Global {
    fn open(&self, domain: usize) -> &'static AllocatorRecord {
        self.shared().open(domain)
    }

    fn peek(&self, domain: usize) -> &'static AllocatorRecord {
        self.shared().peek(domain)
    }
}

// Whoever configures the domains holds the first lock and then takes those of the domains.
impl HeldOverFork for Global {
    fn hold(&self) {
        self.shared.raw().lock();
        // SAFETY: under the lock, which is kept.
        if let Some(shared) = unsafe { *self.shared.as_ptr() } {
            shared.hold();
        }
    }

    unsafe fn release(&self) {
        // SAFETY: `hold` has kept the lock for this thread (duty 1).
        if let Some(shared) = unsafe { *self.shared.as_ptr() } {
            // SAFETY: 1: by `hold`, which saw the same domains.
            unsafe { shared.release() };
        }
        // SAFETY: 1: by duty 1; the slot is not touched below.
        unsafe { self.shared.raw().unlock() };
    }
}

/// Ends the process as CPython does, without a heap.
#[cold]
fn unknown_allocator() -> ! {
    // Ignore write errors: there is nowhere to report them.
    let _ = std::io::stderr().write_all(UNKNOWN_ALLOCATOR_TEXT.as_bytes());
    // SAFETY: ends the process without running exit handlers, which could allocate.
    unsafe { libc::_exit(1) }
}

macro_rules! global_domain {
    ($type:ident, $module:ident, $domain:expr, $name:literal) => {
        #[doc = concat!("The process-wide ", $name, " domain as an allocator, of no size.")]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $type;

        // SAFETY: 1 and 2: the domain is one, and whatever record serves it takes its blocks; 3: an atomic load.
        unsafe impl Forward for $type {
            type Target = AllocatorRecord;

            #[inline]
            fn target(&self) -> &AllocatorRecord {
                CELLS[$domain.index()].load()
            }
        }

        #[doc = concat!("The functions of the process-wide ", $name, " domain.")]
        ///
        /// Sizes are in bytes; the contract of each is that of [`Malloc`](malloc_api::Malloc). For arrays and strings see
        /// [`TypedMalloc`](crate::TypedMalloc).
        pub mod $module {
            use core::ptr::NonNull;

            use malloc_api::Malloc;

            use super::$type;

            /// Allocates `size` bytes with undefined content; see [`Malloc::malloc`].
            #[inline]
            #[must_use]
            pub fn malloc(size: usize) -> Option<NonNull<u8>> {
                $type.malloc(size)
            }

            /// Allocates `nelem * elsize` zeroed bytes; see [`Malloc::calloc`].
            #[inline]
            #[must_use]
            pub fn calloc(nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
                $type.calloc(nelem, elsize)
            }

            /// Resizes the block at `ptr` to `new_size` bytes; see [`Malloc::realloc`].
            ///
            /// # Safety
            ///
            /// 1. `ptr` is `None` or a live block of this domain.
            /// 2. After a successful call the old pointer is dead, even where it equals the new one.
            #[inline]
            #[must_use]
            pub unsafe fn realloc(
                ptr: Option<NonNull<u8>>,
                new_size: usize,
            ) -> Option<NonNull<u8>> {
                // SAFETY: the caller's duties 1 and 2.
                unsafe { $type.realloc(ptr, new_size) }
            }

            /// Frees the block at `ptr`; see [`Malloc::free`].
            ///
            /// # Safety
            ///
            /// 1. `ptr` is `None` or a live block of this domain.
            /// 2. The block is not used afterwards.
            #[inline]
            pub unsafe fn free(ptr: Option<NonNull<u8>>) {
                // SAFETY: the caller's duties 1 and 2.
                unsafe { $type.free(ptr) }
            }
        }
    };
}

global_domain!(Raw, raw, Domain::Raw, "raw");
global_domain!(Mem, mem, Domain::Mem, "mem");
global_domain!(Obj, obj, Domain::Obj, "obj");
