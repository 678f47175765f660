//! Feature `hardened`: each misuse ends the process with a message that names it.

use std::ptr::NonNull;

use malloc_api::{LibcMalloc, Malloc};
use pymalloc_core::LocalPymalloc;
use rstest::rstest;

use crate::misuse;

/// What the child does, by name.
#[test]
fn misuse() {
    let Some(name) = misuse::asked_for() else { return };
    let alloc = LocalPymalloc::new(LibcMalloc);
    // One pool has these, also the one beside the records and with red zones.
    let blocks: Vec<_> = (0..150).map(|_| alloc.malloc(48).unwrap()).collect();
    let free = |block: NonNull<u8>| {
        // SAFETY: not kept: this is the misuse that must be caught before it does harm.
        unsafe { alloc.free(Some(block)) };
    };
    match name.as_str() {
        "twice" => (0..2).for_each(|_| free(blocks[0])),
        "twice_later" => {
            blocks.iter().for_each(|block| free(*block));
            free(blocks[0]);
        }
        // SAFETY: inside of the block.
        "interior" => free(unsafe { blocks[0].add(16) }),
        // SAFETY: inside of the block.
        "unaligned" => free(unsafe { blocks[0].add(1) }),
        "write_after_free" => {
            free(blocks[0]);
            // SAFETY: inside of the block.
            let seal = unsafe { blocks[0].add(9) };
            // SAFETY: not kept: the block is free, but its memory stays mapped.
            unsafe { seal.write(1) };
            alloc.malloc(48);
        }
        _ => blocks.iter().for_each(|block| free(*block)),
    }
}

#[rstest]
#[case::twice("twice", Some("double free"))]
#[case::twice_later("twice_later", Some("double free"))]
#[case::interior("interior", Some("invalid free"))]
#[case::unaligned("unaligned", Some("invalid free"))]
#[case::write_after_free("write_after_free", Some("use after free"))]
#[case::none("none", None)]
fn misuse_is_named(#[case] name: &str, #[case] message: Option<&str>) {
    misuse::is_named("hardened::misuse", name, message);
}
