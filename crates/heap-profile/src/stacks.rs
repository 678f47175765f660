//! Owns `Stacks`: every distinct call stack, as a path in a tree of frames that only grows.
//!
//! The root of the tree is the outermost frame. A thread remembers its last stack, so that the usual capture, whose outer
//! frames are those of the one before, looks up only the frames that changed. Leaves telling which these are to `walk.rs`.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{iter, ptr};

use allocator_api2_02::boxed::Box;
use malloc_api::{AllocatorAdapter, LibcMalloc};
use pymem_sync::{Chain, Entry, Interner, RawLock};

use crate::counts::Counts;
use crate::site::{SiteEntry, SiteKey};
use crate::source::{MAX_FRAMES, StackSource};
use crate::walk::{Active, Common, Frame, Link, Trail};

/// A frame in the tree: its place, and the node of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    caller: Link,
    /// The number of the place.
    place: u32,
}

/// What a thread remembers: its last stack, and where its last frames and sites are.
struct Last {
    /// Which tree the nodes are of: its address. Trees live for ever.
    tree: usize,
    trail: Trail,
    memory: Box<Memory, AllocatorAdapter<LibcMalloc>>,
    /// Which step was looked for last.
    newest: usize,
}

/// Where a thread's last frames and sites are.
struct Memory {
    steps: [Step; MEMORY],
    recent: Recent,
}

/// How many frames, and how many sites, a thread remembers: 160 KiB for both, of which what is used becomes resident.
const MEMORY: usize = 4096;

impl Memory {
    /// Nothing remembered; `None` without memory.
    fn new() -> Option<Box<Self, AllocatorAdapter<LibcMalloc>>> {
        let zeroed = Box::try_new_zeroed_in(AllocatorAdapter::new(LibcMalloc)).ok()?;
        // SAFETY: of numbers, all zero is a value.
        Some(unsafe { zeroed.assume_init() })
    }
}

/// The node of a frame and its caller; half a line of the processor's caches.
#[derive(Clone, Copy)]
struct Step {
    caller: Link,
    /// 0 for a step that is none.
    node: Link,
    frame: Frame,
    /// Where the thread counted last while this frame was the newest: most instructions allocate blocks of one size.
    site: Seen,
}

/// A site that a thread has counted at, as its address, and above that 16 bits of its key, so that another site is not looked at: its
/// line of memory would be in no cache.
#[derive(Clone, Copy)]
struct Seen(u64);

const ADDRESS_BITS: u32 = 48;

impl Seen {
    const NONE: Self = Self(0);

    /// The bits of a key that are kept: other stacks, sizes and origins have others.
    #[inline]
    const fn bits(key: u64) -> u64 {
        (key >> ADDRESS_BITS) ^ (key & 0xFFFF)
    }

    fn new(site: &'static SiteEntry) -> Self {
        let address = ptr::from_ref(site).expose_provenance() as u64;
        if address >> ADDRESS_BITS != 0 {
            return Self::NONE;
        }
        Self(Self::bits(site.key().word()) << ADDRESS_BITS | address)
    }

    /// The site, if it is that of a key, as a [word](SiteKey::word).
    #[inline(always)]
    fn site(self, key: u64) -> Option<&'static SiteEntry> {
        let address = self.0 ^ Self::bits(key) << ADDRESS_BITS;
        if address >> ADDRESS_BITS != 0 || address == 0 {
            return None;
        }
        let site: *const SiteEntry = ptr::with_exposed_provenance(address as usize);
        // SAFETY: `new` made the word from a site with these bits, and sites live for ever.
        let site = unsafe { &*site };
        (site.key().word() == key).then_some(site)
    }
}

/// The sites that a thread has counted at.
struct Recent([Seen; MEMORY]);

impl Recent {
    /// Where the site of a key is, if the thread remembers the site.
    #[inline]
    fn of(&mut self, key: u64) -> &mut Seen {
        &mut self.0[spread(key.rotate_left(16))]
    }
}

/// A thread's stack, and the sites that the thread remembers; the thread does a profiler's own work until this is dropped.
pub(crate) struct Captured<'a> {
    /// The link of the innermost frame, which is 0 without a frame or without memory for a node.
    pub(crate) node: Link,
    last: &'a mut Last,
    variable: &'a Cell<*mut Last>,
}

