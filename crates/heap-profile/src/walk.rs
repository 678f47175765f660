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

impl PartialEq for Active {
    fn eq(&self, other: &Self) -> bool {
        (self.call, self.frame) == (other.call, other.frame)
    }
}

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
        Walk { known, fresh, limit: *limit, age, below, same: below, floor, above: 0 }
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
    /// How many frames were shown before the known ones from `same` on.
    above: usize,
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
    /// returns the first that is not one of these.
    ///
    /// `caller` gets a call as it was shown, which is on the stack now, and the call that had called it then. It returns the
    /// nearest caller that has a frame; `None` if the call is not at that frame any more. What is passed is shown. A source
    /// that can tell so much of a call at once need not [`visit`](Self::visit) each.
    ///
    /// Breaks as soon as no further frame is wanted.
    #[inline]
    pub fn pass(
        &mut self,
        mut call: usize,
        caller: impl Fn(usize, Frame, usize) -> Option<usize>,
    ) -> ControlFlow<(), usize> {
        let Some([callers @ .., newest]) = self.known.get(self.floor..self.below) else {
            return Continue(call);
        };
        if newest.call != call {
            return Continue(call);
        }
        let mut active = newest;
        let mut callers = callers.iter();
        let left = loop {
            let Some(further_out) = callers.next_back() else {
                match caller(active.call, active.frame, 0) {
                    Some(next) => {
                        call = next;
                        break 0;
                    }
                    None => {
                        call = active.call;
                        break 1;
                    }
                }
            };
            // Read first, and gone on with if the caller is the same: the processor need not wait for what the call says.
            let expected = further_out.call;
            match caller(active.call, active.frame, expected) {
                Some(next) if next == expected => active = further_out,
                Some(next) => {
                    call = next;
                    break callers.len() + 1;
                }
                None => {
                    call = active.call;
                    break callers.len() + 2;
                }
            }
        };
        self.below = self.floor + left;
        if left == 0 && self.limit_reached().is_break() {
            return Break(());
        }
        Continue(call)
    }

    /// Takes the next frame, further out than all before; `call` is a number that no other call on this stack has, such as
    /// the address of its record.
    ///
    /// Breaks as soon as no further frame is wanted.
    #[inline]
    pub fn visit(&mut self, call: usize, frame: Frame) -> ControlFlow<()> {
        self.visit_called_by(call, call, frame)
    }

    /// As [`visit`](Self::visit), of a call whose caller is known, which makes it easier to find out that the call is new.
    #[inline]
    pub fn visit_called_by(&mut self, caller: usize, call: usize, frame: Frame) -> ControlFlow<()> {
        let next = Active { call, frame, node: 0 };
        let found = match self.known.get(self.below.wrapping_sub(1)) {
            Some(newest) if *newest == next && self.below > self.floor => {
                self.below -= 1;
                return if self.below > self.floor { Continue(()) } else { self.limit_reached() };
            }
            Some(newest) if newest.call == call => Some(self.below - 1),
            // Whatever had this number when the caller called it before is over.
            Some(newest) if newest.call == caller => None,
            _ => self.search(caller, call),
        };
        self.join(next, found)
    }

    /// How many frames were shown.
    const fn depth(&self) -> usize {
        self.above + (self.same - self.below)
    }

    /// Whether the frames that were shown are as many as are wanted, where the last one was known.
    const fn is_cut(&self) -> bool {
        self.below < self.same && self.depth() >= self.limit
    }

    /// Breaks at the limit.
    fn limit_reached(&self) -> ControlFlow<()> {
        let is_enough = self.fresh.len() >= 2 * self.limit || self.below < self.same;
        if self.depth() >= self.limit && is_enough { Break(()) } else { Continue(()) }
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

    /// Takes a call that was found among the known ones; where it was none of them, or at another place, it is fresh.
    #[inline]
    fn join(&mut self, next: Active, found: Option<usize>) -> ControlFlow<()> {
        if self.below < self.same {
            self.part();
        }
        let is_same = found.is_some_and(|at| self.known[at] == next);
        self.below = found.unwrap_or(self.below);
        self.same = self.below + usize::from(is_same);
        if !is_same {
            self.above += 1;
            self.fresh.push(next);
        }
        self.floor = self.below.saturating_sub(self.limit.saturating_sub(self.depth()));
        self.limit_reached()
    }

    /// Counts the calls that were the same as fresh: one further out is not, so that they have other callers.
    fn part(&mut self) {
        let same = &self.known[self.below..self.same];
        self.above += same.len();
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

    /// Shows a stack, outermost first; returns how many frames were fresh. With `passes`, calls that are where they were are
    /// passed over.
    fn show(trail: &mut Trail, stack: &[(usize, usize)], passes: bool) -> usize {
        let mut walk = trail.walk();
        let depth_of = |call| stack.iter().rposition(|active| active.0 == call);
        let caller_of = |depth: usize| depth.checked_sub(1).map_or(usize::MAX, |out| stack[out].0);
        let mut next = caller_of(stack.len());
        while let Some(mut depth) = depth_of(next) {
            if passes {
                let passed = walk.pass(next, |call, frame, _| {
                    let depth = depth_of(call).expect("the walk asks for calls of the stack alone");
                    (stack[depth].1 == frame.at).then(|| caller_of(depth))
                });
                let Continue(call) = passed else { break };
                let Some(further_out) = depth_of(call) else { break };
                depth = further_out;
            }
            let (call, at) = stack[depth];
            let frame = Frame { code: 1, at };
            if walk.visit_called_by(caller_of(depth), call, frame).is_break() {
                break;
            }
            next = caller_of(depth);
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
