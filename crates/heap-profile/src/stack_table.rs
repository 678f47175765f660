//! Owns `StackTable`: the stacks of one source by number, for whoever keeps four bytes in place of a stack.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use malloc_api::immortal;
use pymem_sync::{HeldOverFork, RawLock};

use crate::frame::Frame;
use crate::profile_error::ProfileError;
use crate::source::{MAX_FRAMES, StackSource};
use crate::stacks::{Stacks, unrecorded};

/// Every distinct call stack that was asked for, each under a number.
///
/// A table lives for ever and only grows: 20 bytes for each distinct frame of a stack, and a word a bucket. Up to 65,535
/// [profiles](crate::Profile) share one, as a thread remembers its last stack in one table alone. The
/// table's locks are held over a fork.
///
/// # Examples
///
/// ```
/// use heap_profile::{Frame, Location, StackSource, StackTable, Walk};
///
/// struct Main;
///
/// impl StackSource for Main {
///     fn capture(&self, walk: &mut Walk<'_>) {
///         let _ = walk.visit(1, Frame { code: 1, at: 7 });
///     }
///
///     fn locate(&self, _: Frame) -> Location {
///         Location::default()
///     }
/// }
///
/// let table = StackTable::new(Main, 8, 1024)?;
/// let here = table.current().flatten().expect("a frame");
/// assert_eq!(table.places(here).collect::<Vec<_>>(), [Frame { code: 1, at: 7 }]);
/// assert_eq!(table.current().flatten(), Some(here));
/// # Ok::<(), heap_profile::ProfileError>(())
/// ```
#[derive(Debug)]
pub struct StackTable<S: 'static> {
    source: S,
    stacks: Stacks,
    /// How many profiles have these stacks.
    profiles: AtomicU32,
}

impl<S: StackSource + 'static> StackTable<S> {
    /// An empty table for stacks of up to `frames` frames, the innermost ones, moved to memory that is never given back.
    ///
    /// # Errors
    ///
    /// [`ProfileError`]: a number of frames that is none, or no memory for the buckets.
    pub fn new(source: S, frames: usize, buckets: usize) -> Result<&'static Self, ProfileError> {
        if !(1..=MAX_FRAMES).contains(&frames) {
            return Err(ProfileError::Frames(frames));
        }
        let stacks = Stacks::new(frames, buckets).ok_or(ProfileError::NoMemory(buckets))?;
        Ok(immortal::leak(Self { source, stacks, profiles: AtomicU32::new(0) }))
    }

    /// The number of the calling thread's stack; `Some(None)` where it has no frames, or without memory for them.
    ///
    /// `None` while the thread is busy with this very question, so that what the source allocates asks nothing, and at the
    /// thread's end.
    pub fn current(&'static self) -> Option<Option<NonZeroU32>> {
        self.stacks.capture(&self.source).map(|stack| NonZeroU32::new(stack.node()))
    }

    /// The places of a stack's frames, innermost first, as [`StackSource::place`] returned them; none for a number that is none.
    pub fn places(&'static self, stack: NonZeroU32) -> impl Iterator<Item = Frame> {
        self.stacks.places(stack.get()).map(|place| self.stacks.place(place))
    }

    /// The number of the stack that has the `frames` innermost places of this one alone, by which stacks that differ further out
    /// are one; `None` for no frames, and without memory.
    pub fn cut(&'static self, stack: NonZeroU32, frames: usize) -> Option<NonZeroU32> {
        unrecorded(|| self.stacks.cut(stack.get(), frames)).and_then(NonZeroU32::new)
    }

    /// Who tells the stacks.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The number of one more profile that has these stacks.
    pub(crate) fn add_profile(&self) -> Result<NonZeroU16, ProfileError> {
        let number = u16::try_from(self.profiles.fetch_add(1, Relaxed) + 1);
        number.ok().and_then(NonZeroU16::new).ok_or(ProfileError::TooMany)
    }

    #[inline]
    pub(crate) const fn stacks(&self) -> &Stacks {
        &self.stacks
    }
}

impl<S: Sync> HeldOverFork for StackTable<S> {
    fn hold(&self) {
        self.stacks.locks().into_iter().for_each(RawLock::lock);
    }

    unsafe fn release(&self) {
        // SAFETY: (1) held since `hold` on behalf of this thread (1).
        self.stacks.locks().into_iter().rev().for_each(|lock| unsafe { lock.unlock() });
    }
}
