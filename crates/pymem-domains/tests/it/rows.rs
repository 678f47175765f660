//! Every row of the table as an allocator: the contract of each function, which hooks it carries, what it is called.

use malloc_api::Malloc;
#[cfg(all(feature = "mimalloc", target_os = "linux"))]
use malloc_api::testing::alone;
use malloc_api::testing::conformance;
use malloc_trace::{generate, run_domains};
use pymem_domains::{
    AllocatorName as N, Backend, Build, Domain, Domains, DomainsError, Profile, Version,
};
use rstest::rstest;

/// Whether this build of the crate has what `backend` needs.
fn compiled(backend: Backend) -> bool {
    match backend {
        Backend::Pymalloc => cfg!(feature = "pymalloc"),
        Backend::Mimalloc => cfg!(feature = "mimalloc"),
        Backend::Malloc => true,
    }
}

/// The domains of a row, or the error that names what this build lacks.
fn domains(profile: Profile, name: N) -> Option<Domains> {
    let row = name.row(&profile).ok()?;
    let missing = Domain::ALL.into_iter().find(|domain| !compiled(row.backend(*domain)));
    match (Domains::new(profile, Some(name)), missing) {
        (Ok(domains), None) => Some(domains),
        (Err(error), Some(domain)) => {
            let backend = row.backend(domain);
            assert_eq!(error, DomainsError::Unavailable { domain, backend });
            None
        }
        (result, missing) => panic!("{name} in {profile}: {result:?}, but {missing:?} is missing"),
    }
}

/// The byte that the debug hooks put before a block; 0 when the row has none.
fn api_id(domains: Domains, domain: Domain) -> u8 {
    if !domains.row().debug() {
        return 0;
    }
    let allocator = domains.get(domain);
    let block = allocator.malloc(40).unwrap();
    // SAFETY: the hooks keep 16 bytes before each block, the id in the eighth byte before it.
    let id = unsafe { block.sub(8) };
    // SAFETY: as above.
    let id = unsafe { id.read() };
    // SAFETY: live, of this domain, not used again.
    unsafe { allocator.free(Some(block)) };
    id
}

#[rstest]
fn every_row_keeps_the_contract(
    #[values(Version::V3_13, Version::V3_15)] version: Version,
    #[values(Build::Gil, Build::FreeThreaded)] build: Build,
    #[values(false, true)] pydebug: bool,
) {
    let profile = Profile::new(version, build, true, true, pydebug).unwrap();
    for domains in N::ALL.into_iter().filter_map(|name| domains(profile, name)) {
        // Only `default` depends on it; for the other names a debug build has the rows of a release build.
        let is_new = !pydebug || domains.row().name() == N::Default;
        for domain in Domain::ALL {
            if is_new {
                conformance(&domains.get(domain));
            }
            let id = if domains.row().debug() { domain.letter() } else { 0 };
            assert_eq!(api_id(domains, domain), id);
        }
        assert_eq!(domains.current_name(), Some(domains.row().canonical_name()));
    }
}

#[test]
fn every_row_runs_a_program_over_all_domains() {
    let profile = Profile::new(Version::NEWEST, Build::Gil, true, true, false).unwrap();
    for domains in N::ALL.into_iter().filter_map(|name| domains(profile, name)) {
        let allocators = Domain::ALL.map(|domain| domains.get(domain));
        let ops = generate::random(1, 20_000, 4096);
        run_domains(&ops, allocators.each_ref()).unwrap();
    }
}

#[cfg(all(feature = "mimalloc", target_os = "linux"))]
#[test]
fn mimalloc_asks_for_no_huge_pages() {
    alone("rows::mimalloc_asks_for_no_huge_pages", || {
        for build in [Build::Gil, Build::FreeThreaded] {
            let profile = Profile::new(Version::NEWEST, build, true, true, false).unwrap();
            let obj = Domains::new(profile, Some(N::Mimalloc)).unwrap().get(Domain::Obj);
            let block = obj.malloc(100).unwrap();
            let flags = mapping_flags(block.as_ptr().addr());
            assert!(!flags.split(' ').any(|flag| flag == "hg"), "{build}: {flags}");
            // SAFETY: live, of this domain, not used again.
            unsafe { obj.free(Some(block)) };
        }
    });
}

