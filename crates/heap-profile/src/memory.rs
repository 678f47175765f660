//! Owns `Memory`: where the last frames and sites of a thread are.

use std::ptr;

use allocator_api2_02::boxed::Box;
use malloc_api::{AllocatorAdapter, LibcMalloc};

use crate::frame::{Frame, Link};
use crate::generation::{ADDRESS_BITS, Generation};
use crate::site::{SiteEntry, SiteKey};
use crate::spot::Spot;

/// Where a thread's last frames and sites are.
pub(crate) struct Memory {
    steps: [Step; MEMORY],
    recent: Recent,
}

/// How many frames, and how many sites, a thread remembers: 160 KiB for both, of which what is used becomes resident.
const MEMORY: usize = 4096;

/// The node of a frame and its caller; half a line of the processor's caches.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// Where the frame is, and above that the generation in which this was known to be in this code. 0 for a step that is none.
    key: u64,
    code: usize,
    caller: Link,
    node: Link,
    /// Where the thread counted last while this frame was the newest: most instructions allocate blocks of one size.
    site: Seen,
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
            *self = Self { key, code, caller, node, site: Seen::NONE };
        }
    }

    /// The code of the frame.
    #[inline(always)]
    pub(crate) const fn code(&self) -> usize {
        self.code
    }
}

/// A site that a thread has counted at, as its address, and below that 16 bits of its key. No site lies at 0.
#[derive(Clone, Copy)]
struct Seen(u64);

impl Seen {
    const NONE: Self = Self(0);

    /// Nothing, of a site that lies where no address is.
    fn new(site: &'static SiteEntry, bits: u16) -> Self {
        let address = ptr::from_ref(site).expose_provenance() as u64;
        if address >> ADDRESS_BITS != 0 {
            return Self::NONE;
        }
        Self(address << (u64::BITS - ADDRESS_BITS) | u64::from(bits))
    }

    /// The site, if it is one with these bits.
    #[inline(always)]
    fn site(self, bits: u16) -> Option<&'static SiteEntry> {
        if self.0 as u16 != bits {
            return None;
        }
        let address = (self.0 >> (u64::BITS - ADDRESS_BITS)) as usize;
        // SAFETY: null, or `new` made the word from a site, and sites live for ever.
        unsafe { ptr::with_exposed_provenance::<SiteEntry>(address).as_ref() }
    }
}

/// The sites that a thread has counted at.
struct Recent([Seen; MEMORY]);

impl Recent {
    /// Where the site of a key is, if the thread remembers the site.
    #[inline(always)]
    fn of(&mut self, key: u64) -> &mut Seen {
        &mut self.0[spread(key.rotate_left(16))]
    }
}

/// What, beside the [kind](SiteKey::kind), tells sites of other stacks from this one: their lines of memory would be in no cache.
#[inline(always)]
const fn of_stack(key: SiteKey) -> u16 {
    key.stack as u16
}

impl Memory {
    /// Nothing remembered; `None` without memory.
    pub(crate) fn new() -> Option<Box<Self, AllocatorAdapter<LibcMalloc>>> {
        let zeroed = Box::try_new_zeroed_in(AllocatorAdapter::new(LibcMalloc)).ok()?;
        // SAFETY: of numbers, all zero is a value.
        Some(unsafe { zeroed.assume_init() })
    }

    /// Forgets all frames.
    #[cold]
    pub(crate) fn forget_steps(&mut self) {
        self.steps.iter_mut().for_each(|step| step.key = 0);
    }

    /// The number of the step from `caller` to a frame that is at `at`, and the step that is remembered in its place.
    #[inline(always)]
    pub(crate) fn step(&mut self, caller: Link, at: usize) -> (u32, &mut Step) {
        let number = spread((at ^ (caller as usize).rotate_left(20)) as u64);
        (number as u32, &mut self.steps[number])
    }

