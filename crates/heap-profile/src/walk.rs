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

impl Trail {
    /// Nothing remembered, for stacks of `limit` frames; `None` without memory.
    pub(crate) fn new(limit: usize) -> Option<Self> {
        Some(Self { known: list(3 * limit)?, fresh: list(2 * limit)?, limit, age: 0 })
    }

    /// Begins the comparison with the next stack.
    #[inline]
    pub(crate) fn walk(&mut self) -> Walk<'_> {
        self.fresh.clear();
        let Self { known, fresh, limit, age } = self;
        let below = known.len();
        let floor = below.saturating_sub(*limit);
        Walk { known, fresh, limit: *limit, age, below, same: below, floor }
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
    known: &'a [Active],
    fresh: &'a mut List<Active>,
    limit: usize,
    age: &'a mut usize,
    /// How many known calls may still follow.
    below: usize,
    /// The known calls from `below` to here are the last ones that were shown; none while both are equal.
    same: usize,
    /// Where `below` is when the limit is reached, or no known call is left.
    floor: usize,
}

/// What a source can tell of calls that are on the stack now, each as it was shown.
pub trait Calls {
    /// Whether the call is at this frame.
    fn is_at(&self, call: usize, frame: Frame) -> bool;

    /// Whether `caller`, which has a frame, is the nearest caller of the call that has one.
    fn is_called_by(&self, call: usize, caller: usize) -> bool;

    /// The nearest caller of the call that has a frame.
    fn caller(&self, call: usize) -> usize;
}

