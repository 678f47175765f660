//! Owns the errors of making and changing a set of domains.

use thiserror::Error;

use crate::domain::Domain;
use crate::name::UnknownAllocator;
use crate::table::Backend;

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
    /// The record is the debug hooks of another domain.
    #[error(
        "the record is the {owner} domain's debug hooks; {domain} blocks under them would be reported as corrupt"
    )]
    WrongDomain {
        /// The domain that was to be changed.
        domain: Domain,
        /// The domain whose hooks they are.
        owner: Domain,
    },
    /// The domain has as many wrappers as it can hold.
    #[error(
        "the {domain} domain already has {limit} allocators stacked; restore an earlier one first"
    )]
    TooManyLayers {
        /// The domain.
        domain: Domain,
        /// How many records a domain can stack.
        limit: usize,
    },
}
