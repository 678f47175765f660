//! Owns the four calls with options beyond CPython's: registry, quarantine, backtraces, guard pages.
//! Leaves each of these to the file of its name, and what goes over all blocks to `checked/walks.rs`. Built without `std`
//! its twin `checked_core.rs` stands here.

use core::num::NonZeroU32;
use core::ptr::{self, NonNull};

use std::sync::OnceLock;

use malloc_api::Malloc;

use crate::annotated;
use crate::at_exit::{self, VerifiedAtExit};
use crate::block::base_of;
use crate::checks::leaks;
use crate::checks::quarantine::{Held, Offer, Owner, Quarantine, pointer, underlying};
use crate::checks::registry::{Entry, LIVE};
use crate::error::ConfigureError;
use crate::fork;
use crate::guard::countdown;
use crate::guard::pool::{self, Guarded};
use crate::hooks::DebugHooks;
use crate::host::Host;
use crate::options::Options;
use crate::report::facts::BlockFacts;
use crate::report::verdict;
use crate::report::violation::{Call, Violation, ViolationKind};
use crate::sites::capture::Outermost;
use crate::sites::sites::Site;
use malloc_api::Domain;

/// The options of this file, once they are set.
#[derive(Debug)]
pub(crate) struct Checked(OnceLock<State>);

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) registry: bool,
    /// Frames of a site, 0 for none.
    backtrace: u8,
    guard: Option<Guard>,
    pub(crate) quarantine: Option<VerifiedAtExit>,
}

#[derive(Clone, Copy, Debug)]
struct Guard {
    /// One block in how many.
    rate: NonZeroU32,
    /// Whom a fault is reported to.
    host: u32,
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
        host: &Host,
    ) -> Result<bool, ConfigureError> {
        let registry = options.needs_registry();
        if !registry && options.quarantine.is_none() && options.guard.is_none() {
            return Ok(self.0.get().is_some());
        }
        if self.0.get().is_some() {
            return Err(ConfigureError::AlreadySet);
        }
        let guard = options.guard.map(|rate| Ok(Guard { rate, host: pool::enlist(host)? }));
        let guard = guard.transpose()?;
        let owner = Owner { domain, serial: options.serial, host: *host };
        let quarantine = options.quarantine.map(|bounds| {
            at_exit::verify(Quarantine::new(bounds, owner))
                .ok_or(ConfigureError::NoMemory { option: "quarantine" })
        });
        let quarantine = quarantine.transpose()?;
        if let Some(report) = options.leaks {
            leaks::report_leaks_at_exit(report);
        }
        fork::install();
        let state = State { registry, backtrace: options.backtrace, guard, quarantine };
        self.0.set(state).map(|()| true).map_err(|_| ConfigureError::AlreadySet)
    }

    pub(crate) fn state(&self) -> Option<&State> {
        self.0.get()
    }
}

/// A verified block that is about to be freed or resized.
enum Verified {
    /// With header and guard bytes.
    Block { size: usize, allocated: Option<Site> },
    /// Between guard pages.
    Guarded(Guarded),
}

impl Verified {
    fn size(&self) -> usize {
        match self {
            Self::Block { size, .. } => *size,
            Self::Guarded(guarded) => guarded.size,
        }
    }
}

impl State {
    #[inline]
    fn site(&self, host: &Host, entry: Outermost) -> Option<Site> {
        match self.backtrace {
            0 => None,
            depth => Site::here(depth, host.current_frames, entry),
        }
    }
}

/// Whether the block lies between guard pages.
#[inline(always)]
pub(crate) fn is_guarded(p: NonNull<u8>) -> bool {
    pool::contains(p.as_ptr().addr())
}

impl<A: Malloc> DebugHooks<A> {
    /// A block between guard pages, if it is this block's turn and there are pages for it.
    #[inline(always)]
    pub(crate) fn malloc_guarded(&self, size: usize) -> Option<NonNull<u8>> {
        let guard = self.checked.state()?.guard?;
        if !countdown::sampled(guard.rate) {
            return None;
        }
        pool::malloc(size, self.domain, false, guard.host, None)
    }

