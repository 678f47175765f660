#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address_table;
mod block;
pub mod codec;
mod fitting;
mod functions;
pub mod generate;
mod op;
mod record;
mod replay;
mod run;
mod shadow;
mod threads;

pub use codec::{TraceError, decode, encode};
pub use functions::{CallocFn, FreeFn, Functions, MallocFn, ReallocFn};
pub use op::{DOMAINS, Event, Op, OpKind, Trace};
pub use record::{Recorded, Recorder, Recording};
pub use replay::{OutOfMemory, Pass, Replay};
pub use run::{ModelError, run, run_domains};
pub use shadow::{Fault, ShadowModel, Summary};
pub use threads::ThreadedReplay;
