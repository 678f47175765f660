//! Owns `Walk`: a stack as its source shows it, compared frame by frame with the stack before.
//!
//! Where a frame is the same as before, and so are its callers, nothing is looked up. A stack deeper than the limit is compared
//! down to the limit alone. What is remembered is up to three times as deep and is cut only when full, to two thirds: a
//! recursion deeper than any limit then costs one frame for each call, as its root moves once in a limit of calls.

use std::mem;
use std::ops::ControlFlow::{self, Break, Continue};

use allocator_api2_02::vec::Vec;
use malloc_api::{AllocatorAdapter, LibcMalloc};

/// One frame of a call stack, as two words that its [`StackSource`](crate::StackSource) understands.
///
/// Two frames are the same place of the program exactly if both words are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Frame {
    /// What is running: the address of a function or of a code object.
    pub code: usize,
    /// Where in it: an instruction, or a line.
    pub at: usize,
}

/// A list in memory of the C library, never of the profiled allocator.
pub(crate) type List<T> = Vec<T, AllocatorAdapter<LibcMalloc>>;

/// An empty list with room for `len` elements; `None` without memory for it.
pub(crate) fn list<T>(len: usize) -> Option<List<T>> {
    let mut list = Vec::new_in(AllocatorAdapter::new(LibcMalloc));
    list.try_reserve_exact(len).ok()?;
    Some(list)
}

/// How many known calls a fresh frame is looked for among. A thread that returns from more at once has its whole stack looked up.
const NEAR: usize = 16;

/// A running function: its call, and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Active {
    /// No other call on the stack has this number.
    pub(crate) call: usize,
    pub(crate) frame: Frame,
    /// The frame's node in the tree of stacks, once the frame is known.
    pub(crate) node: Link,
}

/// The number of a node in the tree of stacks and 1; 0 above the outermost frame.
pub(crate) type Link = u32;

/// The stack that a thread showed last, and what the next one adds.
#[derive(Debug)]
pub(crate) struct Trail {
    /// Calls of the last stack, outermost first. Callers beyond the limit may be those of an older stack.
    pub(crate) known: List<Active>,
    /// What the present stack has in place of the end of `known`, innermost first.
    pub(crate) fresh: List<Active>,
    limit: usize,
    /// What the source said of its age at the last stack.
    age: usize,
}

/// What a stack has in common with the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common {
    /// How many of the known calls are the outer part of this stack.
    pub(crate) calls: usize,
    /// How many of these, the outermost, are where they were, and so are their callers.
    pub(crate) unmoved: usize,
}

impl Trail {
    /// Nothing remembered, for stacks of `limit` frames; `None` without memory.
    pub(crate) fn new(limit: usize) -> Option<Self> {
        Some(Self { known: list(3 * limit)?, fresh: list(2 * limit)?, limit, age: 0 })
    }

    /// Begins the comparison with the next stack.
    #[inline]
    pub(crate) fn walk(&mut self) -> Walk<'_> {
        self.fresh.clear();
        let below = self.known.len();
        Walk { below, shown: below, unmoved: below, trail: self }
    }

    /// How many of the outermost known calls have to go, so that the fresh ones have room.
    pub(crate) fn too_many(&self, kept: usize) -> usize {
        let len = kept + self.fresh.len();
        if len > 3 * self.limit { len - 2 * self.limit } else { 0 }
    }
}

/// The calling thread's stack, as a [`StackSource`](crate::StackSource) shows it: one frame after the other.
#[derive(Debug)]
pub struct Walk<'a> {
    trail: &'a mut Trail,
    /// How many known calls may still follow.
    below: usize,
    /// The known calls from `below` to here are the last ones that were shown; none while both are equal.
    shown: usize,
    /// The outermost of them that has moved; as `shown` while none has.
    unmoved: usize,
}

/// What a source can tell of calls that are on the stack now.
pub trait Calls {
    /// Where the call is; `None` if it is to be left out.
    fn frame(&self, call: usize) -> Option<Frame>;

    /// Whether the call, which was at this frame, is there still.
    fn is_at(&self, call: usize, frame: Frame) -> bool;

    /// Whether `caller`, which has a frame, is the nearest caller of the call that has one.
    fn is_called_by(&self, call: usize, caller: usize) -> bool;

    /// The nearest caller of the call that has a frame; 0 for none.
    fn caller(&self, call: usize) -> usize;
}

