//! Owns the four calls with options beyond CPython's, and what goes over all blocks that these know: registry, quarantine,
//! backtraces. Leaves each of these to the file of its name. Built without `std` its twin in `no_std.rs` stands here.

use core::ptr::{self, NonNull};

use std::sync::OnceLock;

use malloc_api::{Domain, Malloc};

use crate::block::{self, base_of};
use crate::calls::Blocks;
use crate::checks::quarantine::{self, Held, Offer, Quarantine, pointer, underlying};
use crate::checks::registry::{self, Entry, LIVE, OwnerId};
use crate::options::{ConfigureError, Options};
use crate::process;
use crate::report::verdict;
use crate::report::violation::{BlockFacts, Call, Shape, Violation, ViolationKind};
use crate::sites::native::Outermost;
use crate::sites::site::{Depth, Site};

/// The options of this file, once they are set.
#[derive(Debug)]
pub(crate) struct Checked(OnceLock<State>);

/// What is on.
#[derive(Debug)]
pub(crate) struct State {
    /// Whose blocks these are in the registry, where there is one.
    registry: Option<OwnerId>,
    /// Which frames a site has, if there are sites.
    backtrace: Option<Depth>,
    quarantine: Option<Quarantine>,
}

impl Checked {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// `Ok(true)` if an option of this file is on now.
    pub(crate) fn configure(
        &self,
        options: &Options,
        domain: Domain,
    ) -> Result<bool, ConfigureError> {
        let registry = options.needs_registry();
        if !registry && options.quarantine.is_none() && options.backtrace == 0 {
            return Ok(self.0.get().is_some());
        }
        if self.0.get().is_some() {
            return Err(ConfigureError::AlreadySet);
        }
        let registry = registry.then(|| OwnerId::new(domain).ok_or(ConfigureError::TooManyHooks));
        let registry = registry.transpose()?;
        let quarantine = options.quarantine.map(|bounds| Quarantine::new(bounds, options.extra()));
        if let Some(report) = options.leaks {
            process::report_leaks_at_exit(report)?;
        }
        process::guard_forks();
        let state = State { registry, backtrace: Depth::of(options), quarantine };
        self.0.set(state).map(|()| true).map_err(|_| ConfigureError::AlreadySet)
    }

    pub(crate) fn state(&self) -> Option<&State> {
        self.0.get()
    }
}

/// A verified block that is about to be freed or resized.
struct Verified {
    size: usize,
    allocated: Option<Site>,
}

impl State {
    #[inline]
    fn site<A>(&self, blocks: &Blocks<A>, entry: Outermost) -> Option<Site> {
        Site::here(self.backtrace?, blocks.host.stacks, entry)
    }

    /// Where a block is freed, which only a quarantine keeps.
    #[inline]
    fn freed_at<A>(&self, blocks: &Blocks<A>, entry: Outermost) -> Option<Site> {
        self.quarantine.as_ref().and_then(|_| self.site(blocks, entry))
    }

    /// Where a call came from that is reported.
    #[cold]
    fn caller<A>(&self, blocks: &Blocks<A>, entry: Outermost) -> Option<Site> {
        // Without backtraces nobody has asked the host before.
        let stacks = self.backtrace.and(blocks.host.stacks);
        Site::of_caller(self.backtrace, stacks, entry)
    }

    /// Which frames a site has, if there are sites.
    pub(crate) fn depth(&self) -> Option<Depth> {
        self.backtrace
    }

    /// `malloc`, and `calloc` if `zero`.
    #[inline(never)]
    pub(crate) fn allocate<A: Malloc>(
        &self,
        blocks: &Blocks<A>,
        size: usize,
        zero: bool,
        entry: Outermost,
    ) -> Option<NonNull<u8>> {
        let site = self.site(blocks, entry);
        let p = match zero {
            true => blocks.calloc::<false>(size),
            false if blocks.makes_plain_blocks() => blocks.malloc_plain(size),
            false => blocks.malloc(size),
        }?;
        let extra = blocks.extra();
        if extra.site {
            // SAFETY: 1: just allocated, with a site.
            unsafe { block::write_site(base_of(p), size, extra, Site::to_bits(site)) };
        }
        if let Some(owner) = self.registry {
            let address = p.as_ptr().expose_provenance();
            let baseline = registry::program_is_over();
            if !LIVE.insert(Entry { address, size, owner, site, freed: false, baseline }) {
                // SAFETY: 1: just allocated, and nobody has it.
                unsafe { blocks.free_intact(p, size) };
                return None;
            }
        }
        Some(p)
    }

