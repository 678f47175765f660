//! The crate's promises, one module a subject.

mod names;
mod table;
