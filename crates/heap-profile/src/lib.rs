#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod apart;
mod blocks;
mod counters;
mod counts;
mod exact;
mod found;
mod frame;
mod generation;
mod live;
mod memory;
#[cfg(feature = "backtrace")]
mod native;
mod noted;
mod notes;
mod origin;
mod own;
mod profile;
mod profile_error;
mod sampled;
mod sampler;
mod short;
mod site;
mod snapshot;
mod source;
mod stack_table;
mod stacks;
mod tables;
mod tracker;
mod trail;
mod walk;

pub use apart::ApartProfiler;
pub use exact::ExactProfiler;
pub use frame::{Calls, Frame, PlainSource};
#[cfg(feature = "backtrace")]
pub use native::NativeStack;
pub use noted::NotedProfiler;
pub use notes::{Notes, Pools};
pub use origin::Origin;
pub use profile::{Options, Profile};
pub use profile_error::ProfileError;
pub use sampled::SampledProfiler;
pub use sampler::Countdown;
pub use snapshot::{Amount, Site, Snapshot, Stack};
pub use source::{Location, MAX_FRAMES, StackSource};
pub use stack_table::StackTable;
pub use stacks::unrecorded;
pub use tables::{Node, Row, Tables};
pub use tracker::Tracker;
pub use walk::Walk;
