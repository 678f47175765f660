//! One binary: what the crate promises, over every way to build an allocator.

mod arenas;
mod auto_traits;
mod blocks;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(any(feature = "hardened", feature = "asan", feature = "valgrind"))
))]
mod cached;
#[cfg(any(feature = "asan", feature = "valgrind"))]
mod checkers;
mod concurrency;
#[cfg(unix)]
mod forks;
#[cfg(feature = "hardened")]
mod hardened;
mod huge_pages;
#[cfg(all(
    target_os = "linux",
    not(any(feature = "hardened", feature = "asan", feature = "valgrind"))
))]
mod large_runs;
#[cfg(any(
    feature = "hardened",
    all(target_os = "linux", not(any(feature = "asan", feature = "valgrind")))
))]
mod misuse;
mod pools;
mod refusals;
mod release;
mod serialized;
mod size_classes;
// A red zone takes room of its own, so the exact counts are those of builds without.
#[cfg(not(any(feature = "asan", feature = "valgrind")))]
mod text;
mod trace;
