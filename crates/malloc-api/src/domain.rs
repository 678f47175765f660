//! Owns the three domains: their order, their numbers, their letters and their names.

use core::fmt;

use thiserror::Error;

/// One of CPython's three memory domains.
///
/// A block goes back to the domain that it came from. The discriminants are those of `PyMemAllocatorDomain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
#[repr(u8)]
pub enum Domain {
    /// Memory needed without an attached thread state: any thread, any time.
    Raw = 0,
    /// Python buffers and general use: attached threads only.
    Mem = 1,
    /// Python objects: attached threads only.
    Obj = 2,
}

impl Domain {
    /// Every domain, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Mem, Self::Obj];

    /// The domain's number: 0, 1 or 2; also its place in [`Domain::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The letter of the domain, `r`, `m` or `o`: CPython's API id, by which debug hooks mark the blocks of a domain.
    #[inline]
    #[must_use]
    pub const fn letter(self) -> u8 {
        match self {
            Self::Raw => b'r',
            Self::Mem => b'm',
            Self::Obj => b'o',
        }
    }

    /// The domain of a letter; `None` for any byte but `r`, `m` and `o`.
    #[must_use]
    pub const fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'r' => Some(Self::Raw),
            b'm' => Some(Self::Mem),
            b'o' => Some(Self::Obj),
            _ => None,
        }
    }

    /// The domain's name in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mem => "mem",
            Self::Obj => "obj",
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A number that names no domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no domain has number {0}; the domains are raw (0), mem (1) and obj (2)")]
pub struct UnknownDomain(pub i64);

/// From the number that C code uses; CPython ignores any other one silently, here it is an error.
impl TryFrom<i64> for Domain {
    type Error = UnknownDomain;

    fn try_from(number: i64) -> Result<Self, UnknownDomain> {
        let domain = Self::ALL.into_iter().find(|domain| *domain as i64 == number);
        domain.ok_or(UnknownDomain(number))
    }
}
