//! Owns the geometry: the sizes of arena, pool and block, and the relations between them, asserted at compile time.

use malloc_api::MIN_ALIGN;

/// Bytes in an arena, what a pool allocator takes from its source at a time: 1 MiB.
pub const ARENA_BYTES: usize = 1 << ARENA_SHIFT;

/// Bytes in a small pool, the unit in which an arena is divided: 16 KiB.
pub const POOL_BYTES: usize = 1 << POOL_SHIFT;

/// Largest request in bytes that CPython's pymalloc serves from its pools, the documented threshold: 512.
pub const SMALL_MAX: usize = 512;

/// Largest request in bytes that this allocator serves from its pools; larger ones go to the fallback.
pub const POOLED_MAX: usize = 8192;

/// Largest request in bytes that [`LargeRuns`](crate::LargeRuns) serves from its span; larger ones go to what lies below.
#[cfg(feature = "std")]
pub const RUN_MAX: usize = 256 << 10;

/// Bytes up to which such a block may grow where it is.
#[cfg(feature = "std")]
pub(crate) const RUN_GROWN_MAX: usize = 1 << 20;

pub(crate) const ARENA_SHIFT: u32 = 20;
pub(crate) const POOL_SHIFT: u32 = 14;

/// Bytes between two block sizes of the small classes, and the alignment of every block.
pub(crate) const GRAIN_BYTES: usize = 16;

/// Bytes at least of blocks that are idle together: an arena's records and idle maps fit into one page.
pub(crate) const IDLE_BYTES: usize = 128;

/// Bytes in a line of the processor's cache.
pub(crate) const LINE_BYTES: usize = 64;

/// Units of [`POOL_BYTES`] in an arena.
pub(crate) const ARENA_UNITS: usize = ARENA_BYTES / POOL_BYTES;

/// Units in a pool of a class above 2048 bytes: 32 KiB keep the waste at a pool's end below 3 %.
pub(crate) const PAIR_UNITS: usize = 2;

/// Bytes in the smallest page of any system, and in the header of an arena. What goes back to the system goes in
/// whole pages of [`malloc_api::page_bytes`], which may have 16 of these.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Bytes in a huge page where pages have 4 KiB; elsewhere the kernel refuses, and arenas get small pages.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes that the process's region can grow to: 64 GiB.
#[cfg(feature = "std")]
pub(crate) const REGION_BYTES_MAX: usize = 64 << 30;

/// Arenas that fit into the region.
#[cfg(feature = "std")]
pub(crate) const ARENAS_MAX: usize = REGION_BYTES_MAX >> ARENA_SHIFT;

const _: () = assert!(HUGE_PAGE_BYTES == 2 * ARENA_BYTES, "arenas pair up in huge pages");
const _: () = assert!(GRAIN_BYTES >= MIN_ALIGN && GRAIN_BYTES % MIN_ALIGN == 0);
const _: () = assert!(SMALL_MAX % GRAIN_BYTES == 0 && POOLED_MAX % GRAIN_BYTES == 0);
const _: () = assert!(ARENA_UNITS == 64, "an arena's free pools are the bits of a u64");
const _: () = assert!(POOL_BYTES / GRAIN_BYTES <= u16::MAX as usize);
const _: () = assert!(POOLED_MAX * 4 <= PAIR_UNITS * POOL_BYTES, "4 blocks in a pool at least");
const _: () = assert!(POOL_BYTES % PAGE_BYTES == 0);
