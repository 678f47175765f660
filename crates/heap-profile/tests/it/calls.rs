//! Stacks that a source tells call by call, of code that dies and whose address is used again.

use std::cell::{Cell, RefCell};

use heap_profile::{Calls, Frame, Location, PlainSource, StackSource, StackTable, Walk};

/// Addresses of code.
const CODES: usize = 12;

/// Counts of deaths: three codes share one.
const SLOTS: usize = 4;

thread_local! {
    /// Outermost first: the call, the number of its code, and where it is in the code.
    static STACK: RefCell<Vec<(usize, usize, usize)>> = const { RefCell::new(Vec::new()) };
    static DEATHS: RefCell<[usize; SLOTS]> = const { RefCell::new([0; SLOTS]) };
    /// How many codes have been at an address.
    static USES: RefCell<[usize; CODES]> = const { RefCell::new([0; CODES]) };
    static AGE: Cell<usize> = const { Cell::new(0) };
    static IS_PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Tells the stack above.
struct Told;

/// The words of a call.
fn frame_of((_, code, at): (usize, usize, usize)) -> Frame {
    let deaths = DEATHS.with_borrow(|deaths| deaths[code % SLOTS]);
    Frame { code: deaths << 48 | code << 8, at: code << 8 | at }
}

/// What the code at the address of this number is, and where in it a call is.
fn place_of(code: usize, at: usize) -> Frame {
    let uses = USES.with_borrow(|uses| uses[code]);
    Frame { code: uses << 48 | code << 8, at: code << 8 | at }
}

fn depth_of(call: usize) -> usize {
    STACK.with_borrow(|stack| stack.iter().rposition(|active| active.0 == call).expect("a call"))
}

impl Calls for Told {
    fn frame(&self, call: usize) -> Option<Frame> {
        let depth = depth_of(call);
        Some(frame_of(STACK.with_borrow(|stack| stack[depth])))
    }

    fn at(&self, call: usize) -> usize {
        self.frame(call).map_or(0, |frame| frame.at)
    }

    fn is_at(&self, call: usize, frame: Frame) -> bool {
        self.frame(call) == Some(frame)
    }

    fn is_called_by(&self, call: usize, caller: usize) -> bool {
        self.caller(call) == caller
    }

    fn caller(&self, call: usize) -> usize {
        let outer = depth_of(call).checked_sub(1);
        outer.map_or(0, |depth| STACK.with_borrow(|stack| stack[depth].0))
    }
}

fn newest() -> usize {
    STACK.with_borrow(|stack| stack.last().map_or(0, |active| active.0))
}

// SAFETY: 1: calls have small numbers. 2: nothing of this is profiled, and nobody is asked.
unsafe impl PlainSource for Told {
    fn plain_calls(&self, age: usize) -> Option<(usize, impl Calls)> {
        let newest = newest();
        (IS_PLAIN.get() && age == AGE.get() && newest != 0).then_some((newest, Self))
    }
}

impl StackSource for Told {
    fn capture(&self, walk: &mut Walk<'_>) {
        walk.set_age(AGE.get());
        walk.follow(newest(), &Self);
    }

    fn plain(&self) -> Option<&impl PlainSource> {
        Some(self)
    }

    fn usage(&self, frame: Frame) -> (Frame, u32) {
        (Frame { code: frame.code & 0xFFFF_FFFF, ..frame }, (frame.code >> 48) as u32)
    }

    fn place(&self, frame: Frame) -> Option<Frame> {
        let (code, at) = (frame.at >> 8, frame.at & 0xFF);
        // The words of a frame that code has died under since are told no more.
        (frame_of((0, code, at)) == frame).then(|| place_of(code, at))
    }

    fn locate(&self, _: Frame) -> Location {
        Location::default()
    }
}

#[test]
fn a_stack_is_told_as_it_is_whatever_came_before_and_whatever_code_has_died() {
    // Callers are compared by fours: none, and some with a rest.
    [4, 12].into_iter().for_each(stacks_are_told_to);
}

fn stacks_are_told_to(limit: usize) {
    let table = StackTable::new(Told, limit, 1 << 10).expect("memory");
    let mut random = 7_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (random >> 33) as usize % below
    };
    let mut plain = 0;
    for step in 0..20_000 {
        // A caller that moves on, some returns, and some calls; now and then far.
        let far = if step % 50 == 0 { 14 } else { 3 };
        STACK.with_borrow_mut(|stack| {
            stack.truncate(stack.len().saturating_sub(next(far)).min(18));
            if let Some(newest) = stack.last_mut() {
                newest.2 = next(3);
            }
            for _ in 0..next(far) {
                // The same call may have another caller, and another code, than last time.
                stack.push((2 * stack.len() + 1 + next(8) / 7, next(CODES), next(3)));
            }
        });
        if step % 20 == 0 {
            let dead = next(CODES);
            if STACK.with_borrow(|stack| stack.iter().all(|active| active.1 != dead)) {
                DEATHS.with_borrow_mut(|deaths| deaths[dead % SLOTS] += 1);
                USES.with_borrow_mut(|uses| uses[dead] += 1);
                AGE.set(AGE.get() + 1);
            }
        }
        IS_PLAIN.set(next(10) > 0);
        plain += usize::from(IS_PLAIN.get());
        assert_eq!(
            told(table),
            wanted(limit),
            "of {limit}, after {step} steps, {plain} of them plain"
        );
    }
    assert!(AGE.get() > 100, "{} codes have died", AGE.get());
}

/// The innermost `limit` places of the stack.
fn wanted(limit: usize) -> Vec<Frame> {
    let place = |&(_, code, at): &_| place_of(code, at);
    STACK.with_borrow(|stack| stack.iter().rev().take(limit).map(place).collect())
}

/// The places that a table tells.
fn told(table: &'static StackTable<Told>) -> Vec<Frame> {
    let told = table.current().expect("nobody else asks");
    told.map(|stack| table.places(stack).collect()).unwrap_or_default()
}

/// A call that lies beyond the limit, and so is not looked at, when other code dies whose deaths are counted with its own.
#[test]
fn a_call_that_was_beyond_the_limit_is_told_whatever_other_code_has_died() {
    const LIMIT: usize = 4;
    let table = StackTable::new(Told, LIMIT, 1 << 10).expect("memory");
    IS_PLAIN.set(true);
    // Each code but the first.
    let code_of = |call: usize| 1 + call % (CODES - 1);
    // As far apart as records are.
    let push_of = |call, code| STACK.with_borrow_mut(|stack| stack.push((call << 5, code, 1)));
    let push = |call| push_of(call, code_of(call));
    for call in 1..CODES {
        push(call);
        assert_eq!(told(table), wanted(LIMIT));
    }
    let outer = (1..CODES - LIMIT).rev().find(|call| code_of(*call) % SLOTS == 0);
    let outer = outer.expect("a call beyond the limit whose code shares its count with the first");
    DEATHS.with_borrow_mut(|deaths| deaths[0] += 1);
    AGE.set(AGE.get() + 1);
    assert_eq!(told(table), wanted(LIMIT));
    // Its place is told of another call meanwhile, and then the root moves.
    push_of(CODES, code_of(outer));
    assert_eq!(told(table), wanted(LIMIT));
    push(CODES + 1);
    assert_eq!(told(table), wanted(LIMIT));
    STACK.with_borrow_mut(|stack| stack.truncate(outer + LIMIT - 1));
    assert_eq!(told(table), wanted(LIMIT), "call {outer} is the outermost of these");
}
