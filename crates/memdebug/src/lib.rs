#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod annotated;
#[cfg(feature = "std")]
mod at_exit;
mod block;
mod erase;
mod error;
#[cfg(feature = "std")]
mod fork;
mod hooks;
mod host;
mod numbered;
mod options;
mod pattern;
mod plain;
#[cfg(test)]
#[path = "../tests/it/sanitizer.rs"]
mod sanitizer;
mod thread;

/// What goes beyond CPython's checks.
mod checks {
    #[cfg_attr(not(feature = "std"), path = "../checked_core.rs")]
    pub(crate) mod checked;
    #[cfg(feature = "std")]
    pub(crate) mod leaks;
    #[cfg(feature = "std")]
    pub(crate) mod quarantine;
    #[cfg(feature = "std")]
    pub(crate) mod registry;
    #[cfg(feature = "std")]
    pub(crate) mod walks;
}

/// Blocks between pages that fault.
#[cfg(feature = "std")]
mod guard {
    pub(crate) mod countdown;
    pub(crate) mod fault;
    pub(crate) mod pool;
    pub(crate) mod sampler;
}

/// What was found, and how it is told.
mod report {
    pub(crate) mod dump;
    pub(crate) mod facts;
    pub mod handler;
    #[cfg(feature = "std")]
    pub(crate) mod report;
    #[cfg(feature = "std")]
    pub(crate) mod stderr;
    pub(crate) mod verdict;
    pub(crate) mod violation;
}

/// Where blocks were allocated and freed.
mod sites {
    #[cfg_attr(not(feature = "std"), path = "../capture_core.rs")]
    pub(crate) mod capture;
    #[cfg_attr(not(feature = "std"), path = "../sites_core.rs")]
    pub(crate) mod sites;
    #[cfg(feature = "std")]
    #[cfg_attr(feature = "backtrace", path = "symbols_backtrace.rs")]
    pub(crate) mod symbols;
}

/// What the machine and the system offer.
mod os {
    #[cfg_attr(
        all(feature = "std", target_os = "linux", target_arch = "x86_64"),
        path = "load_x86_64.rs"
    )]
    #[cfg_attr(
        all(
            feature = "std",
            target_os = "linux",
            target_arch = "aarch64",
            target_endian = "little"
        ),
        path = "load_aarch64.rs"
    )]
    #[cfg_attr(
        not(all(
            feature = "std",
            target_os = "linux",
            target_endian = "little",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )),
        path = "load_plain.rs"
    )]
    pub(crate) mod load;
    #[cfg(feature = "std")]
    pub(crate) mod mapping;
    #[cfg_attr(not(feature = "std"), path = "../region_core.rs")]
    pub(crate) mod maps;
    #[cfg_attr(not(feature = "std"), path = "../probe_core.rs")]
    pub(crate) mod probe;
}

#[cfg(feature = "std")]
pub use at_exit::verify_quarantines;
pub use block::{HEADER_BYTES, SERIAL_BYTES, TAIL_BYTES};
#[cfg(feature = "std")]
pub use checks::leaks::{LiveBlocks, LiveGroup, report_leaks_at_exit};
pub use error::ConfigureError;
#[cfg(feature = "std")]
pub use guard::fault::install_fault_handler;
#[cfg(feature = "std")]
pub use guard::sampler::GuardSampler;
pub use hooks::DebugHooks;
pub use host::{CurrentFrames, DebugOffset, FrameSink, Host, Traceback, Tracing, ViolationHandler};
pub use malloc_api::Domain;
pub use options::{LeakFormat, LeakReport, Options, ParseOptionsError, QuarantineBounds, Word};
pub use pattern::{CLEANBYTE, DEADBYTE, FORBIDDENBYTE};
pub use report::dump::BlockDump;
pub use report::handler;
pub use report::violation::{Call, DumpSink, Message, Violation, ViolationKind};
pub use sites::sites::Site;
pub use thread::{ThreadCheck, ThreadWord};
