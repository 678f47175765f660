//! Owns the list of everything that this library and the crates below it refuse, as a person reads it. Each line is to say
//! what was wrong, what was expected, and what to do.
//!
//! `tests/refusals.txt` is the list; a test of `xtask` compares the variants in the sources with it, since enums that may
//! grow can be matched here without naming every variant.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use malloc_api::testing::Nonconformance;
use malloc_trace::{Fault, LogError, ModelError, Op, OpKind, TraceError};
use mimalloc_heaps::HeapError;
use pymem_domains::{
    AllocatorName, Backend, Build, ConfigureError, Domain, DomainsError, OutOfMemory, Profile,
    RecordError, SetAllocatorError, UnknownAllocator, UnknownDomain, Version,
};

use crate::request::refusal::Refusal;
use crate::service::InstallError;

const LIST: &str = include_str!("../tests/refusals.txt");

/// A name of the list, and what it prints.
type Line = (&'static str, String);

/// What is printed of an error with its causes, as tools print it.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        write!(text, ": {cause}").expect("a string takes it");
        source = cause.source();
    }
    text
}

fn no_such_file() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

fn memdebug() -> Vec<Line> {
    use memdebug::ConfigureError as E;
    let option = "quarantine";
    let word = |text: &str| text.parse::<memdebug::Options>().expect_err("a faulty text");
    vec![
        ("memdebug::ConfigureError::AlreadySet", chain(&E::AlreadySet)),
        ("memdebug::ConfigureError::NoMemory", chain(&E::NoMemory { option })),
        ("memdebug::ConfigureError::TooManyHosts", chain(&E::TooManyHosts)),
        ("memdebug::ConfigureError::FaultHandler", chain(&E::FaultHandler { errno: 12 })),
        ("memdebug::ConfigureError::NeedsHooks", chain(&E::NeedsHooks { option: "strict" })),
        ("memdebug::ConfigureError::Unsupported", chain(&E::Unsupported { option })),
        ("memdebug::ParseOptionsError::UnknownOption", chain(&word("stricct"))),
        ("memdebug::ParseOptionsError::BadValue", chain(&word("guard=1"))),
    ]
}

fn mimalloc_heaps() -> Vec<Line> {
    let version = HeapError::Version { found: 30_200, expected: 30_302 };
    vec![
        ("mimalloc_heaps::HeapError::Version", chain(&version)),
        ("mimalloc_heaps::HeapError::OutOfMemory", chain(&HeapError::OutOfMemory)),
        ("mimalloc_heaps::HeapError::AlreadyAttached", chain(&HeapError::AlreadyAttached)),
        ("mimalloc_heaps::HeapError::ForkHandlers", chain(&HeapError::ForkHandlers { errno: 12 })),
    ]
}

fn traces() -> Vec<Line> {
    use TraceError as E;
    let op = Op::new(OpKind::Malloc, 7, 2, 100);
    let errors = [
        ("malloc_trace::TraceError::BadMagic", E::BadMagic { found: *b"PK\x03\x04\0\0\0\0" }),
        ("malloc_trace::TraceError::TruncatedHeader", E::TruncatedHeader { found: 7 }),
        ("malloc_trace::TraceError::TooManySlots", E::TooManySlots { ops: 3, slots: 4 }),
        ("malloc_trace::TraceError::Truncated", E::Truncated { expected: 10, found: 9 }),
        ("malloc_trace::TraceError::TrailingBytes", E::TrailingBytes { expected: 10 }),
        ("malloc_trace::TraceError::BadDomain", E::BadDomain { index: 5 }),
        ("malloc_trace::TraceError::BadSlot", E::BadSlot { index: 5, slot: 9, slots: 4 }),
        ("malloc_trace::TraceError::Io", E::Io(no_such_file())),
    ];
    let logs = [
        ("malloc_trace::LogError::BadMagic", LogError::BadMagic { found: *b"PYMTRC01" }),
        ("malloc_trace::LogError::TruncatedHead", LogError::TruncatedHead),
        ("malloc_trace::LogError::BadRecord", LogError::BadRecord { index: 5, words: [0, 3] }),
        ("malloc_trace::LogError::TooManyBlocks", LogError::TooManyBlocks),
        ("malloc_trace::LogError::Io", LogError::Io(no_such_file())),
    ];
    let mut lines: Vec<Line> = errors.iter().map(|(name, error)| (*name, chain(error))).collect();
    lines.extend(logs.iter().map(|(name, error)| (*name, chain(error))));
    lines.push(("malloc_trace::OutOfMemory", chain(&malloc_trace::OutOfMemory { op })));
    lines
}

