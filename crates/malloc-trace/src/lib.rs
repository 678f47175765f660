#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod codec;
pub mod generate {
    //! Programs of operations made from a seed: random ones for tests, the field's benchmark loads for timing.
    //!
    //! The same arguments give the same program on every machine. Loads of several threads are [`Event`](crate::Event)s
    //! for [`ThreadedReplay`](crate::ThreadedReplay); the `op`s of any load are a program for one thread.

    mod fitted;
    mod loads;
    mod random;

    pub use fitted::{Histogram, fitted};
    pub use loads::{cache_scratch, larson, mstress, sh6bench, xmalloc};
    pub use random::{op_from_bits, ops_from_bytes, random};
}
#[cfg(target_os = "linux")]
mod log;
mod log_reader;
#[cfg(target_os = "linux")]
mod mapping;
mod op;
mod processor;
#[cfg(target_os = "linux")]
mod recorder;
mod recording;
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
pub use recording::{Recording, RecordingError};
pub use replay::{Live, OutOfMemory, Replay};
pub use shadow::{Fault, ModelError, ShadowModel, Summary, run, run_domains};
pub use threads::{ThreadedReplay, ThreadsError};
