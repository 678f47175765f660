//! Owns the names of configurations: what `PYTHONMALLOC` accepts and how a wrong name is reported.
//! Leaves what a name installs to `table.rs`.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

use crate::profile::{Build, Profile};

/// What CPython writes to stderr for a name that it does not accept, before it exits with status 1.
///
/// The text is the same for a name that nobody knows and for one that this build rejects.
pub const UNKNOWN_ALLOCATOR_TEXT: &str = "\
Fatal Python error: preconfig_init_allocator: PYTHONMALLOC: unknown allocator
Python runtime state: preinitializing

";

/// The name of a configuration: a value of `PYTHONMALLOC`.
///
/// "Not set" is the absence of a name, `Option::<AllocatorName>::None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[repr(u8)]
pub enum AllocatorName {
    /// `default`: what the build uses when nothing is set.
    Default = 1,
    /// `debug`: the build's default allocators under the debug hooks.
    Debug = 2,
    /// `malloc`: the C library in all three domains.
    Malloc = 3,
    /// `malloc_debug`: as `malloc`, under the debug hooks.
    MallocDebug = 4,
    /// `pymalloc`: the C library for raw, pymalloc for mem and obj.
    Pymalloc = 5,
    /// `pymalloc_debug`: as `pymalloc`, under the debug hooks.
    PymallocDebug = 6,
    /// `mimalloc`: mimalloc for mem and obj, and since 3.15 for raw.
    Mimalloc = 7,
    /// `mimalloc_debug`: as `mimalloc`, under the debug hooks.
    MimallocDebug = 8,
}

impl AllocatorName {
    /// Every name, in CPython's order.
    pub const ALL: [Self; 8] = [
        Self::Default,
        Self::Debug,
        Self::Malloc,
        Self::MallocDebug,
        Self::Pymalloc,
        Self::PymallocDebug,
        Self::Mimalloc,
        Self::MimallocDebug,
    ];

    /// The name as `PYTHONMALLOC` spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Debug => "debug",
            Self::Malloc => "malloc",
            Self::MallocDebug => "malloc_debug",
            Self::Pymalloc => "pymalloc",
            Self::PymallocDebug => "pymalloc_debug",
            Self::Mimalloc => "mimalloc",
            Self::MimallocDebug => "mimalloc_debug",
        }
    }

    /// Reads a value of `PYTHONMALLOC` as an interpreter of `profile` does.
    ///
    /// An empty value is "not set", `Ok(None)`. Names are case-sensitive and are not trimmed.
    ///
    /// # Errors
    ///
    /// [`UnknownAllocator`] for anything that is not a name, and for a name that the profile's build rejects.
    pub fn parse(
        value: impl AsRef<[u8]>,
        profile: &Profile,
    ) -> Result<Option<Self>, UnknownAllocator> {
        let value = value.as_ref();
        match Self::lookup(value, profile) {
            Lookup::NotSet => Ok(None),
            Lookup::Accepted(name) => Ok(Some(name)),
            Lookup::Rejected(reason) => Err(UnknownAllocator::new(value, reason)),
        }
    }

    /// [`AllocatorName::parse`] without a heap: what a process does before its allocator is chosen.
    pub(crate) fn lookup(value: &[u8], profile: &Profile) -> Lookup {
        if value.is_empty() {
            return Lookup::NotSet;
        }
        match Self::ALL.into_iter().find(|name| name.as_str().as_bytes() == value) {
            None => Lookup::Rejected(Rejection::NoSuchName),
            Some(name) => match name.rejected_by(profile) {
                None => Lookup::Accepted(name),
                Some(reason) => Lookup::Rejected(reason),
            },
        }
    }

    /// Why an interpreter of `profile` rejects this name; `None` means that it accepts it.
    #[must_use]
    pub const fn rejected_by(self, profile: &Profile) -> Option<Rejection> {
        match (self, profile.build()) {
            (Self::Default | Self::Debug, _) => None,
            (Self::Malloc | Self::MallocDebug, Build::Gil) => None,
            (Self::Pymalloc | Self::PymallocDebug, Build::Gil) => {
                if profile.pymalloc() {
                    None
                } else {
                    Some(Rejection::WithoutPymalloc)
                }
            }
            (Self::Mimalloc | Self::MimallocDebug, _) => {
                if profile.mimalloc() {
                    None
                } else {
                    Some(Rejection::WithoutMimalloc)
                }
            }
            (_, Build::FreeThreaded) => Some(Rejection::FreeThreaded),
        }
    }
}

impl fmt::Display for AllocatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Any of the eight names, whatever the build; [`AllocatorName::parse`] also asks the profile.
impl FromStr for AllocatorName {
    type Err = UnknownAllocator;

    fn from_str(value: &str) -> Result<Self, UnknownAllocator> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == value)
            .ok_or_else(|| UnknownAllocator { value: value.into(), reason: Rejection::NoSuchName })
    }
}

/// What a value of `PYTHONMALLOC` means to a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    NotSet,
    Accepted(AllocatorName),
    Rejected(Rejection),
}

/// Why a name is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// It is none of the eight names.
    NoSuchName,
    /// The profile was built without pymalloc.
    WithoutPymalloc,
    /// The profile was built without mimalloc.
    WithoutMimalloc,
    /// A free-threaded build accepts only `default`, `debug`, `mimalloc` and `mimalloc_debug`.
    FreeThreaded,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchName => {
                "expected default, debug, malloc, malloc_debug, pymalloc, pymalloc_debug, mimalloc or mimalloc_debug"
            }
            Self::WithoutPymalloc => "this build is without pymalloc; choose another name, such as malloc",
            Self::WithoutMimalloc => "this build is without mimalloc; choose another name, such as pymalloc",
            Self::FreeThreaded => {
                "a free-threaded build takes only default, debug, mimalloc or mimalloc_debug"
            }
        })
    }
}

/// A value of `PYTHONMALLOC` that is not accepted.
///
/// [`UNKNOWN_ALLOCATOR_TEXT`] is what CPython itself prints.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown allocator {value:?}: {reason}")]
pub struct UnknownAllocator {
    value: Box<str>,
    reason: Rejection,
}

impl UnknownAllocator {
    pub(crate) fn new(value: &[u8], reason: Rejection) -> Self {
        Self { value: String::from_utf8_lossy(value).into(), reason }
    }

    /// The value that was not accepted; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Why it was not accepted.
    #[must_use]
    pub const fn reason(&self) -> Rejection {
        self.reason
    }
}
