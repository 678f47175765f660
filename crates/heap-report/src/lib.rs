#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "profile"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;

#[cfg(any(feature = "pymalloc", feature = "mimalloc"))]
mod collect;
mod json;
#[cfg(feature = "mimalloc")]
mod mimalloc;
mod model;
#[cfg(feature = "profile")]
pub mod profile;
#[cfg(feature = "pymalloc")]
mod pymalloc;
mod svg;
mod text;

pub use json::Json;
pub use model::{Arena, Contents, Pool, SizeTotals, Snapshot, Totals};
pub use svg::Svg;
pub use text::Text;
