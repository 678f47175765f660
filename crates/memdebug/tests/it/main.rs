//! The debug hooks from outside: reports, bug classes, options, and programs without a bug.

mod auto_traits;
mod bugs;
mod c_free;
#[cfg(any(feature = "asan", feature = "valgrind"))]
mod checkers;
mod child;
mod dump;
mod leaks;
mod owners;
mod plain;
mod programs;
mod quarantine;
mod reentry;
mod refusals;
mod sampler;
mod sanitizer;
mod sites;
mod support;
