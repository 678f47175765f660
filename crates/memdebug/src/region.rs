//! Owns telling what kind of memory an address lies in, from the system's own list of mappings.
//! Twin: `region_core.rs`.

use core::ptr;

/// Bytes read from the list at a time.
const BUFFER_BYTES: usize = 4096;

/// Whether no heap can be at `address`: it belongs to a program file or to this thread's stack. `false` if that cannot be
/// told. For reports: it reads `/proc/self/maps`, and allocates nothing.
pub(crate) fn is_no_heap(address: usize) -> bool {
    let on_stack = 0_u8;
    let stack = ptr::from_ref(&on_stack).addr();
    let mut answer = false;
    for_each_line(|line| {
        let Some(mapping) = Mapping::parse(line) else {
            return;
        };
        if (mapping.start..mapping.end).contains(&address) {
            let holds_stack = (mapping.start..mapping.end).contains(&stack);
            answer = holds_stack || mapping.is_file || line.ends_with(b"[stack]");
        }
    });
    answer
}

struct Mapping {
    start: usize,
    end: usize,
    is_file: bool,
}

impl Mapping {
    /// `start-end perms offset device inode path`
    fn parse(line: &[u8]) -> Option<Self> {
        let line = core::str::from_utf8(line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let inode = words.nth(3)?;
        Some(Self {
            start: usize::from_str_radix(start, 16).ok()?,
            end: usize::from_str_radix(end, 16).ok()?,
            is_file: inode != "0",
        })
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
}
