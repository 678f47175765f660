//! Owns the way from a value of `PYTHONMALLOC` to a row of the table, and what is said of a value that has none.
//! Leaves names and rows to `table.rs`.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

use crate::profile::{Build, Profile};
use crate::table::{AllocatorName, Backend, Row, TABLE};

/// What CPython writes to stderr for a name that it does not accept, before it exits with status 1.
///
/// The text is the same for a name that nobody knows and for one that this build rejects.
pub const UNKNOWN_ALLOCATOR_TEXT: &str = "\
Fatal Python error: preconfig_init_allocator: PYTHONMALLOC: unknown allocator
Python runtime state: preinitializing

";

impl AllocatorName {
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
        Self::lookup(value, profile).map_err(|reason| UnknownAllocator::new(value, reason))
    }

    /// [`AllocatorName::parse`] without a heap, for a process that has not chosen its allocator yet.
    pub(crate) fn lookup(value: &[u8], profile: &Profile) -> Result<Option<Self>, Rejection> {
        if value.is_empty() {
            return Ok(None);
        }
        let name = Self::ALL.into_iter().find(|name| name.as_str().as_bytes() == value);
        let name = name.ok_or(Rejection::NoSuchName)?;
        name.row(profile).map(|_| Some(name))
    }

    /// The row that the name selects in an interpreter of `profile`.
    ///
    /// # Errors
    ///
    /// Why the profile rejects the name.
    pub fn row(self, profile: &Profile) -> Result<&'static Row, Rejection> {
        let rows = || TABLE.iter().filter(|row| row.name() == self);
        if let Some(row) = rows().find(|row| row.applies_to(profile)) {
            return Ok(row);
        }
        let build = profile.build();
        let mut lacking = rows().filter(|row| row.build() == build);
        let lacking = lacking.find_map(|row| row.lacks(profile));
        Err(lacking.map_or(Rejection::OtherBuild(build), Rejection::Without))
    }
}

/// Any name of the table, whatever the build; [`AllocatorName::parse`] also asks the profile.
impl FromStr for AllocatorName {
    type Err = UnknownAllocator;

    fn from_str(value: &str) -> Result<Self, UnknownAllocator> {
        let name = Self::ALL.into_iter().find(|name| name.as_str() == value);
        name.ok_or_else(|| UnknownAllocator::new(value.as_bytes(), Rejection::NoSuchName))
    }
}

/// Why a name is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The table has no such name.
    NoSuchName,
    /// The profile was built without this allocator, which the name needs.
    Without(Backend),
    /// The name has rows for other builds than this one, the profile's.
    OtherBuild(Build),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchName => {
                f.write_str("expected ")?;
                list(f, |_| true)
            }
            Self::Without(backend) => {
                write!(f, "this build is without {backend}; choose another name, such as malloc")
            }
            Self::OtherBuild(build) => {
                write!(f, "a {build} build takes only ")?;
                list(f, |name| TABLE.iter().any(|row| row.name() == name && row.build() == *build))
            }
        }
    }
}

/// Writes the names that `wanted` accepts as `a, b or c`.
fn list(f: &mut fmt::Formatter<'_>, wanted: impl Fn(AllocatorName) -> bool) -> fmt::Result {
    let names = || AllocatorName::ALL.into_iter().filter(|name| wanted(*name));
    let last = names().count().saturating_sub(1);
    for (index, name) in names().enumerate() {
        let separator = match index {
            0 => "",
            _ if index == last => " or ",
            _ => ", ",
        };
        write!(f, "{separator}{name}")?;
    }
    Ok(())
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
