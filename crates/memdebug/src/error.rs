//! Owns why options cannot be switched on.

use thiserror::Error;

/// Why [`DebugHooks::with_options`](crate::DebugHooks::with_options) or a
/// [`GuardSampler`](crate::GuardSampler) could not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ConfigureError {
    /// Options beyond serial numbers and erasing can be set once for a `DebugHooks`.
    #[error(
        "the options of these hooks are already set: they can be set once, so set all of them together"
    )]
    AlreadySet,
    /// The system has no memory for what an option needs.
    #[error("no memory for `{option}`: ask for less, or raise the limit of address space")]
    NoMemory {
        /// The option's word.
        option: &'static str,
    },
    /// Hooks with guard pages have more than 64 different hosts.
    #[error(
        "too many hosts of hooks with `guard`: at most 64 in a process, so let hooks share them"
    )]
    TooManyHosts,
    /// The fault handler that guard pages need cannot be installed.
    #[error(
        "the fault handler that `guard` needs cannot be installed: system error {errno}; do without `guard`"
    )]
    FaultHandler {
        /// The system's error number.
        errno: i32,
    },
    /// A [`GuardSampler`](crate::GuardSampler) was asked for more than guard pages.
    #[error(
        "`{option}` needs the debug hooks, and there are none: choose a row that has them, as `debug`, or ask for \
         guard=1/N and backtrace=FRAMES alone"
    )]
    NeedsHooks {
        /// The option's word.
        option: &'static str,
    },
    /// Hooks were asked for guard pages, which are a layer around them.
    #[error("`guard` is no option of the debug hooks: put a GuardSampler around them")]
    NeedsSampler,
    /// More than 509 hooks of the process keep a registry.
    #[error(
        "too many hooks with `registry`: at most 509 in a process, so drop some or let threads share them"
    )]
    TooManyHooks,
    /// A value that was set by field is none that the option's word accepts.
    #[error("`{option}` is out of range: expected {expected}")]
    OutOfRange {
        /// The option's word.
        option: &'static str,
        /// What it accepts.
        expected: &'static str,
    },
    /// The option needs the `std` feature.
    #[error("`{option}` needs an operating system: build memdebug with its `std` feature")]
    Unsupported {
        /// The option's word.
        option: &'static str,
    },
}
