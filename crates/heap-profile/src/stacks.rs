//! Owns `Stacks`: every distinct call stack, as a path in a tree of frames that only grows.
//!
//! The root of the tree is the outermost frame. A thread remembers its last stack, so that the usual capture, whose outer
//! frames are those of the one before, looks up only the frames that changed. Leaves telling which these are to `walk.rs`.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{iter, mem, ptr};

use allocator_api2_02::boxed::Box;
use malloc_api::{AllocatorAdapter, LibcMalloc};
use pymem_sync::{Chain, Entry, Interner, RawLock};

use crate::counts::Counts;
use crate::found::Found;
use crate::frame::{Calls, Frame, Link, PlainSource};
use crate::generation::Generation;
use crate::memory::{Memory, Step};
use crate::own::{self, BUSY, NOT_YET};
use crate::site::{SiteEntry, SiteKey, SiteWord};
use crate::source::{MAX_FRAMES, StackSource};
use crate::trail::{Active, Common, Trail, Unusual};
use crate::walk::Walk;

/// A frame in the tree: its place, and the node of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    caller: Link,
    /// The number of the place.
    place: u32,
}

/// What a thread remembers: its last stack, and where its last frames and sites are.
#[repr(C)]
struct Last {
    /// Which tree the nodes are of: its address. Trees live for ever. The thread's word leads here.
    tree: usize,
    trail: Trail,
    memory: Memory,
}

/// A thread's stack, and the sites that the thread remembers.
pub(crate) struct Captured<'a> {
    node: Link,
    last: &'a mut Last,
}

impl Captured<'_> {
    /// The link of the innermost frame, which is 0 without a frame or without memory for a node.
    #[inline(always)]
    pub(crate) const fn node(&self) -> Link {
        self.node
    }

    /// The site of a key, if the thread remembers the site.
    #[inline(always)]
    pub(crate) fn site(&self, key: SiteWord) -> Option<&'static SiteEntry> {
        self.last.memory.site(key)
    }

    /// Remembers the site of a key.
    pub(crate) fn set_site(self, key: SiteKey, site: &'static SiteEntry) {
        self.last.memory.set_site(key.word(), site);
    }
}

/// The tree of the stacks that are wanted, if any are: its address.
#[derive(Debug)]
pub(crate) struct Wanted(AtomicUsize);

impl Wanted {
    /// No stacks.
    pub(crate) const fn none() -> Self {
        Self(AtomicUsize::new(own::NO_TREE))
    }

    /// Has the stacks of a tree wanted, or none.
    pub(crate) fn set(&self, stacks: Option<&'static Stacks>) {
        // Relaxed here and where it is read: a thread that has a stack of the tree has seen the tree.
        self.0.store(stacks.map_or(own::NO_TREE, |stacks| ptr::from_ref(stacks).addr()), Relaxed);
    }

    /// Whether any are.
    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.0.load(Relaxed) != own::NO_TREE
    }
}

thread_local! {
    /// Forgets what the thread remembers when it ends.
    static END: End = const { End };
}

struct End;

impl Drop for End {
    fn drop(&mut self) {
        // SAFETY: 1: it lives for ever.
        forget(unsafe { own::replace(BUSY.word()) });
    }
}

/// Gives back what a thread remembers, to which its word does not lead any more.
fn forget(last: *const usize) {
    if !NOT_YET.is(last) && !BUSY.is(last) {
        // SAFETY: `begin` took it out of such a box, and the thread's word does not lead to it any more.
        drop(unsafe {
            Box::from_raw_in(last.cast_mut().cast::<Last>(), AllocatorAdapter::new(LibcMalloc))
        });
    }
}

/// Runs `work` unrecorded: what it allocates on this thread is in no profile. Calls may be nested.
///
/// # Examples
///
/// ```
/// let answer = heap_profile::unrecorded(|| vec![0_u8; 1 << 20]);
/// assert_eq!(answer.len(), 1 << 20);
/// ```
pub fn unrecorded<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: 1: it lives for ever.
    let _restored = Restored(unsafe { own::replace(BUSY.word()) });
    work()
}

/// What a thread remembers while its work is unrecorded, also when that ends by a panic.
struct Restored(*const usize);

impl Drop for Restored {
    fn drop(&mut self) {
        // SAFETY: 1: the word led there before.
        unsafe { own::replace(self.0) };
    }
}

/// The tree of all stacks.
#[derive(Debug)]
pub(crate) struct Stacks {
    /// Each with its sites.
    nodes: Interner<Path, Chain>,
    /// The sites of stacks without frames.
    root: Chain,
    /// What is counted apart, of every profile that has these stacks; in the chains of nodes alone.
    sites: Interner<SiteKey, Counts>,
    places: Interner<Frame, ()>,
    /// The place of each frame that was captured.
    frames: Interner<Frame, Found>,
    /// How many frames are kept of one stack.
    limit: usize,
}

