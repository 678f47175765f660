//! Owns `Walk`: a stack as its source shows it, compared frame by frame with the stack before.
//!
//! Where a frame is the same as before, and so are its callers, nothing is looked up. A stack deeper than the limit is compared
//! down to the limit alone. What is remembered is up to three times as deep and is cut only when full, to two thirds: a
//! recursion deeper than any limit then costs one frame for each call, as its root moves once in a limit of calls.

use std::ops::ControlFlow::{self, Break, Continue};

use crate::short::Short;

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

/// How many known calls a fresh frame is looked for among. A thread that returns from more at once has its whole stack looked up.
const NEAR: usize = 16;

/// A running function: its call, and where it is.
#[derive(Clone, Copy, Debug, Default)]
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
    pub(crate) known: Short<Active>,
    /// What the present stack has in place of the end of `known`, innermost first.
    pub(crate) fresh: Short<Active>,
    /// By a hash of the call, where it may be among the known ones.
    at: [u16; PLACES],
    limit: usize,
    /// What the source said of its age at the last stack.
    age: usize,
}

/// More than the most known calls, so that few share one.
const PLACES: usize = 512;

/// What a stack has in common with the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common {
    /// How many of the known calls are the outer part of this stack.
    pub(crate) calls: usize,
    /// How many of these, the outermost, are where they were, and so are their callers.
    pub(crate) unmoved: usize,
}

impl Trail {
    /// Nothing remembered, for stacks of `limit` frames, of a source that has said nothing yet; `None` without memory.
    pub(crate) fn new(limit: usize) -> Option<Self> {
        let (known, fresh) = (Short::new(3 * limit)?, Short::new(2 * limit)?);
        Some(Self { known, fresh, at: [0; PLACES], limit, age: NO_AGE })
    }

    /// Begins the comparison with the next stack.
    #[inline]
    pub(crate) fn walk(&mut self) -> Walk<'_> {
        self.fresh.truncate(0);
        let below = self.known.len();
        Walk { below, shown: below, unmoved: below, trail: self }
    }

    /// How many of the outermost known calls have to go, so that the fresh ones have room.
    #[inline]
    pub(crate) fn too_many(&self, kept: usize) -> usize {
        let len = kept + self.fresh.len();
        if len > 3 * self.limit { len - 2 * self.limit } else { 0 }
    }

    /// Adds a call that the innermost known one has called.
    #[inline]
    pub(crate) fn push(&mut self, active: Active) {
        if let Some(at) = self.at.get_mut(place_of(active.call)) {
            *at = self.known.len() as u16;
        }
        self.known.push(active);
    }

    /// Knows no call any more; 0, the link of a stack without frames.
    #[cold]
    pub(crate) fn lost(&mut self) -> Link {
        self.known.truncate(0);
        0
    }

    /// Takes the outermost calls away.
    #[cold]
    pub(crate) fn forget(&mut self, outermost: usize) {
        self.known.drain(outermost);
        for (depth, active) in self.known.iter().enumerate() {
            self.at[place_of(active.call)] = depth as u16;
        }
    }
}

/// What no source says of its age.
const NO_AGE: usize = usize::MAX;

/// Where it is noted at which depth a call is known. Calls are some words apart.
#[inline]
const fn place_of(call: usize) -> usize {
    (call >> 4 ^ call >> 13) % PLACES
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
    /// Whether this is the age that the source said last; false before it has said any.
    ///
    /// A source whose words may come to stand for something else grows older then, and need not look at the words of each call
    /// while it does not.
    #[inline]
    #[must_use]
    pub fn is_of_age(&self, age: usize) -> bool {
        self.trail.age == age
    }

    /// Says the age of the source, which is not the largest number.
    pub fn set_age(&mut self, age: usize) {
        self.trail.age = age;
    }

    /// Takes the next frame, further out than all before; `call` is a number that no other call on this stack has, such as
    /// the address of its record.
    ///
    /// Breaks as soon as no further frame is wanted.
    pub fn visit(&mut self, call: usize, frame: Frame) -> ControlFlow<()> {
        let Some(at) = self.search(call) else {
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
        // Those that were taken one by one before are called by other calls than last time for all that is known here.
        self.part();
        let mut call = newest;
        // How many of the known calls may still follow.
        let mut below = self.below;
        self.below = 0;
        self.shown = 0;
        let Trail { known, fresh, at, limit, .. } = &mut *self.trail;
        let limit = *limit;
        loop {
            let kept = loop {
                if call == 0 || fresh.len() >= 2 * limit {
                    return;
                }
                // The innermost known one, more often than not.
                if known.get(below.wrapping_sub(1)).is_some_and(|known| known.call == call) {
                    break below;
                }
                let depth = usize::from(at[place_of(call)]);
                if depth < below && known.get(depth).is_some_and(|known| known.call == call) {
                    break depth + 1;
                }
                if let Some(frame) = calls.frame(call) {
                    fresh.push(Active { call, frame, node: 0 });
                }
                call = calls.caller(call);
            };
            let floor = kept.saturating_sub(limit.saturating_sub(fresh.len()).max(1));
            let mut unmoved = kept;
            let Some(wanted) = known.get_mut(floor..kept) else { return };
            let mut callers = wanted.iter_mut();
            let Some(mut active) = callers.next_back() else { return };
            let left = loop {
                if !calls.is_at(active.call, active.frame) {
                    // Left out now: as if the known call had returned.
                    let Some(frame) = calls.frame(active.call) else { break callers.len() + 1 };
                    active.frame = frame;
                    unmoved = floor + callers.len();
                }
                let Some(caller) = callers.next_back() else {
                    if floor > 0 || calls.caller(active.call) == 0 {
                        (self.shown, self.unmoved) = (kept, unmoved);
                        return;
                    }
                    break 0;
                };
                // Read first, and gone on with if the caller is the same: the processor need not wait for what the call says.
                if !calls.is_called_by(active.call, caller.call) {
                    break callers.len() + 1;
                }
                active = caller;
            };
            call = calls.caller(active.call);
            below = floor + left;
            part(known.get(below..kept).unwrap_or_default(), fresh);
        }
    }

    /// Where among the innermost known calls one is.
    fn search(&self, call: usize) -> Option<usize> {
        let near = self.below.saturating_sub(NEAR);
        let known = self.trail.known.get(near..self.below)?;
        Some(near + known.iter().rposition(|known| known.call == call)?)
    }

    /// Has this many known calls left to follow, of which the innermost is on the stack.
    fn go_on_at(&mut self, below: usize) {
        if below != self.below {
            self.part();
            self.below = below;
            self.shown = below;
            self.unmoved = below;
        }
    }

    /// Shows a fresh call.
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

    /// Counts the known calls that were shown as fresh.
    #[inline]
    fn part(&mut self) {
        if self.below < self.shown {
            let Trail { known, fresh, .. } = &mut *self.trail;
            part(known.get(self.below..self.shown).unwrap_or_default(), fresh);
            self.shown = self.below;
            self.unmoved = self.below;
        }
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

/// Counts known calls as fresh: one further out is not the known one, so that they have other callers.
#[cold]
#[inline(never)]
fn part(known: &[Active], fresh: &mut Short<Active>) {
    known.iter().rev().for_each(|active| fresh.push(*active));
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
        trail.forget(too_many.min(kept));
        let fresh: Vec<_> = trail.fresh.iter().rev().copied().collect();
        fresh.into_iter().for_each(|active| trail.push(active));
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
