//! Layouts of every size and alignment through the allocator bridge: aligned, disjoint, content kept, zeroed where asked.
#![no_main]

use std::alloc::Layout;
use std::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use libfuzzer_sys::fuzz_target;
use malloc_api::{AllocatorAdapter, LibcMalloc};

fuzz_target!(|steps: Vec<(u8, u8, u16)>| {
    let bridge = AllocatorAdapter::new(LibcMalloc);
    let mut live: Vec<(NonNull<u8>, Layout, u8)> = Vec::new();
    for (kind, power, size) in steps {
        let layout =
            Layout::from_size_align(usize::from(size), 1 << (power % 13)).expect("a small layout");
        match (kind % 4, live.pop()) {
            (0, Some((block, old, fill))) => check_and_free(&bridge, block, old, fill),
            (1, Some((block, old, fill))) => {
                let grows = layout.size() >= old.size();
                // SAFETY: 1: the block is live with layout `old`. 2: the new size is on the side that the method asks for.
                let moved = unsafe {
                    if grows {
                        bridge.grow(block, old, layout)
                    } else {
                        bridge.shrink(block, old, layout)
                    }
                };
                let moved = moved.expect("memory").cast::<u8>();
                let kept = old.size().min(layout.size());
                // SAFETY: 1: the block has at least `kept` bytes, which were written when it was filled.
                let bytes = unsafe { std::slice::from_raw_parts(moved.as_ptr(), kept) };
                assert!(
                    bytes.iter().all(|&byte| byte == fill),
                    "content lost from {old:?} to {layout:?}"
                );
                live.push(filled(moved, layout, fill));
            }
            (choice, earlier) => {
                live.extend(earlier);
                let block = if choice == 2 {
                    bridge.allocate_zeroed(layout)
                } else {
                    bridge.allocate(layout)
                };
                let block = block.expect("memory").cast::<u8>();
                if choice == 2 {
                    // SAFETY: 1: the block has this many bytes, all of them zeroed.
                    let bytes =
                        unsafe { std::slice::from_raw_parts(block.as_ptr(), layout.size()) };
                    assert!(
                        bytes.iter().all(|&byte| byte == 0),
                        "allocate_zeroed left bytes of {layout:?} set"
                    );
                }
                live.push(filled(block, layout, kind | 1));
            }
        }
    }
    live.drain(..).for_each(|(block, layout, fill)| check_and_free(&bridge, block, layout, fill));
});

fn filled(block: NonNull<u8>, layout: Layout, fill: u8) -> (NonNull<u8>, Layout, u8) {
    assert_eq!(block.addr().get() % layout.align(), 0, "a block of {layout:?} is misaligned");
    // SAFETY: 1: the block has this many bytes.
    unsafe { block.write_bytes(fill, layout.size()) };
    (block, layout, fill)
}

fn check_and_free(bridge: &impl Allocator, block: NonNull<u8>, layout: Layout, fill: u8) {
    // SAFETY: 1: the block has this many bytes, all written by `filled`.
    let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), layout.size()) };
    assert!(bytes.iter().all(|&byte| byte == fill), "a block of {layout:?} was overwritten");
    // SAFETY: 1: the block is live and has this layout.
    unsafe { bridge.deallocate(block, layout) };
}