    /// Where the thread counted last at the stack that ends here, if the key is that of the site.
    #[inline(always)]
    pub(crate) fn last_site(&self, spot: Spot, kind: u16) -> Option<&'static SiteEntry> {
        let step = &self.steps[spot.step() as usize % MEMORY];
        // A step with a site leads to the node of the site.
        step.site.site(kind).filter(|_| step.node == spot.node())
    }

    /// The site of a key, if the thread remembers the site; from now on the last one at the step to this spot.
    #[inline(always)]
    pub(crate) fn recent_site(&mut self, spot: Spot, key: SiteKey) -> Option<&'static SiteEntry> {
        let kind = key.kind()?;
        let seen = *self.recent.of(key.word());
        let site = seen.site(kind ^ of_stack(key)).filter(|site| site.key() == &key)?;
        self.set_last(spot, key, Seen(seen.0 ^ u64::from(of_stack(key))));
        Some(site)
    }

    /// Remembers the site of a key, which is the last one at the step to this spot.
    pub(crate) fn set_site(&mut self, spot: Spot, key: SiteKey, site: &'static SiteEntry) {
        let seen = key.kind().map_or(Seen::NONE, |kind| Seen::new(site, kind ^ of_stack(key)));
        *self.recent.of(key.word()) = seen;
        self.set_last(spot, key, key.kind().map_or(Seen::NONE, |kind| Seen::new(site, kind)));
    }

    #[inline(always)]
    fn set_last(&mut self, spot: Spot, key: SiteKey, seen: Seen) {
        let step = &mut self.steps[spot.step() as usize % MEMORY];
        if step.node == key.stack {
            step.site = seen;
        }
    }
}

/// An index into what a thread remembers.
#[inline(always)]
const fn spread(word: u64) -> usize {
    // The upper bits of a product depend on all of its factors.
    (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - MEMORY.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use pymem_sync::Interner;

    use super::*;
    use crate::counts::Counts;

    #[test]
    fn a_step_is_known_by_its_code_once_code_has_died() {
        let mut memory = Memory::new().expect("memory");
        let (first, frame) = (Generation::FIRST, Frame { code: 0x7000, at: 0x7010 });
        let (_, step) = memory.step(3, frame.at);
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
        assert_eq!(memory.step(3, frame.at).1.known(3, frame, next), None);
    }

    #[test]
    fn a_site_in_the_place_of_another_one_is_not_taken_for_it() {
        let sites: &Interner<SiteKey, Counts> =
            malloc_api::immortal::leak(Interner::new(16).expect("memory"));
        let key = SiteKey { stack: 7, profile: 0, origin: 2, class: 3 };
        // Told apart by the upper bits of the stack's number alone.
        let place = |key: SiteKey| spread(key.word().rotate_left(16));
        let mut others = (1..).map(|more| SiteKey { stack: 7 + (more << 16), ..key });
        let other = others.find(|other| place(*other) == place(key)).expect("a place of two");
        let site = sites.intern(0, key, Counts::default).expect("memory");
        let mut memory = Memory::new().expect("memory");
        let spot = |key: SiteKey| Spot::new(key.stack, 0);
        assert!(memory.recent_site(spot(key), key).is_none());
        memory.set_site(spot(key), key, site);
        assert!(memory.recent_site(spot(key), key).is_some_and(|found| found.key() == &key));
        assert!(memory.recent_site(spot(other), other).is_none(), "another stack");
        let of_second = SiteKey { profile: 1, ..key };
        memory.set_site(spot(of_second), of_second, site);
        assert!(memory.recent_site(spot(of_second), of_second).is_none(), "of a second profile");
    }

    #[test]
    fn a_frame_where_no_address_is_has_no_step() {
        let mut memory = Memory::new().expect("memory");
        let at = Generation::FIRST.next().expect("a second one").bits() as usize | 0x7010;
        let (_, step) = memory.step(3, at);
        step.set(3, Frame { code: 1, at }, Generation::FIRST, 9);
        assert_eq!(step.plainly(3, at, Generation::FIRST), None);
        assert_eq!(step.known(3, Frame { code: 1, at }, Generation::FIRST), None);
    }
}
