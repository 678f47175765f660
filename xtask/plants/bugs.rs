//! One bug by name, for a tool that must report it: a tool that is silent here says nothing elsewhere.

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;

fn main() {
    let bug = std::env::args().nth(1);
    let layout = Layout::new::<[u8; 24]>();
    // SAFETY: not of zero bytes.
    let block = black_box(unsafe { alloc(layout) });
    match bug.as_deref() {
        // SAFETY: none, as for all that follows: that is the bug.
        Some("overflow") => unsafe { block.add(24).write_volatile(1) },
        Some("use after free") => unsafe {
            dealloc(block, layout);
            block.write_volatile(1);
        },
        Some("uninitialised read") => {
            // SAFETY: none.
            if unsafe { block.read_volatile() } == 7 {
                println!("seven");
            }
        }
        Some("leak") => {
            // So that no register or stack slot leads to it.
            std::thread::spawn(|| drop(black_box(Box::leak(Box::new([7_u8; 1000])))))
                .join()
                .unwrap();
        }
        _ => panic!("no bug is called {bug:?}"),
    }
}
