//! Owns the question which Python this is: whether there is one, its version, and how it was built.
//! Leaves the lookup of functions to `capi.rs`.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use pymem_domains::{
    AllocatorRecord, Backend, Build, Domain, Profile, PyMemAllocatorEx, Row, ThreadSafety, Version,
};

use crate::host::capi::{Api, base_of, symbol};

/// The oldest minor version of Python 3 on which the library installs anything.
pub(crate) const OLDEST_MINOR: u32 = 8;

/// The first minor version in which a subinterpreter may have a GIL of its own.
const FIRST_WITH_OWN_GIL: u32 = 12;

/// The first minor version that resets its records at each start.
const FIRST_TO_RESET: u32 = 12;

/// The first minor version with mimalloc.
const FIRST_WITH_MIMALLOC: u32 = 13;

/// The first minor version whose variables speak of huge pages.
const FIRST_WITH_HUGE_PAGES: u32 = 15;

/// The interpreter in this process.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) api: Api,
    /// The minor and the micro version: 13 and 2 for 3.13.2.
    pub(crate) minor: u32,
    micro: u32,
    pub(crate) build: Build,
    /// Whether it is a debug build, whose default has the debug hooks.
    pydebug: bool,
    /// Whether the C library serves it by default.
    is_on_libc: bool,
}

static HOST: OnceLock<Host> = OnceLock::new();

/// The interpreter in this process; `None` without one, and for versions before 3.8. A program may bring one later.
pub(crate) fn host() -> Option<&'static Host> {
    match HOST.get() {
        Some(host) => Some(host),
        None => Host::find().map(|host| HOST.get_or_init(|| host)),
    }
}

impl Host {
    /// Not in line, so that what is asked after the start stands in few bytes.
    #[cold]
    #[inline(never)]
    fn find() -> Option<Self> {
        let api = Api::find()?;
        // SAFETY: `Py_GetVersion` may be called at any time, before initialization too.
        let version = unsafe { (api.get_version)() };
        // SAFETY: it gives a text that ends with a NUL and is never freed.
        let version = unsafe { CStr::from_ptr(version) }.to_str().ok()?;
        let (minor, micro) = release(version)?;
        if minor < OLDEST_MINOR {
            return None;
        }
        let build =
            if version.contains("free-threading") { Build::FreeThreaded } else { Build::Gil };
        let mut host =
            Self { api, minor, micro, build, pydebug: is_debug_build(), is_on_libc: false };
        // The records of a host that has not started are its default. Hooks of a debug build lie over both.
        host.is_on_libc = host.own_record(Domain::Raw) == host.own_record(Domain::Mem);
        Some(host)
    }

    /// Whether blocks of its own pools are live; `false` from 3.12 on, which does not tell.
    pub(crate) fn has_blocks(&self) -> bool {
        // SAFETY: 1: a function of CPython with this signature, in every version that has it.
        let count: Option<unsafe extern "C" fn() -> isize> =
            unsafe { symbol(c"_Py_GetAllocatedBlocks") };
        // SAFETY: it counts under no lock, and nobody uses the interpreter before its start.
        count.is_some_and(|count| unsafe { count() } > 0)
    }

    /// Whether its own records serve all domains, and none that the program has set: their functions lie in the interpreter's library.
    pub(crate) fn has_own_records(&self) -> bool {
        let library = base_of(self.api.get_version as *const c_void);
        Domain::ALL.iter().all(|domain| {
            let malloc = self.get_allocator(*domain).malloc;
            malloc.is_some_and(|malloc| base_of(malloc as *const c_void) == library)
        })
    }

    /// Whether a second start in one process puts its own records back, and serves `row` by them.
    pub(crate) fn serves_second_start(&self, row: &Row) -> bool {
        let knows = !row.uses(Backend::Mimalloc) || self.minor >= FIRST_WITH_MIMALLOC;
        self.minor >= FIRST_TO_RESET && knows
    }

    /// Whether `Py_Initialize` has run: too late to replace allocators.
    pub(crate) fn is_initialized(&self) -> bool {
        // SAFETY: `Py_IsInitialized` may be called at any time from any thread.
        unsafe { (self.api.is_initialized)() != 0 }
    }

    /// Whether one GIL is held over every call of mem and obj for as long as there is one interpreter.
    pub(crate) fn has_gil(&self) -> bool {
        self.build == Build::Gil
    }