    #[inline(never)]
    pub(crate) fn malloc_checked(&self, size: usize, entry: Outermost) -> Option<NonNull<u8>> {
        self.allocate(size, false, entry)
    }

    #[inline(never)]
    pub(crate) fn calloc_checked(&self, size: usize, entry: Outermost) -> Option<NonNull<u8>> {
        self.allocate(size, true, entry)
    }

    #[inline]
    fn allocate(&self, size: usize, zero: bool, entry: Outermost) -> Option<NonNull<u8>> {
        let state = self.checked.state()?;
        let site = state.site(&self.host, entry);
        let guarded = state
            .guard
            .filter(|guard| countdown::sampled(guard.rate))
            .and_then(|guard| pool::malloc(size, self.domain, zero, guard.host, site));
        if guarded.is_some() {
            return guarded;
        }
        let p = match zero {
            true => self.calloc_bytes(size),
            false if self.makes_plain_blocks() => self.malloc_plain(size),
            false => self.malloc_numbered(size),
        }?;
        if state.registry {
            let address = p.as_ptr().expose_provenance();
            let entry = Entry { address, size, domain: self.domain, site, freed: false };
            if !LIVE.insert(entry) {
                // SAFETY: 1: just allocated, and nobody has it.
                unsafe { self.free_numbered(p, size) };
                return None;
            }
        }
        Some(p)
    }

    /// # Safety
    ///
    /// As [`Malloc::realloc`].
    #[inline(never)]
    pub(crate) unsafe fn realloc_checked(
        &self,
        p: NonNull<u8>,
        new: usize,
        entry: Outermost,
    ) -> Option<NonNull<u8>> {
        let state = self.checked.state()?;
        let verified = self.verify(state, p, Call::Realloc)?;
        // Always a new block: a stale pointer to the old one then meets dead bytes that the quarantine verifies.
        let fresh = self.allocate(new, false, entry)?;
        let kept = verified.size().min(new);
        // SAFETY: two live blocks that do not overlap, each of at least this size.
        unsafe { ptr::copy_nonoverlapping(p.as_ptr(), fresh.as_ptr(), kept) };
        // SAFETY: 1: verified above; 2: the caller's duty 2.
        unsafe { self.release(state, p, &verified, Call::Realloc, entry) };
        Some(fresh)
    }

    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[inline(never)]
    pub(crate) unsafe fn free_checked(&self, p: NonNull<u8>, entry: Outermost) {
        let Some(state) = self.checked.state() else {
            return;
        };
        if state.registry && !is_guarded(p) {
            // SAFETY: 1 and 2: the caller's.
            return unsafe { self.free_registered(state, p, entry) };
        }
        if let Some(verified) = self.verify(state, p, Call::Free) {
            // SAFETY: 1: verified above; 2: the caller's duty 2.
            unsafe { self.release(state, p, &verified, Call::Free, entry) };
        }
    }

    /// `free` of what the registry must know: one look at it both finds the block and takes it out.
    ///
    /// # Safety
    ///
    /// As [`Malloc::free`].
    #[inline]
    unsafe fn free_registered(&self, state: &State, p: NonNull<u8>, entry: Outermost) {
        let freed = state.site(&self.host, entry);
        let address = p.as_ptr().expose_provenance();
        let entry = match LIVE.take(address, self.domain, state.quarantine.is_some(), freed) {
            Ok(entry) => entry,
            Err(rejection) => return self.reject(state, p, Call::Free, rejection.entry()),
        };
        if self.intact_size(p) != Some(entry.size) {
            // It stays live, in the place that it has only just left.
            LIVE.insert(entry);
            return self.report(state, p, Call::Free, Some(entry));
        }
        // SAFETY: 1: registered and intact; 2: the caller's duties 1 and 2.
        unsafe { self.retire(state, p, entry.size, entry.site, freed) };
    }

