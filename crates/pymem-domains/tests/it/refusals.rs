//! Every error of the crate, as a person reads it: what was wrong, what was expected, what to do.

use malloc_api::testing::assert_reviewed;
use pymem_domains::{
    AllocatorName, Backend, Build, Domain, DomainsError, GlobalError, OutOfMemory, Profile,
    SetAllocatorError as S, UnknownAllocator, Version,
};

fn rejected(name: &str, build: Build, pymalloc: bool, mimalloc: bool) -> UnknownAllocator {
    let profile = Profile::new(Version::NEWEST, build, pymalloc, mimalloc, false);
    let profile = profile.expect("a profile");
    AllocatorName::parse(name.as_bytes(), &profile).expect_err("a name that is not accepted")
}

#[test]
fn every_error_is_as_it_was_reviewed() {
    let domain = Domain::Obj;
    let unknown = rejected("Malloc", Build::Gil, true, true);
    let profile = Profile::new(Version::NEWEST, Build::FreeThreaded, true, false, false);
    let no_memory = memdebug::ConfigureError::NoMemory { option: "quarantine" };
    let options = S::Options { domain, error: no_memory };
    let unavailable = || DomainsError::Unavailable { domain, backend: Backend::Mimalloc };
    let configured = GlobalError::AlreadyConfigured { name: AllocatorName::Pymalloc };
    assert_reviewed(
        include_str!("../refusals.txt"),
        &[
            ("pymem_domains::Rejection::NoSuchName", &unknown),
            ("pymem_domains::Rejection::Without", &rejected("pymalloc", Build::Gil, false, true)),
            (
                "pymem_domains::Rejection::OtherBuild",
                &rejected("pymalloc", Build::FreeThreaded, true, true),
            ),
            ("pymem_domains::UnknownAllocator", &unknown),
            (
                "pymem_domains::DomainsError::UnknownAllocator",
                &DomainsError::UnknownAllocator(unknown.clone()),
            ),
            (
                "pymem_domains::ProfileError::FreeThreadedNeedsMimalloc",
                &profile.expect_err("no such interpreter"),
            ),
            ("pymem_domains::OutOfMemory", &OutOfMemory),
            (
                "pymem_domains::SetAllocatorError::AfterFirstAllocation",
                &S::AfterFirstAllocation { domain },
            ),
            (
                "pymem_domains::SetAllocatorError::WrongDomain",
                &S::WrongDomain { domain, owner: Domain::Mem },
            ),
            ("pymem_domains::SetAllocatorError::Options", &options),
            ("pymem_domains::DomainsError::Unavailable", &unavailable()),
            ("pymem_domains::DomainsError::Hooks", &DomainsError::Hooks(options)),
            ("pymem_domains::GlobalError::AlreadyConfigured", &configured),
            ("pymem_domains::GlobalError::Domains", &GlobalError::Domains(unavailable())),
        ],
    );
}
