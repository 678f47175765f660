//! A stack source whose stacks a test writes down: the frames of this thread, outermost first, by number.

use std::cell::RefCell;
use std::sync::Mutex;

use heap_profile::{Frame, Location, Options, Profile, StackSource, Walk};

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Tells the stack that [`run`] has set, and notes the frames whose place it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Script {
    asked: Mutex<Vec<usize>>,
}

impl Script {
    pub(crate) fn asked(&self) -> Vec<usize> {
        self.asked.lock().unwrap().clone()
    }
}

impl StackSource for Script {
    fn capture(&self, walk: &mut Walk<'_>) {
        STACK.with_borrow(|stack| {
            // The depth is the call's number, as addresses of records are like for calls of one depth.
            let mut calls = stack.iter().enumerate().rev();
            let _ = calls.try_for_each(|(depth, &at)| {
                walk.visit(depth, Frame { code: at % 10_000 / 100, at })
            });
        });
    }

    /// Numbers above 10,000 are other instructions of a line.
    fn place(&self, frame: Frame) -> Option<Frame> {
        self.asked.lock().unwrap().push(frame.at);
        Some(Frame { at: frame.at % 10_000, ..frame })
    }

    fn locate(&self, place: Frame) -> Location {
        let line = u32::try_from(place.at).unwrap();
        Location { function: format!("f{}", place.code).into(), file: "".into(), line }
    }
}

/// Runs `body` as if it were called by `stack`, outermost first.
pub(crate) fn run<T>(stack: &[usize], body: impl FnOnce() -> T) -> T {
    let before = STACK.replace(stack.to_vec());
    let result = body();
    STACK.set(before);
    result
}

/// A profile of scripted stacks of up to `frames` frames.
pub(crate) fn profile(frames: usize) -> (&'static Script, &'static Profile<&'static Script>) {
    let script: &Script = Box::leak(Box::default());
    (script, Profile::new(script, Options { frames, ..Options::default() }).unwrap())
}

/// As [`profile`], of callers that hold one lock.
pub(crate) fn serialized() -> (&'static Script, &'static Profile<&'static Script>) {
    let script: &Script = Box::leak(Box::default());
    (script, Profile::new(script, Options { serialized: true, ..Options::default() }).unwrap())
}
