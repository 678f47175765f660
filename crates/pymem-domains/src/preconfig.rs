//! Owns CPython's precedence: which of the embedder, the environment and dev mode chooses the allocator.

use core::ffi::CStr;

use crate::name::{Rejection, UnknownAllocator};
use crate::profile::Profile;
use crate::table::AllocatorName;

/// What an interpreter knows when it chooses its allocator.
///
/// The first that applies wins: the embedder's choice, a non-empty `PYTHONMALLOC`, dev mode (which means `debug`). With
/// none of them nothing is set.
///
/// # Examples
///
/// ```
/// use pymem_domains::{AllocatorName, Preconfig, Profile};
///
/// let config = Preconfig { dev_mode: true, ..Preconfig::default() };
/// assert_eq!(config.choose(&Profile::NEWEST), Ok(Some(AllocatorName::Debug)));
///
/// // A name in the environment switches the hooks of dev mode off again.
/// let config = Preconfig { pythonmalloc: Some(b"default"), ..config };
/// assert_eq!(config.choose(&Profile::NEWEST), Ok(Some(AllocatorName::Default)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preconfig<'a> {
    /// The embedder's choice; it beats everything.
    pub allocator: Option<AllocatorName>,
    /// Whether the two variables below are read; `-E` and `-I` switch them off.
    pub use_environment: bool,
    /// The value of `PYTHONMALLOC`; empty is as good as unset.
    pub pythonmalloc: Option<&'a [u8]>,
    /// The value of `PYTHONDEVMODE`; any non-empty value is dev mode, `0` too.
    pub pythondevmode: Option<&'a [u8]>,
    /// Dev mode by option, `-X dev`.
    pub dev_mode: bool,
}

/// Nothing is set, and the environment counts.
impl Default for Preconfig<'_> {
    fn default() -> Self {
        Self {
            allocator: None,
            use_environment: true,
            pythonmalloc: None,
            pythondevmode: None,
            dev_mode: false,
        }
    }
}

impl Preconfig<'_> {
    /// The name that wins; `None` when nothing is set.
    ///
    /// # Errors
    ///
    /// [`UnknownAllocator`] when `PYTHONMALLOC` decides and holds a name that `profile` does not accept. A value that is
    /// not reached is not looked at.
    pub fn choose(&self, profile: &Profile) -> Result<Option<AllocatorName>, UnknownAllocator> {
        self.lookup(profile)
            .map_err(|reason| UnknownAllocator::new(self.pythonmalloc.unwrap_or_default(), reason))
    }

    /// [`Preconfig::choose`] without a heap, for a process that has not chosen its allocator yet.
    pub(crate) fn lookup(&self, profile: &Profile) -> Result<Option<AllocatorName>, Rejection> {
        if self.allocator.is_some() {
            return Ok(self.allocator);
        }
        let (malloc, devmode) = if self.use_environment {
            (self.pythonmalloc, self.pythondevmode)
        } else {
            (None, None)
        };
        let dev_mode = self.dev_mode || devmode.is_some_and(|value| !value.is_empty());
        let name = AllocatorName::lookup(malloc.unwrap_or_default(), profile)?;
        Ok(name.or(dev_mode.then_some(AllocatorName::Debug)))
    }
}

/// The variables that choose an allocator, as they stood at one moment; read without a heap, inside the first allocation.
#[derive(Debug)]
pub(crate) struct Environment {
    pythonmalloc: Variable,
    pythondevmode: Variable,
}

impl Environment {
    pub(crate) fn new() -> Self {
        Self {
            pythonmalloc: Variable::read(c"PYTHONMALLOC"),
            pythondevmode: Variable::read(c"PYTHONDEVMODE"),
        }
    }

    /// `preconfig` with these variables where it names none.
    pub(crate) fn complete<'a>(&'a self, preconfig: Preconfig<'a>) -> Preconfig<'a> {
        Preconfig {
            pythonmalloc: preconfig.pythonmalloc.or(self.pythonmalloc.value()),
            pythondevmode: preconfig.pythondevmode.or(self.pythondevmode.value()),
            ..preconfig
        }
    }
}

/// How much of a value is kept: more than the longest name, so that a cut value is never taken for a name.
const KEPT_BYTES: usize = 64;

/// The beginning of a variable's value.
#[derive(Debug)]
struct Variable {
    bytes: [u8; KEPT_BYTES],
    len: Option<usize>,
}

impl Variable {
    fn read(name: &CStr) -> Self {
        let mut kept = Self { bytes: [0; KEPT_BYTES], len: None };
        // SAFETY: the name is a C string. Nobody changes the environment meanwhile: whoever does must know that no
        // other thread reads it, as `std::env::set_var` demands.
        let value = unsafe { libc::getenv(name.as_ptr()) };
        if value.is_null() {
            return kept;
        }
        // SAFETY: `getenv` returned a C string, which stays unchanged as said above.
        let value = unsafe { CStr::from_ptr(value) }.to_bytes();
        let len = value.len().min(KEPT_BYTES);
        kept.bytes[..len].copy_from_slice(&value[..len]);
        kept.len = Some(len);
        kept
    }

    fn value(&self) -> Option<&[u8]> {
        self.len.map(|len| &self.bytes[..len])
    }
}
