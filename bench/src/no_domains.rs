//! The twin of `domains.rs` in a build without `pymem-domains`.

use crate::allocators::Records;

pub(crate) fn pymalloc() -> Option<Records> {
    None
}

pub(crate) fn mimalloc() -> Option<Records> {
    None
}
