#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod annotated;
#[cfg(feature = "std")]
mod at_exit;
mod block;
#[cfg_attr(not(feature = "std"), path = "capture_core.rs")]
mod capture;
#[cfg_attr(not(feature = "std"), path = "checked_core.rs")]
mod checked;
mod configure;
mod dump;
mod erase;
mod facts;
#[cfg(feature = "std")]
mod fault;
#[cfg(feature = "std")]
mod fork;
#[cfg(feature = "std")]
mod guard;
pub mod handler;
mod hooks;
mod host;
#[cfg(feature = "std")]
mod leaks;
#[cfg_attr(
    all(feature = "std", target_os = "linux", target_arch = "x86_64"),
    path = "load/x86_64.rs"
)]
#[cfg_attr(
    all(feature = "std", target_os = "linux", target_arch = "aarch64", target_endian = "little"),
    path = "load/aarch64.rs"
)]
#[cfg_attr(
    not(all(
        feature = "std",
        target_os = "linux",
        target_endian = "little",
        any(target_arch = "x86_64", target_arch = "aarch64")
    )),
    path = "load/plain.rs"
)]
mod load;
#[cfg(feature = "std")]
mod mapping;
mod numbered;
mod options;
mod pattern;
mod plain;
#[cfg_attr(not(feature = "std"), path = "probe_core.rs")]
mod probe;
#[cfg(feature = "std")]
mod quarantine;
#[cfg_attr(not(feature = "std"), path = "region_core.rs")]
mod region;
#[cfg(feature = "std")]
mod registry;
#[cfg(feature = "std")]
mod report;
#[cfg(feature = "std")]
mod sampler;
#[cfg(feature = "std")]
mod sampling;
#[cfg(test)]
#[path = "../tests/it/sanitizer.rs"]
mod sanitizer;
#[cfg_attr(not(feature = "std"), path = "sites_core.rs")]
mod sites;
#[cfg(feature = "std")]
mod stderr;
#[cfg(feature = "std")]
#[cfg_attr(feature = "backtrace", path = "symbols_backtrace.rs")]
mod symbols;
mod thread;
mod verdict;
mod violation;

#[cfg(feature = "std")]
pub use at_exit::verify_quarantines;
pub use block::{HEADER_BYTES, SERIAL_BYTES, TAIL_BYTES};
pub use configure::ConfigureError;
pub use dump::BlockDump;
#[cfg(feature = "std")]
pub use fault::install_fault_handler;
pub use hooks::DebugHooks;
pub use host::{CurrentFrames, DebugOffset, FrameSink, Host, Traceback, Tracing, ViolationHandler};
#[cfg(feature = "std")]
pub use leaks::{LiveBlocks, LiveGroup, report_leaks_at_exit};
pub use malloc_api::Domain;
pub use options::{LeakFormat, LeakReport, Options, ParseOptionsError, QuarantineBounds, Word};
pub use pattern::{CLEANBYTE, DEADBYTE, FORBIDDENBYTE};
#[cfg(feature = "std")]
pub use sampler::GuardSampler;
pub use sites::Site;
pub use thread::{ThreadCheck, ThreadWord};
pub use violation::{Call, DumpSink, Message, Violation, ViolationKind};