    /// `realloc`: always a new block, so that a stale pointer to the old one meets dead bytes that the quarantine verifies.
    ///
    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    #[inline(never)]
    pub(crate) unsafe fn realloc<A: Malloc>(
        &self,
        blocks: &Blocks<A>,
        p: NonNull<u8>,
        new: usize,
        entry: Outermost,
    ) -> Option<NonNull<u8>> {
        let verified = self.verify(blocks, p, entry)?;
        let fresh = self.allocate(blocks, new, false, entry)?;
        // SAFETY: two live blocks that do not overlap, each of at least this size.
        unsafe { ptr::copy_nonoverlapping(p.as_ptr(), fresh.as_ptr(), verified.size.min(new)) };
        let freed = self.freed_at(blocks, entry);
        if let Some(owner) = self.registry {
            let hold = self.quarantine.is_some();
            if let Err(known) = LIVE.take(p.as_ptr().addr(), owner, hold, freed) {
                // Another thread freed it since it was verified.
                self.reject(blocks, p, Call::Realloc, known, self.caller(blocks, entry));
                return Some(fresh);
            }
        }
        // SAFETY: 1: verified above; 2: the caller's duty 2.
        unsafe { self.retire(blocks, p, verified, freed) };
        Some(fresh)
    }

    /// `free`. One look at the registry both finds the block and takes it out.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[inline(never)]
    pub(crate) unsafe fn free<A: Malloc>(
        &self,
        blocks: &Blocks<A>,
        p: NonNull<u8>,
        entry: Outermost,
    ) {
        let freed = self.freed_at(blocks, entry);
        let address = p.as_ptr().expose_provenance();
        let take = |owner| LIVE.take(address, owner, self.quarantine.is_some(), freed);
        let known = match self.registry.map(take).transpose() {
            Ok(known) => known,
            Err(known) => {
                return self.reject(blocks, p, Call::Free, known, self.caller(blocks, entry));
            }
        };
        let size = blocks.intact_size(p);
        let Some(size) = size.filter(|&size| known.is_none_or(|known| known.size == size)) else {
            if let Some(known) = known {
                // It stays live, in the place that it has only just left.
                LIVE.insert(known);
            }
            return self.damaged(blocks, p, Call::Free, known, self.caller(blocks, entry));
        };
        // SAFETY: 1: intact.
        let allocated = unsafe { self.allocated(blocks, p, size, known) };
        let verified = Verified { size, allocated };
        // SAFETY: 1: intact, and registered where there is a registry (the caller's duty 1); 2: the caller's duty 2.
        unsafe { self.retire(blocks, p, verified, freed) };
    }

    /// Checks that `p` is a live, intact block of these hooks, before it is resized; reports it otherwise.
    fn verify<A>(&self, blocks: &Blocks<A>, p: NonNull<u8>, entry: Outermost) -> Option<Verified> {
        let mut known = None;
        if let Some(owner) = self.registry {
            known = LIVE.get(p.as_ptr().addr());
            if known.is_none_or(|known| known.owner != owner || known.freed) {
                self.reject(blocks, p, Call::Realloc, known, self.caller(blocks, entry));
                return None;
            }
        }
        let size = blocks.intact_size(p);
        let Some(size) = size.filter(|&size| known.is_none_or(|known| known.size == size)) else {
            self.damaged(blocks, p, Call::Realloc, known, self.caller(blocks, entry));
            return None;
        };
        // SAFETY: 1: intact.
        let allocated = unsafe { self.allocated(blocks, p, size, known) };
        Some(Verified { size, allocated })
    }

