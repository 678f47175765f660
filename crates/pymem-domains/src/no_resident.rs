//! Stands where `resident.rs` does on systems without glibc.

/// Unknown here.
pub(crate) fn bytes() -> usize {
    0
}

/// The C library has no way to give free memory back.
pub(crate) fn trim_libc() {}

/// Unknown here.
pub(crate) fn is_only_thread() -> bool {
    false
}
