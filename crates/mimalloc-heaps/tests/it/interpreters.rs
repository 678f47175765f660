//! Interpreters of one process stay apart, and end with and without live blocks.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::thread;

use mimalloc_heaps::{HeapKind, InterpreterHeaps};

use crate::threads::Parcel;
use crate::visit::{blocks_of, kind_of, quiet_world, visit_blocks};

#[test]
fn no_block_of_one_is_handed_out_by_or_visited_in_another() {
    let interpreters: Vec<_> = (0..4).map(|_| InterpreterHeaps::new().unwrap()).collect();
    let blocks: Vec<BTreeSet<usize>> = thread::scope(|scope| {
        let threads: Vec<_> = interpreters
            .iter()
            .map(|interpreter| {
                scope.spawn(|| {
                    let heaps = interpreter.attach().unwrap();
                    // Those of even size stay, those of odd size make room that others could be given.
                    (1..2000)
                        .filter_map(|size| {
                            let block = heaps.malloc(HeapKind::Object, size).unwrap();
                            if size % 2 == 0 {
                                return Some(block.addr().get());
                            }
                            // SAFETY: (1) live and (2) not used afterwards.
                            unsafe { heaps.free(Some(block)) };
                            None
                        })
                        .collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (interpreter, own) in interpreters.iter().zip(&blocks) {
        let mut seen = BTreeSet::new();
        let flow = visit_blocks(interpreter, &quiet_world(), HeapKind::Object, |block| {
            seen.insert(block.start.addr().get());
            ControlFlow::Continue(())
        });
        assert!(flow.is_continue());
        assert_eq!(&seen, own);
        // What this one hands out now lies in its own pages.
        let heaps = interpreter.attach().unwrap();
        for size in 1..2000 {
            let block = heaps.malloc(HeapKind::Object, size).unwrap();
            assert_eq!(kind_of(interpreter, block), Some(HeapKind::Object));
            assert!(blocks.iter().all(|blocks| !blocks.contains(&block.addr().get())));
        }
    }
}

#[test]
fn heaps_of_an_ended_interpreter_are_used_again_once_they_are_empty() {
    let first = InterpreterHeaps::new().unwrap();
    let first_id = first.id();
    let heaps = first.attach().unwrap();
    let kept = heaps.malloc(HeapKind::Gc, 100).unwrap();
    let set_of = |interpreter: &InterpreterHeaps| {
        interpreter.statistics(&quiet_world()).heaps.first().map(|heap| heap.set)
    };
    let first_set = set_of(&first);
    drop(first);
    // The thread is still attached, so the interpreter has not ended.
    let late = heaps.malloc(HeapKind::Gc, 100).unwrap();
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(late)) };
    drop(heaps);

    let second = InterpreterHeaps::new().unwrap();
    assert_ne!(second.id(), first_id);
    let heaps = second.attach().unwrap();
    let block = heaps.malloc(HeapKind::Gc, 100).unwrap();
    assert_eq!(blocks_of(&second, HeapKind::Gc), 1, "the first one's block is not visited");
    assert_ne!(set_of(&second), first_set);
    assert_eq!(kind_of(&second, kept), None);
    // SAFETY: (1) live and (2) not used afterwards: a block outlives its interpreter.
    unsafe { heaps.free(Some(kept)) };
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
    drop(heaps);
    drop(second);

    // Other tests of this process end interpreters too, so the very set is not ours for certain, but some set is.
    let third = InterpreterHeaps::new().unwrap();
    let heaps = third.attach().unwrap();
    let block = heaps.malloc(HeapKind::Gc, 100).unwrap();
    assert_eq!(blocks_of(&third, HeapKind::Gc), 1);
    // SAFETY: (1) live and (2) not used afterwards.
    unsafe { heaps.free(Some(block)) };
}

#[test]
fn an_ending_interpreter_frees_what_waits() {
    let interpreter = InterpreterHeaps::new().unwrap();
    let other = InterpreterHeaps::new().unwrap();
    let in_other = other.attach().unwrap();
    let heaps = interpreter.attach().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let heaps = interpreter.attach().unwrap();
            let block = in_other_block(&other);
            // SAFETY: (1) live, and freed by nobody else; (2), (3) no reader knows of it.
            unsafe { heaps.free_delayed(Some(block.0)) }.unwrap();
        });
    });
    assert_eq!(blocks_of(&other, HeapKind::Mem), 1, "held back by the first thread");
    drop(interpreter);
    assert_eq!(blocks_of(&other, HeapKind::Mem), 1, "which is still attached");
    drop(heaps);
    assert_eq!(blocks_of(&other, HeapKind::Mem), 0);
    drop(in_other);
}

fn in_other_block(other: &InterpreterHeaps) -> Parcel {
    let heaps = other.attach().unwrap();
    Parcel(heaps.malloc(HeapKind::Mem, 10).unwrap())
}

#[test]
fn many_interpreters_come_and_go_without_making_heaps() {
    let last_set = |interpreter: &InterpreterHeaps| {
        let heaps = interpreter.attach().unwrap();
        let block = heaps.malloc(HeapKind::Object, 64).unwrap();
        let set = interpreter.statistics(&quiet_world()).heaps[0].set;
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { heaps.free(Some(block)) };
        set
    };
    let numbers: BTreeSet<usize> =
        (0..500).map(|_| last_set(&InterpreterHeaps::new().unwrap())).collect();
    // Tests beside this one use sets of ended interpreters too.
    assert!(numbers.len() < 100, "{} sets for one thread at a time", numbers.len());
}
