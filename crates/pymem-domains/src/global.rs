//! The process-wide domains: configured once, by code or by the environment, and used through [`raw`], [`mem`] and
//! [`obj`], or through the types [`Raw`], [`Mem`] and [`Obj`] wherever an allocator is asked for.
//!
//! The first call of any domain configures them if nothing did before: from `PYTHONMALLOC` and `PYTHONDEVMODE`, with
//! CPython's precedence, for [`Profile::NEWEST`]. A `PYTHONMALLOC` that is not accepted then ends the process as it ends
//! CPython: [`UNKNOWN_ALLOCATOR_TEXT`] on stderr, exit status 1. A program that wants another profile, name or answer
//! calls [`configure`] or [`configure_from_env`] first.
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
//! # Ok::<(), pymem_domains::ConfigureError>(())
//! ```

use core::ptr::NonNull;
use std::io::Write as _;

use malloc_api::Malloc;
use pymem_sync::{Lock, Published};

use crate::debug::DebugConfig;
use crate::domains::Domains;
use crate::environment::Environment;
use crate::error::ConfigureError;
use crate::gate::{Gated, gate};
use crate::name::{AllocatorName, UNKNOWN_ALLOCATOR_TEXT};
use crate::preconfig::Preconfig;
use crate::profile::Profile;
use crate::shared::Cells;
use crate::table::Row;
use malloc_api::Domain;
use malloc_api::{AllocatorRecord, ThreadSafety};

/// What stands behind the cells until the domains are configured.
struct Global {
    domains: Lock<Option<Domains>>,
}

static GLOBAL: Global = Global { domains: Lock::new(None) };
static GATES: [AllocatorRecord; 3] =
    [gate::<Global, 0>(&GLOBAL), gate::<Global, 1>(&GLOBAL), gate::<Global, 2>(&GLOBAL)];
static CELLS: Cells =
    [Published::new(&GATES[0]), Published::new(&GATES[1]), Published::new(&GATES[2])];

/// Configures the process-wide domains for `profile` by `name`; `None`, "not set", is the profile's default.
///
/// # Errors
///
/// [`ConfigureError::AlreadyConfigured`] after an earlier call or the first allocation; otherwise as [`Domains::new`].
pub fn configure(profile: Profile, name: Option<AllocatorName>) -> Result<Domains, ConfigureError> {
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
) -> Result<Domains, ConfigureError> {
    let row = Domains::row_of(&profile, name)?;
    GLOBAL.configure(profile, row, debug)
}

/// Configures the process-wide domains for `profile` from the environment, with CPython's precedence.
///
/// `preconfig` says what the program itself knows: its own choice, whether the environment counts, and `-X dev`. Its two
/// variables are read from the environment where they are `None`.
///
/// # Errors
///
/// [`ConfigureError::AlreadyConfigured`] after an earlier call or the first allocation, and
/// [`DomainsError::UnknownAllocator`](crate::DomainsError::UnknownAllocator) for a `PYTHONMALLOC` that the profile rejects.
pub fn configure_from_env(
    profile: Profile,
    preconfig: Preconfig<'_>,
) -> Result<Domains, ConfigureError> {
    let environment = Environment::new();
    let name =
        environment.complete(preconfig).choose(&profile).map_err(crate::DomainsError::from)?;
    configure(profile, name)
}

/// The process-wide domains, configured from the environment if nothing configured them before.
#[must_use]
pub fn domains() -> Domains {
    GLOBAL.domains()
}

/// Waits until nobody configures the process-wide domains, and keeps it so over a fork.
pub(crate) fn lock_for_fork() {
    GLOBAL.domains.raw().lock();
}

/// Lets the process-wide domains be configured again.
///
/// # Safety
///
/// 1. This thread, or in the child the thread that forked, has called [`lock_for_fork`] before.
pub(crate) unsafe fn unlock_after_fork() {
    // SAFETY: 1: by duty 1.
    unsafe { GLOBAL.domains.raw().unlock() };
}

impl Global {
    fn configure(
        &self,
        profile: Profile,
        row: &'static Row,
        debug: DebugConfig,
    ) -> Result<Domains, ConfigureError> {
        let mut slot = self.domains.lock();
        if let Some(domains) = *slot {
            return Err(ConfigureError::AlreadyConfigured { name: domains.row().name() });
        }
        // SAFETY: 1: any thread may call.
        let domains =
            unsafe { Domains::build(profile, row, debug, &CELLS, ThreadSafety::AnyThread) }?;
        *slot = Some(domains);
        Ok(domains)
    }

    fn domains(&self) -> Domains {
        if let Some(domains) = *self.domains.lock() {
            return domains;
        }
        let environment = Environment::new();
        let chosen = environment.complete(Preconfig::default()).lookup(&Profile::NEWEST);
        let row = chosen
            .and_then(|name| Profile::NEWEST.row(name.unwrap_or(AllocatorName::Default)))
            .unwrap_or_else(|_| unknown_allocator());
        match self.configure(Profile::NEWEST, row, DebugConfig::new()) {
            Ok(domains) => domains,
            // The profile is that of the crate's features, so its rows can be built: another thread was quicker.
            Err(_) => self.domains.lock().expect("configured by another thread"),
        }
    }
}

impl Gated for Global {
    fn open(&self, domain: usize) -> &'static AllocatorRecord {
        self.domains().open(domain)
    }

    fn peek(&self, domain: usize) -> &'static AllocatorRecord {
        self.domains().peek(domain)
    }
}

/// Ends the process as CPython does, without a heap.
#[cold]
fn unknown_allocator() -> ! {
    // Nobody is left to tell that stderr is closed.
    let _ = std::io::stderr().write_all(UNKNOWN_ALLOCATOR_TEXT.as_bytes());
    // SAFETY: ends the process without running exit handlers, which could allocate.
    unsafe { libc::_exit(1) }
}

macro_rules! global_domain {
    ($type:ident, $module:ident, $domain:expr, $name:literal) => {
        #[doc = concat!("The process-wide ", $name, " domain as an allocator, of no size.")]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $type;

        // SAFETY: every method is the same method of the domain's record, which keeps promises 1-4; 5: the domain is one.
        unsafe impl Malloc for $type {
            #[inline]
            fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
                CELLS[$domain.index()].load().malloc(size)
            }

            #[inline]
            fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
                CELLS[$domain.index()].load().calloc(nelem, elsize)
            }

            #[inline]
            unsafe fn realloc(
                &self,
                ptr: Option<NonNull<u8>>,
                new_size: usize,
            ) -> Option<NonNull<u8>> {
                // SAFETY: the caller's duties 1 and 2 are those of the record.
                unsafe { CELLS[$domain.index()].load().realloc(ptr, new_size) }
            }

            #[inline]
            unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
                // SAFETY: the caller's duties 1 and 2 are those of the record.
                unsafe { CELLS[$domain.index()].load().free(ptr) }
            }
        }

        #[doc = concat!("The functions of the process-wide ", $name, " domain.")]
        ///
        /// Sizes are in bytes; the contract of each is that of [`Malloc`]. For arrays and strings see
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
