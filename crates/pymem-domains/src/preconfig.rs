//! Owns CPython's precedence: which of the embedder, the environment and dev mode chooses the allocator.

use crate::name::{AllocatorName, Lookup, Rejection, UnknownAllocator};
use crate::profile::Profile;

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

    /// [`Preconfig::choose`] without a heap: what a process does before its allocator is chosen.
    pub(crate) fn lookup(&self, profile: &Profile) -> Result<Option<AllocatorName>, Rejection> {
        if self.allocator.is_some() {
            return Ok(self.allocator);
        }
        let (malloc, devmode) = if self.use_environment {
            (self.pythonmalloc, self.pythondevmode)
        } else {
            (None, None)
        };
        match AllocatorName::lookup(malloc.unwrap_or_default(), profile) {
            Lookup::Accepted(name) => Ok(Some(name)),
            Lookup::Rejected(reason) => Err(reason),
            Lookup::NotSet if self.dev_mode || devmode.is_some_and(|value| !value.is_empty()) => {
                Ok(Some(AllocatorName::Debug))
            }
            Lookup::NotSet => Ok(None),
        }
    }
}