    /// Checks that `p` is a live, intact block of these hooks; reports it otherwise.
    fn verify(&self, state: &State, p: NonNull<u8>, call: Call) -> Option<Verified> {
        let address = p.as_ptr().addr();
        let guarded = if pool::contains(address) { Some(pool::at(address)) } else { None };
        // Inside of a guarded block of other hooks lies what those have handed to these as plain memory.
        let is_nested = guarded.flatten().is_some_and(|outer| outer.encloses(address));
        if let Some(guarded) = guarded.filter(|_| !is_nested || self.intact_size(p).is_none()) {
            let Some(kind) = pool::check(address, guarded.as_ref(), self.domain) else {
                return guarded.map(Verified::Guarded);
            };
            let guarded = guarded.as_ref();
            let report = pool::violation(kind, call, address, guarded, self.domain, &self.host);
            (self.host.handler)(&report);
            return None;
        }
        let entry = if state.registry {
            match LIVE.get(address) {
                Some(entry) if entry.domain == self.domain && !entry.freed => Some(entry),
                other => {
                    self.reject(state, p, call, other);
                    return None;
                }
            }
        } else {
            None
        };
        let allocated = entry.and_then(|entry| entry.site);
        let size = match (self.intact_size(p), entry) {
            (Some(size), None) => size,
            (Some(size), Some(entry)) if size == entry.size => size,
            _ => {
                self.report(state, p, call, entry);
                return None;
            }
        };
        Some(Verified::Block { size, allocated })
    }

    /// Reports a pointer that the registry does not know as a live block of this domain.
    #[cold]
    fn reject(&self, state: &State, p: NonNull<u8>, call: Call, known: Option<Entry>) {
        let address = p.as_ptr().addr();
        let facts = self.facts(p);
        let mut allocated = None;
        let mut freed = None;
        let kind = match known {
            Some(entry) if entry.freed => {
                freed = entry.site;
                allocated = self.held(state, address).and_then(|h| Site::from_bits(h.allocated));
                ViolationKind::DoubleFree
            }
            Some(entry) => {
                allocated = entry.site;
                ViolationKind::WrongDomain { allocated: entry.domain }
            }
            None => match LIVE.enclosing(address) {
                Some(entry) => {
                    allocated = entry.site;
                    ViolationKind::InteriorPointer { block: entry.address, size: entry.size }
                }
                // A block that has left the quarantine, or was never in one.
                None if verdict::looks_freed(&facts) => ViolationKind::DoubleFree,
                None => ViolationKind::ForeignPointer,
            },
        };
        self.tell(Violation { allocated, freed, ..self.violation(kind, call, facts) });
    }

    /// Reports a block whose header or guard is not intact.
    #[cold]
    pub(crate) fn report(&self, state: &State, p: NonNull<u8>, call: Call, entry: Option<Entry>) {
        if let Some(entry) = entry {
            let facts = self.facts(p);
            // It is live: whatever its header looks like, somebody wrote there.
            let header_is_intact = facts.id() == Some(self.domain.letter())
                && facts.pads_intact()
                && facts.size() == Some(entry.size as u64);
            let kind = match header_is_intact {
                true => ViolationKind::TrailingPad,
                false => ViolationKind::LeadingPad,
            };
            let allocated = entry.site;
            return self.tell(Violation { allocated, ..self.violation(kind, call, facts) });
        }
        let report = match self.held(state, p.as_ptr().addr()) {
            Some(held) => Violation {
                allocated: Site::from_bits(held.allocated),
                freed: Site::from_bits(held.freed),
                ..self.violation(ViolationKind::DoubleFree, call, self.facts(p))
            },
            None => verdict::on_block(p, call, self.domain, self.has_serial(), &self.host),
        };
        self.tell(report);
    }

    /// Reports a guarded block that another thread freed since it was verified.
    #[cold]
    fn freed_meanwhile(&self, p: NonNull<u8>, guarded: &Guarded, call: Call) {
        let (kind, address) = (ViolationKind::DoubleFree, p.as_ptr().addr());
        self.tell(pool::violation(kind, call, address, Some(guarded), self.domain, &self.host));
    }

