#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod early;
mod interpreter;
mod py_mem_raw;

pub use py_mem_raw::PyMemRaw;
