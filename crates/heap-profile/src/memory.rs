//! Owns `Memory`: where the last frames and sites of a thread are.

use crate::frame::{Frame, Link};
use crate::generation::{ADDRESS_BITS, Generation};
use crate::notes::SITES_MAX;
use crate::site::{SiteEntry, SiteWord};

/// Where a thread's last frames and sites are; all zero where nothing is remembered.
pub(crate) struct Memory {
    steps: [Step; MEMORY],
    sites: [Seen; MEMORY],
}

/// How many frames, and how many sites, a thread remembers: 160 KiB for both, of which what is used becomes resident.
const MEMORY: usize = 4096;

/// The node of a frame and its caller.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// Where the frame is, and above that the generation in which this was known to be in this code. 0 for a step that is none.
    key: u64,
    code: usize,
    caller: Link,
    node: Link,
}

impl Step {
    /// The node, if this is the step from `caller` to a frame that is at the address `at`, and no code has died since that was looked at.
    #[inline(always)]
    pub(crate) fn plainly(&self, caller: Link, at: usize, generation: Generation) -> Option<Link> {
        (self.key == at as u64 | generation.bits() && self.caller == caller).then_some(self.node)
    }

    /// As [`plainly`](Self::plainly), of a frame whose code is known, whatever has died.
    pub(crate) fn known(
        &mut self,
        caller: Link,
        frame: Frame,
        generation: Generation,
    ) -> Option<Link> {
        let at = self.key << (u64::BITS - ADDRESS_BITS) >> (u64::BITS - ADDRESS_BITS);
        let is_it =
            self.key != 0 && (at, self.caller, self.code) == (frame.at as u64, caller, frame.code);
        if is_it {
            self.key = at | generation.bits();
        }
        is_it.then_some(self.node)
    }

    /// Remembers the step from `caller` to a frame, unless the frame is where no address is.
    pub(crate) fn set(&mut self, caller: Link, frame: Frame, generation: Generation, node: Link) {
        if frame.at as u64 >> ADDRESS_BITS == 0 {
            let (key, code) = (frame.at as u64 | generation.bits(), frame.code);
            *self = Self { key, code, caller, node };
        }
    }

    /// The code of the frame.
    #[inline(always)]
    pub(crate) const fn code(&self) -> usize {
        self.code
    }
}

/// A site that a thread has counted at, by its key: whoever looks for another one reads nothing of this one.
#[derive(Clone, Copy)]
struct Seen {
    /// 0 where nothing is remembered.
    key: u64,
    /// Where there is a key, there is its site.
    site: Option<&'static SiteEntry>,
}

impl Memory {
    /// Forgets all frames.
    #[cold]
    pub(crate) fn forget_steps(&mut self) {
        self.steps.iter_mut().for_each(|step| step.key = 0);
    }

    /// What is remembered in the place of the step from `caller` to a frame that is at `at`.
    #[inline(always)]
    pub(crate) fn step(&mut self, caller: Link, at: usize) -> &mut Step {
        &mut self.steps[step_index(caller, at)]
    }

    /// As [`step`](Self::step), to look at.
    #[inline(always)]
    pub(crate) fn step_at(&self, caller: Link, at: usize) -> &Step {
        &self.steps[step_index(caller, at)]
    }

    /// The site of a key, if the thread remembers the site.
    #[inline(always)]
    pub(crate) fn site(&self, key: SiteWord) -> Option<&'static SiteEntry> {
        let seen = &self.sites[spread(key.get())];
        if seen.key != key.get() {
            return None;
        }
        // SAFETY: `set_site` stored it with the key, which is not 0.
        Some(unsafe { seen.site.unwrap_unchecked() })
    }

    /// Remembers the site of a key, if the site has a number that [notes](crate::Notes) have room for.
    pub(crate) fn set_site(&mut self, key: SiteWord, site: &'static SiteEntry) {
        if site.number() >= SITES_MAX {
            return;
        }
        self.sites[spread(key.get())] = Seen { key: key.get(), site: Some(site) };
    }
}

/// Where the step from `caller` to a frame that is at `at` is remembered.
#[inline(always)]
const fn step_index(caller: Link, at: usize) -> usize {
    spread((at ^ (caller as usize).rotate_left(20)) as u64)
}

