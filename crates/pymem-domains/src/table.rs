//! Owns the configuration table: its names, its allocators, and what each name installs in each domain, for each build and
//! version. Leaves the allocators themselves to the folder `backend`.
//!
//! To add an allocator with rows of its own:
//!
//! 1. Write `backend/NAME.rs`: a type that implements `Serve`. Declare the file in `backend.rs`.
//! 2. Add a line to [`Backend`]: the allocator and its name.
//! 3. Add an arm to `Backend::of`: the allocator as one set of domains has it.
//! 4. Add an arm to `Backend::is_built_in`: the profiles whose interpreters have the allocator.
//! 5. Add a line to [`AllocatorName`] for each new value of `PYTHONMALLOC`.
//! 6. Add rows to [`TABLE`], one for each name, build and version that accepts the name.
//! 7. Run `cargo xtask docs`, which writes the rows into the documents and the names into the Python package.
//!
//! The parser, the texts of errors, statistics, `current_name` and the preload follow from these lines. A `match` elsewhere
//! that does not know the new allocator does not compile.

use core::fmt;

use malloc_api::{Domain, ThreadSafety};

use crate::backend::Serve;
use crate::backend::malloc::Libc;
use crate::backend::mimalloc::Heaps;
use crate::backend::pymalloc::Pools;
use crate::profile::{Build, Profile, Version};
use crate::raw_below::RawBelow;

