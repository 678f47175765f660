//! Owns the counts: the walks that take them, without allocating, and their text.

use core::fmt;

use crate::address_map::AddressMap;
use crate::arena::ArenaPtr;
use crate::arenas::Arenas;
use crate::config::{ARENA_BYTES, PAGE_BYTES, POOL_BYTES, SMALL_MAX};
use crate::depot::Depot;
use crate::size_class::SizeClass;

/// Counts of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ClassStats {
    /// Bytes in a block.
    pub size: usize,
    /// Pools of this class.
    pub pools: usize,
    /// Blocks handed out.
    pub blocks_in_use: usize,
    /// Blocks that wait in those pools for the next request.
    pub blocks_available: usize,
    /// Bytes at the ends of those pools that are too few for a block.
    pub quantization_bytes: usize,
}

/// One pool, where it lies and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PoolStats {
    /// Where its arena begins.
    pub arena: usize,
    /// Bytes from there to the pool.
    pub offset: usize,
    /// Its length in bytes, without the arena's header, which may be in the first pool.
    pub bytes: usize,
    /// What it holds.
    pub contents: PoolContents,
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum PoolContents {
    /// Blocks of one class; also the pool that a class keeps although none of its blocks is handed out.
    Blocks {
        /// Bytes of a block.
        size: usize,
        /// Blocks handed out.
        in_use: usize,
        /// Blocks that fit.
        capacity: usize,
    },
    /// Nothing: any class may have it next.
    Free {
        /// Whether its memory has not gone back to the system, nor waits for its first use.
        is_resident: bool,
    },
}

/// Counts of the span in which the process's large blocks lie (`LargeRuns`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LargeRunsStats {
    /// Blocks handed out.
    pub blocks: usize,
    /// Bytes of these, rounded up as they lie in the span.
    pub used_bytes: usize,
    /// Bytes of the span between and behind them.
    pub free_bytes: usize,
    /// Bytes of those that may be in memory, and can go back to the system.
    pub free_resident_bytes: usize,
}

impl LargeRunsStats {
    /// Whether there is anything to tell: not before the first block.
    #[must_use]
    pub const fn has_span(&self) -> bool {
        self.used_bytes + self.free_bytes > 0
    }
}

/// Counts of an allocator; its [`Display`](core::fmt::Display) is the text of CPython's `sys._debugmallocstats()`.
///
/// `arenas_current * ARENA_BYTES` is the sum of the bytes of all blocks, in use and available, `unused_pools *
/// POOL_BYTES`, and the three kinds of lost bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// By class, from the smallest.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_slice"))]
    pub classes: [ClassStats; SizeClass::COUNT],
    /// Arenas obtained so far.
    pub arenas_ever: usize,
    /// Most arenas at a time.
    pub arenas_peak: usize,
    /// Arenas now.
    pub arenas_current: usize,
    /// Free pools, in units of [`POOL_BYTES`].
    pub unused_pools: usize,
    /// Bytes of pool records: a page of each arena, and the unit around it while no pool is there.
    pub header_bytes: usize,
    /// Bytes at the ends of pools that are too few for a block.
    pub quantization_bytes: usize,
    /// Bytes of arenas in which no pool fits.
    pub alignment_bytes: usize,
    /// Live blocks of the fallback: zero-size and large ones.
    pub fallback_blocks: usize,
    /// Calls of `malloc`, where the caller counts them; adds a line to the text.
    pub malloc_calls: Option<u64>,
    /// Tables of the address test: those of spans, and those of arenas elsewhere.
    pub map_tables: [usize; 2],
    /// Bytes of the address test: of the allocator itself, of the span's table, and of the other one.
    pub map_bytes: [usize; 3],
    /// The span of large blocks, where the caller serves some from it; adds lines to the text if it is in use.
    pub large_runs: Option<LargeRunsStats>,
}

#[cfg(feature = "serde")]
fn as_slice<S: serde::Serializer>(
    classes: &[ClassStats; SizeClass::COUNT],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&classes[..], serializer)
}

