#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod block;
mod checked;
mod dump;
mod erase;
mod facts;
pub mod handler;
mod hooks;
mod host;
mod load;
mod options;
mod pattern;
#[cfg_attr(not(feature = "std"), path = "probe_core.rs")]
mod probe;
mod region;
mod sites;
#[cfg(feature = "std")]
mod stderr;
mod verdict;
mod violation;

pub use block::{ApiId, HEADER_BYTES, SERIAL_BYTES, TAIL_BYTES};
pub use checked::ConfigureError;
pub use hooks::DebugHooks;
pub use host::{
    CurrentFrames, DebugOffset, FrameSink, Host, ThreadCheck, Traceback, Tracing, ViolationHandler,
};
pub use options::{
    LeakFormat, LeakReport, Options, ParseOptionsError, QuarantineBounds, Word,
};
pub use pattern::{CLEANBYTE, DEADBYTE, FORBIDDENBYTE};
pub use sites::Site;
pub use violation::{Call, DumpSink, Message, Violation, ViolationKind};
