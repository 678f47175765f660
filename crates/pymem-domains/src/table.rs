//! Owns the configuration table: what each name installs in each domain, for each build and version.
//! Leaves the allocators themselves to `backend.rs` and `domains.rs`.

use core::fmt;

use crate::name::{AllocatorName, Rejection};
use crate::profile::{Build, Profile, Version};
use malloc_api::Domain;

/// What serves a domain, below any debug hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Backend {
    /// The C library's malloc family.
    Malloc,
    /// pymalloc: small blocks from arenas, larger ones from the domain's own default raw allocator.
    Pymalloc,
    /// mimalloc's plain functions, on the calling thread's default heap.
    MimallocRaw,
    /// mimalloc for buffers: the thread's mem heap.
    Mimalloc,
    /// mimalloc for objects: the thread's object heap.
    MimallocObject,
}

impl Backend {
    /// The allocator's name: the heaps of mimalloc share one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Pymalloc => "pymalloc",
            Self::MimallocRaw | Self::Mimalloc | Self::MimallocObject => "mimalloc",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a name installs: a backend for each domain, and whether all three carry the debug hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    name: AllocatorName,
    build: Build,
    pymalloc: Option<bool>,
    pydebug: Option<bool>,
    versions: (Version, Version),
    backends: [Backend; 3],
    debug: bool,
}

impl Row {
    /// The name that selects this row.
    #[must_use]
    pub const fn name(&self) -> AllocatorName {
        self.name
    }

    /// The build that the row is for.
    #[must_use]
    pub const fn build(&self) -> Build {
        self.build
    }

    /// Whether the row is for builds with pymalloc or without; `None`: for both.
    #[must_use]
    pub const fn pymalloc(&self) -> Option<bool> {
        self.pymalloc
    }

    /// Whether the row is for debug builds or for release builds; `None`: for both.
    #[must_use]
    pub const fn pydebug(&self) -> Option<bool> {
        self.pydebug
    }

    /// The first and the last version that the row is for.
    #[must_use]
    pub const fn versions(&self) -> (Version, Version) {
        self.versions
    }

    /// What serves `domain`, below any debug hooks.
    #[must_use]
    pub const fn backend(&self, domain: Domain) -> Backend {
        self.backends[domain.index()]
    }

    /// Whether all three domains carry the debug hooks.
    #[must_use]
    pub const fn debug(&self) -> bool {
        self.debug
    }

    /// Whether an interpreter of `profile` uses this row when it is given the row's name.
    #[must_use]
    pub fn applies_to(&self, profile: &Profile) -> bool {
        self.build == profile.build()
            && self.pymalloc.is_none_or(|pymalloc| pymalloc == profile.pymalloc())
            && self.pydebug.is_none_or(|pydebug| pydebug == profile.pydebug())
            && (self.versions.0..=self.versions.1).contains(&profile.version())
            && self.name.rejected_by(profile).is_none()
    }

    /// What serves `domain` in words: `pymalloc`, or `pymalloc + debug`.
    #[must_use]
    pub fn serves(&self, domain: Domain) -> String {
        let hooks = if self.debug { " + debug" } else { "" };
        format!("{}{hooks}", self.backend(domain))
    }

    /// The name of the configuration without reference to a default: `pymalloc_debug` for a debug build's `default`.
    #[must_use]
    pub const fn canonical_name(&self) -> AllocatorName {
        match (self.backends[Domain::Obj.index()], self.debug) {
            (Backend::Malloc, false) => AllocatorName::Malloc,
            (Backend::Malloc, true) => AllocatorName::MallocDebug,
            (Backend::Pymalloc, false) => AllocatorName::Pymalloc,
            (Backend::Pymalloc, true) => AllocatorName::PymallocDebug,
            (_, false) => AllocatorName::Mimalloc,
            (_, true) => AllocatorName::MimallocDebug,
        }
    }
}

const ANY: Option<bool> = None;
const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);
const EVERY: (Version, Version) = (Version::V3_13, Version::NEWEST);
const LIBC_RAW: (Version, Version) = (Version::V3_13, Version::V3_14);
const MIMALLOC_RAW: (Version, Version) = (Version::V3_15, Version::NEWEST);