    /// Whether a subinterpreter may have a GIL of its own.
    pub(crate) fn has_own_gils(&self) -> bool {
        self.minor >= FIRST_WITH_OWN_GIL
    }

    /// Whether `PYTHON_PYMALLOC_HUGEPAGES` is a variable of this version.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.minor >= FIRST_WITH_HUGE_PAGES
    }

    /// The table that applies.
    ///
    /// Raw is served as the table says, by mimalloc too. No version hands blocks between the record of raw and its default
    /// once it has chosen its allocators: tried with raw on mimalloc, which ends the process at such a block, by 3.9 to 3.15.
    pub(crate) fn profile(&self) -> Profile {
        let version = Version::from_release(self.minor, self.micro);
        // Only a build without mimalloc is refused.
        Profile::new(version, self.build, true, true, self.pydebug)
            .unwrap_or(Profile::NEWEST)
            .with_sanitizer(self.is_on_libc)
    }

    /// The record that serves `domain` now.
    pub(crate) fn get_allocator(&self, domain: Domain) -> PyMemAllocatorEx {
        let mut record = PyMemAllocatorEx::NULL;
        // SAFETY: `record` is writable; `PyMem_GetAllocator` may be called at any time.
        unsafe { (self.api.get_allocator)(number(domain), &raw mut record) };
        record
    }

    /// Makes `record` serve `domain`.
    ///
    /// # Safety
    ///
    /// 1. Blocks that `domain` handed out before can be freed by `record`.
    /// 2. No other thread calls `domain` during the call, unless it can cope with a mix of the old record's words and
    ///    the new one's: the interpreter publishes them one by one.
    pub(crate) unsafe fn set_allocator(&self, domain: Domain, mut record: PyMemAllocatorEx) {
        // SAFETY: five valid words; by duties 1 and 2.
        unsafe { (self.api.set_allocator)(number(domain), &raw mut record) };
    }

    /// The record that serves `domain` now, for wrapping; `None` if one of its functions is missing.
    pub(crate) fn own_record(&self, domain: Domain) -> Option<AllocatorRecord> {
        // SAFETY: 1-3: the record of a running interpreter, which must be thread-safe in every domain since 3.12, and is
        // called under the GIL before.
        unsafe { AllocatorRecord::from_c(self.get_allocator(domain), ThreadSafety::AnyThread) }.ok()
    }

    /// Ends the process through the interpreter's fatal error, so that its traceback follows.
    pub(crate) fn fatal_error(&self, func: &CStr, message: &CStr) -> ! {
        type FatalErrorFunc = unsafe extern "C" fn(*const c_char, *const c_char) -> !;
        // SAFETY: 1: a function of CPython with this signature, in every version that exports it: since 3.9.
        match unsafe { symbol::<FatalErrorFunc>(c"_Py_FatalErrorFunc") } {
            // SAFETY: two texts that end with a NUL.
            Some(fatal_error) => unsafe { fatal_error(func.as_ptr(), message.as_ptr()) },
            // SAFETY: as above.
            None => unsafe { (self.api.fatal_error)(message.as_ptr()) },
        }
    }
}

/// Whether the interpreter counts references in all, which debug builds alone do.
fn is_debug_build() -> bool {
    [c"_Py_IncRefTotal_DO_NOT_USE_THIS", c"_Py_RefTotal"].into_iter().any(|name| {
        // SAFETY: 1: whether it is there is all that is used.
        unsafe { symbol::<*const u8>(name) }.is_some()
    })
}

fn number(domain: Domain) -> c_int {
    domain.index() as c_int
}

/// The minor and the micro version in a text like `3.13.0 (main, ...)`; `None` for anything but Python 3.
fn release(version: &str) -> Option<(u32, u32)> {
    let (minor, rest) = version.strip_prefix("3.")?.split_once('.')?;
    let micro = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((minor.parse().ok()?, micro.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn versions() {
        assert_eq!(release("3.13.0 (main, Oct  7 2024, 12:00:00) [GCC 12.2.0]"), Some((13, 0)));
        assert_eq!(release("3.15.0a7+ (main)"), Some((15, 0)));
        assert_eq!(release("3.9.18"), Some((9, 18)));
        assert_eq!(release("2.7.18 (default)"), None);
        assert_eq!(release("3."), None);
        assert_eq!(release(""), None);
    }
}