impl Drop for Captured<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.variable.set(self.last);
    }
}

impl Captured<'_> {
    /// The site of a key, as a [word](SiteKey::word), which `look_up` finds where the thread does not remember the site.
    #[inline(always)]
    pub(crate) fn site(
        &mut self,
        key: u64,
        look_up: impl FnOnce() -> Option<&'static SiteEntry>,
    ) -> Option<&'static SiteEntry> {
        let Last { memory, newest, .. } = &mut *self.last;
        let Memory { steps, recent } = &mut **memory;
        let step = &mut steps[*newest % MEMORY];
        let is_newest = step.node == self.node;
        if let Some(site) = step.site.site(key).filter(|_| is_newest) {
            return Some(site);
        }
        let recent = recent.of(key);
        let site = match recent.site(key) {
            Some(site) => site,
            None => look_up()?,
        };
        *recent = Seen::new(site);
        if is_newest {
            step.site = *recent;
        }
        Some(site)
    }
}

thread_local! {
    /// What the thread remembers; null at first, and [`BUSY`] while the thread does a profiler's own work.
    static LAST: Cell<*mut Last> = const { Cell::new(ptr::null_mut()) };
    /// Forgets it when the thread ends.
    static END: End = const { End };
}

/// Stands for what a thread remembers while it is used, and after the thread's end.
const BUSY: *mut Last = ptr::without_provenance_mut(usize::MAX);

struct End;

impl Drop for End {
    fn drop(&mut self) {
        forget(LAST.replace(BUSY));
    }
}

