//! Owns reading memory that may not be there: the kernel does the reading, and says no instead of faulting.
//! Leaves what to read to its callers. Built without `std` its twin `probe_core.rs` stands here.

use std::io;

/// Reads the bytes at `address`; `false` if any of them is not readable memory. Any address may be asked for.
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
    match read_by_kernel(address, bytes) {
        Some(answer) => answer,
        None => read_by_pipe(address, bytes),
    }
}

/// Reads `N` bytes at `address`.
pub(crate) fn peek<const N: usize>(address: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    read(address, &mut bytes).then_some(bytes)
}

/// `process_vm_readv` on this process; `None` where the system call is missing or forbidden (old kernels, seccomp).
#[cfg(target_os = "linux")]
fn read_by_kernel(address: usize, bytes: &mut [u8]) -> Option<bool> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote =
        libc::iovec { iov_base: core::ptr::without_provenance_mut(address), iov_len: bytes.len() };
    // SAFETY: no arguments, always succeeds.
    let pid = unsafe { libc::getpid() };
    // SAFETY: `local` is writable for its length, and the kernel checks `remote` itself.
    let count = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    if count < 0 {
        let fault = io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
        return fault.then_some(false);
    }
    Some(count.unsigned_abs() == bytes.len())
}

/// Systems without the call go straight to the pipe.
#[cfg(not(target_os = "linux"))]
fn read_by_kernel(_address: usize, _bytes: &mut [u8]) -> Option<bool> {
    None
}

/// Bytes sent through the pipe at a time: less than the smallest pipe holds, so that a write never blocks.
const PIPE_BYTES: usize = 512;

/// Writes the memory into a pipe, which the kernel refuses with `EFAULT` where it cannot be read, and reads it back.
fn read_by_pipe(address: usize, bytes: &mut [u8]) -> bool {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return false;
    }
    let mut at = address;
    let mut complete = true;
    for chunk in bytes.chunks_mut(PIPE_BYTES) {
        let source = core::ptr::without_provenance::<libc::c_void>(at);
        // SAFETY: the kernel checks `source` itself.
        let sent = unsafe { libc::write(ends[1], source, chunk.len()) };
        if usize::try_from(sent) != Ok(chunk.len()) {
            complete = false;
            break;
        }
        // SAFETY: `chunk` is writable for its length.
        let got = unsafe { libc::read(ends[0], chunk.as_mut_ptr().cast(), chunk.len()) };
        complete &= usize::try_from(got) == Ok(chunk.len());
        at = at.wrapping_add(chunk.len());
    }
    for end in ends {
        // SAFETY: a descriptor opened above.
        unsafe { libc::close(end) };
    }
    complete
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reader = fn(usize, &mut [u8]) -> bool;

    #[test]
    fn readers_agree_and_never_fault() {
        let known: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let at = known.as_ptr().addr();
        // SAFETY: a fresh mapping; nothing else is touched.
        let gone = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                8192,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let by_kernel: Reader = |a, b| read_by_kernel(a, b) == Some(true);
        for reader in [by_kernel, read_by_pipe, read] {
            let mut bytes = vec![0; 5000];
            assert!(reader(at, &mut bytes));
            assert_eq!(bytes, known);
            assert!(!reader(gone.addr(), &mut bytes[..16]));
            assert!(!reader(gone.addr() + 4096, &mut bytes[..1]));
        }
        let mut bytes = [0; 16];
        for wild in [0, 1, 15, 4095, usize::MAX - 7, usize::MAX, 0xdddd_dddd_dddd_dddd] {
            assert!(!read(wild, &mut bytes), "{wild:#x}");
        }
    }
}
