//! Abandon against remote free against adopt: no block is stranded, and there is one owner at a time.
#![cfg(pymem_loom)]

#[path = "model/mod.rs"]
mod model;

use std::cell::Cell;
use std::ptr::NonNull;

use loom::thread;
use model::{Leak, Model, Plain};
use pymem_sync::RemoteStack;
use pymem_sync::sync::Site;

#[repr(C)]
struct Block {
    link: Cell<usize>,
    contents: Plain<bool>,
}

struct Heap {
    stack: RemoteStack,
    block: Block,
    /// Only the owner touches it.
    owners: Plain<usize>,
}

// SAFETY: the link word belongs to whoever the stack says, which is what the model checks.
unsafe impl Sync for Heap {}

impl Heap {
    /// Reads the blocks of a drain and counts them.
    fn count(&self, blocks: impl Iterator<Item = NonNull<u8>>) -> usize {
        // SAFETY: a drained block is ours.
        blocks.filter(|block| unsafe { block.cast::<Block>().as_ref() }.contents.read()).count()
    }

    /// Becomes the owner if there is none: the blocks that waited, and whether that worked.
    fn try_adopt(&self) -> (usize, usize) {
        let Some(blocks) = self.stack.adopt() else { return (0, 0) };
        let blocks = self.count(blocks);
        self.owners.write(self.owners.read() + 1);
        (blocks, 1)
    }
}

#[test]
fn nothing_is_stranded_and_one_owner_follows() {
    let model = Model {
        name: "nothing_is_stranded_and_one_owner_follows",
        preemptions: None,
        floor: 200,
        controls: &[Site::StackPush, Site::StackAbandon, Site::StackAdopt, Site::StackKeepMark],
    };
    model.check(|| {
        let heap = Leak::new(Heap {
            stack: RemoteStack::new(),
            block: Block { link: Cell::new(0), contents: Plain::new(false) },
            owners: Plain::new(0),
        });
        let shared = heap.get();
        let leaver = thread::spawn(move || {
            shared.owners.write(1);
            let drained = shared.count(shared.stack.drain());
            shared.stack.abandon();
            drained
        });
        let freer = thread::spawn(move || {
            shared.block.contents.write(true);
            // SAFETY: (1) the link is the block's first word; (2) pushed once.
            let pushed = unsafe { shared.stack.push(NonNull::from(&shared.block.link).cast()) };
            // Who frees into a heap without an owner may adopt it.
            if pushed.ownerless { shared.try_adopt() } else { (0, 0) }
        });
        let (mut blocks, mut adopters) = shared.try_adopt();
        blocks += leaver.join().unwrap();
        let (freed, adopted) = freer.join().unwrap();
        blocks += freed;
        adopters += adopted;
        assert!(adopters <= 1, "two threads own the heap");
        if adopters == 0 {
            let (found, adopted) = shared.try_adopt();
            assert_eq!(adopted, 1, "the owner has left, but nobody can follow");
            blocks += found;
        } else {
            blocks += shared.count(shared.stack.drain());
        }
        assert_eq!(blocks, 1, "stranded or doubled");
        assert_eq!(shared.owners.read(), 2);
        heap.free();
    });
}
