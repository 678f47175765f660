//! Owns what is installed in one domain: the stack of records from the base allocator up, and the rules by which it
//! changes. Leaves the lock around it and the publishing to `domains.rs`.
//!
//! Knowing the whole stack, not only its top, is what keeps debug hooks from being set up over a wrapper that is already
//! above debug hooks.

use crate::domain::Domain;
use crate::error::SetAllocatorError;
use crate::immortal;
use crate::record::AllocatorRecord;

/// How many records one domain can stack, base and hooks included.
pub(crate) const MAX_LAYERS: usize = 16;

/// What a record is to the one below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Has blocks of its own.
    Base,
    /// The debug hooks: their blocks lie inside those of the record below.
    Hooks,
    /// Serves the very blocks of the record below.
    Wrapper,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    record: &'static AllocatorRecord,
    kind: Kind,
}

/// Debug hooks that were made for a domain; kept, so that hooks over the same record are made only once.
#[derive(Debug)]
struct Hooks {
    record: AllocatorRecord,
    inner: AllocatorRecord,
    next: Option<&'static Hooks>,
}

/// The stack of one domain.
///
/// 1. `stack[..len]` is `Some`, the rest `None`, and `len >= 1`.
/// 2. `stack[0]` is the only `Base`.
/// 3. At most one layer is `Hooks`.
#[derive(Debug)]
pub(crate) struct Layers {
    domain: Domain,
    stack: [Option<Layer>; MAX_LAYERS],
    len: usize,
    /// Whether a block may have been handed out, so that the base must stay.
    used: bool,
    hooks: Option<&'static Hooks>,
}

impl Layers {
    pub(crate) fn new(domain: Domain, base: AllocatorRecord) -> Self {
        let mut layers =
            Self { domain, stack: [None; MAX_LAYERS], len: 0, used: false, hooks: None };
        layers.rebase(immortal::leak(base));
        layers
    }

    /// The record that serves the domain.
    pub(crate) fn top(&self) -> &'static AllocatorRecord {
        self.layers().last().expect("invariant 1: a base is always there").record
    }

    /// The record that the debug hooks wrap, when the hooks are the outermost layer.
    pub(crate) fn under_hooks(&self) -> Option<&'static AllocatorRecord> {
        let outermost = self.layers().last()?;
        (outermost.kind == Kind::Hooks)
            .then(|| self.layers().rev().nth(1))
            .flatten()
            .map(|layer| layer.record)
    }

    /// Whether debug hooks are anywhere in the stack.
    pub(crate) fn hooked(&self) -> bool {
        self.layers().any(|layer| layer.kind == Kind::Hooks)
    }

    pub(crate) fn used(&self) -> bool {
        self.used
    }

    /// From now on the base stays; says whether it was free to change before.
    pub(crate) fn mark_used(&mut self) -> bool {
        !core::mem::replace(&mut self.used, true)
    }

    /// Whether `record` is debug hooks that were made for this domain.
    pub(crate) fn owns_hooks(&self, record: &AllocatorRecord) -> bool {
        self.find_hooks(|hooks| hooks.record == *record).is_some()
    }

    /// Puts `record` in place of the whole stack, or goes back to it where it is in the stack.
    ///
    /// Going back over wrappers is always allowed: the blocks stay the same. Anything else ends with the first block.
    pub(crate) fn replace(&mut self, record: AllocatorRecord) -> Result<(), SetAllocatorError> {
        let place = self.layers().position(|layer| *layer.record == record);
        if let Some(place) = place {
            let wrappers = self.layers().skip(place + 1).all(|layer| layer.kind == Kind::Wrapper);
            if self.used && !wrappers {
                return Err(SetAllocatorError::AfterFirstAllocation { domain: self.domain });
            }
            self.truncate(place + 1);
            return Ok(());
        }
        if self.used {
            return Err(SetAllocatorError::AfterFirstAllocation { domain: self.domain });
        }
        match self.find_hooks(|hooks| hooks.record == record) {
            Some(hooks) => {
                self.rebase(&hooks.inner);
                self.push(Layer { record: &hooks.record, kind: Kind::Hooks })
            }
            None => {
                self.rebase(immortal::leak(record));
                Ok(())
            }
        }
    }

    /// Puts a wrapper of `inner` on top. `Ok(false)`, with nothing changed, when `inner` is no longer the top.
    pub(crate) fn wrap(
        &mut self,
        inner: &AllocatorRecord,
        wrapper: AllocatorRecord,
    ) -> Result<bool, SetAllocatorError> {
        if self.top() != inner {
            return Ok(false);
        }
        self.push(Layer { record: immortal::leak(wrapper), kind: Kind::Wrapper })?;
        Ok(true)
    }

    /// Whether `set_hooks` can do what it is for: the hooks are there, or can still be put there.
    pub(crate) fn check_hooks(&self) -> Result<(), SetAllocatorError> {
        if self.hooked() {
            return Ok(());
        }
        if self.used {
            return Err(SetAllocatorError::AfterFirstAllocation { domain: self.domain });
        }
        self.check_room()
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
        let inner = *self.top();
        let hooks = match self.find_hooks(|hooks| hooks.inner == inner) {
            Some(hooks) => hooks,
            None => {
                let made = Hooks { record: make(inner)?, inner, next: self.hooks };
                let made = immortal::leak(made);
                self.hooks = Some(made);
                made
            }
        };
        self.push(Layer { record: &hooks.record, kind: Kind::Hooks })
    }

    fn layers(&self) -> impl DoubleEndedIterator<Item = &Layer> + ExactSizeIterator {
        self.stack[..self.len].iter().map(|layer| layer.as_ref().expect("invariant 1"))
    }

    fn find_hooks(&self, found: impl Fn(&Hooks) -> bool) -> Option<&'static Hooks> {
        core::iter::successors(self.hooks, |hooks| hooks.next).find(|hooks| found(hooks))
    }

    fn check_room(&self) -> Result<(), SetAllocatorError> {
        if self.len == MAX_LAYERS {
            return Err(SetAllocatorError::TooManyLayers {
                domain: self.domain,
                limit: MAX_LAYERS,
            });
        }
        Ok(())
    }

    fn push(&mut self, layer: Layer) -> Result<(), SetAllocatorError> {
        self.check_room()?;
        self.stack[self.len] = Some(layer);
        self.len += 1;
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.stack[len..].fill(None);
        self.len = len;
    }

    fn rebase(&mut self, base: &'static AllocatorRecord) {
        self.truncate(0);
        self.stack[0] = Some(Layer { record: base, kind: Kind::Base });
        self.len = 1;
    }
}