    /// Where a block was allocated, which only a quarantine keeps.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live, intact block of these hooks of `size` bytes, which `known` says, if the registry knows it.
    #[inline]
    unsafe fn allocated<A>(
        &self,
        blocks: &Blocks<A>,
        p: NonNull<u8>,
        size: usize,
        known: Option<Entry>,
    ) -> Option<Site> {
        let extra = blocks.extra();
        if extra.site && self.quarantine.is_some() {
            // SAFETY: 1: by duty 1, with a site.
            let bits = unsafe { block::read_site(base_of(p), size, extra) };
            return bits.and_then(Site::from_bits);
        }
        known?.site
    }

    /// Reports a pointer that the registry does not know as a live block of these hooks.
    #[cold]
    fn reject<A>(
        &self,
        blocks: &Blocks<A>,
        p: NonNull<u8>,
        call: Call,
        known: Option<Entry>,
        caller: Option<Site>,
    ) {
        let address = p.as_ptr().addr();
        let facts = blocks.facts(p);
        let mut allocated = known.and_then(|known| known.site);
        let mut freed = None;
        let kind = match known {
            Some(known) if known.freed => {
                freed = known.site;
                allocated = self.held(address).and_then(|held| Site::from_bits(held.allocated));
                ViolationKind::DoubleFree
            }
            Some(known) if known.owner.domain() != blocks.domain => {
                ViolationKind::WrongDomain { allocated: known.owner.domain() }
            }
            // A block of other hooks of this domain.
            Some(_) => ViolationKind::ForeignPointer,
            None => match LIVE.enclosing(address) {
                Some(outer) => {
                    allocated = outer.site;
                    ViolationKind::InteriorPointer { block: outer.address, size: outer.size }
                }
                // A block that has left the quarantine, or was never in one.
                None if verdict::looks_freed(&facts) => ViolationKind::DoubleFree,
                None => ViolationKind::ForeignPointer,
            },
        };
        let violation = blocks.violation(kind, call, Some(facts));
        blocks.host.tell(&Violation { allocated, freed, caller, ..violation });
    }

    /// Reports a block whose header or guard is not intact.
    #[cold]
    fn damaged<A>(
        &self,
        blocks: &Blocks<A>,
        p: NonNull<u8>,
        call: Call,
        known: Option<Entry>,
        caller: Option<Site>,
    ) {
        let mut violation = blocks.verdict(p, call);
        violation.caller = caller;
        if let Some(known) = known {
            // It is live: whatever its header looks like, somebody wrote there.
            let header_is_intact = violation.block.as_ref().is_some_and(|facts| {
                facts.id() == Some(blocks.domain.letter())
                    && facts.pads_intact()
                    && facts.size() == Some(known.size as u64)
            });
            violation.kind = match header_is_intact {
                true => ViolationKind::TrailingPad,
                false => ViolationKind::LeadingPad,
            };
            violation.allocated = known.site;
        } else if let Some(held) = self.held(p.as_ptr().addr()) {
            violation.kind = ViolationKind::DoubleFree;
            violation.allocated = Site::from_bits(held.allocated);
            violation.freed = Site::from_bits(held.freed);
        } else {
            violation.allocated = violation.block.as_ref().and_then(BlockFacts::site);
        }
        blocks.host.tell(&violation);
    }

    fn held(&self, address: usize) -> Option<Held> {
        self.quarantine.as_ref()?.find(address)
    }

    /// Fills a block that is out of the registry dead, and gives it to the quarantine or back to its allocator.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live, intact block of these hooks, which `verified` describes.
    /// 2. It is not used again.
    #[inline]
    unsafe fn retire<A: Malloc>(
        &self,
        blocks: &Blocks<A>,
        p: NonNull<u8>,
        verified: Verified,
        freed: Option<Site>,
    ) {
        let size = verified.size;
        // SAFETY: 1: duties 1 and 2.
        let unfilled = unsafe { blocks.fill_dead::<false>(p, size) };
        let Some(quarantine) = &self.quarantine else {
            // SAFETY: duties 1 and 2: the underlying block is live, and never used again.
            return unsafe { blocks.inner.free(NonNull::new(base_of(p))) };
        };
        let held = Held {
            p: p.as_ptr().expose_provenance(),
            size,
            unfilled,
            allocated: Site::to_bits(verified.allocated),
            freed: Site::to_bits(freed),
        };
        block::held(base_of(p), size, quarantine.extra);
        loop {
            match quarantine.offer(&held) {
                Offer::Held(evicted) => {
                    if let Some(oldest) = evicted {
                        self.leave(blocks, &oldest);
                    }
                    break;
                }
                Offer::Again(oldest) => self.leave(blocks, &oldest),
                Offer::Refused => {
                    self.leave(blocks, &held);
                    break;
                }
            }
        }
    }

