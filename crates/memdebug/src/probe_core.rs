//! Owns reading suspicious memory where there is no operating system to ask.
//!
//! Without one, an address is read as it is: pads and sizes are still checked before they are trusted, but a pointer into
//! memory that is not there faults. Twin of `probe.rs`.

/// Reads the bytes at `address`; `false` for addresses that no block can have.
pub(crate) fn read(address: usize, bytes: &mut [u8]) -> bool {
    if bytes.is_empty() {
        return true;
    }
    let Some(last) = address.checked_add(bytes.len() - 1) else {
        return false;
    };
    if address == 0 || last > isize::MAX as usize {
        return false;
    }
    let start = core::ptr::with_exposed_provenance::<u8>(address);
    for (offset, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: a freed or live block's memory on systems without memory protection; see the module's text for the
        // remaining case, a pointer to nowhere, which has no answer here.
        *byte = unsafe { start.wrapping_add(offset).read_volatile() };
    }
    true
}

/// Reads `N` bytes at `address`.
pub(crate) fn peek<const N: usize>(address: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    read(address, &mut bytes).then_some(bytes)
}
