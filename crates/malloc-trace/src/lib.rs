#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address_table;
mod block;
mod caller;
pub mod codec;
mod fitting;
mod functions;
pub mod generate;
mod journal;
#[cfg(target_os = "linux")]
mod log;
mod log_reader;
mod op;
mod record;
mod replay;
mod run;
mod shadow;
mod threads;
mod words;

pub use codec::{TraceError, decode, encode};
pub use functions::{CallocFn, FreeFn, Functions, MallocFn, ReallocFn};
pub use journal::{Journal, Recorder};
#[cfg(target_os = "linux")]
pub use log::CallLog;
pub use log_reader::{LogError, LogHead, LogReader, Unread};
pub use op::{DOMAINS, Event, Op, OpKind, Trace};
pub use record::{Recorded, Recording};
pub use replay::{OutOfMemory, Pass, Replay};
pub use run::{ModelError, run, run_domains};
pub use shadow::{Fault, ShadowModel, Summary};
pub use threads::ThreadedReplay;
