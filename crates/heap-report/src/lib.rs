#![doc = include_str!("../README.md")]
#![no_std]

extern crate alloc;

mod json;
mod model;
mod svg;
mod text;

pub use json::Json;
pub use model::{Arena, Contents, Pool, SizeTotals, Snapshot, Totals};
pub use svg::Svg;
pub use text::Text;
