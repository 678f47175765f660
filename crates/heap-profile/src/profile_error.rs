//! Owns `ProfileError`: why there is no profile.

use thiserror::Error;

use crate::source::MAX_FRAMES;

/// A profile could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The number of frames is none that a stack can have.
    #[error("a stack cannot be cut to {0} frames; ask for 1 to {MAX_FRAMES}")]
    Frames(usize),
    /// Stacks have as many profiles as are told apart.
    #[error("65,535 profiles share these stacks; give this one a table of its own")]
    TooMany,
    /// There is no memory for the tables.
    #[error("no memory for tables of {0} buckets; ask for fewer")]
    NoMemory(usize),
}