const LIBC: [Backend; 3] = [Backend::Malloc; 3];
const POOLS: [Backend; 3] = [Backend::Malloc, Backend::Pymalloc, Backend::Pymalloc];
const MI_OLD: [Backend; 3] = [Backend::Malloc, Backend::Mimalloc, Backend::MimallocObject];
const MI_NEW: [Backend; 3] = [Backend::MimallocRaw, Backend::Mimalloc, Backend::MimallocObject];

/// The configuration table: CPython's, for every build and version that a [`Profile`] can name.
///
/// Exactly one row applies to a name that the profile accepts, and none to a name that it rejects. Since 3.15 the
/// mimalloc rows serve raw by mimalloc too; before, raw stayed with the C library.
#[rustfmt::skip]
pub const TABLE: &[Row] = {
    use AllocatorName as N;
    use Build::{FreeThreaded as FT, Gil};
    &[
        //  name             build pymalloc pydebug versions      raw, mem, obj  hooks
        row(N::Default,       Gil, YES,     NO,     EVERY,        POOLS,         false),
        row(N::Default,       Gil, YES,     YES,    EVERY,        POOLS,         true),
        row(N::Default,       Gil, NO,      NO,     EVERY,        LIBC,          false),
        row(N::Default,       Gil, NO,      YES,    EVERY,        LIBC,          true),
        row(N::Debug,         Gil, YES,     ANY,    EVERY,        POOLS,         true),
        row(N::Debug,         Gil, NO,      ANY,    EVERY,        LIBC,          true),
        row(N::Malloc,        Gil, ANY,     ANY,    EVERY,        LIBC,          false),
        row(N::MallocDebug,   Gil, ANY,     ANY,    EVERY,        LIBC,          true),
        row(N::Pymalloc,      Gil, YES,     ANY,    EVERY,        POOLS,         false),
        row(N::PymallocDebug, Gil, YES,     ANY,    EVERY,        POOLS,         true),
        row(N::Mimalloc,      Gil, ANY,     ANY,    LIBC_RAW,     MI_OLD,        false),
        row(N::Mimalloc,      Gil, ANY,     ANY,    MIMALLOC_RAW, MI_NEW,        false),
        row(N::MimallocDebug, Gil, ANY,     ANY,    LIBC_RAW,     MI_OLD,        true),
        row(N::MimallocDebug, Gil, ANY,     ANY,    MIMALLOC_RAW, MI_NEW,        true),
        row(N::Default,       FT,  ANY,     NO,     LIBC_RAW,     MI_OLD,        false),
        row(N::Default,       FT,  ANY,     NO,     MIMALLOC_RAW, MI_NEW,        false),
        row(N::Default,       FT,  ANY,     YES,    LIBC_RAW,     MI_OLD,        true),
        row(N::Default,       FT,  ANY,     YES,    MIMALLOC_RAW, MI_NEW,        true),
        row(N::Debug,         FT,  ANY,     ANY,    LIBC_RAW,     MI_OLD,        true),
        row(N::Debug,         FT,  ANY,     ANY,    MIMALLOC_RAW, MI_NEW,        true),
        row(N::Mimalloc,      FT,  ANY,     ANY,    LIBC_RAW,     MI_OLD,        false),
        row(N::Mimalloc,      FT,  ANY,     ANY,    MIMALLOC_RAW, MI_NEW,        false),
        row(N::MimallocDebug, FT,  ANY,     ANY,    LIBC_RAW,     MI_OLD,        true),
        row(N::MimallocDebug, FT,  ANY,     ANY,    MIMALLOC_RAW, MI_NEW,        true),
    ]
};

const fn row(
    name: AllocatorName,
    build: Build,
    pymalloc: Option<bool>,
    pydebug: Option<bool>,
    versions: (Version, Version),
    backends: [Backend; 3],
    debug: bool,
) -> Row {
    Row { name, build, pymalloc, pydebug, versions, backends, debug }
}

impl Profile {
    /// The table's row for `name` in this profile.
    ///
    /// # Errors
    ///
    /// Why the profile rejects the name.
    pub fn row(&self, name: AllocatorName) -> Result<&'static Row, Rejection> {
        if let Some(reason) = name.rejected_by(self) {
            return Err(reason);
        }
        TABLE
            .iter()
            .find(|row| row.name == name && row.applies_to(self))
            .ok_or(Rejection::NoSuchName)
    }
}