/// Gives back what a thread remembers.
fn forget(last: *mut Last) {
    if !last.is_null() && last != BUSY {
        // SAFETY: `begin` took it out of such a box, and the thread's variable does not lead to it any more.
        drop(unsafe { Box::from_raw_in(last, AllocatorAdapter::new(LibcMalloc)) });
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
    let _restored = Restored(LAST.replace(BUSY));
    work()
}

/// What a thread remembers while its work is unrecorded, also when that ends by a panic.
struct Restored(*mut Last);

impl Drop for Restored {
    fn drop(&mut self) {
        LAST.set(self.0);
    }
}

/// What a frame stands for: above 32 bits which use of its words this is, below the number of the place and 1, or 0 for a frame
/// that is left out.
#[derive(Debug)]
struct Found(AtomicU64);

impl Found {
    fn new(usage: u32, place: Option<u32>) -> Self {
        Self(AtomicU64::new(Self::word(usage, place)))
    }

    fn word(usage: u32, place: Option<u32>) -> u64 {
        u64::from(usage) << 32 | place.map_or(0, |place| u64::from(place) + 1)
    }

    /// The place in this use of the words; `None` where another use was found last.
    fn place(&self, usage: u32) -> Option<Option<u32>> {
        // Relaxed: the word stands for itself, and places were interned before it was stored.
        let word = self.0.load(Relaxed);
        (word >> 32 == u64::from(usage)).then(|| (word as u32).checked_sub(1))
    }

    fn set(&self, usage: u32, place: Option<u32>) {
        self.0.store(Self::word(usage, place), Relaxed);
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

    /// The calling thread's stack; `None` while this thread does a profiler's own work, and when the thread ends.
    #[inline(always)]
    pub(crate) fn capture(&'static self, source: &impl StackSource) -> Option<Captured<'static>> {
        // The address alone, so that nothing below is a function of its own.
        let variable = LAST.with(ptr::from_ref);
        // SAFETY: the calling thread's variable, which needs no drop; the result is used by its caller alone.
        let variable = unsafe { &*variable };
        let mut last = variable.replace(BUSY);
        if last == BUSY {
            return None;
        }
        // SAFETY: 1: null, or made by `begin` for this thread, whose variable does not lead to it now.
        if !unsafe { self.has(last) } {
            last = self.begin(last)?;
        }
        // SAFETY: made by `begin`, and reached by nothing else while the variable is `BUSY`.
        let known = unsafe { &mut *last };
        let node = self.follow(source, known);
        Some(Captured { node, last: known, variable })
    }

    /// Whether the thread remembers a stack of this tree.
    ///
    /// # Safety
    ///
    /// 1. `last` is null, or what the calling thread remembers.
    #[inline]
    unsafe fn has(&self, last: *mut Last) -> bool {
        // SAFETY: by 1.
        unsafe { last.as_ref() }.is_some_and(|last| last.tree == ptr::from_ref(self).addr())
    }

    /// Captures the stack, and looks up the frames that differ from the last ones; without memory none is known any more.
    #[inline(always)]
    fn follow(&'static self, source: &impl StackSource, last: &mut Last) -> Link {
        let mut walk = last.trail.walk();
        let Common { calls, mut unmoved } = if source.capture_plainly(&mut walk) {
            walk.end()
        } else {
            Self::shown(source, &mut last.trail)
        };
        let Last { trail, memory, newest, .. } = last;
        trail.known.truncate(calls);
        if !trail.fresh.is_empty() {
            let too_many = trail.too_many(calls);
            if too_many > 0 {
                // The root moves, so that all are other nodes.
                trail.forget(too_many);
                unmoved = 0;
            }
        } else if unmoved == calls {
            return node_of(trail.known.last());
        }
        let Some((callers, moved)) = trail.known.split_at_mut_checked(unmoved) else { return 0 };
        let mut caller = node_of(callers.last());
        for active in moved {
            match self.step(source, &mut memory.steps, newest, caller, active.frame) {
                Some(node) => active.node = node,
                None => return trail.lost(),
            }
            caller = active.node;
        }
        for fresh in (0..trail.fresh.len()).rev() {
            let Some(&active) = trail.fresh.get(fresh) else { break };
            match self.step(source, &mut memory.steps, newest, caller, active.frame) {
                Some(node) => trail.push(Active { node, ..active }),
                None => return trail.lost(),
            }
            caller = node_of(trail.known.last());
        }
        caller
    }

    /// What the stack has in common with the one before. The walk is one of its own, so that a plain one stays in registers.
    #[inline(never)]
    fn shown(source: &impl StackSource, trail: &mut Trail) -> Common {
        let mut walk = trail.walk();
        source.capture(&mut walk);
        walk.end()
    }

    /// A thread's first capture in this tree; `None` without memory, and at the thread's end.
    #[cold]
    #[inline(never)]
    fn begin(&self, last: *mut Last) -> Option<*mut Last> {
        forget(last);
        let made = END.try_with(|_| {
            let last = Last {
                tree: ptr::from_ref(self).addr(),
                trail: Trail::new(self.limit)?,
                memory: Memory::new()?,
                newest: 0,
            };
            Box::try_new_in(last, AllocatorAdapter::new(LibcMalloc)).ok()
        });
        match made {
            Ok(Some(last)) => Some(Box::into_raw(last)),
            Ok(None) => {
                LAST.set(ptr::null_mut());
                None
            }
            Err(_) => None,
        }
    }

    /// The node of `frame` called by `caller`, which is `caller` where the frame is left out, and in `at` which step that is; `None` without
    /// memory.
    #[inline(always)]
    fn step(
        &'static self,
        source: &impl StackSource,
        steps: &mut [Step; MEMORY],
        at: &mut usize,
        caller: Link,
        frame: Frame,
    ) -> Option<Link> {
        let caller_bits = (caller as usize).rotate_left(20);
        *at = spread((frame.at ^ frame.code.rotate_left(12) ^ caller_bits) as u64);
        let step = &mut steps[*at];
        if step.caller != caller || step.frame != frame || step.node == 0 {
            *step =
                Step { caller, node: self.node(source, caller, frame)?, frame, site: Seen::NONE };
        }
        Some(step.node)
    }

    /// As [`step`](Self::step), of frames that the thread does not remember.
    #[inline(never)]
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

/// The node of a call; 0 for none.
#[inline]
fn node_of(active: Option<&Active>) -> Link {
    active.map_or(0, |active| active.node)
}

/// An index into what a thread remembers.
#[inline]
const fn spread(word: u64) -> usize {
    // The upper bits of a product depend on all of its factors.
    (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - MEMORY.ilog2())) as usize
}

/// Spreads the bits of addresses, of which the low ones are all alike.
#[inline]
pub(crate) const fn mix(word: usize) -> u64 {
    let word = (word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word ^ (word >> 32)
}
