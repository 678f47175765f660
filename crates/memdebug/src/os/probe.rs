//! Owns what can be told of any address: its bytes, which the kernel reads or refuses to read without a fault, and whether a
//! heap can be there, by the kernel's list of mappings.

use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr;

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
        libc::iovec { iov_base: ptr::without_provenance_mut(address), iov_len: bytes.len() };
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
        let source = ptr::without_provenance::<libc::c_void>(at);
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

/// Bytes read from the list at a time.
const BUFFER_BYTES: usize = 4096;

/// Whether no heap can be at `address`: it belongs to a program file or to this thread's stack. `false` if that cannot be
/// told. For reports: it reads `/proc/self/maps`, and allocates nothing unless the address lies beside a thread's stack.
///
/// Only what is certain counts. The kernel lists neighbouring anonymous mappings as one, so a block may share an entry of
/// the list with a stack; and an arena may be a shared mapping of a file.
pub(crate) fn is_no_heap(address: usize) -> bool {
    let on_stack = 0_u8;
    let stack = ptr::from_ref(&on_stack).addr();
    let mut found = None;
    for_each_line(|line| {
        if let Some(mapping) = Mapping::parse(line).filter(|mapping| mapping.contains(address)) {
            found = Some(mapping);
        }
    });
    match found {
        Some(Mapping { is_main_stack: true, .. } | Mapping { is_program: true, .. }) => true,
        Some(mapping) if mapping.contains(stack) => thread_stack().contains(&address),
        _ => false,
    }
}

/// The calling thread's stack; empty if that cannot be told. The C library may allocate for the answer.
fn thread_stack() -> Range<usize> {
    // SAFETY: no memory is involved.
    let thread = unsafe { libc::pthread_self() };
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: the calling thread, and room for its attributes.
    if unsafe { libc::pthread_getattr_np(thread, attributes.as_mut_ptr()) } != 0 {
        return 0..0;
    }
    // SAFETY: written by the call above.
    let mut attributes = unsafe { attributes.assume_init() };
    let mut start = ptr::null_mut();
    let mut bytes = 0;
    // SAFETY: attributes of a thread, and room for both answers.
    let failed = unsafe { libc::pthread_attr_getstack(&attributes, &mut start, &mut bytes) } != 0;
    // SAFETY: made above, and not used again.
    unsafe { libc::pthread_attr_destroy(&mut attributes) };
    if failed { 0..0 } else { start.addr()..start.addr() + bytes }
}

struct Mapping {
    range: Range<usize>,
    /// A private mapping of a file: code and data of a program or library.
    is_program: bool,
    /// The stack of the main thread, which never shares an entry.
    is_main_stack: bool,
}

impl Mapping {
    /// `start-end perms offset device inode path`
    fn parse(line: &[u8]) -> Option<Self> {
        let is_main_stack = line.ends_with(b"[stack]");
        let line = core::str::from_utf8(line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let is_private = words.next()?.ends_with('p');
        let is_file = words.nth(2)? != "0";
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(Self {
            range: address(start)?..address(end)?,
            is_program: is_private && is_file,
            is_main_stack,
        })
    }

    fn contains(&self, address: usize) -> bool {
        self.range.contains(&address)
    }
}

/// Calls `f` with each line of the list; lines longer than the buffer are cut.
fn for_each_line(mut f: impl FnMut(&[u8])) {
    // SAFETY: a C string.
    let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return;
    }
    let mut buffer = [0_u8; BUFFER_BYTES];
    let mut len = 0;
    loop {
        let free = &mut buffer[len..];
        // SAFETY: `free` is writable for its length.
        let count = unsafe { libc::read(file, free.as_mut_ptr().cast(), free.len()) };
        let Some(count) = usize::try_from(count).ok().filter(|&count| count > 0) else {
            break;
        };
        len += count;
        let mut start = 0;
        while let Some(end) = buffer[start..len].iter().position(|&b| b == b'\n') {
            f(&buffer[start..start + end]);
            start += end + 1;
        }
        if start == 0 && len == BUFFER_BYTES {
            start = len;
        }
        buffer.copy_within(start..len, 0);
        len -= start;
    }
    // SAFETY: opened above.
    unsafe { libc::close(file) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_and_files_are_no_heap() {
        let local = 0_u64;
        static DATA: [u8; 16] = [1; 16];
        assert!(is_no_heap(ptr::from_ref(&local).addr()));
        assert!(is_no_heap(DATA.as_ptr().addr()));
        assert!(is_no_heap((is_no_heap as *const ()).addr()));
        assert!(!is_no_heap(Box::new(1_u64).as_ref() as *const u64 as usize));
        assert!(!is_no_heap(0x10));
    }

    /// A block that the kernel lists as one with a thread's stack, here because both were mapped as one.
    #[test]
    fn a_block_beside_a_threads_stack_is_heap() {
        use crate::os::mapping::Mapping;

        const STACK_BYTES: usize = 1 << 20;

        extern "C" fn on_that_stack(block: *mut libc::c_void) -> *mut libc::c_void {
            let local = 0_u64;
            let right = is_no_heap(ptr::from_ref(&local).addr()) && !is_no_heap(block.addr());
            ptr::without_provenance_mut(usize::from(right))
        }

        let pages = Mapping::zeroed(2 * STACK_BYTES).unwrap();
        let start = pages.start().as_ptr();
        let block = start.wrapping_add(STACK_BYTES + 16);
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: room for attributes.
        assert_eq!(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) }, 0);
        // SAFETY: written by the call above.
        let mut attributes = unsafe { attributes.assume_init() };
        // SAFETY: the lower half of a mapping that outlives the thread.
        let set =
            unsafe { libc::pthread_attr_setstack(&mut attributes, start.cast(), STACK_BYTES) };
        assert_eq!(set, 0);
        let mut thread = MaybeUninit::uninit();
        let to = thread.as_mut_ptr();
        // SAFETY: the function takes any pointer.
        let made = unsafe { libc::pthread_create(to, &attributes, on_that_stack, block.cast()) };
        assert_eq!(made, 0);
        // SAFETY: written by the call above.
        let thread = unsafe { thread.assume_init() };
        let mut right = ptr::null_mut();
        // SAFETY: made above, and joined once.
        assert_eq!(unsafe { libc::pthread_join(thread, &mut right) }, 0);
        assert_eq!(right.addr(), 1);
        // SAFETY: not used again.
        unsafe { libc::pthread_attr_destroy(&mut attributes) };
    }

    #[rstest::rstest]
    #[case::by_kernel(|at, bytes: &mut [u8]| read_by_kernel(at, bytes) == Some(true))]
    #[case::by_pipe(read_by_pipe)]
    #[case::by_either(read)]
    fn a_reader_never_faults(#[case] reader: fn(usize, &mut [u8]) -> bool) {
        let known: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let at = known.as_ptr().addr();
        // SAFETY: a fresh mapping; nothing else is touched.
        let gone = unsafe {
            libc::mmap(
                ptr::null_mut(),
                8192,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let mut bytes = vec![0; 5000];
        assert!(reader(at, &mut bytes));
        assert_eq!(bytes, known);
        assert!(!reader(gone.addr(), &mut bytes[..16]));
        assert!(!reader(gone.addr() + 4096, &mut bytes[..1]));
    }

    #[test]
    fn wild_addresses_are_not_read() {
        let mut bytes = [0; 16];
        for wild in [0, 1, 15, 4095, usize::MAX - 7, usize::MAX, 0xdddd_dddd_dddd_dddd] {
            assert!(!read(wild, &mut bytes), "{wild:#x}");
        }
    }
}