impl Stacks {
    /// An empty tree for stacks of up to `limit` frames; `None` without memory for it.
    pub(crate) fn new(limit: usize, buckets: usize) -> Option<Self> {
        Some(Self {
            nodes: Interner::new(buckets)?,
            root: Chain::new(),
            sites: Interner::new(0)?,
            places: Interner::new(buckets / 16)?,
            frames: Interner::new(buckets / 4)?,
            limit: limit.clamp(1, MAX_FRAMES),
        })
    }

    /// The calling thread's stack, where that is found without a call of any function; else how it is to be found.
    #[inline(always)]
    pub(crate) fn usual(
        wanted: &Wanted,
        source: &impl StackSource,
    ) -> Result<Captured<'static>, Unusual> {
        let source = source.plain();
        let last = own::get();
        // SAFETY: the first word of what the thread's word leads to can be read.
        if unsafe { last.read() } != wanted.0.load(Relaxed) {
            return Err(Unusual::Otherwise);
        }
        // SAFETY: made by `begin`, as it has the address of a tree. Nothing else is led there: a plain source asks for no stack (2 of
        // `PlainSource`).
        let last = unsafe { &mut *last.cast_mut().cast::<Last>() };
        let plain = source.and_then(|source| source.plain_calls(last.trail.age()));
        let (newest, calls) = plain.ok_or(Unusual::Otherwise)?;
        let Last { trail, memory, .. } = &mut *last;
        let node = trail.usual(newest, &calls, |caller, at, generation| {
            let step = memory.step_at(caller, at);
            Some((step.code(), step.plainly(caller, at, generation)?))
        })?;
        Ok(Captured { node, last })
    }

    /// The calling thread's stack, whose newest call is fresh, likely; `None` where it is to be found otherwise.
    #[inline(always)]
    pub(crate) fn called(&'static self, source: &impl StackSource) -> Option<Captured<'static>> {
        let plain = source.plain()?;
        // SAFETY: 1: a capture begins, and a plain source begins no other (2 of `PlainSource`).
        let last = unsafe { self.last() }?;
        let (newest, calls) = plain.plain_calls(last.trail.age())?;
        let Last { trail, memory, .. } = &mut *last;
        let generation = trail.generation;
        let node = trail.called(newest, &calls, |caller, call| {
            self.step(source, memory, caller, call, &calls, generation)
        })?;
        Some(Captured { node, last })
    }

    /// The calling thread's stack, whose newest call has moved.
    ///
    /// # Safety
    ///
    /// 1. [`usual`](Self::usual) has just told so of the thread, by this `end`.
    #[inline(always)]
    pub(crate) unsafe fn moved(
        &'static self,
        source: &impl StackSource,
        end: NonNull<Active>,
    ) -> Option<Captured<'static>> {
        let plain = source.plain()?;
        // SAFETY: 1: a capture begins, and a plain source begins no other (2 of `PlainSource`).
        let last = unsafe { self.last() }?;
        let (_, calls) = plain.plain_calls(last.trail.age())?;
        let Last { trail, memory, .. } = &mut *last;
        let generation = trail.generation;
        let step = |caller, call| self.step(source, memory, caller, call, &calls, generation);
        // SAFETY: 1: duty 1.
        let node = unsafe { trail.moved(end, step) }?;
        Some(Captured { node, last })
    }

    /// What the calling thread remembers of this tree, if it does.
    ///
    /// # Safety
    ///
    /// 1. Nobody else refers to it as long as the result is used.
    #[inline(always)]
    unsafe fn last(&self) -> Option<&'static mut Last> {
        let last = own::get();
        // SAFETY: the first word of what the thread's word leads to can be read.
        if unsafe { last.read() } != ptr::from_ref(self).addr() {
            return None;
        }
        // SAFETY: made by `begin`, as it has the address of this tree; duty 1.
        Some(unsafe { &mut *last.cast_mut().cast::<Last>() })
    }

    /// Where a call is that no code has died behind, and its node; `None` without memory.
    #[inline(always)]
    fn step(
        &'static self,
        source: &impl StackSource,
        memory: &mut Memory,
        caller: Link,
        call: usize,
        calls: &impl Calls,
        generation: Generation,
    ) -> Option<(Frame, Link)> {
        let at = calls.at(call);
        let step = memory.step(caller, at);
        let node = match step.plainly(caller, at, generation) {
            Some(node) => node,
            None => self.step_apart(source, step, caller, calls.frame(call), generation)?,
        };
        Some((Frame { code: step.code(), at }, node))
    }

    /// The calling thread's stack; `None` while this thread does a profiler's own work, and when the thread ends.
    pub(crate) fn capture(&'static self, source: &impl StackSource) -> Option<Captured<'static>> {
        let plain = source.plain();
        let mut last = own::get();
        // SAFETY: the first word of what the thread's word leads to can be read.
        if unsafe { last.read() } != ptr::from_ref(self).addr() {
            last = self.begin(last)?;
        }
        // SAFETY: made by `begin`. Nothing else is led there: a plain source asks for no stack (2 of `PlainSource`), and before anything else
        // is called that may, the thread's word is `BUSY`.
        let last = unsafe { &mut *last.cast_mut().cast::<Last>() };
        let mut known = None;
        if let Some((newest, calls)) = plain.and_then(|plain| plain.plain_calls(last.trail.age())) {
            known = self.follow(source, last, newest, &calls);
        }
        let node = match known {
            Some(known) => known,
            None => self.shown(source, last),
        };
        Some(Captured { node, last })
    }

    /// The node of the stack from its `newest` record on, where no code has died since the last one; `None` where known calls have other
    /// callers than they had.
    #[inline(always)]
    fn follow(
        &'static self,
        source: &impl StackSource,
        last: &mut Last,
        newest: usize,
        calls: &impl Calls,
    ) -> Option<Link> {
        let newest = calls.with_frame(newest);
        if newest == 0 {
            return None;
        }
        let common = match last.trail.depth_of(newest) {
            Some(kept) => last.trail.follow_known(kept, calls),
            None => last.trail.follow(newest, calls),
        };
        Some(self.look_up_plainly(source, last, common?, calls))
    }

    /// Looks up the calls that differ from the last ones, for which there is room; the node of the stack. Without memory none is known any
    /// more.
    #[inline(never)]
    fn look_up_plainly(
        &'static self,
        source: &impl StackSource,
        last: &mut Last,
        Common { calls: kept, unmoved }: Common,
        calls: &impl Calls,
    ) -> Link {
        let Last { trail, memory, .. } = last;
        trail.known.truncate(kept);
        let generation = trail.generation;
        let step = |caller: Link, Active { call, .. }: Active| {
            let (frame, node) = self.step(source, memory, caller, call, calls, generation)?;
            Some(Active { call, frame, node })
        };
        trail.look_up(unmoved, step)
    }

    /// As [`capture`](Self::capture), of a source that has more to tell than plain calls.
    #[inline(never)]
    fn shown(&'static self, source: &impl StackSource, last: &mut Last) -> Link {
        unrecorded(|| {
            let mut walk = Walk::of(&mut last.trail);
            source.capture(&mut walk);
            let common = walk.end();
            self.look_up(source, last, common)
        })
    }

    /// Looks up the calls that differ from the last ones, by their code, too.
    fn look_up(
        &'static self,
        source: &impl StackSource,
        Last { trail, memory, .. }: &mut Last,
        Common { calls, mut unmoved }: Common,
    ) -> Link {
        trail.known.truncate(calls);
        let too_many = if trail.fresh.is_empty() { 0 } else { trail.too_many(calls) };
        if too_many > 0 {
            trail.forget(too_many);
            unmoved = 0;
        }
        if mem::take(&mut trail.is_worn) {
            memory.forget_steps();
        }
        let generation = trail.generation;
        let step = |caller: Link, active: Active| {
            let step = memory.step(caller, active.frame.at);
            let node = self.step_apart(source, step, caller, Some(active.frame), generation)?;
            Some(Active { node, ..active })
        };
        trail.look_up(unmoved, step)
    }

    /// Has the thread remember this stack's tree; `None` while the thread does a profiler's own work, without memory, and at the
    /// thread's end.
    #[cold]
    #[inline(never)]
    fn begin(&self, last: *const usize) -> Option<*const usize> {
        if BUSY.is(last) {
            return None;
        }
        // SAFETY: 1: it lives for ever.
        unsafe { own::replace(BUSY.word()) };
        forget(last);
        let made = END.try_with(|_| {
            let (tree, trail) = (ptr::from_ref(self).addr(), Trail::new(self.limit)?);
            let mut made =
                Box::<Last, _>::try_new_zeroed_in(AllocatorAdapter::new(LibcMalloc)).ok()?;
            let last = made.as_mut_ptr();
            // SAFETY: a field of the box.
            let tree_of = unsafe { &raw mut (*last).tree };
            // SAFETY: as above.
            let trail_of = unsafe { &raw mut (*last).trail };
            // SAFETY: the box has room for the field.
            unsafe { tree_of.write(tree) };
            // SAFETY: as above.
            unsafe { trail_of.write(trail) };
            // SAFETY: two fields were written, and of the third all zero is a value.
            let made = unsafe { made.assume_init() };
            Some(Box::into_raw(made).cast_const().cast::<usize>())
        });
        // A thread that ends stays busy.
        let made = made.ok()?;
        // SAFETY: 1: the first word of a `Last`, which is the thread's until `forget`; or one that lives for ever.
        unsafe { own::replace(made.unwrap_or(NOT_YET.word())) };
        made
    }

    /// The node of a frame called by `caller`, which is `caller` where the frame is left out, and in `step` from now on; `None` without
    /// memory.
    #[inline(never)]
    fn step_apart(
        &'static self,
        source: &impl StackSource,
        step: &mut Step,
        caller: Link,
        frame: Option<Frame>,
        generation: Generation,
    ) -> Option<Link> {
        let Some(frame) = frame else { return Some(caller) };
        if let Some(node) = step.known(caller, frame, generation) {
            return Some(node);
        }
        let node = unrecorded(|| self.node(source, caller, frame))?;
        step.set(caller, frame, generation, node);
        Some(node)
    }

    /// The node of a frame called by `caller`, which the thread does not remember.
    fn node(&'static self, source: &impl StackSource, caller: Link, frame: Frame) -> Option<Link> {
        let Some(place) = self.place_of(source, frame)? else { return Some(caller) };
        self.link(caller, place)
    }

    /// The link of `place` called by `caller`; `None` without memory.
    fn link(&'static self, caller: Link, place: u32) -> Option<Link> {
        let hash = mix((caller as usize).rotate_left(32) ^ place as usize);
        Some(self.nodes.intern(hash, Path { caller, place }, Chain::new)?.number() + 1)
    }

    /// The number of the place of `frame`, or `None` for a frame that is left out; outside of that, `None` without memory.
    #[expect(clippy::option_option, reason = "no memory, and no place")]
    fn place_of(&'static self, source: &impl StackSource, frame: Frame) -> Option<Option<u32>> {
        let hash = |frame: Frame| mix(frame.code.rotate_left(17) ^ frame.at);
        let (words, usage) = source.usage(frame);
        let known = self.frames.find(hash(words), &words);
        if let Some(place) = known.and_then(|found| found.value().place(usage)) {
            return Some(place);
        }
        // Without a lock: the source may call the interpreter.
        let place = match source.place(frame) {
            Some(place) => Some(self.places.intern(hash(place), place, || ())?.number()),
            None => None,
        };
        match known {
            Some(found) => found.value().set(usage, place),
            None => {
                self.frames.intern(hash(words), words, || Found::new(usage, place))?;
            }
        }
        Some(place)
    }

    /// The link of the stack with the `frames` innermost frames of `node` alone; `None` without memory.
    pub(crate) fn cut(&'static self, node: Link, frames: usize) -> Option<Link> {
        let places: Vec<u32> = self.places(node).take(frames).collect();
        places.into_iter().rev().try_fold(0, |caller, place| self.link(caller, place))
    }

    /// The site of a key; `None` without memory for it.
    pub(crate) fn site_of(&'static self, key: SiteKey) -> Option<&'static SiteEntry> {
        let node = key.stack.checked_sub(1).and_then(|number| self.nodes.get(number));
        let chain = node.map_or(&self.root, Entry::value);
        // SAFETY: 1: a chain of this tree, which has one table of sites.
        unsafe { self.sites.intern_in(chain, key, Counts::default) }
    }

    /// Every site, of whatever profile.
    pub(crate) const fn sites(&self) -> &Interner<SiteKey, Counts> {
        &self.sites
    }

    /// The places of the stack that ends in `node`, innermost first, as many as are kept of one.
    pub(crate) fn places(&'static self, node: Link) -> impl Iterator<Item = u32> {
        let path = |node: Link| Some(*self.nodes.get(node.checked_sub(1)?)?.key());
        let nodes = iter::successors(path(node), move |of| path(of.caller));
        nodes.map(|path| path.place).take(self.limit)
    }

    /// How many nodes and places there are; no node has a later place.
    pub(crate) fn lens(&self) -> [u32; 2] {
        let nodes = self.nodes.len() as u32;
        [nodes, self.places.len() as u32]
    }

    /// The link of the caller of the node with this number, from 0, and the number of the node's place.
    pub(crate) fn node_at(&self, number: u32) -> Option<(Link, u32)> {
        let Path { caller, place } = *self.nodes.get(number)?.key();
        Some((caller, place))
    }

    /// The place with this number.
    pub(crate) fn place(&'static self, number: u32) -> Frame {
        self.places.get(number).map(|place| *place.key()).unwrap_or_default()
    }

    /// The locks to hold over a fork, in the order in which they are taken.
    pub(crate) const fn locks(&self) -> [&RawLock; 4] {
        [self.sites.lock(), self.nodes.lock(), self.frames.lock(), self.places.lock()]
    }
}

/// Spreads the bits of addresses, of which the low ones are all alike.
#[inline]
pub(crate) const fn mix(word: usize) -> u64 {
    let word = (word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word ^ (word >> 32)
}
