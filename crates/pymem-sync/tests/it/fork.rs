//! A fork leaves the child with the caller alone. (Where participants die, the fork is played: one thread, and participants
//! that no one will use again.)

use std::sync::Mutex;

use pymem_sync::qsbr::{Collector, Participant};
use pymem_sync::{ForkLock, ForkLocks, HeldOverFork, Rank};

/// Notes when it is taken and given back.
struct Noted(&'static str);

static NOTES: Mutex<Vec<(&str, bool)>> = Mutex::new(Vec::new());

impl HeldOverFork for Noted {
    fn hold(&self) {
        NOTES.lock().unwrap().push((self.0, true));
    }

    unsafe fn release(&self) {
        NOTES.lock().unwrap().push((self.0, false));
    }
}

#[test]
fn locks_are_taken_by_rank_and_given_back_in_reverse() {
    static LOCKS: ForkLocks = ForkLocks::new();
    static HEAP: ForkLock = ForkLock::new(Rank::Allocator, &[Noted("heap"), Noted("heap 2")]);
    static OLD: ForkLock = ForkLock::new(Rank::Domains, &Noted("old"));
    static NEW: ForkLock = ForkLock::new(Rank::Domains, &Noted("new"));
    static ARENAS: ForkLock = ForkLock::new(Rank::Memory, &Noted("arenas"));
    static PROGRAM: ForkLock = ForkLock::new(Rank::Program, &Noted("program"));
    for lock in [&HEAP, &OLD, &NEW, &ARENAS, &PROGRAM, &OLD] {
        LOCKS.add(lock);
    }
    let order = ["program", "new", "old", "heap", "heap 2", "arenas"];
    for _fork in 0..2 {
        LOCKS.prepare();
        // SAFETY: (1) just prepared by this thread.
        unsafe { LOCKS.release() };
        let notes = std::mem::take(&mut *NOTES.lock().unwrap());
        let taken = order.map(|name| (name, true));
        let given = order.map(|name| (name, false));
        assert_eq!(notes[..order.len()], taken);
        assert!(notes[order.len()..].iter().eq(given.iter().rev()), "{notes:?}");
    }
}

#[cfg(feature = "fork")]
#[test]
fn a_child_finds_a_lock_free_that_a_thread_of_its_parent_held() {
    use pymem_sync::{Lock, hold_over_forks};
    use std::sync::atomic::{AtomicBool, Ordering};

    static PAIR: Lock<(u64, u64)> = Lock::new((0, 0));
    static HELD: ForkLock = ForkLock::new(Rank::Program, &PAIR);
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    hold_over_forks(&HELD).unwrap();
    let thread = std::thread::spawn(|| {
        while !IS_OVER.load(Ordering::Relaxed) {
            let mut pair = PAIR.lock();
            pair.0 += 1;
            std::thread::yield_now();
            pair.1 += 1;
        }
    });
    // The thread has the lock nearly always, so that one that nobody holds over a fork is met by the first few children.
    for _ in 0..40 {
        // SAFETY: the child takes one lock that never allocates, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: a child that hangs is killed by the alarm, which the parent sees.
            unsafe { libc::alarm(10) };
            let pair = *PAIR.lock();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(pair.0 != pair.1)) };
        }
        let mut status = 0;
        // SAFETY: the child's number and a place for its status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child hung, or saw half an update");
    }
    IS_OVER.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}

#[test]
fn the_dead_hold_nothing_back_and_their_slots_are_used_again() {
    let collector = &Collector::new();
    let survivor = Participant::register(collector).unwrap();
    survivor.attach();
    let dead: Vec<_> = (0..20).map(|_| Participant::register(collector).unwrap()).collect();
    dead.iter().for_each(|participant| participant.attach());
    let slots = collector.slots();
    let goal = collector.advance();
    // SAFETY: (1) there is one thread; (2) the survivor is its own; (3) the dead are only dropped.
    unsafe { Participant::after_fork_in_child(collector, Some(&survivor)) };
    assert_eq!(collector.attached(), 1);
    assert!(survivor.is_attached());
    assert!(!collector.poll(goal), "the survivor still counts");
    survivor.quiescent_state();
    assert!(collector.poll(goal));

    let new: Vec<_> = (0..20).map(|_| Participant::register(collector).unwrap()).collect();
    assert_eq!(collector.slots(), slots, "the dead threads' slots");
    new.iter().for_each(|participant| participant.attach());
    drop(dead); // as a runtime does that cleans up dead thread states
    assert_eq!(collector.attached(), 21, "dropping the dead took no slot from the living");
    new.iter().for_each(|participant| participant.detach());
    survivor.detach();
}

#[test]
fn a_child_may_have_no_participant() {
    let collector = &Collector::new();
    let dead = Participant::register(collector).unwrap();
    dead.attach();
    // SAFETY: (1) there is one thread; (2) none; (3) the dead one is only dropped.
    unsafe { Participant::after_fork_in_child(collector, None) };
    assert_eq!(collector.attached(), 0);
    assert!(collector.poll(collector.advance()));
    drop(dead);
}
