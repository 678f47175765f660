//! Owns `Stacks`: every distinct call stack, as a path in a tree of frames that only grows.
//!
//! The root of the tree is the outermost frame. A thread remembers its last stack, so that the usual capture, whose outer
//! frames are those of the one before, looks up only the frames that changed.

use std::cell::{Cell, RefCell};
use std::iter;

use pymem_sync::{Entry, Interner};

use crate::source::{Frame, MAX_FRAMES, StackSource};

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
    /// Which table the nodes are of: its address. Tables live for ever.
    table: usize,
    /// The last stack and room for the next one, innermost frame first.
    frames: [[Frame; MAX_FRAMES]; 2],
    /// Which of `frames` is the last stack.
    side: usize,
    /// The nodes of the last stack, outermost first.
    nodes: [Option<NodePtr>; MAX_FRAMES],
    len: usize,
}

thread_local! {
    static LAST: RefCell<Last> = const {
        RefCell::new(Last {
            table: 0,
            frames: [[Frame { code: 0, at: 0 }; MAX_FRAMES]; 2],
            side: 0,
            nodes: [None; MAX_FRAMES],
            len: 0,
        })
    };
    /// This thread is inside of a profiler's own work.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// The mark of a thread that does a profiler's own work; what it allocates meanwhile is not recorded.
pub(crate) struct Busy(());

impl Busy {
    /// `None` if this thread is marked already, or its thread-locals are gone.
    #[inline]
    pub(crate) fn enter() -> Option<Self> {
        let entered = BUSY.try_with(|busy| !busy.replace(true)).unwrap_or(false);
        entered.then(|| Self(()))
    }
}

impl Drop for Busy {
    #[inline]
    fn drop(&mut self) {
        // Never past the thread's end: `enter` has just found the thread-local.
        let _ = BUSY.try_with(|busy| busy.set(false));
    }
}

/// The tree of all stacks.
#[derive(Debug)]
pub(crate) struct Stacks {
    nodes: Interner<Path, ()>,
    /// The place of each frame that was captured.
    places: Interner<Frame, Frame>,
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

    /// The node of the calling thread's innermost frame; `None` without a frame, or without memory for a node.
    #[inline]
    pub(crate) fn capture(&'static self, source: &impl StackSource, _: &Busy) -> Option<NodePtr> {
        LAST.try_with(|last| self.follow(source, &mut *last.try_borrow_mut().ok()?)).ok()?
    }

    /// Captures the stack, and looks up the frames that differ from the last ones.
    fn follow(&'static self, source: &impl StackSource, last: &mut Last) -> Option<NodePtr> {
        let table = std::ptr::from_ref(self).addr();
        let known = if last.table == table { last.len } else { 0 };
        let [first, second] = &mut last.frames;
        let (before, now) = if last.side == 0 { (first, second) } else { (second, first) };
        let len = source.capture(&mut now[..self.limit]).min(self.limit);
        let same = iter::zip(now[..len].iter().rev(), before[..known].iter().rev())
            .take_while(|(now, before)| now == before)
            .count();
        let mut caller = same.checked_sub(1).and_then(|outer| last.nodes[outer]);
        (last.table, last.len, last.side) = (table, 0, 1 - last.side);
        for (depth, &frame) in now[..len].iter().rev().enumerate().skip(same) {
            let node = self.node(Path { caller, frame: self.place(source, frame)? })?;
            last.nodes[depth] = Some(node);
            caller = Some(node);
        }
        last.len = len;
        caller
    }

    fn place(&self, source: &impl StackSource, frame: Frame) -> Option<Frame> {
        let hash = mix(frame.code.rotate_left(17) ^ frame.at);
        Some(*self.places.intern(hash, frame, || source.place(frame))?.value())
    }

    fn node(&'static self, path: Path) -> Option<NodePtr> {
        let caller = path.caller.map_or(0, NodePtr::addr);
        let hash = mix(caller ^ path.frame.code.rotate_left(17) ^ path.frame.at.rotate_left(43));
        Some(NodePtr(self.nodes.intern(hash, path, || ())?))
    }

    /// The frames of the stack that ends in `node`, innermost first.
    pub(crate) fn frames(&'static self, node: Option<NodePtr>) -> impl Iterator<Item = Frame> {
        iter::successors(node, |node| self.path(*node).caller).map(|node| self.path(node).frame)
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