/// Declares an enum of named values, with `ALL` and the name of each.
macro_rules! named {
    (
        $(#[$meta:meta])*
        pub enum $type:ident, $name:ident {
            $($(#[$doc:meta])* $value:ident $(= $number:literal)? => $text:literal,)+
        }
    ) => {
        $(#[$meta])*
        pub enum $type {
            $(#[doc = concat!("`", $text, "`: ")] $(#[$doc])* $value $(= $number)?,)+
        }

        impl $type {
            /// Every value, in the table's order.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$value),+];

            /// The name in lower case, as `PYTHONMALLOC` and reports spell it.
            #[must_use]
            pub const fn $name(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.$name())
            }
        }
    };
}

named! {
    /// An allocator that serves domains, below any debug hooks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
    pub enum Backend, name {
        /// the C library's malloc family.
        Malloc => "malloc",
        /// small blocks from arenas, larger ones from the raw domain.
        Pymalloc => "pymalloc",
        /// mimalloc's plain functions with the GIL and for raw, the thread's own heaps for mem and obj without.
        Mimalloc => "mimalloc",
    }
}

impl Backend {
    /// This allocator as one set of domains has it.
    pub(crate) fn of(self, backends: &'static Backends) -> &'static dyn Serve {
        match self {
            Self::Malloc => &Libc,
            Self::Pymalloc => &backends.pools,
            Self::Mimalloc => &backends.heaps,
        }
    }

    /// Whether an interpreter of `profile` has the allocator.
    pub(crate) const fn is_built_in(self, profile: &Profile) -> bool {
        match self {
            Self::Malloc => true,
            Self::Pymalloc => profile.pymalloc(),
            Self::Mimalloc => profile.mimalloc(),
        }
    }
}

/// The allocators that have a state of their own in each set of domains.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) pools: Pools,
    pub(crate) heaps: Heaps,
}

impl Backends {
    /// Allocators for `profile`, whose pools send what is not for them to `raw`.
    ///
    /// # Safety
    ///
    /// 1. `threads` is true of every later call, until the pools are shared.
    pub(crate) const unsafe fn new(raw: RawBelow, profile: Profile, threads: ThreadSafety) -> Self {
        // SAFETY: 1: by duty 1.
        let pools = unsafe { Pools::new(raw, profile.huge_pages(), threads) };
        Self { pools, heaps: Heaps::new(profile) }
    }
}

named! {
    /// The name of a configuration: a value of `PYTHONMALLOC`.
    ///
    /// "Not set" is the absence of a name, `Option::<AllocatorName>::None`. The numbers are those of CPython's
    /// `PyMemAllocatorName`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
    #[repr(u8)]
    pub enum AllocatorName, as_str {
        /// what the build uses when nothing is set.
        Default = 1 => "default",
        /// the build's default allocators under the debug hooks.
        Debug => "debug",
        /// the C library in all three domains.
        Malloc => "malloc",
        /// as `malloc`, under the debug hooks.
        MallocDebug => "malloc_debug",
        /// the C library for raw, pymalloc for mem and obj.
        Pymalloc => "pymalloc",
        /// as `pymalloc`, under the debug hooks.
        PymallocDebug => "pymalloc_debug",
        /// mimalloc for mem and obj, and since 3.15 for raw.
        Mimalloc => "mimalloc",
        /// as `mimalloc`, under the debug hooks.
        MimallocDebug => "mimalloc_debug",
    }
}

impl AllocatorName {
    /// Whether the build decides what the name stands for, so that another name says it more exactly.
    #[must_use]
    pub const fn is_relative(self) -> bool {
        matches!(self, Self::Default | Self::Debug)
    }
}

/// What a name installs: an allocator for each domain, and whether all three carry the debug hooks.
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

    /// Whether the row is for builds with pymalloc or without; `None`: for both. From 3.15 on, `default` and `debug` have the
    /// rows without pymalloc in builds with a sanitizer too.
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

    /// Whether `backend` serves a domain.
    #[must_use]
    pub fn uses(&self, backend: Backend) -> bool {
        self.backends.contains(&backend)
    }

    /// The first allocator of the row that interpreters of `profile` lack.
    pub(crate) fn lacks(&self, profile: &Profile) -> Option<Backend> {
        self.backends.into_iter().find(|backend| !backend.is_built_in(profile))
    }

    /// Whether an interpreter of `profile` uses this row when it is given the row's name.
    #[must_use]
    pub fn applies_to(&self, profile: &Profile) -> bool {
        let has_pymalloc = if self.name.is_relative() {
            profile.defaults_to_pymalloc()
        } else {
            profile.pymalloc()
        };
        self.build == profile.build()
            && self.pymalloc.is_none_or(|pymalloc| pymalloc == has_pymalloc)
            && self.pydebug.is_none_or(|pydebug| pydebug == profile.pydebug())
            && (self.versions.0..=self.versions.1).contains(&profile.version())
            && self.lacks(profile).is_none()
    }

    /// What serves `domain` in words: `pymalloc`, or `pymalloc + debug`.
    #[must_use]
    pub fn serves(&self, domain: Domain) -> String {
        let hooks = if self.debug { " + debug" } else { "" };
        format!("{}{hooks}", self.backend(domain))
    }

    /// The name of the configuration without reference to a default: `pymalloc_debug` for a debug build's `default`.
    #[must_use]
    pub fn canonical_name(&self) -> AllocatorName {
        let same = |row: &&Row| row.backends == self.backends && row.debug == self.debug;
        let exact = TABLE.iter().filter(same).map(Self::name).find(|name| !name.is_relative());
        exact.unwrap_or(self.name)
    }
}

const ANY: Option<bool> = None;
const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);
const EVERY: (Version, Version) = (Version::V3_13, Version::NEWEST);
const LIBC_RAW: (Version, Version) = (Version::V3_13, Version::V3_14_10);
const MIMALLOC_RAW: (Version, Version) = (Version::V3_15, Version::NEWEST);

const LIBC: [Backend; 3] = [Backend::Malloc; 3];
const POOLS: [Backend; 3] = [Backend::Malloc, Backend::Pymalloc, Backend::Pymalloc];
const MI_OLD: [Backend; 3] = [Backend::Malloc, Backend::Mimalloc, Backend::Mimalloc];
const MI_NEW: [Backend; 3] = [Backend::Mimalloc; 3];

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
