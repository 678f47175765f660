//! A forked child, for which another thread stands, finds in a magazine nothing but free blocks.

use std::ptr::NonNull;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use pymem_sync::Rack;
use pymem_sync::sync::Site;

use crate::model::{Leak, Model, Plain};

/// A rack of one magazine with room for `ROOM` blocks.
fn rack<const ROOM: usize>() -> Rack<1, ROOM> {
    let rack = Rack::new();
    // SAFETY: (1) nobody else has it yet.
    unsafe { rack.lay_out(|_| ROOM) };
    rack
}

fn address<T>(place: &'static T) -> NonNull<u8> {
    NonNull::from(place).cast()
}

/// What the owner did with a block before it put the block in is over for whoever finds the block there.
#[test]
fn a_block_in_a_magazine_is_not_in_use() {
    let model = Model {
        name: "a_block_in_a_magazine_is_not_in_use",
        preemptions: None,
        floor: 10,
        controls: &[Site::MagazinePush, Site::MagazineList],
    };
    model.check(|| {
        let magazine = Leak::new(rack::<2>());
        let blocks = Leak::new([Plain::new(0), Plain::new(0)]);
        let (shared, memory) = (magazine.get(), blocks.get());
        let owner = thread::spawn(move || {
            for block in memory {
                block.write(1);
                // SAFETY: (1) nobody else puts or takes; (2) the only row.
                assert!(unsafe { shared.push(0, address(block)) });
            }
        });
        for found in shared.blocks(0) {
            let block = memory.iter().find(|block| address(*block) == found);
            assert_eq!(block.expect("a block of the owner's").read(), 1);
        }
        owner.join().unwrap();
        assert_eq!(shared.len(0), 2);
        blocks.free();
        magazine.free();
    });
}

/// Whoever sees that a block is in use again does not find the block in the magazine.
#[test]
fn a_block_in_use_is_not_in_a_magazine() {
    let model = Model {
        name: "a_block_in_use_is_not_in_a_magazine",
        preemptions: None,
        floor: 5,
        controls: &[Site::MagazinePop],
    };
    model.check(|| {
        let magazine = Leak::new(rack::<1>());
        let block = Leak::new(AtomicBool::new(false));
        let (shared, is_used) = (magazine.get(), block.get());
        // SAFETY: (1) the owner starts later; (2) the only row.
        assert!(unsafe { shared.push(0, address(is_used)) });
        let owner = thread::spawn(move || {
            // SAFETY: (1) nobody else puts or takes; (2) the only row.
            let taken = unsafe { shared.pop(0) };
            assert_eq!(taken, Some(address(is_used)));
            is_used.store(true, Ordering::Relaxed);
        });
        if is_used.load(Ordering::Acquire) {
            assert!(shared.len(0) == 0, "in use and free");
        }
        owner.join().unwrap();
        block.free();
        magazine.free();
    });
}