/// An index into what a thread remembers.
#[inline(always)]
const fn spread(word: u64) -> usize {
    // The upper bits of a product depend on all of its factors.
    (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - MEMORY.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use allocator_api2_02::boxed::Box;
    use malloc_api::{AllocatorAdapter, LibcMalloc};
    use std::num::NonZeroU16;

    use pymem_sync::Interner;

    use super::*;
    use crate::counts::Counts;
    use crate::site::SiteKey;

    impl Memory {
        /// Nothing remembered; `None` without memory.
        pub(crate) fn new() -> Option<Box<Self, AllocatorAdapter<LibcMalloc>>> {
            let zeroed = Box::try_new_zeroed_in(AllocatorAdapter::new(LibcMalloc)).ok()?;
            // SAFETY: of numbers and of references that need not be there, all zero is a value.
            Some(unsafe { zeroed.assume_init() })
        }
    }

    #[test]
    fn a_step_is_known_by_its_code_once_code_has_died() {
        let mut memory = Memory::new().expect("memory");
        let (first, frame) = (Generation::FIRST, Frame { code: 0x7000, at: 0x7010 });
        let step = memory.step(3, frame.at);
        assert_eq!(step.plainly(3, frame.at, first), None, "no step yet");
        assert_eq!(step.known(0, Frame::default(), first), None, "no step at all");
        step.set(3, frame, first, 9);
        assert_eq!(step.plainly(3, frame.at, first), Some(9));
        assert_eq!(step.plainly(4, frame.at, first), None, "another caller");
        let next = first.next().expect("a second one");
        assert_eq!(step.plainly(3, frame.at, next), None, "code has died");
        let other = Frame { code: 0x7008, ..frame };
        assert_eq!(step.known(3, other, next), None, "other code has the address now");
        assert_eq!(step.plainly(3, frame.at, next), None, "and the step is not of this generation");
        assert_eq!(step.known(3, frame, next), Some(9));
        assert_eq!(step.plainly(3, frame.at, next), Some(9));
        memory.forget_steps();
        assert_eq!(memory.step(3, frame.at).known(3, frame, next), None);
    }

    #[test]
    fn a_site_in_the_place_of_another_one_is_not_taken_for_it() {
        let sites: &Interner<SiteKey, Counts> =
            malloc_api::immortal::leak(Interner::new(16).expect("memory"));
        // No frames, the first profile, raw, and the smallest class.
        let key = SiteKey { stack: 0, profile: NonZeroU16::MIN, origin: 0, class: 0 };
        let mut memory = Memory::new().expect("memory");
        assert!(memory.site(key.word()).is_none());
        let site = sites.intern(0, key, Counts::default).expect("memory");
        memory.set_site(key.word(), site);
        let is_found =
            |memory: &Memory| memory.site(key.word()).is_some_and(|found| found.key() == &key);
        assert!(is_found(&memory));
        let second = NonZeroU16::new(2).expect("a number");
        let others = (1..).flat_map(|stack| {
            let other = SiteKey { stack, ..key };
            let with = |class, origin, profile| SiteKey { class, origin, profile, ..other };
            let first = key.profile;
            [other, with(1, 0, first), with(0, 2, first), with(0, 0, second)]
        });
        let place = |key: &SiteKey| spread(key.word().get());
        for other in others.filter(|other| place(other) == place(&key)).take(100) {
            assert!(memory.site(other.word()).is_none() && is_found(&memory), "{other:?}");
        }
        let other = SiteKey { profile: second, ..key };
        let site = sites.intern(1, other, Counts::default).expect("memory");
        memory.set_site(other.word(), site);
        assert!(memory.site(other.word()).is_some_and(|found| found.key() == &other));
    }

    #[test]
    fn a_frame_where_no_address_is_has_no_step() {
        let mut memory = Memory::new().expect("memory");
        let at = Generation::FIRST.next().expect("a second one").bits() as usize | 0x7010;
        let step = memory.step(3, at);
        step.set(3, Frame { code: 1, at }, Generation::FIRST, 9);
        assert_eq!(step.plainly(3, at, Generation::FIRST), None);
        assert_eq!(step.known(3, Frame { code: 1, at }, Generation::FIRST), None);
    }
}
