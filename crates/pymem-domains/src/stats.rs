//! Owns what can be told about a set of domains: the statistics, and what is running.
//! Leaves counting to the allocators.

use core::fmt;

use crate::backend::PoolStats;
use crate::domains::Domains;
use crate::name::AllocatorName;
use crate::profile::Profile;
use crate::resident;
use crate::table::Backend;
use malloc_api::Domain;
use malloc_api::ThreadSafety;

/// What runs: answers "which allocator am I using?".
///
/// Its `Display` is a few lines for people; with the feature `serde` it is the same as data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Description {
    /// The profile whose table applies.
    pub profile: Profile,
    /// The name that the domains were made by.
    pub name: AllocatorName,
    /// The name of what serves now; `None` with an allocator that no name stands for.
    pub current_name: Option<AllocatorName>,
    /// What serves raw, mem and obj.
    pub domains: [DomainDescription; 3],
    /// Which threads may call mem and obj; raw any thread may call.
    pub threads: ThreadSafety,
    /// The version of this crate.
    pub version: &'static str,
    /// mimalloc's version, where it is compiled in.
    pub mimalloc_version: Option<String>,
}

/// What serves one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DomainDescription {
    /// Which domain.
    pub domain: Domain,
    /// What the domain was made with.
    pub backend: Backend,
    /// Whether another allocator was set in its place.
    pub replaced: bool,
    /// Whether the debug hooks are there.
    pub debug_hooks: bool,
    /// How many wrappers lie outermost.
    pub wrappers: usize,
    /// Whether a block may have been handed out, so that the allocator can no longer be replaced.
    pub used: bool,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pymem-domains {}, table of {}", self.version, self.profile)?;
        match &self.mimalloc_version {
            Some(version) => writeln!(f, ", mimalloc {version}")?,
            None => writeln!(f)?,
        }
        write!(f, "configured as {}", self.name)?;
        match self.current_name {
            Some(name) if name != self.name => writeln!(f, ", which is {name}")?,
            Some(_) => writeln!(f)?,
            None => writeln!(f, ", since changed")?,
        }
        for domain in &self.domains {
            writeln!(f, "{domain}")?;
        }
        f.write_str(match self.threads {
            ThreadSafety::AnyThread => "threads: every domain may be called from any thread\n",
            ThreadSafety::OneAtATime => {
                "threads: raw may be called from any thread, mem and obj under one lock of the callers'\n"
            }
        })
    }
}

impl fmt::Display for DomainDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = if self.replaced { "custom" } else { self.backend.name() };
        write!(f, "{}: {backend}", self.domain)?;
        if self.debug_hooks {
            f.write_str(" + debug")?;
        }
        match self.wrappers {
            0 => {}
            1 => f.write_str(" + 1 wrapper")?,
            n => write!(f, " + {n} wrappers")?,
        }
        f.write_str(if self.used { ", in use" } else { ", not used yet" })
    }
}

/// What mimalloc's heaps hold.
///
/// Its `Display` is what CPython's `sys._debugmallocstats()` prints for mimalloc, with numbers that are right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HeapStats {
    /// Live blocks.
    pub allocated_blocks: usize,
    /// Bytes of the live blocks, as handed out.
    pub allocated_bytes: usize,
    /// Bytes of the live blocks with what mimalloc adds to each: nothing, in its release build.
    pub allocated_bytes_with_overhead: usize,
    /// Bytes that the pages in use can grow to.
    pub reserved_bytes: usize,
    /// Bytes of the pages in use that have memory.
    pub committed_bytes: usize,
}

impl fmt::Display for HeapStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Small block threshold = 16384, in 73 size classes.\n")?;
        f.write_str("Medium block threshold = 131072\n")?;
        f.write_str("Large object max size = 16777216\n")?;
        for (label, value) in [
            ("Allocated Blocks", self.allocated_blocks),
            ("Allocated Bytes", self.allocated_bytes),
            ("Allocated Bytes w/ Overhead", self.allocated_bytes_with_overhead),
            ("Bytes Reserved", self.reserved_bytes),
            ("Bytes Committed", self.committed_bytes),
        ] {
            writeln!(f, "    {label}: {value}")?;
        }
        Ok(())
    }
}

/// Statistics of a set of domains.
///
/// Its `Display` is the text of CPython's `sys._debugmallocstats()`, less the lines of object free lists, which are the
/// interpreter's: the text of the pools, of mimalloc's heaps, or nothing where the C library serves.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// What runs.
    pub configuration: Description,
    /// The pools of mem and obj; `None` where no domain was made with pymalloc.
    pub pymalloc: Option<PoolStats>,
    /// mimalloc's heaps; `None` where no domain was made with them, or they were not visited.
    pub mimalloc: Option<HeapStats>,
    /// Bytes of physical memory that the process holds; 0 when the system does not say.
    pub resident_bytes: usize,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pools) = &self.pymalloc {
            pools.fmt(f)?;
        }
        if let Some(heaps) = &self.mimalloc {
            heaps.fmt(f)?;
        }
        Ok(())
    }
}

impl Domains {
    /// Statistics as of now.
    ///
    /// mimalloc's heaps can be visited only while no other thread uses them, so they are left out while the process has
    /// other threads; see `Domains::stats_in`.
    #[must_use]
    pub fn stats(self) -> Stats {
        Stats { mimalloc: self.heaps_if_alone(), ..self.stats_without_heaps() }
    }

    /// Statistics with mimalloc's heaps left out.
    pub(crate) fn stats_without_heaps(self) -> Stats {
        Stats {
            configuration: self.describe(),
            pymalloc: self.uses(Backend::Pymalloc).then(|| self.backends().pools.stats()),
            mimalloc: None,
            resident_bytes: resident::bytes(),
        }
    }

    /// How many blocks of the pools, or of mimalloc's heaps, are live, zero-size and large ones included; 0 where the C
    /// library serves.
    ///
    /// It is what `sys.getallocatedblocks()` counts. `None` where mimalloc serves and the process has other threads, since
    /// its heaps can be counted only while nobody else uses them; see `Domains::allocated_blocks_in`.
    #[must_use]
    pub fn allocated_blocks(self) -> Option<usize> {
        if self.uses(Backend::Mimalloc) {
            return self.heaps_if_alone().map(|heaps| heaps.allocated_blocks);
        }
        Some(self.backends().pools.allocated_blocks())
    }

    /// mimalloc's heaps, where they serve and the process has no other thread.
    fn heaps_if_alone(self) -> Option<HeapStats> {
        if !self.uses(Backend::Mimalloc) || !resident::is_only_thread() {
            return None;
        }
        // SAFETY: 1: as the system has just said; only this thread could start another one.
        unsafe { self.backends().heaps.stats_of_lone_thread() }
    }

    /// What is running.
    #[must_use]
    pub fn describe(self) -> Description {
        Description {
            profile: self.profile(),
            name: self.row().name(),
            current_name: self.current_name(),
            domains: Domain::ALL.map(|domain| self.describe_domain(domain)),
            threads: self.threads(),
            version: env!("CARGO_PKG_VERSION"),
            mimalloc_version: self.backends().heaps.version(),
        }
    }

    /// Whether a domain was made with `backend`.
    pub(crate) fn uses(self, backend: Backend) -> bool {
        Domain::ALL.into_iter().any(|domain| self.row().backend(domain) == backend)
    }
}
