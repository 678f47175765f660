//! Owns the sites of a build without an operating system: there are none. Twin of `sites.rs`.

use core::fmt;

/// Where a block was allocated or freed. Without the `std` feature there is no value of this type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Site {}

impl fmt::Display for Site {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
