#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod block;
#[cfg(target_os = "linux")]
mod caller;
pub mod codec;
pub mod generate;
#[cfg(target_os = "linux")]
mod log;
mod log_reader;
#[cfg(target_os = "linux")]
mod mapping;
mod op;
#[cfg(target_os = "linux")]
mod recorder;
mod replay;
mod shadow;
mod threads;

pub use codec::{TraceError, decode, encode};
#[cfg(target_os = "linux")]
pub use log::CallLog;
pub use log_reader::{LogError, LogHead, LogReader, Unread};
pub use malloc_api::Domain;
pub use op::{Event, Op, OpKind, Trace};
#[cfg(target_os = "linux")]
pub use recorder::Recorder;
pub use replay::{Live, OutOfMemory, Replay};
pub use shadow::{Fault, ModelError, ShadowModel, Summary, run, run_domains};
pub use threads::{ThreadedReplay, ThreadsError};
