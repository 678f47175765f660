//! Owns the statistics of a set of domains and the description of what runs, as data and as text.
//! Leaves counting to the allocators.

use core::fmt;

use malloc_api::{Domain, ThreadSafety};

use crate::backend::pymalloc::PoolStats;
use crate::heap_stats::HeapStats;
use crate::profile::Profile;
use crate::table::{AllocatorName, Backend};

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
