//! Owns `Walk`: a stack as its source shows it, compared frame by frame with the stack before.
//!
//! Where a frame is the same as before, and so are its callers, nothing is looked up. Leaves what is remembered to `trail.rs`.

use std::ops::ControlFlow::{self, Break, Continue};

use crate::frame::{Calls, Frame};
use crate::short::Short;
use crate::trail::{Active, Common, Trail, place_of};

/// How many known calls a fresh frame is looked for among. A thread that returns from more at once has its whole stack looked up.
const NEAR: usize = 16;

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

impl<'a> Walk<'a> {
    /// Begins the comparison with the next stack.
    pub(crate) fn of(trail: &'a mut Trail) -> Self {
        trail.fresh.truncate(0);
        let below = trail.known.len();
        Self { below, shown: below, unmoved: below, trail }
    }
    /// Whether this is the age that the source said last; false before it has said any.
    ///
    /// A source whose words may come to stand for something else grows older then, and need not look at the words of each call
    /// while it does not.
    #[inline]
    #[must_use]
    pub fn is_of_age(&self, age: usize) -> bool {
        self.trail.age() == age
    }

    /// Says the age of the source, which is not the largest number.
    pub fn set_age(&mut self, age: usize) {
        if self.is_of_age(age) {
            return;
        }
        // Those that were shown so far are of this stack.
        self.part();
        self.trail.set_age(age);
        (self.below, self.shown, self.unmoved) = (0, 0, 0);
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
    pub fn follow(&mut self, newest: usize, calls: &impl Calls) {
        // Those that were taken one by one before are called by other calls than last time for all that is known here.
        self.part();
        let mut call = newest;
        // How many of the known calls may still follow.
        let mut below = self.below;
        self.below = 0;
        self.shown = 0;
        let limit = self.trail.limit();
        let (known, fresh, at) = self.trail.parts();
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
                    fresh.push(Active { call, frame, ..Active::default() });
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
        self.trail.fresh.push(Active { call, frame, ..Active::default() });
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
        self.below < self.shown && self.depth() >= self.trail.limit()
    }

    /// Breaks at the limit.
    #[inline]
    fn limit_reached(&self) -> ControlFlow<()> {
        // Fresh frames alone are taken beyond it.
        if self.is_cut() || self.trail.fresh.len() >= 2 * self.trail.limit() {
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
    use std::collections::HashMap;

    use super::*;
    use crate::frame::Link;
    use crate::trail::Unusual;

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

        fn at(&self, call: usize) -> usize {
            self.0[self.depth(call).expect("a call of the stack")].1
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
        step_of(caller, known[depth].frame.at)
    }

    /// Such a number of a call that is at `at`, by its caller's.
    fn step_of(caller: Link, at: usize) -> Link {
        caller.wrapping_mul(31).wrapping_add(at as Link + 1)
    }

    /// How a stack is shown.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Shown {
        ByFrame,
        /// Calls tell who called them.
        ByCalls,
        /// Likewise, by the trail alone where it can.
        Plainly,
    }

    const WAYS: [Shown; 3] = [Shown::ByFrame, Shown::ByCalls, Shown::Plainly];

    /// The nodes of calls, by their callers' and where they are.
    type Steps = HashMap<(Link, usize), Link>;

    /// Shows a stack, outermost first; returns how many frames were looked up.
    fn show(
        trail: &mut Trail,
        memory: &mut Steps,
        stack: &[(usize, usize)],
        shown: Shown,
    ) -> usize {
        let calls = Stack(stack);
        let newest = calls.caller_at(stack.len());
        let is_plain = shown == Shown::Plainly && newest != 0;
        if is_plain {
            let remembered = |caller, at, _| Some((1, *memory.get(&(caller, at))?));
            let found = |caller: Link, call| {
                let frame = calls.frame(call)?;
                Some((frame, step_of(caller, frame.at)))
            };
            let known = match trail.usual(newest, &calls, remembered) {
                Ok(node) => Some(node),
                Err(Unusual::Called) => trail.called(newest, &calls, found),
                // SAFETY: 1: told just now.
                Err(Unusual::Moved(end)) => unsafe { trail.moved(end, found) },
                Err(Unusual::Otherwise) => None,
            };
            if known.is_some() {
                assert_eq!(known, trail.known.last().map(|newest| newest.node));
                return 0;
            }
        }
        let plain = is_plain.then(|| match trail.depth_of(newest) {
            Some(kept) => trail.follow_known(kept, &calls),
            None => trail.follow(newest, &calls),
        });
        let common = plain.flatten().inspect(|common| {
            // Where these are is asked later.
            let Trail { known, fresh, .. } = &mut *trail;
            let moved = known[..common.calls][common.unmoved..].iter_mut();
            for active in moved.chain(fresh.iter_mut()) {
                active.frame = calls.frame(active.call).expect("a call of the stack");
            }
        });
        let Common { calls: kept, unmoved } = common.unwrap_or_else(|| {
            let mut walk = Walk::of(trail);
            if shown == Shown::ByFrame {
                for &(call, at) in stack.iter().rev() {
                    if walk.visit(call, Frame { code: 1, at }).is_break() {
                        break;
                    }
                }
            } else {
                walk.follow(newest, &calls);
            }
            walk.end()
        });
        let looked_up = trail.fresh.len() + kept - unmoved;
        let too_many = trail.too_many(kept);
        trail.known.truncate(kept);
        trail.forget(too_many.min(kept));
        let fresh: Vec<_> = trail.fresh.iter().rev().copied().collect();
        fresh.into_iter().for_each(|active| trail.push(active));
        trail.fresh.truncate(0);
        let unmoved = if too_many > 0 { 0 } else { unmoved };
        for depth in unmoved..trail.known.len() {
            trail.known[depth].node = node_at(&trail.known, depth);
        }
        if let Some(newest) = trail.known.last() {
            let caller = trail.known.iter().rev().nth(1).map_or(0, |caller| caller.node);
            memory.insert((caller, newest.frame.at), newest.node);
        }
        looked_up + if too_many > 0 { 2 * trail.limit() } else { 0 }
    }

    #[test]
    fn a_recursion_deeper_than_any_limit_costs_a_few_frames_a_call() {
        let mut trail = Trail::new(8).unwrap();
        let mut memory = Steps::new();
        let deep: Vec<_> = (1..=1000).map(|call| (call, 1)).collect();
        let calls = (1..1000).chain((1..1000).rev());
        let fresh: usize =
            calls.map(|depth| show(&mut trail, &mut memory, &deep[..depth], WAYS[depth % 3])).sum();
        assert!(fresh < 5 * 2000, "{fresh} frames were looked up in 2,000 calls");
    }

    #[test]
    fn what_is_known_of_a_stack_is_its_innermost_part_whatever_came_before() {
        // Callers are compared by fours: none, and some with a rest.
        [4, 12].into_iter().for_each(shows_known_stacks);
    }

    fn shows_known_stacks(limit: usize) {
        let mut trail = Trail::new(limit).unwrap();
        let mut memory = Steps::new();
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
            for _ in 0..count {
                // The same call may have another caller than last time, which is at the same place.
                stack.push((2 * stack.len() + 1 + next(8) / 7, next(3)));
            }
            show(&mut trail, &mut memory, &stack, WAYS[next(3)]);
            let known = trail.known.iter().rev().map(|active| (active.call, active.frame.at));
            let known: Vec<_> = known.take(limit).collect();
            let innermost: Vec<_> = stack.iter().rev().take(limit).copied().collect();
            assert_eq!(known, innermost, "of {limit}, after {step} steps");
            let known = &trail.known;
            let is_right = |depth: usize| known[depth].node == node_at(known, depth);
            assert!((0..known.len()).all(is_right), "a call that was not looked up: {step} steps");
        }
    }
}
