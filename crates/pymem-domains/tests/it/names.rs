//! What `PYTHONMALLOC` accepts, what wins over what, and the text for a name that is not accepted.

use pymem_domains::{
    AllocatorName as N, Backend, Build, Preconfig, Profile, ProfileError, Rejection,
    UNKNOWN_ALLOCATOR_TEXT, Version,
};
use rstest::rstest;

fn profile(build: Build, pymalloc: bool, mimalloc: bool) -> Profile {
    Profile::new(Version::V3_13, build, pymalloc, mimalloc, false).unwrap()
}

#[test]
fn a_profile_keeps_what_it_was_told() {
    let plain = profile(Build::Gil, true, true);
    assert_eq!(
        (plain.version(), plain.sanitizer(), plain.huge_pages()),
        (Version::V3_13, false, false)
    );
    let other = plain.with_version(Version::V3_15).with_sanitizer(true).with_huge_pages(true);
    assert_eq!(
        (other.version(), other.sanitizer(), other.huge_pages()),
        (Version::V3_15, true, true)
    );
    assert_eq!(
        other.with_version(Version::V3_13).with_sanitizer(false).with_huge_pages(false),
        plain
    );
}

#[test]
fn a_name_of_the_other_build_is_told_those_that_this_build_takes() {
    let error = N::parse("malloc", &profile(Build::FreeThreaded, true, true)).unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with(" takes only default, debug, mimalloc or mimalloc_debug"), "{text}");
}

#[rstest]
#[case::unset("", None)]
#[case("default", Some(N::Default))]
#[case("debug", Some(N::Debug))]
#[case("malloc", Some(N::Malloc))]
#[case("malloc_debug", Some(N::MallocDebug))]
#[case("pymalloc", Some(N::Pymalloc))]
#[case("pymalloc_debug", Some(N::PymallocDebug))]
#[case("mimalloc", Some(N::Mimalloc))]
#[case("mimalloc_debug", Some(N::MimallocDebug))]
fn a_full_gil_build_accepts_every_name(#[case] value: &str, #[case] name: Option<N>) {
    assert_eq!(N::parse(value, &profile(Build::Gil, true, true)), Ok(name));
    if let Some(name) = name {
        assert_eq!((value.parse(), name.to_string().as_str()), (Ok(name), value));
    }
}

#[rstest]
#[case::case("Malloc")]
#[case::trailing_space("malloc ")]
#[case::leading_space(" malloc")]
#[case::space(" ")]
#[case::prefix("mall")]
#[case::longer("malloc_debug2")]
#[case::closing_nul("malloc\0")]
#[case::dash("malloc-debug")]
#[case::foo("foo")]
fn names_are_matched_whole_and_by_case(#[case] value: &str) {
    for build in [Build::Gil, Build::FreeThreaded] {
        let error = N::parse(value, &profile(build, true, true)).unwrap_err();
        assert_eq!((error.value(), error.reason()), (value, Rejection::NoSuchName));
        assert_eq!(value.parse::<N>(), Err(error));
    }
}

#[test]
fn bytes_that_are_not_text_are_no_name() {
    let error = N::parse(b"malloc\xff", &Profile::NEWEST).unwrap_err();
    assert_eq!(error.value(), "malloc\u{fffd}");
    assert_eq!(
        error.to_string(),
        "unknown allocator \"malloc\u{fffd}\": expected default, debug, malloc, malloc_debug, pymalloc, \
         pymalloc_debug, mimalloc or mimalloc_debug"
    );
}

#[rstest]
#[case(N::Default, None, None, None)]
#[case(N::Debug, None, None, None)]
#[case(N::Malloc, None, None, Some(Rejection::OtherBuild(Build::FreeThreaded)))]
#[case(N::MallocDebug, None, None, Some(Rejection::OtherBuild(Build::FreeThreaded)))]
#[case(
    N::Pymalloc,
    Some(Rejection::Without(Backend::Pymalloc)),
    None,
    Some(Rejection::OtherBuild(Build::FreeThreaded))
)]
#[case(
    N::PymallocDebug,
    Some(Rejection::Without(Backend::Pymalloc)),
    None,
    Some(Rejection::OtherBuild(Build::FreeThreaded))
)]
#[case(N::Mimalloc, None, Some(Rejection::Without(Backend::Mimalloc)), None)]
#[case(N::MimallocDebug, None, Some(Rejection::Without(Backend::Mimalloc)), None)]
fn builds_reject_what_they_lack(
    #[case] name: N,
    #[case] without_pymalloc: Option<Rejection>,
    #[case] without_mimalloc: Option<Rejection>,
    #[case] free_threaded: Option<Rejection>,
) {
    for (profile, rejection) in [
        (profile(Build::Gil, true, true), None),
        (profile(Build::Gil, false, true), without_pymalloc),
        (profile(Build::Gil, true, false), without_mimalloc),
        (profile(Build::FreeThreaded, true, true), free_threaded),
        (profile(Build::FreeThreaded, false, true), free_threaded),
    ] {
        assert_eq!(name.row(&profile).err(), rejection, "{profile}");
        let parsed = N::parse(name.as_str(), &profile);
        match rejection {
            None => assert_eq!(parsed, Ok(Some(name))),
            Some(reason) => assert_eq!(parsed.unwrap_err().reason(), reason),
        }
    }
}

