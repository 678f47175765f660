//! What the types promise about threads, at compile time.

use pymem_domains::{Description, DomainAllocator, Domains, HeapStats, Profile, Stats};

const fn crosses_threads<T: Send + Sync>() {}

const _: () = crosses_threads::<Domains>();
const _: () = crosses_threads::<DomainAllocator>();
const _: () = crosses_threads::<Profile>();
const _: () = crosses_threads::<(Stats, HeapStats, Description)>();
