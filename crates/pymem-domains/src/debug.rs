//! Owns how a set of domains makes its debug hooks. Leaves the hooks themselves to `memdebug`.

use malloc_api::Malloc;
use memdebug::{ApiId, DebugHooks, Host, Options};

use crate::domain::Domain;
use crate::error::SetAllocatorError;
use crate::immortal;
use crate::record::AllocatorRecord;

/// What the debug hooks of a set of domains are to do, wherever a row or a later call puts them.
///
/// The default is CPython's hooks: no option, no thread rule, and a report and `abort` on a violation.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugConfig {
    host: Host,
    options: Options,
}

impl DebugConfig {
    /// CPython's hooks.
    #[must_use]
    pub const fn new() -> Self {
        Self { host: Host::new(), options: Options::new() }
    }

    /// Sets what the surroundings supply: the thread rule, the answer to a violation, traceback lines.
    #[must_use]
    pub const fn with_host(mut self, host: Host) -> Self {
        self.host = host;
        self
    }

    /// Sets the checks beyond CPython's.
    #[must_use]
    pub const fn with_options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Debug hooks of `domain` over `inner`: a record, or an allocator itself, whose calls are then inlined in the hooks'.
    pub(crate) fn hooks<A: Malloc + Sync + 'static>(
        &self,
        domain: Domain,
        inner: A,
    ) -> Result<AllocatorRecord, SetAllocatorError> {
        let api = match domain {
            Domain::Raw => ApiId::Raw,
            Domain::Mem => ApiId::Mem,
            Domain::Obj => ApiId::Obj,
        };
        let hooks = DebugHooks::new(inner, api).with_host(self.host);
        let hooks = hooks
            .with_options(&self.options)
            .map_err(|error| SetAllocatorError::Options { domain, error })?;
        Ok(AllocatorRecord::new(immortal::leak(hooks)))
    }
}
