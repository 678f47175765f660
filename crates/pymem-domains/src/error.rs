//! Owns the errors of making and changing a set of domains.

use malloc_api::Domain;
use thiserror::Error;

use crate::name::UnknownAllocator;
use crate::table::{AllocatorName, Backend};

/// A configuration that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DomainsError {
    /// The profile rejects the name.
    #[error(transparent)]
    UnknownAllocator(#[from] UnknownAllocator),
    /// The profile has an allocator that this build of the crate leaves out.
    #[error(
        "{domain} needs {backend}, which is not compiled in; build pymem-domains with the feature `{backend}`"
    )]
    Unavailable {
        /// The domain that the table gives to the allocator.
        domain: Domain,
        /// The allocator that is missing.
        backend: Backend,
    },
    /// The row carries debug hooks that cannot be made.
    #[error(transparent)]
    Hooks(#[from] SetAllocatorError),
}

/// Process-wide domains that cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GlobalError {
    /// They are configured: by an earlier call, or by the first allocation.
    #[error(
        "the process-wide domains already run as `{name}`; configure them once, before the first allocation"
    )]
    AlreadyConfigured {
        /// The name that they were configured by.
        name: AllocatorName,
    },
    /// The configuration cannot be made.
    #[error(transparent)]
    Domains(#[from] DomainsError),
}

/// A change of a domain's allocator that would lose or corrupt blocks. The domain is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SetAllocatorError {
    /// The domain has handed out blocks that the new allocator could not take back.
    #[error(
        "the {domain} domain has handed out blocks, which the new allocator could not take back; \
         set it before the first allocation, or wrap the current allocator"
    )]
    AfterFirstAllocation {
        /// The domain.
        domain: Domain,
    },
    /// The record is hooks or a wrapper over another domain's allocator.
    #[error(
        "the record lies on the {owner} domain's allocator; {domain} needs one of its own: wrap {domain}'s allocator"
    )]
    WrongDomain {
        /// The domain that was to be changed.
        domain: Domain,
        /// The domain whose hooks or wrapper it is.
        owner: Domain,
    },
    /// The options of the debug hooks, or of guard pages alone, cannot be switched on.
    #[error("the debug hooks of the {domain} domain cannot be made: {error}")]
    Options {
        /// The domain.
        domain: Domain,
        /// Why.
        error: memdebug::ConfigureError,
    },
}