#[test]
fn the_fatal_text_is_cpythons() {
    let lines: Vec<&str> = UNKNOWN_ALLOCATOR_TEXT.split('\n').collect();
    assert_eq!(
        lines,
        [
            "Fatal Python error: preconfig_init_allocator: PYTHONMALLOC: unknown allocator",
            "Python runtime state: preinitializing",
            "",
            "",
        ]
    );
}

#[test]
fn a_free_threaded_profile_needs_mimalloc() {
    for version in Version::ALL {
        for (pymalloc, pydebug) in [(false, false), (false, true), (true, false), (true, true)] {
            let result = Profile::new(version, Build::FreeThreaded, pymalloc, false, pydebug);
            assert_eq!(result, Err(ProfileError::FreeThreadedNeedsMimalloc));
        }
    }
    assert_eq!(
        ProfileError::FreeThreadedNeedsMimalloc.to_string(),
        "a free-threaded build requires mimalloc, which serves its mem and obj domains; give `mimalloc: true` or \
         `Build::Gil`"
    );
}

#[rstest]
#[case(0, 99, Version::V3_13)]
#[case(8, 18, Version::V3_13)]
#[case(13, 15, Version::V3_13)]
#[case(14, 0, Version::V3_14)]
#[case(14, 9, Version::V3_14)]
#[case(14, 10, Version::V3_14_10)]
#[case(15, 0, Version::V3_15)]
#[case(99, 0, Version::V3_15)]
fn releases_map_to_tables(#[case] minor: u32, #[case] micro: u32, #[case] version: Version) {
    assert_eq!(Version::from_release(minor, micro), version);
}

const EMPTY: Option<&str> = Some("");

/// The rows of the measured precedence: what the variables and `-X dev` are, whether the environment counts, and the name.
#[rstest]
#[case::nothing(None, None, false, true, Ok(None))]
#[case::by_name(Some("malloc"), None, false, true, Ok(Some(N::Malloc)))]
#[case::empty_is_unset(EMPTY, None, false, true, Ok(None))]
#[case::empty_with_dev(EMPTY, None, true, true, Ok(Some(N::Debug)))]
#[case::devmode_0_is_on(None, Some("0"), false, true, Ok(Some(N::Debug)))]
#[case::devmode_empty_is_off(None, EMPTY, false, true, Ok(None))]
#[case::default_with_dev(Some("default"), None, true, true, Ok(Some(N::Default)))]
#[case::malloc_with_dev(Some("malloc"), None, true, true, Ok(Some(N::Malloc)))]
#[case::ignored_with_dev(Some("malloc"), None, true, false, Ok(Some(N::Debug)))]
#[case::ignored(Some("malloc"), Some("1"), false, false, Ok(None))]
#[case::ignored_unknown(Some("foo"), None, false, false, Ok(None))]
#[case::unknown(Some("foo"), None, false, true, Err("foo"))]
#[case::unknown_beats_dev(Some("foo"), Some("1"), true, true, Err("foo"))]
fn precedence(
    #[case] pythonmalloc: Option<&str>,
    #[case] pythondevmode: Option<&str>,
    #[case] dev_mode: bool,
    #[case] use_environment: bool,
    #[case] expected: Result<Option<N>, &str>,
) {
    let full = profile(Build::Gil, true, true);
    let config = Preconfig {
        allocator: None,
        use_environment,
        pythonmalloc: pythonmalloc.map(str::as_bytes),
        pythondevmode: pythondevmode.map(str::as_bytes),
        dev_mode,
    };
    let chosen = config.choose(&full);
    assert_eq!(chosen.as_ref().map_err(|error| error.value()), expected.as_ref().map_err(|v| *v));
    // The embedder's choice beats all of it, an unknown name included.
    for name in N::ALL {
        let config = Preconfig { allocator: Some(name), ..config };
        assert_eq!(config.choose(&full), Ok(Some(name)));
    }
}