    /// Verifies a block that leaves the quarantine, and gives it back to its allocator.
    #[inline]
    fn leave<A: Malloc>(&self, blocks: &Blocks<A>, held: &Held) {
        let extra = blocks.extra();
        if let Some(kind) = quarantine::verify(held, extra) {
            used_after_free(blocks, held, kind);
        }
        if self.registry.is_some() {
            LIVE.remove(held.p);
        }
        if let Some(p) = pointer(held) {
            block::unheld(base_of(p), held.size, extra);
        }
        // SAFETY: the block was freed by its owner, and nobody but the quarantine has had it since.
        unsafe { blocks.inner.free(underlying(held)) };
    }

    pub(crate) fn release_quarantine<A: Malloc>(&self, blocks: &Blocks<A>) -> usize {
        let Some(quarantine) = &self.quarantine else {
            return 0;
        };
        core::iter::from_fn(|| quarantine.pop()).map(|held| self.leave(blocks, &held)).count()
    }

    pub(crate) fn quarantine(&self) -> Option<&Quarantine> {
        self.quarantine.as_ref()
    }

    pub(crate) fn quarantined(&self) -> (usize, usize) {
        self.quarantine.as_ref().map_or((0, 0), Quarantine::held)
    }

    /// Verifies what the quarantine holds, and leaves it held; gives how many blocks were written to.
    pub(crate) fn verify_held<A>(&self, blocks: &Blocks<A>) -> usize {
        let tell = |held: &Held, kind| used_after_free(blocks, held, kind);
        self.quarantine.as_ref().map_or(0, |quarantine| quarantine.verify_all(tell))
    }

    pub(crate) fn check_all<A>(&self, blocks: &Blocks<A>) -> usize {
        let mut found = self.verify_held(blocks);
        let Some(owner) = self.registry else {
            return found;
        };
        // The handler runs without the registry's lock, so that one violation a walk is carried out of it.
        let mut after = 0;
        while let Some(known) = next_damaged(blocks, owner, after) {
            after = known.address;
            if let Some(p) = block_at(known.address) {
                self.damaged(blocks, p, Call::Check, Some(known), None);
                found += 1;
            }
        }
        found
    }

    /// The hooks go: what they hold is verified and goes back, and what is live belongs to nobody.
    pub(crate) fn close<A: Malloc>(&self, blocks: &Blocks<A>) {
        self.release_quarantine(blocks);
        if let Some(owner) = self.registry {
            LIVE.disown(owner);
        }
    }
}

/// The damaged live block of `owner` with the lowest address above `after`.
fn next_damaged<A>(blocks: &Blocks<A>, owner: OwnerId, after: usize) -> Option<Entry> {
    let mut lowest: Option<Entry> = None;
    LIVE.for_each(|entry| {
        let candidate = entry.owner == owner
            && !entry.freed
            && entry.address > after
            && lowest.is_none_or(|l| entry.address < l.address);
        let size = || block_at(entry.address).and_then(|p| blocks.intact_size(p));
        if candidate && size() != Some(entry.size) {
            lowest = Some(entry);
        }
    });
    lowest
}

fn block_at(address: usize) -> Option<NonNull<u8>> {
    NonNull::new(ptr::with_exposed_provenance_mut(address))
}

/// Reports a write to a held block.
#[cold]
fn used_after_free<A>(blocks: &Blocks<A>, held: &Held, kind: ViolationKind) {
    let facts = BlockFacts::known(held.p, held.size, blocks.domain, Shape::Freed);
    let violation = blocks.violation(kind, Call::Check, Some(facts));
    let allocated = Site::from_bits(held.allocated);
    let freed = Site::from_bits(held.freed);
    blocks.host.tell(&Violation { allocated, freed, ..violation });
}
