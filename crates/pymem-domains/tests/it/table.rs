//! The configuration table against CPython's, cell by cell.

use pymem_domains::{AllocatorName as N, Backend, Build, Domain, Profile, TABLE, Version};
use rstest::rstest;

const LIBC: [Backend; 3] = [Backend::Malloc; 3];
const POOLS: [Backend; 3] = [Backend::Malloc, Backend::Pymalloc, Backend::Pymalloc];
const MI_LIBC_RAW: [Backend; 3] = [Backend::Malloc, Backend::Mimalloc, Backend::Mimalloc];
const MI: [Backend; 3] = [Backend::Mimalloc; 3];

/// Every profile that there can be.
pub(crate) fn every_profile() -> Vec<Profile> {
    let mut profiles = Vec::new();
    for version in Version::ALL {
        for build in [Build::Gil, Build::FreeThreaded] {
            for bits in 0..8_u8 {
                let (pymalloc, mimalloc, pydebug) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                let profile = Profile::new(version, build, pymalloc, mimalloc, pydebug);
                let sanitizer = |profile: Profile| [profile, profile.with_sanitizer(true)];
                profiles.extend(profile.into_iter().flat_map(sanitizer));
            }
        }
    }
    assert_eq!(profiles.len(), Version::ALL.len() * (8 + 4) * 2);
    profiles
}

/// What CPython installs, from its rules rather than from a table: `None` where the name is rejected.
fn expected(profile: &Profile, name: N) -> Option<([Backend; 3], bool)> {
    let mimalloc = if profile.version() >= Version::V3_15 { MI } else { MI_LIBC_RAW };
    let free_threaded = profile.build() == Build::FreeThreaded;
    let base = match name {
        N::Default | N::Debug if free_threaded => mimalloc,
        N::Default | N::Debug if profile.sanitizer() && profile.version() >= Version::V3_15 => LIBC,
        N::Default | N::Debug if profile.pymalloc() => POOLS,
        N::Default | N::Debug => LIBC,
        N::Malloc | N::MallocDebug => (!free_threaded).then_some(LIBC)?,
        N::Pymalloc | N::PymallocDebug => {
            (!free_threaded && profile.pymalloc()).then_some(POOLS)?
        }
        N::Mimalloc | N::MimallocDebug => profile.mimalloc().then_some(mimalloc)?,
    };
    let debug = match name {
        N::Default => profile.pydebug(),
        N::Debug | N::MallocDebug | N::PymallocDebug | N::MimallocDebug => true,
        N::Malloc | N::Pymalloc | N::Mimalloc => false,
    };
    Some((base, debug))
}

#[test]
fn every_cell_is_cpythons() {
    for profile in every_profile() {
        for name in N::ALL {
            let row = name.row(&profile).ok();
            let found = row.map(|row| (Domain::ALL.map(|domain| row.backend(domain)), row.debug()));
            assert_eq!(found, expected(&profile, name), "{name} in {profile}");
        }
    }
}

#[test]
fn exactly_one_row_applies_to_an_accepted_name() {
    for profile in every_profile() {
        for name in N::ALL {
            let rows = TABLE.iter().filter(|row| row.name() == name && row.applies_to(&profile));
            let wanted = usize::from(expected(&profile, name).is_some());
            assert_eq!(rows.count(), wanted, "{name} in {profile}");
        }
    }
}

#[test]
fn every_row_applies_to_some_profile() {
    for row in TABLE {
        assert!(every_profile().iter().any(|profile| row.applies_to(profile)), "{row:?}");
    }
}

#[test]
fn the_canonical_name_selects_the_same_allocators() {
    for profile in every_profile() {
        for name in N::ALL {
            let Ok(row) = name.row(&profile) else { continue };
            let canonical = row.canonical_name().row(&profile).unwrap();
            for domain in Domain::ALL {
                assert_eq!(canonical.serves(domain), row.serves(domain), "{name} in {profile}");
            }
        }
    }
}

/// The six default configurations as the documentation prints them.
#[rstest]
#[case(Build::Gil, true, false, "pymalloc", "malloc", "pymalloc")]
#[case(Build::Gil, true, true, "pymalloc_debug", "malloc + debug", "pymalloc + debug")]
#[case(Build::Gil, false, false, "malloc", "malloc", "malloc")]
#[case(Build::Gil, false, true, "malloc_debug", "malloc + debug", "malloc + debug")]
#[case(Build::FreeThreaded, true, false, "mimalloc", "mimalloc", "mimalloc")]
#[case(Build::FreeThreaded, true, true, "mimalloc_debug", "mimalloc + debug", "mimalloc + debug")]
fn defaults(
    #[case] build: Build,
    #[case] pymalloc: bool,
    #[case] pydebug: bool,
    #[case] name: &str,
    #[case] raw: &str,
    #[case] others: &str,
) {
    let profile = Profile::new(Version::NEWEST, build, pymalloc, true, pydebug).unwrap();
    let row = N::Default.row(&profile).unwrap();
    assert_eq!(row.canonical_name().as_str(), name);
    assert_eq!(Domain::ALL.map(|domain| row.serves(domain)), [raw, others, others]);
}

/// A row for builds with pymalloc serves no build without it, and the other way round.
#[test]
fn rows_say_whether_they_are_for_builds_with_pymalloc() {
    for (pymalloc, backend) in [(true, Backend::Pymalloc), (false, Backend::Malloc)] {
        let profile = Profile::new(Version::V3_13, Build::Gil, pymalloc, true, false).unwrap();
        let is_default =
            |row: &&pymem_domains::Row| row.name() == N::Default && row.applies_to(&profile);
        let row = TABLE.iter().find(is_default).unwrap();
        assert_eq!((row.pymalloc(), row.backend(Domain::Obj)), (Some(pymalloc), backend));
    }
}
