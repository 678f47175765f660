//! Owns what is installed in one domain, and the rules by which it changes. Leaves the lock around it and the publishing
//! to `shared.rs`.
//!
//! Every record that ever served the domain is remembered with what it lies on:
//!
//! ```text
//!  wrapper    serves the blocks of the layer below          <- top, what calls go to
//!  hooks      its blocks lie inside those below             <- owner: its blocks are what callers hold
//!  wrapper
//!  base       has blocks of its own
//! ```
//!
//! Knowing the whole stack, not only its top, is what keeps debug hooks from being set up over a wrapper that is already
//! above debug hooks.

use core::iter;
use core::ptr;

use malloc_api::{AllocatorRecord, Domain, immortal};

use crate::error::SetAllocatorError;

/// What a record is to the one below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Has blocks of its own, and nothing below.
    Base,
    /// The debug hooks: their blocks lie inside those of the record below.
    Hooks,
    /// Guard pages for one block in N: some blocks are its own, the others those of the record below.
    Sampler,
    /// Serves the very blocks of the record below.
    Wrapper,
}

/// A record in its place.
///
/// 1. `below` is `None` exactly for a `Base`.
/// 2. From a layer down to its base there is at most one `Hooks`.
#[derive(Debug)]
struct Layer {
    record: AllocatorRecord,
    kind: Kind,
    below: Option<&'static Layer>,
    /// The layer that was remembered before this one.
    older: Option<&'static Layer>,
}

impl Layer {
    /// This layer and those below it, from the top.
    fn stack(&'static self) -> impl Iterator<Item = &'static Layer> {
        iter::successors(Some(self), |layer| layer.below)
    }

    /// This layer, or below samplers the layer that they lie on.
    fn below_samplers(&'static self) -> &'static Layer {
        self.stack().find(|layer| layer.kind != Kind::Sampler).unwrap_or(self)
    }

    /// The layer whose blocks this one serves.
    fn owner(&'static self) -> &'static Layer {
        self.stack().find(|layer| layer.kind != Kind::Wrapper).unwrap_or(self)
    }

    fn hooked(&'static self) -> bool {
        self.stack().any(|layer| layer.kind == Kind::Hooks)
    }
}

/// The stack of one domain.
#[derive(Debug)]
pub(crate) struct Layers {
    domain: Domain,
    top: &'static Layer,
    /// The layer that was remembered last.
    newest: &'static Layer,
    /// Whether a block may have been handed out, so that the owner must stay.
    used: bool,
}

impl Layers {
    pub(crate) fn new(domain: Domain, base: AllocatorRecord) -> Self {
        let base = Layer { record: base, kind: Kind::Base, below: None, older: None };
        let base = immortal::leak(base);
        Self { domain, top: base, newest: base, used: false }
    }

    /// The record that serves the domain.
    pub(crate) fn top(&self) -> &'static AllocatorRecord {
        &self.top.record
    }

    /// The record below the outermost layer where that is a sampler, else the top.
    pub(crate) fn under_sampler(&self) -> &'static AllocatorRecord {
        &self.top.below_samplers().record
    }

    /// The record that the debug hooks wrap, when the hooks are the outermost layer; one below a sampler.
    pub(crate) fn under_hooks(&self) -> Option<&'static AllocatorRecord> {
        let below = self.top.below.filter(|_| self.top.kind == Kind::Hooks)?;
        Some(&below.below_samplers().record)
    }

