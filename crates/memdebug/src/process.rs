//! Owns what happens when the process forks or exits. Over a fork every process-wide lock is held, and every ring of the hooks that
//! are verified at exit, so that a child finds none taken for ever; at exit quarantines are verified, and then blocks that leak
//! are reported.

use core::fmt::Write as _;
use core::ptr;

use std::sync::{Once, OnceLock};

use malloc_api::immortal;
use pymem_sync::{ForkLock, HeldOverFork, Lock, LockGuard, Rank, hold_over_forks};

use crate::checks::filter::Filter;
use crate::checks::leaks::LiveBlocks;
use crate::checks::quarantine::Quarantine;
use crate::checks::registry;
use crate::guard::pool;
use crate::options::{ConfigureError, LeakFormat, LeakReport};
use crate::report::handler::Stderr;
use crate::sites::site;

/// Holds every process-wide lock over forks. Without memory for the handlers, forks are not guarded.
pub(crate) fn guard_forks() {
    static POOL: OnceLock<&ForkLock> = OnceLock::new();
    let _ = hold_over_forks(&registry::FORK_LOCK);
    let _ = hold_over_forks(&site::FORK_LOCK);
    if let Some(lock) = pool::fork_lock() {
        let _ =
            hold_over_forks(POOL.get_or_init(|| immortal::leak(ForkLock::new(Rank::Memory, lock))));
    }
}

/// Hooks of a process that are verified at exit, at most.
const MOST_HOOKS: usize = 64;

/// What is verified at exit: hooks that live until then.
pub(crate) trait Verify: Sync {
    /// Verifies what the quarantine holds.
    fn verify_held(&self);

    /// The quarantine, once there is one; from then on always the same.
    fn quarantine(&self) -> Option<&Quarantine>;
}

