//! Owns the rest of this library's initialisers: those of the C allocators stand behind ours in `.init_array`, and a
//! mimalloc whose initialiser has not run takes every page from the system.

use std::ffi::c_void;

/// Tag of the address of `.init_array` in an ELF dynamic section.
const DT_INIT_ARRAY: i64 = 25;
/// Tag of its length in bytes.
const DT_INIT_ARRAYSZ: i64 = 27;
/// `dladdr1`'s request for the link map.
const RTLD_DL_LINKMAP: i32 = 2;

type Initializer = extern "C" fn();

/// The head of glibc's `struct link_map`.
#[repr(C)]
struct LinkMap {
    base: usize,
    name: *const std::ffi::c_char,
    dynamic: *const Dynamic,
}

/// An entry of the dynamic section.
#[repr(C)]
#[derive(Clone, Copy)]
struct Dynamic {
    tag: i64,
    value: usize,
}

unsafe extern "C" {
    fn dladdr1(
        address: *const c_void,
        info: *mut libc::Dl_info,
        extra: *mut *mut c_void,
        flags: i32,
    ) -> i32;
}

/// Calls the initialisers of this library that the dynamic linker would call after `own`, in its order.
///
/// For a caller that never returns from `own`: otherwise each would run twice. Does nothing where `own` is not found.
pub(crate) fn run_those_behind(own: Initializer) {
    let initializers = initializers(own);
    let behind =
        initializers.iter().skip_while(|&&entry| !std::ptr::fn_addr_eq(entry, own)).skip(1);
    for initializer in behind {
        initializer();
    }
}

fn initializers(own: Initializer) -> &'static [Initializer] {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    let mut map = std::ptr::null_mut::<c_void>();
    // SAFETY: both places are writable; with this flag the last one receives a `struct link_map *`.
    let found =
        unsafe { dladdr1(own as *const c_void, info.as_mut_ptr(), &raw mut map, RTLD_DL_LINKMAP) };
    if found == 0 || map.is_null() {
        return &[];
    }
    // SAFETY: the loaded library's link map, which lives as long as this library.
    let map = unsafe { &*map.cast::<LinkMap>() };
    let (mut start, mut bytes) = (0, 0);
    let mut entry = map.dynamic;
    loop {
        // SAFETY: the dynamic section ends with tag 0, and the loop ends there.
        let Dynamic { tag, value } = unsafe { *entry };
        match tag {
            0 => break,
            DT_INIT_ARRAY => start = map.base + value,
            DT_INIT_ARRAYSZ => bytes = value,
            _ => {}
        }
        // SAFETY: tag 0 has not been seen, so there is another entry.
        entry = unsafe { entry.add(1) };
    }
    if start == 0 {
        return &[];
    }
    let array = std::ptr::with_exposed_provenance::<Initializer>(start);
    // SAFETY: the linker laid out this array of function addresses, which is relocated by now, and read-only from then on.
    unsafe { std::slice::from_raw_parts(array, bytes / size_of::<Initializer>()) }
}
