//! Owns the profile: which interpreter's table applies, and which combinations cannot exist.

use core::fmt;

use thiserror::Error;

/// The CPython version whose table applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum Version {
    /// 3.13 and older, whose rows are those of 3.13.
    #[cfg_attr(feature = "serde", serde(rename = "3.13"))]
    V3_13,
    /// 3.14 before 3.14.10.
    #[cfg_attr(feature = "serde", serde(rename = "3.14"))]
    V3_14,
    /// 3.14.10 and newer of 3.14, which bundle mimalloc 2.5: the statistics of its heaps have other limits.
    #[cfg_attr(feature = "serde", serde(rename = "3.14.10"))]
    V3_14_10,
    /// 3.15 and newer: the mimalloc rows serve raw by mimalloc too.
    #[cfg_attr(feature = "serde", serde(rename = "3.15"))]
    V3_15,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 4] = [Self::V3_13, Self::V3_14, Self::V3_14_10, Self::V3_15];

    /// The newest version: the default profile's.
    pub const NEWEST: Self = Self::V3_15;

    /// The version whose table the interpreter 3.`minor`.`micro` uses: 3.13 for all older ones, 3.15 for all newer ones.
    #[must_use]
    pub const fn from_release(minor: u32, micro: u32) -> Self {
        match (minor, micro) {
            (0..=13, _) => Self::V3_13,
            (14, 0..=9) => Self::V3_14,
            (14, _) => Self::V3_14_10,
            _ => Self::V3_15,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V3_13 => "3.13",
            Self::V3_14 => "3.14",
            Self::V3_14_10 => "3.14.10",
            Self::V3_15 => "3.15",
        })
    }
}

/// Whether the interpreter has a global lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Build {
    /// The default build: threads hold the global interpreter lock in mem and obj.
    Gil,
    /// Built with `--disable-gil`: threads run at once, and mem and obj are mimalloc's.
    FreeThreaded,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gil => "GIL",
            Self::FreeThreaded => "free-threaded",
        })
    }
}

/// Which interpreter's configuration table applies: its version and how it was built.
///
/// A profile describes an interpreter, not this library: a profile with mimalloc can be named in a build of the library
/// without it, and [`Domains::new`](crate::Domains::new) then says what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Profile {
    version: Version,
    build: Build,
    pymalloc: bool,
    mimalloc: bool,
    pydebug: bool,
    sanitizer: bool,
    huge_pages: bool,
}

impl Profile {
    /// A release build of the newest version, with the GIL and with the allocators that this build of the crate has.
    pub const NEWEST: Self = Self {
        version: Version::NEWEST,
        build: Build::Gil,
        pymalloc: cfg!(feature = "pymalloc"),
        mimalloc: cfg!(feature = "mimalloc"),
        pydebug: false,
        sanitizer: false,
        huge_pages: false,
    };

    /// A profile: table version, build, whether pymalloc and mimalloc are built in, and whether it is a debug build.
    ///
    /// # Errors
    ///
    /// [`ProfileError::FreeThreadedNeedsMimalloc`] for a free-threaded build without mimalloc, which CPython refuses to
    /// configure.
    ///
    /// # Examples
    ///
    /// ```
    /// use pymem_domains::{Build, Profile, ProfileError, Version};
    ///
    /// let release = Profile::new(Version::V3_13, Build::Gil, true, true, false)?;
    /// assert!(release.pymalloc());
    /// assert_eq!(
    ///     Profile::new(Version::V3_15, Build::FreeThreaded, true, false, false),
    ///     Err(ProfileError::FreeThreadedNeedsMimalloc),
    /// );
    /// # Ok::<(), ProfileError>(())
    /// ```
    pub const fn new(
        version: Version,
        build: Build,
        pymalloc: bool,
        mimalloc: bool,
        pydebug: bool,
    ) -> Result<Self, ProfileError> {
        if matches!(build, Build::FreeThreaded) && !mimalloc {
            return Err(ProfileError::FreeThreadedNeedsMimalloc);
        }
        let [sanitizer, huge_pages] = [false; 2];
        Ok(Self { version, build, pymalloc, mimalloc, pydebug, sanitizer, huge_pages })
    }

    /// The same build with another version's table.
    #[must_use]
    pub const fn with_version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// The same build with a sanitizer compiled in, or without one, as [`Profile::new`] makes it.
    #[must_use]
    pub const fn with_sanitizer(self, sanitizer: bool) -> Self {
        Self { sanitizer, ..self }
    }

    /// The same build whose pools take the system's reserved huge pages as long as there are some, or not, as
    /// [`Profile::new`] makes it. `PYTHON_PYMALLOC_HUGEPAGES` asks for them from 3.15 on.
    #[must_use]
    pub const fn with_huge_pages(self, huge_pages: bool) -> Self {
        Self { huge_pages, ..self }
    }

    /// The version whose table applies.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// With or without a global lock.
    #[must_use]
    pub const fn build(&self) -> Build {
        self.build
    }

    /// Whether pymalloc is built in. A free-threaded build never uses it.
    #[must_use]
    pub const fn pymalloc(&self) -> bool {
        self.pymalloc
    }

    /// Whether `default` is pymalloc: where it is built in, and from 3.15 on where no sanitizer is, which sees more of what
    /// the C library serves.
    #[must_use]
    pub const fn defaults_to_pymalloc(&self) -> bool {
        self.pymalloc && !(self.sanitizer && matches!(self.version, Version::V3_15))
    }

    /// Whether a sanitizer is compiled in.
    #[must_use]
    pub const fn sanitizer(&self) -> bool {
        self.sanitizer
    }

    /// Whether the pools take the system's reserved huge pages.
    #[must_use]
    pub const fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Whether mimalloc is built in.
    #[must_use]
    pub const fn mimalloc(&self) -> bool {
        self.mimalloc
    }

    /// Whether this is a debug build, whose default row carries the debug hooks.
    #[must_use]
    pub const fn pydebug(&self) -> bool {
        self.pydebug
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::NEWEST
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.pydebug { "debug" } else { "release" };
        write!(f, "{} {} {kind} build", self.version, self.build)?;
        match (self.pymalloc, self.mimalloc) {
            (true, true) => Ok(()),
            (false, true) => f.write_str(" without pymalloc"),
            (true, false) => f.write_str(" without mimalloc"),
            (false, false) => f.write_str(" without pymalloc and mimalloc"),
        }?;
        f.write_str(if self.sanitizer { " with a sanitizer" } else { "" })?;
        f.write_str(if self.huge_pages { " with reserved huge pages" } else { "" })
    }
}

/// A profile that no interpreter can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Mem and obj of a free-threaded build are mimalloc's, so mimalloc cannot be left out.
    #[error(
        "a free-threaded build requires mimalloc, which serves its mem and obj domains; give `mimalloc: true` or `Build::Gil`"
    )]
    FreeThreadedNeedsMimalloc,
}