/// Pools take the reserved huge pages of a system that has some, where the profile says so and nowhere else.
#[test]
#[cfg(all(feature = "pymalloc", target_os = "linux"))]
fn pools_take_reserved_huge_pages_where_the_profile_says_so() {
    let reserved = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let has_some = reserved.trim().parse().is_ok_and(|count: u32| count > 0);
    if !has_some {
        eprintln!("no huge page is reserved (vm.nr_hugepages): there is nothing to take");
    }
    for asks in [false, true] {
        let profile = Profile::NEWEST.with_huge_pages(asks);
        let obj = Domains::new(profile, Some(N::Pymalloc)).unwrap().get(Domain::Obj);
        let block = obj.malloc(100).unwrap();
        let is_reserved = mapping_flags(block.as_ptr().addr()).split(' ').any(|flag| flag == "ht");
        assert_eq!(is_reserved, asks && has_some);
        // SAFETY: live, of this domain, not used again.
        unsafe { obj.free(Some(block)) };
    }
}

/// The line `VmFlags` of the mapping that holds `address`; `hg` in it stands for `MADV_HUGEPAGE`, `ht` for reserved huge pages.
#[cfg(target_os = "linux")]
fn mapping_flags(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let holds = |line: &&str| {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let parse = |text| usize::from_str_radix(text, 16).ok();
        let range = range.and_then(|(start, end)| Some(parse(start)?..parse(end)?));
        range.is_some_and(|range| range.contains(&address))
    };
    let mut lines = maps.lines().skip_while(|line| !holds(line));
    lines.find(|line| line.starts_with("VmFlags:")).unwrap().to_owned()
}

#[test]
fn zero_sizes_and_limits_hold_in_every_domain() {
    let domains = Domains::new(crate::profile(), None).unwrap();
    for domain in Domain::ALL {
        let allocator = domains.get(domain);
        let blocks = [
            allocator.malloc(0),
            allocator.calloc(0, 0),
            allocator.calloc(0, 8),
            allocator.calloc(8, 0),
        ];
        for (index, block) in blocks.iter().enumerate() {
            assert!(block.is_some() && !blocks[..index].contains(block));
        }
        assert_eq!(allocator.malloc(isize::MAX as usize + 1), None);
        assert_eq!(allocator.calloc(isize::MAX as usize / 2 + 1, 2), None);
        assert_eq!(allocator.calloc(usize::MAX, usize::MAX), None);
        for block in blocks {
            // SAFETY: live, of this domain.
            let failed = unsafe { allocator.realloc(block, isize::MAX as usize + 1) };
            assert_eq!(failed, None);
            // SAFETY: a failed realloc leaves the block live; it is not used again.
            unsafe { allocator.free(block) };
        }
    }
}

#[test]
fn domains_live_side_by_side() {
    let one = Domains::new(crate::profile(), None).unwrap();
    let two = Domains::new(crate::profile(), Some(N::Debug)).unwrap();
    let blocks: Vec<_> = Domain::ALL
        .into_iter()
        .flat_map(|domain| [one.get(domain), two.get(domain)])
        .map(|allocator| (allocator, allocator.malloc(64).unwrap()))
        .collect();
    for (allocator, block) in blocks {
        // SAFETY: live, of this allocator, not used again.
        unsafe { allocator.free(Some(block)) };
    }
    assert!(two.row().debug());
}

#[test]
fn default_raw_is_the_c_library_whatever_is_set() {
    for pydebug in [false, true] {
        let profile = Profile::new(Version::NEWEST, Build::Gil, false, false, pydebug).unwrap();
        let domains = Domains::new(profile, None).unwrap();
        let default_raw = domains.default_raw();
        conformance(&default_raw);
        // In a release build it is the very record of the malloc row; in a debug build hooks of its own over it.
        assert_eq!(default_raw == domains.get_allocator(Domain::Raw), !pydebug);
        let other = pymem_domains::AllocatorRecord::leak(malloc_api::testing::Counting::new(
            malloc_api::LibcMalloc,
        ));
        let domains = Domains::new(profile, None).unwrap();
        domains.set_allocator(Domain::Raw, other).unwrap();
        assert_ne!(domains.default_raw(), other);
        conformance(&domains.default_raw());
    }
}