impl Walk<'_> {
    /// Whether the thread's last capture was at this age of the source; the next one is asked about the age that is said now.
    ///
    /// A source whose words may come to stand for something else grows older then, and need not look at the words of each call
    /// while it does not.
    #[inline]
    pub fn is_of_age(&mut self, age: usize) -> bool {
        mem::replace(&mut self.trail.age, age) == age
    }

    /// Takes the next frame, further out than all before; `call` is a number that no other call on this stack has, such as
    /// the address of its record.
    ///
    /// Breaks as soon as no further frame is wanted.
    pub fn visit(&mut self, call: usize, frame: Frame) -> ControlFlow<()> {
        let Some(at) = self.search(call, call).map(|(at, _)| at) else {
            return self.add(call, frame);
        };
        self.go_on_at(at + 1);
        self.below = at;
        self.put(at, frame);
        self.limit_reached()
    }

    /// Takes all further frames, from `newest` on, of a source that can tell of each call who its caller is; 0 for none.
    ///
    /// Calls that are where they were at the thread's last capture are compared by one word each, and their callers by another.
    #[inline(always)]
    pub fn follow(&mut self, newest: usize, calls: &impl Calls) {
        let mut next = newest;
        while next != 0 {
            let is_known = self.innermost().is_some_and(|known| known.call == next);
            let gone_on = if is_known { self.pass(calls) } else { self.meet(next, calls) };
            let Continue(call) = gone_on else { return };
            next = call;
        }
    }

    /// The next known call.
    #[inline]
    fn innermost(&self) -> Option<&Active> {
        self.trail.known.get(self.below.wrapping_sub(1))
    }

    /// Compares the known calls with the stack, from the next one on, which is on it. Returns the first call that is not among them.
    #[inline(always)]
    fn pass(&mut self, calls: &impl Calls) -> ControlFlow<(), usize> {
        let wanted = self.trail.limit.saturating_sub(self.depth()).max(1);
        let floor = self.below.saturating_sub(wanted);
        let Some(known) = self.trail.known.get_mut(floor..self.below) else { return Break(()) };
        let mut callers = known.iter_mut();
        let Some(mut active) = callers.next_back() else { return Break(()) };
        let mut unmoved = self.unmoved;
        let (left, next) = loop {
            if !calls.is_at(active.call, active.frame) {
                // Left out now: as if the known call had returned.
                let Some(frame) = calls.frame(active.call) else {
                    break (callers.len() + 1, calls.caller(active.call));
                };
                active.frame = frame;
                unmoved = floor + callers.len();
            }
            let Some(caller) = callers.next_back() else {
                if floor > 0 {
                    self.below = floor;
                    self.unmoved = unmoved;
                    return Break(());
                }
                break (0, calls.caller(active.call));
            };
            // Read first, and gone on with if the caller is the same: the processor need not wait for what the call says.
            if !calls.is_called_by(active.call, caller.call) {
                break (callers.len() + 1, calls.caller(active.call));
            }
            active = caller;
        };
        self.below = floor + left;
        self.unmoved = unmoved;
        self.limit_reached()?;
        Continue(next)
    }

    /// Looks for `call`, which is not the next known one, or its caller among the known calls; returns the call to go on with.
    #[inline(always)]
    fn meet(&mut self, call: usize, calls: &impl Calls) -> ControlFlow<(), usize> {
        let caller = calls.caller(call);
        let found = self.search(call, caller);
        if let Some((at, true)) = found {
            self.go_on_at(at + 1);
            return Continue(call);
        }
        if let Some(frame) = calls.frame(call) {
            self.add(call, frame)?;
        }
        if let Some((at, false)) = found {
            // Whatever its caller called before is over.
            self.go_on_at(at + 1);
        }
        Continue(caller)
    }

    /// Where among the innermost known calls one is, and whether it is `call` or `caller`.
    #[inline]
    fn search(&self, call: usize, caller: usize) -> Option<(usize, bool)> {
        let near = self.below.saturating_sub(NEAR);
        let known = self.trail.known.get(near..self.below)?;
        let at = known.iter().rposition(|known| known.call == call || known.call == caller)?;
        Some((near + at, known.get(at)?.call == call))
    }

    /// Has this many known calls left to follow, of which the innermost is on the stack.
    #[inline]
    fn go_on_at(&mut self, below: usize) {
        if below != self.below {
            self.part();
            self.below = below;
            self.shown = below;
            self.unmoved = below;
        }
    }

    /// Shows a fresh call.
    #[inline]
    fn add(&mut self, call: usize, frame: Frame) -> ControlFlow<()> {
        self.part();
        self.trail.fresh.push(Active { call, frame, node: 0 });
        self.limit_reached()
    }

    /// Says where a known call is that was just shown.
    fn put(&mut self, at: usize, frame: Frame) {
        if let Some(known) = self.trail.known.get_mut(at).filter(|known| known.frame != frame) {
            known.frame = frame;
            self.unmoved = at;
        }
    }

    /// How many frames were shown.
    #[inline]
    fn depth(&self) -> usize {
        self.trail.fresh.len() + (self.shown - self.below)
    }

    /// Whether the frames that were shown are as many as are wanted, where the last one was known.
    #[inline]
    fn is_cut(&self) -> bool {
        self.below < self.shown && self.depth() >= self.trail.limit
    }

    /// Breaks at the limit.
    #[inline]
    fn limit_reached(&self) -> ControlFlow<()> {
        // Fresh frames alone are taken beyond it.
        if self.is_cut() || self.trail.fresh.len() >= 2 * self.trail.limit {
            Break(())
        } else {
            Continue(())
        }
    }

    /// Counts the known calls that were shown as fresh: one further out is not the known one, so that they have other callers.
    #[inline]
    fn part(&mut self) {
        if self.below < self.shown {
            self.part_from_known();
        }
    }

    #[cold]
    #[inline(never)]
    fn part_from_known(&mut self) {
        let Trail { known, fresh, .. } = &mut *self.trail;
        fresh.extend(known[self.below..self.shown].iter().rev());
        self.shown = self.below;
        self.unmoved = self.below;
    }

    /// What this stack and the one before have in common.
    #[inline]
    pub(crate) fn end(mut self) -> Common {
        if self.below > 0 && !self.is_cut() {
            // The stack ends here, and the last one went on.
            self.part();
            return Common { calls: 0, unmoved: 0 };
        }
        if self.below == self.shown {
            return Common { calls: 0, unmoved: 0 };
        }
        Common { calls: self.shown, unmoved: self.unmoved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack, outermost first: calls, and where they are.
    struct Stack<'a>(&'a [(usize, usize)]);

    impl Stack<'_> {
        fn depth(&self, call: usize) -> Option<usize> {
            self.0.iter().rposition(|active| active.0 == call)
        }

        fn caller_at(&self, depth: usize) -> usize {
            depth.checked_sub(1).map_or(0, |out| self.0[out].0)
        }
    }

    impl Calls for Stack<'_> {
        fn frame(&self, call: usize) -> Option<Frame> {
            let at = self.0[self.depth(call).expect("a call of the stack")].1;
            Some(Frame { code: 1, at })
        }

        fn is_at(&self, call: usize, frame: Frame) -> bool {
            self.frame(call) == Some(frame)
        }

        fn is_called_by(&self, call: usize, caller: usize) -> bool {
            self.caller(call) == caller
        }

        fn caller(&self, call: usize) -> usize {
            self.caller_at(self.depth(call).expect("a call of the stack"))
        }
    }

    /// A number that tells what a known call is, and what its caller.
    fn node_at(known: &[Active], depth: usize) -> Link {
        let caller = depth.checked_sub(1).map_or(0, |out| known[out].node);
        caller.wrapping_mul(31).wrapping_add(known[depth].frame.at as Link + 1)
    }

    /// Shows a stack, outermost first; returns how many frames were looked up. With `follows`, calls tell who called them.
    fn show(trail: &mut Trail, stack: &[(usize, usize)], follows: bool) -> usize {
        let mut walk = trail.walk();
        if follows {
            let calls = Stack(stack);
            walk.follow(calls.caller_at(stack.len()), &calls);
        } else {
            for &(call, at) in stack.iter().rev() {
                if walk.visit(call, Frame { code: 1, at }).is_break() {
                    break;
                }
            }
        }
        let Common { calls: kept, unmoved } = walk.end();
        let looked_up = trail.fresh.len() + kept - unmoved;
        let too_many = trail.too_many(kept);
        trail.known.truncate(kept);
        trail.known.drain(..too_many.min(kept));
        trail.known.extend(trail.fresh.iter().rev().copied());
        let unmoved = if too_many > 0 { 0 } else { unmoved };
        for depth in unmoved..trail.known.len() {
            trail.known[depth].node = node_at(&trail.known, depth);
        }
        looked_up + if too_many > 0 { 2 * trail.limit } else { 0 }
    }

    #[test]
    fn a_recursion_deeper_than_any_limit_costs_a_few_frames_a_call() {
        let mut trail = Trail::new(8).unwrap();
        let deep: Vec<_> = (1..=1000).map(|call| (call, 1)).collect();
        let calls = (1..1000).chain((1..1000).rev());
        let fresh: usize =
            calls.map(|depth| show(&mut trail, &deep[..depth], depth % 2 == 0)).sum();
        assert!(fresh < 5 * 2000, "{fresh} frames were looked up in 2,000 calls");
    }

    #[test]
    fn what_is_known_of_a_stack_is_its_innermost_part_whatever_came_before() {
        const LIMIT: usize = 4;
        let mut trail = Trail::new(LIMIT).unwrap();
        let mut stack: Vec<(usize, usize)> = Vec::new();
        let mut random = 7_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            (random >> 33) as usize % below
        };
        for step in 0..200_000 {
            // A caller that moves on, some returns, and some calls; now and then far.
            let far = if step % 50 == 0 { 30 } else { 3 };
            stack.truncate(stack.len().saturating_sub(next(far)));
            if let Some(top) = stack.last_mut() {
                top.1 = next(3);
            }
            let count = next(far);
            stack.extend((0..count).map(|_| (0, next(3))));
            stack.iter_mut().enumerate().for_each(|(depth, active)| active.0 = depth + 1);
            show(&mut trail, &stack, step % 3 != 0);
            let known = trail.known.iter().rev().map(|active| (active.call, active.frame.at));
            let known: Vec<_> = known.take(LIMIT).collect();
            let innermost: Vec<_> = stack.iter().rev().take(LIMIT).copied().collect();
            assert_eq!(known, innermost, "after {step} steps");
            let known = &trail.known;
            let is_right = |depth: usize| known[depth].node == node_at(known, depth);
            assert!((0..known.len()).all(is_right), "a call that was not looked up: {step} steps");
        }
    }
}