impl Stats {
    /// Counts as of now.
    pub(crate) fn count(
        arenas: &Arenas,
        map: &AddressMap,
        depot: &Depot,
        fallback_blocks: usize,
    ) -> Self {
        let mut stats = Self {
            classes: [ClassStats::default(); SizeClass::COUNT],
            arenas_ever: arenas.ever(),
            arenas_peak: arenas.peak(),
            arenas_current: arenas.count(),
            unused_pools: 0,
            header_bytes: 0,
            quantization_bytes: 0,
            alignment_bytes: 0,
            fallback_blocks,
            malloc_calls: None,
            map_tables: [0; 2],
            map_bytes: [size_of_val(map), 0, 0],
            large_runs: None,
        };
        for arena in arenas.iter() {
            let is_header_alone = arena.free_mask() & 1 != 0;
            stats.unused_pools += (arena.free_mask() & !1).count_ones() as usize;
            stats.header_bytes += if is_header_alone { POOL_BYTES } else { PAGE_BYTES };
            stats.alignment_bytes += arena.alignment_bytes();
            for unit in arena.open_units() {
                let pool = arena.pool(unit);
                let Some(class) = pool.class() else { continue };
                let counts = &mut stats.classes[class.index()];
                counts.pools += 1;
                counts.blocks_in_use += pool.live_blocks();
                let blocks = pool.capacity(class);
                counts.blocks_available += blocks;
                counts.quantization_bytes += pool.bytes(class) - blocks * class.size();
            }
        }
        for class in SizeClass::all() {
            let counts = &mut stats.classes[class.index()];
            counts.size = class.size();
            // A block that changes threads meanwhile may be counted twice.
            counts.blocks_in_use = counts.blocks_in_use.saturating_sub(depot.blocks_of(class));
            counts.blocks_available -= counts.blocks_in_use;
            stats.quantization_bytes += counts.quantization_bytes;
        }
        let [span, foreign] = map.footprint();
        stats.map_tables = [span.0, foreign.0];
        stats.map_bytes[1] = span.1;
        stats.map_bytes[2] = foreign.1;
        stats
    }

    /// Blocks handed out, those of the fallback included.
    #[must_use]
    pub fn allocated_blocks(&self) -> usize {
        self.fallback_blocks + self.classes.iter().map(|class| class.blocks_in_use).sum::<usize>()
    }

    /// Bytes of blocks handed out from pools, counted as whole blocks.
    #[must_use]
    pub fn bytes_in_use(&self) -> usize {
        self.classes.iter().map(|class| class.blocks_in_use * class.size).sum()
    }

    /// Bytes of blocks that wait in open pools.
    #[must_use]
    pub fn bytes_available(&self) -> usize {
        self.classes.iter().map(|class| class.blocks_available * class.size).sum()
    }

    /// Sum of all bytes; equal to `arenas_current * ARENA_BYTES`.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.bytes_in_use()
            + self.bytes_available()
            + self.unused_pools * POOL_BYTES
            + self.header_bytes
            + self.quantization_bytes
            + self.alignment_bytes
    }
}

/// A place in a walk over pools, free ones too: arena by arena, and in the order of their addresses in it.
///
/// No arena goes back during the walk (`Arenas::pin`). Pools may open and close: what the walk meets of them is not
/// specified.
pub(crate) struct PoolWalk {
    arena: Option<ArenaPtr>,
    unit: usize,
    depot: Depot,
}

impl PoolWalk {
    /// A walk over the pools of all `arenas`.
    pub(crate) fn new(arenas: &Arenas, depot: Depot) -> Self {
        let mut walk = Self { arena: None, unit: 0, depot };
        walk.enter(arenas.first());
        walk
    }

    /// Goes to the first pool of `arena`. The unit with the header is not told of while no pool is there.
    fn enter(&mut self, arena: Option<ArenaPtr>) {
        self.arena = arena;
        self.unit = usize::from(arena.is_some_and(|arena| arena.free_mask() & 1 != 0));
    }

    /// The next pool; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<PoolStats> {
        let mut arena = self.arena?;
        while self.unit >= arena.units() {
            self.enter(Arenas::after(arena));
            arena = self.arena?;
        }
        let unit = self.unit;
        let pool = arena.pool(unit);
        let is_resident = arena.resident_mask() >> unit & 1 == 1;
        let (bytes, contents) = match pool.class() {
            Some(class) => {
                let (size, capacity) = (class.size(), pool.capacity(class));
                let start = arena.unit_address(unit).addr().get();
                let free = self.depot.blocks_within(class, start, class.pool_bytes());
                let in_use = pool.live_blocks().saturating_sub(free);
                (pool.bytes(class), PoolContents::Blocks { size, in_use, capacity })
            }
            None => (POOL_BYTES, PoolContents::Free { is_resident }),
        };
        self.unit += bytes.div_ceil(POOL_BYTES);
        let address = arena.address().addr().get();
        let offset = arena.unit_address(unit).addr().get() - address;
        Some(PoolStats { arena: address, offset, bytes, contents })
    }
}

