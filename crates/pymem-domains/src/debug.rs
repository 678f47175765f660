//! Owns how a set of domains makes its debug hooks and its samplers of guard pages. Leaves both to `memdebug`.

use malloc_api::{AllocatorRecord, Domain, Malloc, immortal};
use memdebug::{ConfigureError, DebugHooks, GuardSampler, Host, Options};

/// What the debug hooks of a set of domains are to do, wherever a row or a later call puts them.
///
/// The default is CPython's hooks: no option, no thread rule, and a report and `abort` on a violation. A row without hooks
/// has guard pages alone where the options ask for nothing else ([`DebugConfig::samples`]).
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

    /// Whether a row without debug hooks gets guard pages for one block in N: the options ask for `guard`, with `backtrace`
    /// or without, and for nothing that needs hooks.
    #[must_use]
    pub fn samples(&self) -> bool {
        self.options.guard.is_some() && self.options.needs_hooks().is_none()
    }

    /// `checks` of `domain` over `inner`: a record, or an allocator itself, whose calls the compiler can inline.
    pub(crate) fn over<A: Malloc + Sync + 'static>(
        &self,
        checks: Checks,
        domain: Domain,
        inner: A,
    ) -> Result<AllocatorRecord, ConfigureError> {
        match checks {
            Checks::Hooks => hooks_over(inner, domain, self.host, &self.options),
            Checks::Sampler => {
                let sampler = GuardSampler::new(inner, domain).with_host(self.host);
                let sampler = sampler.with_options(&self.options);
                sampler.map(AllocatorRecord::leak)
            }
            Checks::SerializedSampler => {
                let sampler = GuardSampler::serialized(inner, domain).with_host(self.host);
                let sampler = sampler.with_options(&self.options);
                sampler.map(AllocatorRecord::leak)
            }
        }
    }
}

/// The debug hooks over `inner`, as a record that lives for ever, and guard pages around them where the options ask for some.
///
/// # Errors
///
/// Options that cannot be switched on.
pub fn hooks_over<A: Malloc + Sync + 'static>(
    inner: A,
    domain: Domain,
    host: Host,
    options: &Options,
) -> Result<AllocatorRecord, ConfigureError> {
    let hooks = DebugHooks::new(inner, domain).with_host(host);
    let hooks = immortal::leak(hooks.with_options(&options.for_hooks())?);
    if options.quarantine.is_some() {
        hooks.verify_at_exit();
    }
    if options.guard.is_none() {
        return Ok(AllocatorRecord::rare(hooks));
    }
    let sampler = GuardSampler::new(hooks, domain).with_host(host).with_thread_rule();
    let sampler = sampler.with_options(&options.for_sampler())?;
    Ok(AllocatorRecord::leak(sampler))
}

/// What looks after the blocks of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checks {
    /// The debug hooks.
    Hooks,
    /// Guard pages for one block in N, and nothing else.
    Sampler,
    /// The same where calls seldom overlap.
    SerializedSampler,
}
