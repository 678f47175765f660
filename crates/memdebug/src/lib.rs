#![cfg_attr(feature = "std", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "std"), doc = "CPython's memory debug hooks around any allocator.")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod block;
mod calls;
mod hooks;
mod host;
#[cfg(not(feature = "std"))]
mod no_std;
mod options;
mod pattern;
#[cfg(feature = "std")]
mod process;
#[cfg(test)]
#[path = "../tests/it/sanitizer.rs"]
mod sanitizer;
mod thread;
mod words;

/// What goes beyond CPython's checks.
mod checks {
    #[cfg(feature = "std")]
    pub(crate) mod checked;
    #[cfg(feature = "std")]
    pub(crate) mod filter;
    #[cfg(feature = "std")]
    pub(crate) mod leaks;
    #[cfg(feature = "std")]
    pub(crate) mod quarantine;
    #[cfg(feature = "std")]
    pub(crate) mod registry;

    #[cfg(not(feature = "std"))]
    pub(crate) use crate::no_std::checked;
}

/// Blocks between pages that fault.
#[cfg(feature = "std")]
mod guard {
    pub(crate) mod c_free;
    pub(crate) mod countdown;
    pub(crate) mod fault;
    pub(crate) mod pool;
    pub(crate) mod sampler;
    pub(crate) mod slots;
}

/// What was found, and how it is told.
mod report {
    pub(crate) mod dump;
    pub(crate) mod frames;
    #[cfg(feature = "std")]
    pub mod handler;
    pub(crate) mod verdict;
    pub(crate) mod violation;

    #[cfg(not(feature = "std"))]
    pub use crate::no_std::handler;
}

/// Where blocks were allocated and freed.
mod sites {
    #[cfg(feature = "std")]
    pub(crate) mod native;
    #[cfg(feature = "std")]
    pub(crate) mod site;

    #[cfg(not(feature = "std"))]
    pub(crate) use crate::no_std::{native, site};
}

/// What the machine and the system offer.
mod os {
    pub(crate) mod machine;
    #[cfg(feature = "std")]
    pub(crate) mod mapping;
    #[cfg(feature = "std")]
    pub(crate) mod probe;

    #[cfg(not(feature = "std"))]
    pub(crate) use crate::no_std::probe;
}

pub use block::{HEADER_BYTES, SERIAL_BYTES, TAIL_BYTES};
#[cfg(feature = "std")]
pub use checks::leaks::{LiveBlocks, LiveGroup, leaks_baseline, leaks_end};
#[cfg(feature = "std")]
pub use guard::fault::{chain_handler, install_fault_handler, report_blocks_given_to_c};
#[cfg(feature = "std")]
pub use guard::pool::GuardCoverage;
#[cfg(feature = "std")]
pub use guard::sampler::GuardSampler;
pub use hooks::DebugHooks;
pub use host::{DebugOffset, Host};
pub use malloc_api::Domain;
pub use options::{ConfigureError, LeakFormat, LeakReport, Options, QuarantineBounds, Text};
pub use pattern::{CLEANBYTE, DEADBYTE, FORBIDDENBYTE};
#[cfg(feature = "std")]
pub use process::{report_leaks_at_exit, verify_quarantines};
pub use report::dump::{BlockDump, DumpSink, Message};
pub use report::frames::{FrameSink, HostStacks, Traceback, Tracing};
pub use report::handler;
#[cfg(feature = "std")]
pub use report::handler::{report_to, report_to_files};
pub use report::violation::{Call, Violation, ViolationHandler, ViolationKind};
#[cfg(feature = "std")]
pub use sites::native::{NativePlace, native_stack};
pub use sites::site::Site;
pub use thread::{ThreadCheck, ThreadWord, thread_pointer};
pub use words::{ParseOptionsError, Word, parse_size};