    /// The record below all others.
    pub(crate) fn base(&self) -> &'static AllocatorRecord {
        self.top.stack().last().map_or(&self.top.record, |layer| &layer.record)
    }

    /// The record that serves allocators of other domains, whose blocks have hooks or guard pages of their own: the one
    /// below the debug hooks and the sampler, or the top where there are none. It stays once the domain is used.
    pub(crate) fn for_allocators(&self) -> &'static AllocatorRecord {
        let is_checks = |layer: &&Layer| matches!(layer.kind, Kind::Hooks | Kind::Sampler);
        let checks = self.top.stack().filter(is_checks).last();
        &checks.and_then(|checks| checks.below).unwrap_or(self.top).record
    }

    /// Whether debug hooks are anywhere in the stack.
    pub(crate) fn hooked(&self) -> bool {
        self.top.hooked()
    }

    /// How many wrappers lie over the layer that owns the blocks.
    pub(crate) fn wrappers(&self) -> usize {
        self.top.stack().take_while(|layer| layer.kind == Kind::Wrapper).count()
    }

    pub(crate) fn used(&self) -> bool {
        self.used
    }

    /// From now on the owner stays.
    pub(crate) fn mark_used(&mut self) {
        self.used = true;
    }

    /// Whether `record` is this domain's: hooks or a wrapper that lie on what served it.
    pub(crate) fn owns(&self, record: &AllocatorRecord) -> bool {
        self.known(record).any(|layer| layer.kind != Kind::Base)
    }

    /// Puts `record` in place of the whole stack. A record that served before comes back with what it lay on.
    ///
    /// A record that serves the same blocks may come at any time, any other one until the first block.
    pub(crate) fn replace(&mut self, record: AllocatorRecord) -> Result<(), SetAllocatorError> {
        let owner = self.top.owner();
        if let Some(same) = self.known(&record).find(|layer| ptr::eq(layer.owner(), owner)) {
            self.top = same;
            return Ok(());
        }
        if self.used {
            return Err(SetAllocatorError::AfterFirstAllocation { domain: self.domain });
        }
        let known = self.known(&record).next();
        self.top = known.unwrap_or_else(|| self.remember(record, Kind::Base, None));
        Ok(())
    }

    /// Puts a wrapper of `inner` on top; `false`, with nothing changed, when `inner` is no longer the top.
    pub(crate) fn wrap(&mut self, inner: &AllocatorRecord, wrapper: AllocatorRecord) -> bool {
        if self.top() != inner {
            return false;
        }
        let below = self.top;
        let known = self.known(&wrapper).find(|layer| {
            layer.kind == Kind::Wrapper && layer.below.is_some_and(|layer| ptr::eq(layer, below))
        });
        self.top = known.unwrap_or_else(|| self.remember(wrapper, Kind::Wrapper, Some(below)));
        true
    }

    /// Whether `set_hooks` can do what it is for: the hooks are there, or can still be put there.
    pub(crate) fn check_hooks(&self) -> Result<(), SetAllocatorError> {
        if self.used && !self.hooked() {
            return Err(SetAllocatorError::AfterFirstAllocation { domain: self.domain });
        }
        Ok(())
    }

    /// Puts debug hooks on top, unless the stack has some; `make` makes hooks over a record.
    pub(crate) fn set_hooks(
        &mut self,
        make: impl FnOnce(AllocatorRecord) -> Result<AllocatorRecord, SetAllocatorError>,
    ) -> Result<(), SetAllocatorError> {
        self.check_hooks()?;
        if self.hooked() {
            return Ok(());
        }
        let below = self.top;
        let known = self.remembered().find(|layer| {
            layer.kind == Kind::Hooks && layer.below.is_some_and(|layer| ptr::eq(layer, below))
        });
        self.top = match known {
            Some(hooks) => hooks,
            None => self.remember(make(below.record)?, Kind::Hooks, Some(below)),
        };
        Ok(())
    }

    /// Puts a sampler of guard pages on top; `make` makes one over a record. Before the first block alone.
    pub(crate) fn set_sampler(
        &mut self,
        make: impl FnOnce(AllocatorRecord) -> Result<AllocatorRecord, SetAllocatorError>,
    ) -> Result<(), SetAllocatorError> {
        if self.top.kind != Kind::Base {
            return Ok(());
        }
        if self.used {
            return Err(SetAllocatorError::AfterFirstAllocation { domain: self.domain });
        }
        self.top = self.remember(make(self.top.record)?, Kind::Sampler, Some(self.top));
        Ok(())
    }

    /// Every layer that ever served the domain, newest first.
    fn remembered(&self) -> impl Iterator<Item = &'static Layer> + use<> {
        iter::successors(Some(self.newest), |layer| layer.older)
    }

    /// The layers of `record`, newest first.
    fn known(&self, record: &AllocatorRecord) -> impl Iterator<Item = &'static Layer> + use<> {
        let record = *record;
        self.remembered().filter(move |layer| layer.record == record)
    }

    fn remember(
        &mut self,
        record: AllocatorRecord,
        kind: Kind,
        below: Option<&'static Layer>,
    ) -> &'static Layer {
        let layer = Layer { record, kind, below, older: Some(self.newest) };
        self.newest = immortal::leak(layer);
        self.newest
    }
}