/// What is wrong with an allocator: these end in the report of a test, and what is expected is all that can be said.
fn findings() -> Vec<Line> {
    use Nonconformance as N;
    let (method, size, address, offset) = ("realloc", 100, 0x1008, 7);
    let op = Some(Op::new(OpKind::Calloc, 7, 2, 100));
    let zeros = Fault::NotZeroed { offset, found: 1 };
    let faults = [
        ("malloc_trace::Fault::Misaligned", Fault::Misaligned { address }),
        ("malloc_trace::Fault::Overlap", Fault::Overlap { address, slot: 3, start: 0x1000, size }),
        ("malloc_trace::Fault::NotZeroed", zeros),
        ("malloc_trace::Fault::ContentLost", Fault::ContentLost { offset, kept: 64 }),
        ("malloc_trace::Fault::FailedReallocTouched", Fault::FailedReallocTouched { offset }),
        ("malloc_trace::Fault::Changed", Fault::Changed { slot: 3, size, offset }),
    ];
    let contract = [
        ("malloc_api::Nonconformance::Refused", N::Refused { method, size }),
        ("malloc_api::Nonconformance::Misaligned", N::Misaligned { method, size, address }),
        ("malloc_api::Nonconformance::Overlap", N::Overlap { method, size, address }),
        ("malloc_api::Nonconformance::Oversize", N::Oversize { method, nelem: 2, elsize: 1 << 62 }),
        ("malloc_api::Nonconformance::NotZeroed", N::NotZeroed { size, offset, found: 1 }),
        (
            "malloc_api::Nonconformance::ContentLost",
            N::ContentLost { old_size: 64, new_size: 100, offset },
        ),
        (
            "malloc_api::Nonconformance::FailedReallocTouched",
            N::FailedReallocTouched { old_size: 64, offset },
        ),
        ("malloc_api::Nonconformance::Changed", N::Changed { size, offset }),
    ];
    let mut lines: Vec<Line> = faults.iter().map(|(name, error)| (*name, chain(error))).collect();
    lines.push(("malloc_trace::ModelError", chain(&ModelError { index: 12, op, fault: zeros })));
    lines.extend(contract.iter().map(|(name, error)| (*name, chain(error))));
    lines
}

/// Names of `PYTHONMALLOC` that are not accepted.
fn names() -> Vec<Line> {
    let rejected = |name: &str, build, pymalloc, mimalloc| -> UnknownAllocator {
        let profile = Profile::new(Version::NEWEST, build, pymalloc, mimalloc, false);
        let profile = profile.expect("a profile");
        AllocatorName::parse(name.as_bytes(), &profile).expect_err("a name that is not accepted")
    };
    let cases = [
        ("pymem_domains::Rejection::NoSuchName", rejected("Malloc", Build::Gil, true, true)),
        (
            "pymem_domains::Rejection::WithoutPymalloc",
            rejected("pymalloc", Build::Gil, false, true),
        ),
        (
            "pymem_domains::Rejection::WithoutMimalloc",
            rejected("mimalloc", Build::Gil, true, false),
        ),
        (
            "pymem_domains::Rejection::FreeThreaded",
            rejected("pymalloc", Build::FreeThreaded, true, true),
        ),
    ];
    let mut lines: Vec<Line> = cases.iter().map(|(name, error)| (*name, chain(error))).collect();
    let unknown = cases[0].1.clone();
    lines.push(("pymem_domains::UnknownAllocator", chain(&unknown)));
    lines.push((
        "pymem_domains::DomainsError::UnknownAllocator",
        chain(&DomainsError::UnknownAllocator(unknown)),
    ));
    lines
}

