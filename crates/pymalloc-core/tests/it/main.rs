//! One binary: what the crate promises, over every way to build an allocator.

mod arenas;
mod blocks;
