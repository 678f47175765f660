//! Owns `Stacks`: every distinct call stack, as a path in a tree of frames that only grows.
//!
//! The root of the tree is the outermost frame. A thread remembers its last stack, so that the usual capture, whose outer
//! frames are those of the one before, looks up only the frames that changed. Leaves telling which these are to `walk.rs`.

use std::cell::RefCell;
use std::iter;

use pymem_sync::{Entry, Interner};

use crate::source::{MAX_FRAMES, StackSource};
use crate::walk::{Frame, List, Trail, list};

/// A frame in the tree: the frame itself, and the node of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The caller's node; `None` for an outermost frame. Compared by address: a node is there once.
    caller: Option<NodePtr>,
    frame: Frame,
}

pub(crate) type Node = Entry<Path, ()>;

/// A node of a table that outlives it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodePtr(*const Node);

// SAFETY: nodes are shared by all threads, and never change.
unsafe impl Send for NodePtr {}
// SAFETY: as above.
unsafe impl Sync for NodePtr {}

impl PartialEq for NodePtr {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for NodePtr {}

impl NodePtr {
    pub(crate) fn addr(self) -> usize {
        self.0.addr()
    }
}

/// What a thread remembers of its last stack.
struct Last {
    /// Which tree the nodes are of: its address. Trees live for ever.
    tree: usize,
    trail: Trail,
    /// The node of each known call.
    nodes: List<Option<NodePtr>>,
}

thread_local! {
    /// Borrowed while the thread does a profiler's own work.
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// Runs `work` unrecorded: what it allocates on this thread is in no profile.
pub(crate) fn unrecorded<T>(work: impl FnOnce() -> T) -> T {
    LAST.with(|last| {
        let _busy = last.try_borrow_mut();
        work()
    })
}

/// The tree of all stacks.
#[derive(Debug)]
pub(crate) struct Stacks {
    nodes: Interner<Path, ()>,
    /// The place of each frame that was captured; `None` for one that is left out.
    places: Interner<Frame, Option<Frame>>,
    /// How many frames are kept of one stack.
    limit: usize,
}

impl Stacks {
    /// An empty tree for stacks of up to `limit` frames; `None` without memory for it.
    pub(crate) fn new(limit: usize, buckets: usize) -> Option<Self> {
        Some(Self {
            nodes: Interner::new(buckets)?,
            places: Interner::new(buckets / 4)?,
            limit: limit.clamp(1, MAX_FRAMES),
        })
    }

    /// Passes `count` the node of the calling thread's innermost frame; `None` without a frame, or without memory for a node.
    ///
    /// Does nothing, and returns `None`, while this thread does a profiler's own work, and when its thread-locals are gone.
    #[inline]
    pub(crate) fn capture<T>(
        &'static self,
        source: &impl StackSource,
        count: impl FnOnce(Option<NodePtr>) -> T,
    ) -> Option<T> {
        LAST.try_with(|last| {
            let mut last = last.try_borrow_mut().ok()?;
            Some(count(self.follow(source, &mut last)))
        })
        .ok()?
    }

    /// Captures the stack, and looks up the frames that differ from the last ones.
    #[inline]
    fn follow(
        &'static self,
        source: &impl StackSource,
        last: &mut Option<Last>,
    ) -> Option<NodePtr> {
        let tree = std::ptr::from_ref(self).addr();
        let last = match last {
            Some(last) if last.tree == tree => last,
            _ => self.begin(last)?,
        };
        let mut walk = last.trail.walk();
        source.capture(&mut walk);
        let kept = walk.end();
        if last.trail.fresh.is_empty() {
            last.trail.known.truncate(kept);
            last.nodes.truncate(kept);
        } else if self.add(source, last, kept).is_none() {
            last.trail.known.clear();
            last.nodes.clear();
        }
        last.nodes.last().copied().flatten()
    }

    /// A thread's first capture in this tree.
    #[cold]
    fn begin<'a>(&self, last: &'a mut Option<Last>) -> Option<&'a mut Last> {
        let tree = std::ptr::from_ref(self).addr();
        let (trail, nodes) = (Trail::new(self.limit)?, list(3 * self.limit)?);
        Some(last.insert(Last { tree, trail, nodes }))
    }

    /// Adds the fresh calls to the `kept` outermost ones; `None` without memory.
    fn add(&'static self, source: &impl StackSource, last: &mut Last, kept: usize) -> Option<()> {
        let Last { trail, nodes, .. } = last;
        let too_many = trail.too_many(kept);
        trail.known.truncate(kept);
        nodes.truncate(kept);
        if too_many > 0 {
            // The root moves, so that all are other nodes.
            trail.known.drain(..too_many);
            nodes.clear();
            for active in &trail.known {
                let caller = nodes.last().copied().flatten();
                nodes.push(self.node(source, caller, active.frame)?);
            }
        }
        while let Some(active) = trail.fresh.pop() {
            let caller = nodes.last().copied().flatten();
            nodes.push(self.node(source, caller, active.frame)?);
            trail.known.push(active);
        }
        Some(())
    }

    /// The node of `frame` called by `caller`, which is `caller` where the frame is left out; `None` without memory.
    #[expect(clippy::option_option, reason = "a node, no node, or no memory")]
    fn node(
        &'static self,
        source: &impl StackSource,
        caller: Option<NodePtr>,
        frame: Frame,
    ) -> Option<Option<NodePtr>> {
        let hash = mix(frame.code.rotate_left(17) ^ frame.at);
        let place = *self.places.intern(hash, frame, || source.place(frame))?.value();
        let Some(frame) = place else { return Some(caller) };
        let above = caller.map_or(0, NodePtr::addr);
        let hash = mix(above ^ frame.code.rotate_left(17) ^ frame.at.rotate_left(43));
        Some(Some(NodePtr(self.nodes.intern(hash, Path { caller, frame }, || ())?)))
    }

    /// The frames of the stack that ends in `node`, innermost first, as many as are kept of one.
    pub(crate) fn frames(&'static self, node: Option<NodePtr>) -> impl Iterator<Item = Frame> {
        let nodes = iter::successors(node, |node| self.path(*node).caller);
        nodes.map(|node| self.path(node).frame).take(self.limit)
    }

    fn path(&'static self, node: NodePtr) -> &'static Path {
        // SAFETY: made from a node of this table, which lives for ever, as the table does.
        unsafe { &*node.0 }.key()
    }

    /// The locks to hold over a fork.
    pub(crate) const fn locks(&self) -> [&pymem_sync::RawLock; 2] {
        [self.nodes.lock(), self.places.lock()]
    }
}

/// Spreads the bits of addresses, of which the low ones are all alike.
#[inline]
pub(crate) const fn mix(word: usize) -> u64 {
    let word = (word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word ^ (word >> 32)
}
