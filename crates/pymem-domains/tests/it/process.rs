//! The process-wide domains, each time in a process of its own: this test binary, started again.

use std::process::Output;

use malloc_api::Malloc;
use malloc_api::testing::test_process;
use pymem_domains::global::{self, mem, obj, raw};
use pymem_domains::{
    AllocatorName as N, Domain, GlobalError, Preconfig, Profile, UNKNOWN_ALLOCATOR_TEXT,
};
use rstest::rstest;

/// Runs the test `name` of this binary in a new process, with these variables and no others of ours.
pub(crate) fn child(name: &str, variables: &[(&str, &str)]) -> Output {
    test_process(name)
        .env_remove("PYTHONMALLOC")
        .env_remove("PYTHONDEVMODE")
        .env("PYMEM_TEST_CHILD", name)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// Whether this process was started by [`child`] for `name`.
pub(crate) fn is_child(name: &str) -> bool {
    std::env::var_os("PYMEM_TEST_CHILD").is_some_and(|child| child == name)
}

/// [`child`], which must pass its test and say nothing on stderr; what it printed between `<` and `>`.
fn answer(name: &str, variables: &[(&str, &str)]) -> String {
    let output = child(name, variables);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stdout}\n{stderr}");
    stdout.split_once('<').unwrap().1.split_once('>').unwrap().0.to_owned()
}

/// A child: says which row the process-wide domains run.
#[test]
fn child_says_its_row() {
    if !is_child("process::child_says_its_row") {
        return;
    }
    let block = mem::malloc(10);
    // SAFETY: live, of the mem domain, not used again.
    unsafe { mem::free(block) };
    println!("<{}>", global::domains().row().name());
}

#[rstest]
#[case(&[], "default")]
#[case(&[("PYTHONMALLOC", "")], "default")]
#[case(&[("PYTHONMALLOC", "default")], "default")]
#[case(&[("PYTHONMALLOC", "debug")], "debug")]
#[case(&[("PYTHONDEVMODE", "0")], "debug")]
#[case(&[("PYTHONDEVMODE", "")], "default")]
#[case(&[("PYTHONMALLOC", "default"), ("PYTHONDEVMODE", "1")], "default")]
fn the_environment_configures(#[case] variables: &[(&str, &str)], #[case] name: &str) {
    assert_eq!(answer("process::child_says_its_row", variables), name);
}

#[test]
fn every_accepted_name_configures_and_every_other_ends_the_process() {
    for name in N::ALL {
        let variables = [("PYTHONMALLOC", name.as_str())];
        match name.row(&Profile::NEWEST).err() {
            None => assert_eq!(answer("process::child_says_its_row", &variables), name.as_str()),
            Some(_) => ends_with_the_fatal_text(name.as_str()),
        }
    }
    let long = "malloc".repeat(20);
    for value in ["foo", "Malloc", "malloc ", " ", &long] {
        ends_with_the_fatal_text(value);
    }
}

fn ends_with_the_fatal_text(value: &str) {
    let output = child("process::child_says_its_row", &[("PYTHONMALLOC", value)]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), UNKNOWN_ALLOCATOR_TEXT);
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true));
}

/// The runtime has allocated before any test starts, so here every configuration by code comes too late.
#[test]
fn a_second_configuration_is_refused() {
    let name = global::domains().row().name();
    let error = GlobalError::AlreadyConfigured { name };
    assert_eq!(global::configure(Profile::NEWEST, None).unwrap_err(), error);
    let preconfig = Preconfig { allocator: Some(N::Debug), ..Preconfig::default() };
    assert_eq!(global::configure_from_env(Profile::NEWEST, preconfig).unwrap_err(), error);
    assert_eq!(global::domains().row().name(), name);
}

#[test]
fn functions_types_and_handles_are_the_same_domains() {
    let domains = global::domains();
    let blocks = [raw::malloc(100), mem::calloc(10, 10), obj::malloc(100)];
    for (domain, block) in Domain::ALL.into_iter().zip(blocks) {
        // SAFETY: live, of this domain: the handle's and the module's domain are one. The old pointer is not used.
        let block = unsafe { domains.get(domain).realloc(block, 10_000) };
        assert!(block.is_some());
        match domain {
            // SAFETY: live, of the raw domain, not used again.
            Domain::Raw => unsafe { raw::free(block) },
            // SAFETY: live, of the mem domain, not used again.
            Domain::Mem => unsafe { mem::free(block) },
            // SAFETY: live, of the obj domain; the type's domain is the module's. Not used again.
            Domain::Obj => unsafe { global::Obj.free(block) },
        }
    }
}
