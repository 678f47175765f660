//! Owns `Trail`: the stack that a thread showed last, and its comparison with the next one where that is simple.
//!
//! A stack deeper than the limit is compared down to the limit alone. What is remembered is up to three times as deep and is cut only when
//! full, to two thirds: a recursion deeper than any limit then costs one frame for each call, as its root moves once in a limit of calls.

use std::ptr::NonNull;

use crate::frame::{Calls, Frame, Link};
use crate::generation::Generation;
use crate::short::Short;

/// A running function: its call, and where it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Active {
    /// No other call on the stack has this number.
    pub(crate) call: usize,
    pub(crate) frame: Frame,
    /// The frame's node in the tree of stacks, once the frame is known.
    pub(crate) node: Link,
}

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
    /// The bytes of so many calls.
    limit_bytes: usize,
    /// What the source said of its age at the last stack.
    age: usize,
    pub(crate) generation: Generation,
    /// Whether the generations have begun anew.
    pub(crate) is_worn: bool,
}

/// The most fresh calls that are compared without a list.
const MOST_CALLED: usize = 8;

/// More than the most known calls, so that few share one.
const PLACES: usize = 512;

/// Why a stack is not a usual one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unusual {
    /// The newest call is fresh.
    Called,
    /// The newest call, the one in front of this end of the known ones, has moved to where the thread does not remember it.
    Moved(NonNull<Active>),
    Otherwise,
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
    /// Nothing remembered, for stacks of `limit` frames, of a source that has said nothing yet; `None` without memory.
    pub(crate) fn new(limit: usize) -> Option<Self> {
        let most = |count| Short::new(count, NO_CALL);
        let (known, fresh) = (most(3 * limit)?, most(2 * limit)?);
        Some(Self {
            known,
            fresh,
            at: [0; PLACES],
            limit,
            limit_bytes: limit * size_of::<Active>(),
            age: NO_AGE,
            generation: Generation::FIRST,
            is_worn: false,
        })
    }

    /// The depth below which `call` is the innermost known one; `None` for a fresh one.
    #[inline(always)]
    pub(crate) fn depth_of(&self, call: usize) -> Option<usize> {
        // The innermost known one, more often than not.
        // SAFETY: 1: the list's end.
        if unsafe { before(self.known.end().as_ptr()) }.call == call {
            return Some(self.known.len());
        }
        let depth = usize::from(self.at[place_of(call)]);
        self.known.get(depth).is_some_and(|known| known.call == call).then_some(depth + 1)
    }

    /// The node of the next stack, from its `newest` record on, where that has no fresh call, no code has died since the last one, and no more
    /// than the newest call has moved; else how it goes on, and what is known is as it was. `step` takes the node of a caller and where a call
    /// is, and tells the call's code and node, if the thread remembers them.
    ///
    /// Calls nothing, so that who goes on with another function saves no register.
    #[inline(always)]
    pub(crate) fn usual(
        &mut self,
        newest: usize,
        calls: &impl Calls,
        step: impl FnOnce(Link, usize, Generation) -> Option<(usize, Link)>,
    ) -> Result<Link, Unusual> {
        let mut end = self.known.end();
        // The innermost known one, more often than not: the record of a call has a frame as long as it is the thread's.
        // SAFETY: 1: the list's end.
        if unsafe { before(end.as_ptr()) }.call != newest {
            let depth = self.depth_of(calls.with_frame(newest)).ok_or(Unusual::Called)?;
            // SAFETY: a depth of the list.
            end = unsafe { self.known.first().add(depth) };
        }
        // SAFETY: 1: behind a call of the list, as no source has the call in front of it. 2: the limit is one call at least.
        if !unsafe { self.is_as_known(end, self.limit_bytes, calls) } {
            return Err(Unusual::Otherwise);
        }
        // SAFETY: 1: as above.
        let mut active = *unsafe { before(end.as_ptr()) };
        let at = calls.at(active.call);
        if at != active.frame.at {
            // SAFETY: a call of the list.
            let innermost = unsafe { end.sub(1) };
            // SAFETY: 1: behind another call of the list, or what is in front of it.
            let caller = unsafe { before(innermost.as_ptr()) }.node;
            let (code, node) = step(caller, at, self.generation).ok_or(Unusual::Moved(end))?;
            (active.frame, active.node) = (Frame { code, at }, node);
            // SAFETY: as above, and nothing else leads there.
            unsafe { innermost.write(active) };
        }
        // SAFETY: 1: behind a call of the list.
        unsafe { self.known.end_at(end) };
        Ok(active.node)
    }

    /// Whether the callers of the call in front of `end` are the known ones, as far as the innermost `bytes` of the list go.
    ///
    /// # Safety
    ///
    /// 1. `end` is behind a call of the list.
    /// 2. There is room for one call at least in `bytes`.
    #[inline(always)]
    unsafe fn is_as_known(&self, end: NonNull<Active>, bytes: usize, calls: &impl Calls) -> bool {
        let first = self.known.first().addr().get();
        let floor = first.max(end.addr().get().wrapping_sub(bytes));
        // SAFETY: 1, 2: duties 1 and 2.
        let outermost = unsafe { same(end.as_ptr(), floor, calls) };
        outermost.is_some_and(|call| floor != first || calls.is_plainly_outermost(call))
    }

    /// The node of the call in front of `end`, which has moved and whose callers are the known ones, and the list ends with that call. `step`
    /// finds the node, given the caller's and the call. `None` without memory, and what is known is as it was.
    ///
    /// # Safety
    ///
    /// 1. `end` is behind a call of the list, as [`usual`](Self::usual) answers, and the list has not changed since.
    #[inline(always)]
    pub(crate) unsafe fn moved(
        &mut self,
        end: NonNull<Active>,
        step: impl FnOnce(Link, usize) -> Option<(Frame, Link)>,
    ) -> Option<Link> {
        // SAFETY: by duty 1, a call of the list.
        let innermost = unsafe { end.sub(1) };
        // SAFETY: 1: behind another call of the list, or what is in front of it.
        let caller = unsafe { before(innermost.as_ptr()) }.node;
        // SAFETY: as above.
        let call = unsafe { innermost.read() }.call;
        let (frame, node) = step(caller, call)?;
        // SAFETY: as above, and nothing else leads there.
        unsafe { innermost.write(Active { call, frame, node }) };
        // SAFETY: 1: behind a call of the list.
        unsafe { self.known.end_at(end) };
        Some(node)
    }

    /// As [`usual`](Self::usual), of a stack with a few fresh calls, called by a known one that alone may have moved; `None` where it is another,
    /// and without memory, and what is known is calls of this stack, or as it was. `step` takes the node of a caller and a call, and finds where
    /// that is, and its node.
    #[inline(always)]
    pub(crate) fn called(
        &mut self,
        newest: usize,
        calls: &impl Calls,
        mut step: impl FnMut(Link, usize) -> Option<(Frame, Link)>,
    ) -> Option<Link> {
        let mut fresh = [0; MOST_CALLED];
        let mut count = 0;
        let mut call = calls.with_frame(newest);
        let depth = loop {
            if call == 0 {
                return None;
            }
            *fresh.get_mut(count)? = call;
            count += 1;
            call = calls.caller(call);
            if let Some(depth) = self.depth_of(call) {
                break depth;
            }
        };
        if depth + count > 3 * self.limit {
            return None;
        }
        // SAFETY: a depth of the list.
        let end = unsafe { self.known.first().add(depth) };
        // The fresh ones are of the limit, too.
        let room = self.limit_bytes.saturating_sub(count * size_of::<Active>());
        // SAFETY: 1: behind a call of the list. 2: room for one call at least.
        if !unsafe { self.is_as_known(end, room.max(size_of::<Active>()), calls) } {
            return None;
        }
        // SAFETY: 1: as above.
        let known = unsafe { before(end.as_ptr()) };
        let mut caller = if calls.at(call) == known.frame.at {
            let node = known.node;
            // SAFETY: 1: as above.
            unsafe { self.known.end_at(end) };
            node
        } else {
            // SAFETY: 1: as above.
            unsafe { self.moved(end, &mut step) }?
        };
        for &call in fresh[..count].iter().rev() {
            let (frame, node) = step(caller, call)?;
            self.push(Active { call, frame, node });
            caller = node;
        }
        Some(caller)
    }

    /// Compares the next stack, from its `newest` call on, which is fresh, with the known one, where no code has died between them: by one
    /// word for each call, and another for its caller. Where fresh calls are, and those that have moved, is asked later. `None` where known calls have other callers
    /// than they had, and where there are too many, which the general [`Walk`](crate::Walk) is for: what is known is as it was.
    #[inline(always)]
    pub(crate) fn follow(&mut self, newest: usize, calls: &impl Calls) -> Option<Common> {
        let (kept, room) = self.reach(newest, calls);
        if self.too_many(kept) > 0 {
            return None;
        }
        let floor = kept.saturating_sub(room);
        let Some((innermost, callers)) = self.known.get(floor..kept)?.split_last() else {
            return Some(Common { calls: 0, unmoved: 0 });
        };
        let has_moved = calls.at(innermost.call) != innermost.frame.at;
        let depth = if has_moved { callers.len() } else { callers.len() + 1 };
        let range = self.known[floor..kept].as_ptr_range();
        // SAFETY: 1: behind `innermost`. 2: of `innermost`, or of one further out.
        let same = unsafe { same(range.end, range.start.addr(), calls) };
        let (call, moved) = match same {
            Some(call) => (call, None),
            None => unmoved(innermost.call, callers, calls)?,
        };
        let is_whole = floor > 0 || calls.caller(call) == 0;
        is_whole.then_some(Common { calls: kept, unmoved: floor + moved.unwrap_or(depth) })
    }

    /// As [`follow`](Self::follow), of a stack whose newest call is known, below the depth `kept`. That call is to be looked up in any case.
    pub(crate) fn follow_known(&self, kept: usize, calls: &impl Calls) -> Option<Common> {
        let floor = kept.saturating_sub(self.limit);
        let (innermost, callers) = self.known.get(floor..kept)?.split_last()?;
        let (call, moved) = unmoved(innermost.call, callers, calls)?;
        let is_whole = floor > 0 || calls.caller(call) == 0;
        is_whole.then_some(Common { calls: kept, unmoved: floor + moved.unwrap_or(callers.len()) })
    }

    /// Takes the fresh calls from `newest` on, which is one; the depth below which the known ones go on, and how many of these are wanted.
    #[inline(always)]
    fn reach(&mut self, newest: usize, calls: &impl Calls) -> (usize, usize) {
        let mut call = newest;
        let most = 2 * self.limit;
        for count in 1.. {
            self.fresh.push(Active { call, ..Active::default() });
            call = calls.caller(call);
            if call == 0 || count >= most {
                break;
            }
            if let Some(kept) = self.depth_of(call) {
                return (kept, self.limit.saturating_sub(count).max(1));
            }
        }
        (0, 1)
    }

    /// What the source said of its age at the last stack.
    #[inline(always)]
    pub(crate) const fn age(&self) -> usize {
        self.age
    }

    /// Takes note of another age of the source: what is remembered of frames may be of other code, and no call is known any more.
    ///
    /// Those beyond the limit would be looked up by words of the age before once the root moves.
    pub(crate) fn set_age(&mut self, age: usize) {
        self.age = age;
        self.known.truncate(0);
        let next = self.generation.next();
        self.is_worn |= next.is_none();
        self.generation = next.unwrap_or(Generation::FIRST);
    }

    /// How many frames are wanted.
    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// By a hash of the call, at which depth it may be known.
    pub(crate) fn parts(&mut self) -> (&mut Short<Active>, &mut Short<Active>, &[u16; PLACES]) {
        (&mut self.known, &mut self.fresh, &self.at)
    }

    /// How many of the outermost known calls have to go, so that the fresh ones have room.
    #[inline]
    pub(crate) fn too_many(&self, kept: usize) -> usize {
        let len = kept + self.fresh.len();
        if len > 3 * self.limit { len - 2 * self.limit } else { 0 }
    }

    /// Looks up the known calls from depth `unmoved` on and the fresh ones by `step`, which takes the node of a call's caller and the call; the
    /// node of the innermost. Without memory none is known any more.
    #[inline(always)]
    pub(crate) fn look_up(
        &mut self,
        unmoved: usize,
        mut step: impl FnMut(Link, Active) -> Option<Active>,
    ) -> Link {
        let Some((callers, moved)) = self.known.split_at_mut_checked(unmoved) else {
            return 0;
        };
        let mut caller = callers.last().map_or(0, |active| active.node);
        for active in moved {
            match step(caller, *active) {
                Some(known) => *active = known,
                None => return self.lost(),
            }
            caller = active.node;
        }
        for fresh in (0..self.fresh.len()).rev() {
            let Some(&fresh) = self.fresh.get(fresh) else { break };
            match step(caller, fresh) {
                Some(known) => {
                    caller = known.node;
                    self.push(known);
                }
                None => return self.lost(),
            }
        }
        self.fresh.truncate(0);
        self.known.last().map_or(0, |newest| newest.node)
    }

    /// Adds a call that the innermost known one has called.
    #[inline]
    pub(crate) fn push(&mut self, active: Active) {
        if let Some(at) = self.at.get_mut(place_of(active.call)) {
            *at = self.known.len() as u16;
        }
        self.known.push(active);
    }

    /// Knows no call any more; the node of a stack without frames.
    #[cold]
    pub(crate) fn lost(&mut self) -> Link {
        self.known.truncate(0);
        self.fresh.truncate(0);
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

/// What is in front of the known calls: no [plain source](crate::PlainSource) tells a call of this number (its duty 1).
const NO_CALL: Active = Active { call: usize::MAX, frame: Frame { code: 0, at: 0 }, node: 0 };

/// The call in front of an end.
///
/// # Safety
///
/// 1. `end` is that of a list, or behind an element of it, and the list is not changed meanwhile.
#[inline(always)]
unsafe fn before<'a>(end: *const Active) -> &'a Active {
    // SAFETY: by 1, an element, or what is in front of the first one.
    let last = unsafe { end.sub(1) };
    // SAFETY: as above.
    unsafe { &*last }
}

/// The call at the address `floor`, if the calls from there up to the one in front of `end` still call each other, as a few words tell, and all
/// but the innermost are where they were.
///
/// # Safety
///
/// 1. `end` is behind an element of a list, which is not changed meanwhile.
/// 2. `floor` is the address of an element in front of it.
#[inline(always)]
unsafe fn same(end: *const Active, floor: usize, calls: &impl Calls) -> Option<usize> {
    let is_same = |call: usize, caller: &Active| {
        // Read first, and gone on with if the caller is the same: the processor need not wait for what the call says.
        calls.is_plainly_called_by(call, caller.call) && calls.at(caller.call) == caller.frame.at
    };
    // SAFETY: duty 1.
    let mut active = unsafe { end.sub(1) };
    // SAFETY: as above.
    let mut call = unsafe { &*active }.call;
    // Four at a time, as that takes a third less instructions than one by one.
    let four = floor + 4 * size_of::<Active>();
    while active.addr() >= four {
        // SAFETY: by 2, four elements further out.
        active = unsafe { active.sub(4) };
        // SAFETY: as above.
        let [fourth, third, second, first] = unsafe { &*active.cast::<[Active; 4]>() };
        let are_same = is_same(call, first)
            && is_same(first.call, second)
            && is_same(second.call, third)
            && is_same(third.call, fourth);
        if !are_same {
            return None;
        }
        call = fourth.call;
    }
    while active.addr() != floor {
        // SAFETY: by 2, an element further out.
        active = unsafe { active.sub(1) };
        // SAFETY: as above.
        let caller = unsafe { &*active };
        if !is_same(call, caller) {
            return None;
        }
        call = caller.call;
    }
    Some(call)
}

/// Goes out from `call` through all its `callers`; the outermost call, and how many there are above the outermost that has moved, if one has.
/// `None` where they are not its callers.
#[inline]
fn unmoved(
    mut call: usize,
    callers: &[Active],
    calls: &impl Calls,
) -> Option<(usize, Option<usize>)> {
    let mut moved = None;
    let mut left = callers.iter();
    while let Some(caller) = left.next_back() {
        if !calls.is_plainly_called_by(call, caller.call) && !calls.is_called_by(call, caller.call)
        {
            return None;
        }
        call = caller.call;
        if calls.at(call) != caller.frame.at {
            moved = Some(left.len());
        }
    }
    Some((call, moved))
}

/// What no source says of its age.
const NO_AGE: usize = usize::MAX;

/// Where it is noted at which depth a call is known. Calls are some words apart.
#[inline]
pub(crate) const fn place_of(call: usize) -> usize {
    (call >> 4 ^ call >> 13) % PLACES
}
