//! Owns `PythonStacks`: the calling thread's Python frames as a profile's stacks, and their names, which are kept for ever.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;

use heap_profile::{Frame, Location, StackSource, Walk};
use memdebug::FrameSink;
use pymem_sync::Lock;

use crate::host::frame_words::FrameWords;

/// Tells Python stacks. A place is the address of a [`Named`] and a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PythonStacks {
    words: FrameWords,
}

/// What was named, by the address of its code object, which is kept. Held over a fork after the locks of the profile.
pub(crate) static NAMED: Lock<BTreeMap<usize, &'static Named>> = Lock::new(BTreeMap::new());

/// What a code object is called.
#[derive(Debug)]
pub(crate) struct Named {
    function: Arc<str>,
    file: Arc<str>,
}

impl PythonStacks {
    pub(crate) const fn new(words: FrameWords) -> Self {
        Self { words }
    }
}

impl StackSource for PythonStacks {
    #[inline]
    fn capture(&self, walk: &mut Walk<'_>) {
        self.words.walk(|call, code, at| walk.visit(call, Frame { code, at }));
    }

    fn place(&self, frame: Frame) -> Option<Frame> {
        let mut taken = Taken::default();
        // SAFETY: 1: a place is asked for by the thread that has just captured the frame.
        unsafe { self.words.describe(frame.code, frame.at, &mut taken) };
        let (named, line) = taken.0?;
        let mut all = NAMED.lock();
        let named: &'static Named =
            all.entry(frame.code).or_insert_with(|| Box::leak(Box::new(named)));
        Some(Frame { code: ptr::from_ref(named).expose_provenance(), at: line as usize })
    }

    fn locate(&self, place: Frame) -> Location {
        // SAFETY: `place` made the word from a `Named` that lives for ever.
        let named: &'static Named = unsafe { &*ptr::with_exposed_provenance(place.code) };
        #[expect(clippy::cast_possible_truncation, reason = "`place` made it from a line")]
        let line = place.at as u32;
        Location { function: named.function.clone(), file: named.file.clone(), line }
    }
}

/// Takes the one frame that is shown.
#[derive(Default)]
struct Taken(Option<(Named, u32)>);

impl FrameSink for Taken {
    fn frame(&mut self, file: &str, line: u32, function: Option<&str>) {
        self.0 =
            Some((Named { function: function.unwrap_or("?").into(), file: file.into() }, line));
    }

    fn is_full(&self) -> bool {
        self.0.is_some()
    }
}
