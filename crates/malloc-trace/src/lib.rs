#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod block;
pub mod codec;
pub mod generate;
mod op;
mod run;
mod shadow;

pub use codec::{TraceError, decode, encode};
pub use op::{DOMAINS, Event, Op, OpKind, Trace};
pub use run::{ModelError, run, run_domains};
pub use shadow::{Fault, ShadowModel, Summary};
