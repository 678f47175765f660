//! The typed helpers: arrays, strings, alignment; on the C library and under injected failure.

use malloc_api::testing::FailAfter;
use malloc_api::{LibcMalloc, Malloc, aligned_calloc, aligned_free, aligned_malloc};
use pymem_domains::{AllocatorName, Domain, Domains, OutOfMemory, TypedMalloc};

#[test]
fn arrays_count_values() {
    let array = LibcMalloc.new_array::<u64>(100).unwrap();
    let values: [u64; 100] = std::array::from_fn(|index| index as u64);
    // SAFETY: 100 values are ours.
    unsafe { array.cast::<[u64; 100]>().write(values) };
    let mut array = Some(array);
    // SAFETY: live, of this allocator; the old pointer is not used again.
    unsafe { LibcMalloc.resize(&mut array, 1_000) }.unwrap();
    // SAFETY: the first 100 values are kept.
    assert_eq!(unsafe { array.unwrap().cast::<[u64; 100]>().read() }, values);
    // SAFETY: live, not used again.
    unsafe { LibcMalloc.free(array.map(std::ptr::NonNull::cast)) };

    let zeroed = LibcMalloc.new_zeroed_array::<[u32; 3]>(7).unwrap();
    // SAFETY: 7 values, zeroed.
    assert_eq!(unsafe { zeroed.cast::<[[u32; 3]; 7]>().read() }, [[0; 3]; 7]);
    // SAFETY: live, not used again.
    unsafe { LibcMalloc.free(Some(zeroed.cast())) };
}

#[test]
fn too_many_values_never_reach_the_allocator() {
    let failing = FailAfter::new(LibcMalloc, usize::MAX);
    assert_eq!(failing.new_array::<u16>(isize::MAX as usize / 2 + 1), None);
    assert_eq!(failing.new_zeroed_array::<u64>(usize::MAX / 4), None);
    let mut none: Option<std::ptr::NonNull<u32>> = None;
    // SAFETY: there is no block.
    assert_eq!(unsafe { failing.resize(&mut none, usize::MAX) }, Err(OutOfMemory));
    assert_eq!((none, failing.calls()), (None, 0));
}

#[test]
fn a_failed_resize_keeps_the_block() {
    let failing = FailAfter::new(LibcMalloc, 1);
    let mut array = failing.new_array::<u8>(3);
    // SAFETY: 3 bytes.
    unsafe { array.unwrap().cast::<[u8; 3]>().write(*b"abc") };
    let old = array;
    // SAFETY: live, of this allocator.
    assert_eq!(unsafe { failing.resize(&mut array, 1 << 20) }, Err(OutOfMemory));
    assert_eq!(array, old);
    // SAFETY: still live.
    assert_eq!(unsafe { array.unwrap().cast::<[u8; 3]>().read() }, *b"abc");
    // SAFETY: live, not used again.
    unsafe { failing.free(array) };
}

#[test]
fn strings_are_copied_with_their_ends() {
    let domains = Domains::new(crate::profile(), Some(AllocatorName::Debug)).unwrap();
    let raw = domains.get(Domain::Raw);
    let copy = raw.duplicate_c_str(c"gr\xc3\xbc\xc3\x9fe").unwrap();
    // SAFETY: a C string that lives until it is freed below.
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(copy.as_ptr()) }, c"gr\xc3\xbc\xc3\x9fe");
    // SAFETY: live, not used again; the hooks check that nothing was written past its end.
    unsafe { raw.free(Some(copy.cast())) };

    let wide = raw.duplicate_wide(&[0x67, 0x1f40d]).unwrap();
    // SAFETY: two characters and the closing zero.
    assert_eq!(unsafe { wide.cast::<[libc::wchar_t; 3]>().read() }, [0x67, 0x1f40d, 0]);
    // SAFETY: live, not used again; as above.
    unsafe { raw.free(Some(wide.cast())) };

    let empty = raw.duplicate(b"").unwrap();
    // SAFETY: live, not used again; as above.
    unsafe { raw.free(Some(empty)) };
}

#[test]
fn every_domain_aligns() {
    for name in [AllocatorName::Default, AllocatorName::Debug] {
        let domains = Domains::new(crate::profile(), Some(name)).unwrap();
        for domain in Domain::ALL {
            let allocator = domains.get(domain);
            for align in [1, 8, 16, 64, 4096, 1 << 16] {
                for block in [
                    aligned_malloc(&allocator, align, 100),
                    aligned_calloc(&allocator, align, 10, 10),
                ] {
                    let block = block.unwrap();
                    assert_eq!(block.addr().get() % align, 0);
                    // SAFETY: 100 bytes.
                    unsafe { block.write_bytes(1, 100) };
                    // SAFETY: live, of this allocator and alignment, not used again.
                    unsafe { aligned_free(&allocator, Some(block), align) };
                }
            }
        }
    }
}