fn domains() -> Vec<Line> {
    let (domain, owner) = (Domain::Obj, Domain::Mem);
    let profile = Profile::new(Version::NEWEST, Build::FreeThreaded, true, false, false);
    let error = memdebug::ConfigureError::NoMemory { option: "quarantine" };
    let options = SetAllocatorError::Options { domain, error };
    let unavailable = DomainsError::Unavailable { domain, backend: Backend::Mimalloc };
    let again = ConfigureError::AlreadyConfigured { name: AllocatorName::Pymalloc };
    vec![
        (
            "pymem_domains::ProfileError::FreeThreadedNeedsMimalloc",
            chain(&profile.expect_err("no such interpreter")),
        ),
        ("malloc_api::RecordError::NullFunction", chain(&RecordError::NullFunction("malloc"))),
        ("malloc_api::RecordError::NotThreadSafe", chain(&RecordError::NotThreadSafe)),
        ("malloc_api::UnknownDomain", chain(&UnknownDomain(3))),
        ("pymem_domains::OutOfMemory", chain(&OutOfMemory)),
        (
            "pymem_domains::SetAllocatorError::AfterFirstAllocation",
            chain(&SetAllocatorError::AfterFirstAllocation { domain }),
        ),
        (
            "pymem_domains::SetAllocatorError::WrongDomain",
            chain(&SetAllocatorError::WrongDomain { domain, owner }),
        ),
        ("pymem_domains::SetAllocatorError::Options", chain(&options)),
        ("pymem_domains::DomainsError::Unavailable", chain(&unavailable)),
        ("pymem_domains::DomainsError::Hooks", chain(&DomainsError::Hooks(options))),
        ("pymem_domains::ConfigureError::AlreadyConfigured", chain(&again)),
        ("pymem_domains::ConfigureError::Domains", chain(&ConfigureError::Domains(unavailable))),
    ]
}

/// The lines on stderr of a process that was to be served.
fn preload() -> Vec<Line> {
    let line = |refusal: Refusal| -> String { refusal.to_string() };
    let install = |error: InstallError| line(Refusal::Install(error));
    let options = "stricct".parse::<memdebug::Options>().expect_err("a faulty text");
    let error = DomainsError::Hooks(SetAllocatorError::Options {
        domain: Domain::Obj,
        error: memdebug::ConfigureError::NoMemory { option: "quarantine" },
    });
    let set = SetAllocatorError::AfterFirstAllocation { domain: Domain::Mem };
    let again = memdebug::ConfigureError::AlreadySet;
    let hooks = memdebug::ConfigureError::NeedsHooks { option: "strict" };
    vec![
        ("pymem_preload::Refusal::Debug", line(Refusal::Debug(options))),
        ("pymem_preload::Refusal::DebugRow", line(Refusal::DebugRow(hooks))),
        ("pymem_preload::Refusal::TraceLimit", line(Refusal::TraceLimit("1M".into()))),
        ("pymem_preload::Refusal::FreeThreaded", line(Refusal::FreeThreaded("pymalloc".into()))),
        ("pymem_preload::Refusal::Install", install(InstallError::NoHeap)),
        (
            "pymem_preload::Refusal::NoHeapMap",
            line(Refusal::NoHeapMap(PathBuf::from("/no/heap.svg"), no_such_file())),
        ),
        ("pymem_preload::InstallError::TooLate", install(InstallError::TooLate)),
        ("pymem_preload::InstallError::Domains", install(InstallError::Domains(error))),
        ("pymem_preload::InstallError::Options", install(InstallError::Options(again))),
        ("pymem_preload::InstallError::Trace", install(InstallError::Trace(no_such_file()))),
        ("pymem_preload::InstallError::NoHeap", install(InstallError::NoHeap)),
        (
            "pymem_preload::InstallError::Heaps",
            install(InstallError::Heaps(HeapError::OutOfMemory)),
        ),
        ("pymem_preload::InstallError::Set", install(InstallError::Set(set))),
        ("pymem_preload::InstallError::Map", install(InstallError::Map(no_such_file()))),
    ]
}

#[test]
fn every_refusal_is_as_it_was_reviewed() {
    let parts = [memdebug(), mimalloc_heaps(), traces(), names(), domains(), preload(), findings()];
    let mut text = String::new();
    for (name, message) in parts.into_iter().flatten() {
        assert!(!message.contains('\n'), "more than a line: {message}");
        writeln!(text, "{name}\n    {message}").expect("a string takes it");
    }
    let reviewed: String = LIST
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(text == reviewed, "review what differs from tests/refusals.txt:\n{text}");
}

/// A message is a part of a sentence, which others put their own words before: it begins small, and has no full stop.
#[test]
fn refusals_have_one_form() {
    for message in LIST.lines().filter_map(|line| line.strip_prefix("    ")) {
        assert!(!message.ends_with('.'), "{message}");
        let first = message.split([' ', ':', '=']).next().unwrap_or_default();
        let is_variable = first.to_uppercase() == first;
        assert!(is_variable || !message.starts_with(char::is_uppercase), "{message}");
    }
}
