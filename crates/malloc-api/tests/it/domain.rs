//! The domains' numbers, letters and names, and the numbers of release levels.

use malloc_api::{Domain, ReleaseLevel, UnknownDomain};
use rstest::rstest;

#[rstest]
#[case(Domain::Raw, 0, b'r', "raw")]
#[case(Domain::Mem, 1, b'm', "mem")]
#[case(Domain::Obj, 2, b'o', "obj")]
fn a_domain_is_known_by_number_letter_and_name(
    #[case] domain: Domain,
    #[case] number: i64,
    #[case] letter: u8,
    #[case] name: &str,
) {
    assert_eq!(Domain::try_from(number), Ok(domain));
    assert_eq!(Domain::ALL[domain.index()], domain);
    assert_eq!((domain.letter(), domain.name()), (letter, name));
    assert_eq!(format!("{domain:>5}"), format!("  {name}"));
}

#[test]
fn no_other_letter_or_number_names_a_domain() {
    let known = (0..=255).filter_map(Domain::from_letter);
    assert!(known.eq([Domain::Mem, Domain::Obj, Domain::Raw]));
    for number in [i64::MIN, -1, 3, 256, i64::MAX] {
        assert_eq!(Domain::try_from(number), Err(UnknownDomain(number)));
    }
}

#[rstest]
#[case(i32::MIN, ReleaseLevel::Arenas)]
#[case(0, ReleaseLevel::Arenas)]
#[case(1, ReleaseLevel::Pools)]
#[case(2, ReleaseLevel::Pages)]
#[case(i32::MAX, ReleaseLevel::Pages)]
fn every_number_is_a_level(#[case] number: i32, #[case] level: ReleaseLevel) {
    assert_eq!(ReleaseLevel::from_number(number), level);
}
