//! Owns telling what kind of memory an address lies in, from the system's own list of mappings.

/// Whether no heap can be at `address`: it belongs to a program file or to a stack.
pub(crate) fn is_no_heap(_address: usize) -> bool {
    false
}