/// A number in groups of three digits.
struct Grouped(usize);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 20 digits of a u64 and 6 commas.
        let mut text = [0; 26];
        let mut start = text.len();
        let mut rest = self.0;
        let mut digits = 0;
        loop {
            if digits > 0 && digits % 3 == 0 {
                start -= 1;
                text[start] = b',';
            }
            start -= 1;
            text[start] = b'0' + (rest % 10) as u8;
            digits += 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        f.pad(core::str::from_utf8(&text[start..]).map_err(|_| fmt::Error)?)
    }
}

/// A label padded to 35 columns, `=`, and a number right-aligned in 21.
fn line(f: &mut fmt::Formatter<'_>, label: impl fmt::Display, value: usize) -> fmt::Result {
    writeln!(f, "{label:<35}={:>21}", Grouped(value))
}

/// Pads what `format_args!` makes, which ignores a width by itself.
struct Label<'a>(fmt::Arguments<'a>);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Count<'a, 'b>(&'a mut fmt::Formatter<'b>, usize);
        impl fmt::Write for Count<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.1 += text.len();
                self.0.write_str(text)
            }
        }
        let width = f.width().unwrap_or(0);
        let mut count = Count(f, 0);
        fmt::Write::write_fmt(&mut count, self.0)?;
        let Count(f, written) = count;
        (written..width).try_for_each(|_| f.write_str(" "))
    }
}

impl fmt::Display for Stats {
    /// The text that CPython prints. Classes above its 32 have rows of their own when they have a pool.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes = SizeClass::SMALL_COUNT;
        writeln!(f, "Small block threshold = {SMALL_MAX}, in {classes} size classes.")?;
        writeln!(f)?;
        writeln!(f, "class   size   num pools   blocks in use  avail blocks")?;
        writeln!(f, "-----   ----   ---------   -------------  ------------")?;
        for (index, class) in self.classes.iter().enumerate() {
            if class.pools > 0 {
                writeln!(
                    f,
                    "{index:>5} {:>6} {:>11} {:>15} {:>13}",
                    class.size, class.pools, class.blocks_in_use, class.blocks_available
                )?;
            }
        }
        writeln!(f)?;
        if let Some(calls) = self.malloc_calls {
            line(f, "# times object malloc called", usize::try_from(calls).unwrap_or(usize::MAX))?;
        }
        line(f, "# arenas allocated total", self.arenas_ever)?;
        line(f, "# arenas reclaimed", self.arenas_ever - self.arenas_current)?;
        line(f, "# arenas highwater mark", self.arenas_peak)?;
        line(f, "# arenas allocated current", self.arenas_current)?;
        let arenas = self.arenas_current;
        let bytes = arenas * ARENA_BYTES;
        line(f, Label(format_args!("{arenas} arenas * {ARENA_BYTES} bytes/arena")), bytes)?;
        writeln!(f)?;
        line(f, "# bytes in allocated blocks", self.bytes_in_use())?;
        line(f, "# bytes in available blocks", self.bytes_available())?;
        let unused = self.unused_pools;
        let bytes = unused * POOL_BYTES;
        line(f, Label(format_args!("{unused} unused pools * {POOL_BYTES} bytes")), bytes)?;
        line(f, "# bytes lost to pool headers", self.header_bytes)?;
        line(f, "# bytes lost to quantization", self.quantization_bytes)?;
        line(f, "# bytes lost to arena alignment", self.alignment_bytes)?;
        line(f, "Total", self.total_bytes())?;
        writeln!(f)?;
        writeln!(f, "arena map counts")?;
        line(f, "# arena map mid nodes", self.map_tables[0])?;
        line(f, "# arena map bot nodes", self.map_tables[1])?;
        writeln!(f)?;
        line(f, "# bytes lost to arena map root", self.map_bytes[0])?;
        line(f, "# bytes lost to arena map mid", self.map_bytes[1])?;
        line(f, "# bytes lost to arena map bot", self.map_bytes[2])?;
        line(f, "Total", self.map_bytes.iter().sum())?;
        let Some(runs) = self.large_runs.filter(LargeRunsStats::has_span) else {
            return Ok(());
        };
        writeln!(f)?;
        writeln!(f, "large blocks beside the pools")?;
        line(f, "# blocks", runs.blocks)?;
        line(f, "# bytes in these blocks", runs.used_bytes)?;
        line(f, "# bytes free beside them", runs.free_bytes)?;
        line(f, "# bytes of those in memory", runs.free_resident_bytes)
    }
}