impl Walk<'_> {
    /// Whether the thread's last capture was at this age of the source; the next one is asked about the age that is said now.
    ///
    /// A source whose words may come to stand for something else grows older then, and need not look at the words of each call
    /// while it does not.
    #[inline]
    pub fn is_of_age(&mut self, age: usize) -> bool {
        mem::replace(self.age, age) == age
    }

    /// Passes over the calls from `call` on, the next one to show, that are where they were at the thread's last capture, and
    /// returns the first that is not one of these. What is passed is shown. A source that can tell so much of its calls need not
    /// [`visit`](Self::visit) each.
    ///
    /// Breaks as soon as no further frame is wanted.
    #[inline(always)]
    pub fn pass(&mut self, call: usize, calls: &impl Calls) -> ControlFlow<(), usize> {
        let Some([callers @ .., newest]) = self.known.get(self.floor..self.below) else {
            return Continue(call);
        };
        if newest.call != call {
            return Continue(call);
        }
        let mut callers = callers.iter();
        let mut active = newest;
        let (left, next) = loop {
            if !calls.is_at(active.call, active.frame) {
                break (callers.len() + 1, active.call);
            }
            let Some(caller) = callers.next_back() else {
                break (0, calls.caller(active.call));
            };
            // Read first, and gone on with if the caller is the same: the processor need not wait for what the call says.
            if !calls.is_called_by(active.call, caller.call) {
                break (callers.len() + 1, calls.caller(active.call));
            }
            active = caller;
        };
        self.below = self.floor + left;
        if left == 0 {
            self.limit_reached()?;
        }
        Continue(next)
    }

    /// Takes the next frame, further out than all before; `call` is a number that no other call on this stack has, such as
    /// the address of its record.
    ///
    /// Breaks as soon as no further frame is wanted.
    pub fn visit(&mut self, call: usize, frame: Frame) -> ControlFlow<()> {
        self.visit_called_by(call, call, frame)
    }

    /// As [`visit`](Self::visit), of a call whose caller is known, which makes it easier to find out that the call is new.
    #[inline(always)]
    pub fn visit_called_by(&mut self, caller: usize, call: usize, frame: Frame) -> ControlFlow<()> {
        let found = match self.known.get(self.below.wrapping_sub(1)) {
            Some(newest) if newest.call == call => {
                if newest.frame == frame && self.below > self.floor {
                    self.below -= 1;
                    return self.limit_reached();
                }
                Some(self.below - 1)
            }
            // Whatever had this number when the caller called it before is over.
            Some(newest) if newest.call == caller => None,
            _ => self.search(caller, call),
        };
        if self.below < self.same {
            self.part();
        }
        self.below = found.unwrap_or(self.below);
        let is_same = found.is_some_and(|at| self.known[at].frame == frame);
        self.same = self.below + usize::from(is_same);
        if !is_same {
            self.fresh.push(Active { call, frame, node: 0 });
        }
        self.floor = self.below.saturating_sub(self.limit.saturating_sub(self.depth()));
        self.limit_reached()
    }

    /// How many frames were shown.
    fn depth(&self) -> usize {
        self.fresh.len() + (self.same - self.below)
    }

    /// Whether the frames that were shown are as many as are wanted, where the last one was known.
    fn is_cut(&self) -> bool {
        self.below < self.same && self.depth() >= self.limit
    }

    /// Breaks at the limit.
    fn limit_reached(&self) -> ControlFlow<()> {
        // Fresh frames alone are taken beyond it.
        if self.is_cut() || self.fresh.len() >= 2 * self.limit { Break(()) } else { Continue(()) }
    }

    /// Looks for a call among the innermost known ones.
    #[inline(never)]
    fn search(&self, caller: usize, call: usize) -> Option<usize> {
        let near = self.below.saturating_sub(NEAR);
        let known = &self.known[near..self.below];
        let either = |active: &Active| active.call == call || active.call == caller;
        let at = known.iter().rposition(either)?;
        (known[at].call == call).then_some(near + at)
    }

    /// Counts the calls that were the same as fresh: one further out is not, so that they have other callers.
    #[inline(never)]
    fn part(&mut self) {
        let same = &self.known[self.below..self.same];
        self.fresh.extend(same.iter().rev());
        self.same = self.below;
    }

    /// How many of the known calls are the outer part of this stack.
    #[inline]
    pub(crate) fn end(&mut self) -> usize {
        if self.below > 0 && !self.is_cut() {
            // The stack ends here, and the last one went on.
            self.part();
        }
        if self.below == self.same { 0 } else { self.same }
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
            depth.checked_sub(1).map_or(usize::MAX, |out| self.0[out].0)
        }
    }

    impl Calls for Stack<'_> {
        fn is_at(&self, call: usize, frame: Frame) -> bool {
            self.0[self.depth(call).expect("a call of the stack")].1 == frame.at
        }

        fn is_called_by(&self, call: usize, caller: usize) -> bool {
            self.caller(call) == caller
        }

        fn caller(&self, call: usize) -> usize {
            self.caller_at(self.depth(call).expect("a call of the stack"))
        }
    }

    /// Shows a stack, outermost first; returns how many frames were fresh. With `passes`, calls that are where they were are
    /// passed over.
    fn show(trail: &mut Trail, stack: &[(usize, usize)], passes: bool) -> usize {
        let mut walk = trail.walk();
        let calls = Stack(stack);
        let mut next = calls.caller_at(stack.len());
        while let Some(mut depth) = calls.depth(next) {
            if passes {
                let Continue(call) = walk.pass(next, &calls) else { break };
                let Some(further_out) = calls.depth(call) else { break };
                depth = further_out;
            }
            let (call, at) = stack[depth];
            next = calls.caller_at(depth);
            if walk.visit_called_by(next, call, Frame { code: 1, at }).is_break() {
                break;
            }
        }
        let kept = walk.end();
        let fresh = trail.fresh.len();
        let too_many = trail.too_many(kept);
        trail.known.truncate(kept);
        trail.known.drain(..too_many.min(kept));
        trail.known.extend(trail.fresh.iter().rev().copied());
        fresh + if too_many > 0 { 2 * trail.limit } else { 0 }
    }

    #[test]
    fn a_recursion_deeper_than_any_limit_costs_a_few_frames_a_call() {
        let mut trail = Trail::new(8).unwrap();
        let deep: Vec<_> = (0..1000).map(|call| (call, 1)).collect();
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
            stack.iter_mut().enumerate().for_each(|(depth, active)| active.0 = depth);
            show(&mut trail, &stack, step % 3 != 0);
            let known = trail.known.iter().rev().map(|active| (active.call, active.frame.at));
            let known: Vec<_> = known.take(LIMIT).collect();
            let innermost: Vec<_> = stack.iter().rev().take(LIMIT).copied().collect();
            assert_eq!(known, innermost, "after {step} steps");
        }
    }
}