/// What is done at exit.
#[derive(Clone, Copy)]
struct AtExit {
    hooks: [Option<&'static dyn Verify>; MOST_HOOKS],
    /// What is reported, and by which process.
    report: Option<(&'static Filter, u32)>,
    /// While a fork is under way: whether it holds the quarantine of the hooks at this place.
    held: [bool; MOST_HOOKS],
}

static AT_EXIT: Lock<AtExit> =
    Lock::new(AtExit { hooks: [None; MOST_HOOKS], report: None, held: [false; MOST_HOOKS] });

/// For a fork: whoever holds a ring waits for no lock, and whoever holds the list for none but the rings, which only a fork takes then.
static FORK_LOCK: ForkLock = ForkLock::new(Rank::Memory, &ListAndRings);

/// The list of what is done at exit, and the quarantines of the hooks on it.
struct ListAndRings;

impl HeldOverFork for ListAndRings {
    fn hold(&self) {
        let mut list = AT_EXIT.lock();
        let AtExit { hooks, held, .. } = &mut *list;
        for (hooks, held) in hooks.iter().zip(held) {
            // Hooks may get a quarantine while the fork is under way, which it does not hold then.
            let quarantine = hooks.and_then(Verify::quarantine);
            *held = quarantine.is_some();
            if let Some(quarantine) = quarantine {
                quarantine.hold();
            }
        }
        core::mem::forget(list);
    }

    unsafe fn release(&self) {
        // SAFETY: `hold` has kept the lock for this thread (1), so nobody else reads or writes the list.
        let AtExit { hooks, held, .. } = unsafe { &*AT_EXIT.as_ptr() };
        for (hooks, _) in hooks.iter().zip(held).filter(|(_, held)| **held) {
            if let Some(quarantine) = hooks.and_then(Verify::quarantine) {
                // SAFETY: (1) `hold` took its rings, on behalf of this thread (1): hooks stay on the list, and keep their quarantine.
                unsafe { quarantine.release() };
            }
        }
        // SAFETY: (1) kept since `hold` (1), and the list is not touched below.
        unsafe { AT_EXIT.raw().unlock() };
    }
}

/// What is done at exit. Without memory for the handlers, forks are not guarded.
fn list() -> LockGuard<'static, AtExit> {
    let _ = hold_over_forks(&FORK_LOCK);
    AT_EXIT.lock()
}

/// Changes what is done at exit.
fn at_exit(change: impl FnOnce(&mut AtExit)) {
    static REGISTER: Once = Once::new();
    change(&mut list());
    REGISTER.call_once(|| {
        // SAFETY: a function without arguments that does not unwind. If it cannot be registered, nothing is done at exit.
        unsafe { libc::atexit(on_exit) };
    });
}

/// Puts hooks on the list, once.
pub(crate) fn verify_at_exit(hooks: &'static dyn Verify) {
    let same = |known: &dyn Verify| ptr::addr_eq(known, hooks);
    at_exit(|todo| {
        if let Some(place) = todo.hooks.iter_mut().find(|place| place.is_none_or(same)) {
            *place = Some(hooks);
        }
    });
}

/// Writes a report of the live blocks to stderr when the process exits, if there are any.
///
/// Hooks with [`Options::leaks`](crate::Options) ask for this by themselves. The report comes when `exit` runs its
/// functions, after those that were registered later; `_exit` and signals come without one, and so does the `exit` of a forked
/// child, most of whose blocks are its parent's. A child that is to report calls this again.
///
/// # Errors
///
/// [`ConfigureError::NoRules`] and [`ConfigureError::BadRule`], about the file of [`LeakReport::ignore`].
pub fn report_leaks_at_exit(report: LeakReport) -> Result<(), ConfigureError> {
    let process = std::process::id();
    let known = list().report;
    let filter = match known.filter(|(filter, _)| *filter.report() == report) {
        Some((filter, _)) => filter,
        None => immortal::leak(Filter::new(report)?),
    };
    at_exit(|todo| todo.report = Some((filter, process)));
    Ok(())
}

/// Verifies now every freed block that is held by hooks which are [verified at exit](crate::DebugHooks::verify_at_exit): a
/// write to one is found at once, and not when the block leaves. Each violation goes to its hooks' handler.
///
/// Where the allocator below needs a lock that its callers hold, so does this.
pub fn verify_quarantines() {
    // A copy: the handler of a violation may come back here.
    let todo = *list();
    todo.hooks.iter().flatten().for_each(|hooks| hooks.verify_held());
}

extern "C" fn on_exit() {
    verify_quarantines();
    let todo = list().report;
    let Some((filter, _)) = todo.filter(|(_, process)| *process == std::process::id()) else {
        return;
    };
    let mut live = LiveBlocks::now();
    live.retain(|group| filter.keeps(group));
    if live.blocks() == 0 {
        return;
    }
    let report = filter.report();
    let mut err = Stderr::new();
    // Ignore write errors: there is nowhere to report them.
    let _ = match report.format {
        LeakFormat::Text => write!(err, "{live}"),
        LeakFormat::Json => live.write_json(&mut err),
    };
    drop(err);
    if let Some(status) = report.exit_code {
        // SAFETY: the process is at its end; `libc::exit` is at work, and what it has left to do is given up for the status.
        unsafe { libc::_exit(status.into()) };
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use malloc_api::LibcMalloc;

    use super::*;
    use crate::{DebugHooks, Domain};

    /// Of the registry, the sites, the guard pages, the list, and the rings of the hooks on it.
    type Counts = [usize; 5];

    static HOOKS: DebugHooks<LibcMalloc> = DebugHooks::new(LibcMalloc, Domain::Mem);
    static SEEN: [AtomicUsize; 5] = [const { AtomicUsize::new(0) }; 5];

    fn locked() -> Counts {
        let rings = Verify::quarantine(&HOOKS).map_or(0, Quarantine::locked);
        let [pool, list] = [pool::is_locked(), AT_EXIT.raw().is_locked()].map(usize::from);
        [registry::LIVE.locked(), site::locked(), pool, list, rings]
    }

    /// Looks at the locks once all others are taken: of one rank, the first to be registered is taken last.
    struct Witness;

    impl HeldOverFork for Witness {
        fn hold(&self) {
            SEEN.iter().zip(locked()).for_each(|(seen, count)| seen.store(count, Relaxed));
        }

        unsafe fn release(&self) {}
    }

    #[test]
    fn every_lock_is_held_over_a_fork() {
        static WITNESS: ForkLock = ForkLock::new(Rank::Memory, &Witness);
        assert!(pool::set_up(64));
        hold_over_forks(&WITNESS).unwrap();
        guard_forks();
        let left = || assert_eq!(locked(), Counts::default());
        HOOKS.verify_at_exit();
        // SAFETY: 1: the child looks at locks, and takes none.
        let (_, before) = unsafe { malloc_api::testing::forked(left) };
        assert!(before.success(), "the child finds locks taken: {before}");
        assert_eq!(SEEN.each_ref().map(|count| count.load(Relaxed)), [64, 16, 1, 1, 0]);
        // SAFETY: 1: there are no blocks.
        unsafe { HOOKS.configure(&"quarantine".parse().unwrap()) }.unwrap();
        // SAFETY: 1: the child looks at locks, and takes none.
        let (_, status) = unsafe { malloc_api::testing::forked(left) };
        assert!(status.success(), "the child finds locks taken: {status}");
        assert_eq!(SEEN.each_ref().map(|count| count.load(Relaxed)), [64, 16, 1, 1, 9]);
        assert_eq!(locked(), Counts::default());
    }
}
