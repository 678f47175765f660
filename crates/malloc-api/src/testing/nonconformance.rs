//! Owns the ways in which an allocator can break the contract, and their texts.

use thiserror::Error;

use crate::{MAX_REQUEST, MIN_ALIGN};

/// A way in which an allocator breaks the contract of [`Malloc`](crate::Malloc); sizes and offsets are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Nonconformance {
    /// A request that every allocator must serve was answered with `None`.
    #[error("{method} of {size} bytes answered None; expected a block")]
    Refused {
        /// The method called.
        method: &'static str,
        /// The size requested.
        size: usize,
    },
    /// A block is not aligned to [`MIN_ALIGN`].
    #[error("{method} of {size} bytes answered {address:#x}; expected a multiple of {MIN_ALIGN}")]
    Misaligned {
        /// The method called.
        method: &'static str,
        /// The size requested.
        size: usize,
        /// The address answered.
        address: usize,
    },
    /// A block shares bytes with a block that is still live; for zero-size blocks, its address.
    #[error(
        "{method} of {size} bytes answered {address:#x}, inside a live block; expected memory of its own"
    )]
    Overlap {
        /// The method called.
        method: &'static str,
        /// The size requested.
        size: usize,
        /// The address answered.
        address: usize,
    },
    /// A request for more than [`MAX_REQUEST`] bytes, or for a product that overflows, was served.
    #[error(
        "{method} of {nelem} x {elsize} bytes answered a block; expected None above {MAX_REQUEST} bytes"
    )]
    Oversize {
        /// The method called.
        method: &'static str,
        /// The number of elements; 1 but for `calloc`.
        nelem: usize,
        /// The size of an element.
        elsize: usize,
    },
    /// A byte from `calloc` is not zero.
    #[error("calloc of {size} bytes holds {found:#04x} at offset {offset}; expected only zeros")]
    NotZeroed {
        /// The size requested.
        size: usize,
        /// The first byte that is wrong.
        offset: usize,
        /// What it holds.
        found: u8,
    },
    /// `realloc` did not keep a byte within `min(old_size, new_size)`.
    #[error("realloc from {old_size} to {new_size} bytes lost the byte at offset {offset}; expected the first {} bytes kept", old_size.min(new_size))]
    ContentLost {
        /// The size before.
        old_size: usize,
        /// The size requested.
        new_size: usize,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// `realloc` answered `None` and changed the old block nevertheless.
    #[error(
        "realloc of a {old_size}-byte block answered None but changed offset {offset}; expected the block untouched"
    )]
    FailedReallocTouched {
        /// The size of the old block.
        old_size: usize,
        /// The first byte that is wrong.
        offset: usize,
    },
    /// A live block changed although nobody wrote to it.
    #[error(
        "a live block of {size} bytes changed at offset {offset}; expected nobody to write to it"
    )]
    Changed {
        /// The size of the block.
        size: usize,
        /// The first byte that is wrong.
        offset: usize,
    },
}
