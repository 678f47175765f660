#![doc = include_str!("../README.md")]
#![no_std]

mod malloc;

pub use malloc::{MAX_REQUEST, MIN_ALIGN, Malloc};