    fn facts(&self, p: NonNull<u8>) -> BlockFacts {
        BlockFacts::read(p.as_ptr().addr(), self.has_serial())
    }

    fn violation(&self, kind: ViolationKind, call: Call, facts: BlockFacts) -> Violation {
        Violation::new(kind, call, self.domain, Some(facts), &self.host)
    }

    fn tell(&self, report: Violation) {
        (self.host.handler)(&report);
    }

    fn held(&self, state: &State, address: usize) -> Option<Held> {
        state.quarantine.as_ref()?.find(address)
    }

    /// Frees a verified block, into the quarantine where there is one.
    ///
    /// # Safety
    ///
    /// 1. `p` is the block that `verified` was made of.
    /// 2. It is not used again.
    unsafe fn release(
        &self,
        state: &State,
        p: NonNull<u8>,
        verified: &Verified,
        call: Call,
        entry: Outermost,
    ) {
        let freed = state.site(&self.host, entry);
        let (size, allocated) = match *verified {
            Verified::Block { size, allocated } => (size, allocated),
            Verified::Guarded(guarded) => {
                if !pool::free(&guarded, freed) {
                    self.freed_meanwhile(p, &guarded, call);
                }
                return;
            }
        };
        let address = p.as_ptr().expose_provenance();
        let hold = state.quarantine.is_some();
        let taken = state.registry.then(|| LIVE.take(address, self.domain, hold, freed));
        if let Some(Err(rejection)) = taken {
            // Another thread freed it since it was verified.
            return self.reject(state, p, call, rejection.entry());
        }
        // SAFETY: 1 and 2: duties 1 and 2.
        unsafe { self.retire(state, p, size, allocated, freed) };
    }

    /// Fills a block that is out of the registry dead, and gives it to the quarantine or back to its allocator.
    ///
    /// # Safety
    ///
    /// 1. `p` is a live, intact block of these hooks of `size` bytes, with header and guard.
    /// 2. It is not used again.
    #[inline]
    unsafe fn retire(
        &self,
        state: &State,
        p: NonNull<u8>,
        size: usize,
        allocated: Option<Site>,
        freed: Option<Site>,
    ) {
        let address = p.as_ptr().expose_provenance();
        // SAFETY: 1: duties 1 and 2.
        let unfilled = unsafe { self.fill_dead(p, size) };
        let Some(quarantine) = &state.quarantine else {
            // SAFETY: duties 1 and 2: the underlying block is live, and never used again.
            return unsafe { self.inner.free(NonNull::new(base_of(p))) };
        };
        let held = Held {
            p: address,
            size,
            unfilled,
            allocated: Site::to_bits(allocated),
            freed: Site::to_bits(freed),
        };
        annotated::held(base_of(p), size, self.has_serial());
        loop {
            match quarantine.offer(&held) {
                Offer::Held(evicted) => {
                    if let Some(oldest) = evicted {
                        self.leave(state, quarantine, &oldest);
                    }
                    break;
                }
                Offer::Again(oldest) => self.leave(state, quarantine, &oldest),
                Offer::Refused => {
                    self.leave(state, quarantine, &held);
                    break;
                }
            }
        }
    }

    /// Verifies a block that leaves the quarantine, and gives it back to its allocator.
    #[inline]
    pub(crate) fn leave(&self, state: &State, quarantine: &Quarantine, held: &Held) {
        if let Some(report) = quarantine.owner.verify(held, Call::Check) {
            (self.host.handler)(&report);
        }
        if state.registry {
            LIVE.remove(held.p);
        }
        if let Some(p) = pointer(held) {
            annotated::unheld(base_of(p), held.size, self.has_serial());
        }
        // SAFETY: the block was freed by its owner, and nobody but the quarantine has had it since.
        unsafe { self.inner.free(underlying(held)) };
    }
}
