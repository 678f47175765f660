//! Sites of allocation and free: native frames, and the host's.

use std::cell::Cell;
use std::ptr::NonNull;

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{
    DebugHooks, Domain, Host, HostStacks, LiveBlocks, LiveGroup, Site, Violation, ViolationKind,
};
use rstest::rstest;

use crate::support::{COLLECTING, Hooks, hooks_of, options, seen};

thread_local! {
    static LINE: Cell<u32> = const { Cell::new(0) };
}

/// A host whose program has two frames, and whose stacks are known by the line of the inner one. Above line 100 outer frames that
/// nobody is shown tell stacks apart.
static STACKS: HostStacks = HostStacks {
    current: || Some(LINE.get()),
    show: |line, out| {
        out.frame("/tmp/a\"ä.py", line, Some("inner"));
        out.frame("b.py", 7, None);
    },
    alike: |line| line % 100,
};

const PYTHON: Host = COLLECTING.with_stacks(&STACKS);

#[inline(never)]
fn allocate_here(hooks: &Hooks) -> *mut u8 {
    hooks.malloc(10).unwrap().as_ptr()
}

#[test]
fn both_sites_of_a_use_after_free() {
    let hooks = hooks_of(PYTHON, Domain::Mem, "backtrace=4,quarantine");
    LINE.set(11);
    let p = allocate_here(&hooks);
    LINE.set(12);
    // SAFETY: live; the quarantine keeps it.
    unsafe { hooks.free(NonNull::new(p)) };
    // SAFETY: a planted bug, into a held block.
    unsafe { p.write(0) };
    hooks.release_quarantine();
    let seen = seen();
    assert_eq!(seen.len(), 1);
    assert!(matches!(seen[0].kind(), ViolationKind::UseAfterFree { offset: 0, .. }));
    let text = seen[0].to_string();
    let frames = |line| {
        format!("  File \"/tmp/a\"\\xe4.py\", line {line}, in inner\n  File \"b.py\", line 7\n\n")
    };
    let allocated = format!("Memory block allocated by (most recent call first):\n{}", frames(11));
    let freed = format!("Memory block freed by (most recent call first):\n{}", frames(12));
    assert!(text.contains(&allocated), "{text}");
    assert!(text.contains(&freed), "{text}");
}

#[test]
fn one_line_is_one_site() {
    let hooks = hooks_of(PYTHON, Domain::Mem, "backtrace=6,quarantine");
    let site = |line| {
        LINE.set(line);
        let p = allocate_here(&hooks);
        // SAFETY: live.
        unsafe { hooks.free(NonNull::new(p)) };
        // SAFETY: a planted bug: both sites are in its report.
        unsafe { hooks.free(NonNull::new(p)) };
        let seen = seen();
        assert_eq!(seen.len(), 1);
        seen[0].allocated().unwrap()
    };
    let sites: Vec<_> = [1, 2, 1].into_iter().map(site).collect();
    assert_eq!(sites[0], sites[2]);
    assert_ne!(sites[0], sites[1]);
}

/// Where a host shows frames, native ones are kept on request alone, and of a thread without frames in any case.
#[rstest]
#[case::of_the_host("backtrace=4", 3, (2, false))]
#[case::both("native", 3, (2, true))]
#[case::both_of_sixteen("native,backtrace=16", 3, (2, true))]
#[case::no_frames("backtrace=4", 0, (0, true))]
fn native_frames_stand_behind_those_of_the_host(
    #[case] options: &str,
    #[case] line: u32,
    #[case] expected: (usize, bool),
) {
    let hooks = hooks_of(PYTHON, Domain::Mem, options);
    LINE.set(line);
    let p = allocate_here(&hooks);
    // SAFETY: a planted bug: one byte past the end.
    unsafe { p.wrapping_add(10).write(0) };
    // SAFETY: live.
    unsafe { hooks.free(NonNull::new(p)) };
    let text = seen()[0].allocated().unwrap().to_string();
    let of_host = text.lines().take_while(|line| line.starts_with("  File \"")).count();
    let native = text.lines().skip(of_host).collect::<Vec<_>>();
    assert!(native.iter().all(|line| line.starts_with("  0x")), "{text}");
    assert_eq!((of_host, !native.is_empty()), expected, "{text}");
}

/// The line that allocated the block of which a violation is.
fn allocated_in(violation: &Violation) -> Option<u32> {
    let text = violation.allocated()?.to_string();
    text.split("line ").nth(1)?.split(',').next()?.parse().ok()
}

/// A block says itself where it was allocated, whatever else stands behind its data; a registry knows it besides.
#[rstest]
fn a_damaged_block_says_where_it_was_allocated(
    #[values(
        "backtrace=4",
        "backtrace=4,serial",
        "backtrace=4,full_erase",
        "registry,backtrace=4"
    )]
    options: &str,
    #[values(0, 1, 7, 100, 5000)] size: usize,
) {
    let hooks = hooks_of(PYTHON, Domain::Mem, options);
    let at = |line| LINE.set(line);
    let first = (at(21), hooks.malloc(size)).1;
    let zeroed = (at(22), hooks.calloc(1, size)).1;
    let moved = (at(23), hooks.malloc(3 * size)).1;
    at(24);
    // SAFETY: live, and not used again.
    let moved = unsafe { hooks.realloc(moved, size) };
    for (block, line, offset) in [(first, 21, 0), (zeroed, 22, 7), (moved, 24, -8)] {
        let at_end = if offset < 0 { 0 } else { size };
        let place = block.unwrap().as_ptr().wrapping_add(at_end).wrapping_offset(offset);
        // SAFETY: a planted bug: a byte of the guard, or of the id before the data.
        let whole = unsafe { place.replace(0x55) };
        // SAFETY: live; the block is kept.
        unsafe { hooks.free(block) };
        assert_eq!(seen().iter().map(allocated_in).collect::<Vec<_>>(), [Some(line)]);
        // SAFETY: as above.
        unsafe { place.write(whole) };
        // SAFETY: live, and not used again.
        unsafe { hooks.free(block) };
    }
    assert!(seen().is_empty());
}

/// Writes past the guard and into the site.
fn overwrite(_: &Hooks, block: *mut u8) -> Option<NonNull<u8>> {
    // SAFETY: a planted bug; the hooks reject the block, so that nobody has it afterwards.
    unsafe { block.wrapping_add(10).write_bytes(1, 10) };
    NonNull::new(block)
}

/// Copies all of the block with its header to another place, and spoils the copy's guard.
fn copy(hooks: &Hooks, block: *mut u8) -> Option<NonNull<u8>> {
    let to = hooks.malloc(100)?;
    // SAFETY: the whole of the block, into a larger one.
    unsafe { to.as_ptr().copy_from_nonoverlapping(block.wrapping_sub(16), 42) };
    // SAFETY: within the copy.
    unsafe { to.as_ptr().wrapping_add(26).write(1) };
    NonNull::new(to.as_ptr().wrapping_add(16))
}

/// A report has no site rather than a wrong one.
#[rstest]
#[case(overwrite)]
#[case(copy)]
fn what_is_no_site_any_more_is_none(#[case] spoil: fn(&Hooks, *mut u8) -> Option<NonNull<u8>>) {
    let hooks = hooks_of(PYTHON, Domain::Mem, "backtrace=4");
    LINE.set(31);
    let spoiled = spoil(&hooks, allocate_here(&hooks));
    // SAFETY: a planted bug: the hooks reject the pointer.
    unsafe { hooks.free(spoiled) };
    assert_eq!(seen().iter().map(allocated_in).collect::<Vec<_>>(), [None]);
}

/// Stacks that differ in frames that are not shown are one group of leaks.
#[test]
fn a_host_is_asked_which_stacks_are_alike() {
    let hooks = hooks_of(PYTHON, Domain::Obj, "registry,backtrace=4");
    let live: Vec<_> = [142, 242, 342].map(|line| (LINE.set(line), hooks.malloc(4321)).1).into();
    let of_these = |group: &LiveGroup| group.bytes == 3 * 4321;
    assert_eq!(LiveBlocks::now().groups().filter(of_these).count(), 1, "{}", LiveBlocks::now());
    for block in live {
        // SAFETY: live, and not used again.
        unsafe { hooks.free(block) };
    }
}

/// The return addresses of a site's native frames.
fn addresses(site: &Site) -> Vec<usize> {
    let text = site.to_string();
    let frames = text.lines().filter_map(|line| line.trim().strip_prefix("0x"));
    let frames = frames.map(|line| line.split(' ').next().unwrap());
    frames.map(|frame| usize::from_str_radix(frame, 16).unwrap()).collect()
}

/// The first native frame is that of the caller: the hooks' own are left out. Without optimisation the method of the
/// trait has a frame of its own, which is inlined otherwise.
#[test]
fn backtraces_begin_with_the_caller() {
    #[inline(never)]
    fn make(hooks: &DebugHooks<LibcMalloc>) -> NonNull<u8> {
        std::hint::black_box(hooks.malloc(3)).unwrap()
    }
    #[inline(never)]
    fn resize(hooks: &DebugHooks<LibcMalloc>, p: NonNull<u8>) -> NonNull<u8> {
        // SAFETY: live, and not used again.
        std::hint::black_box(unsafe { hooks.realloc(Some(p), 4) }).unwrap()
    }
    #[inline(never)]
    fn give(hooks: &DebugHooks<LibcMalloc>, p: NonNull<u8>) -> usize {
        // SAFETY: live at first; then a planted bug.
        unsafe { hooks.free(Some(p)) };
        std::hint::black_box(1)
    }
    fn calls(site: &Site, function: usize) -> Vec<bool> {
        let at = addresses(site).into_iter().take(2);
        at.map(|at| (function..function + 512).contains(&at)).collect()
    }
    let begins = |site: Option<Site>, function: usize| {
        let calls = calls(&site.unwrap(), function);
        assert!(calls[0] || cfg!(debug_assertions) && calls[1], "{function:#x}: {}", site.unwrap());
    };
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_host(COLLECTING);
    let hooks = hooks.with_options(&options("backtrace=8,quarantine")).unwrap();
    let violation = |p: NonNull<u8>| {
        give(&hooks, p);
        give(&hooks, p);
        let seen = seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].kind(), ViolationKind::DoubleFree);
        (seen[0].allocated(), seen[0].freed())
    };
    let (allocated, freed) = violation(make(&hooks));
    begins(allocated, make as *const () as usize);
    begins(freed, give as *const () as usize);
    let (allocated, _) = violation(resize(&hooks, make(&hooks)));
    begins(allocated, resize as *const () as usize);
}

/// The function that allocated is named, where names are known.
#[cfg(feature = "backtrace")]
#[test]
fn names_of_rust_functions() {
    let hooks = hooks_of(COLLECTING, Domain::Mem, "backtrace=16");
    let p = allocate_here(&hooks);
    // SAFETY: a planted bug: one byte past the end.
    unsafe { p.wrapping_add(10).write(0) };
    // SAFETY: live.
    unsafe { hooks.free(NonNull::new(p)) };
    let text = seen()[0].to_string();
    assert!(text.contains("allocate_here"), "{text}");
    assert!(text.contains("sites.rs:"), "{text}");
}

/// A supplier that allocates from the hooks is not asked again for that.
#[test]
fn a_supplier_may_allocate() {
    static HOOKS: DebugHooks<LibcMalloc> =
        DebugHooks::new(LibcMalloc, Domain::Raw).with_host(Host::new().with_stacks(&GREEDY));
    static GREEDY: HostStacks = HostStacks {
        current: || {
            if LINE.replace(1) == 1 {
                return None;
            }
            let p = HOOKS.malloc(64);
            // SAFETY: live, and not used again.
            unsafe { HOOKS.free(p) };
            LINE.set(0);
            Some(1)
        },
        show: |_, out| out.frame("greedy.py", 1, None),
        alike: |stack| stack,
    };
    // SAFETY: 1: no block yet, no other thread.
    unsafe { HOOKS.configure(&options("backtrace=2,quarantine")) }.unwrap();
    let p = HOOKS.malloc(5);
    // SAFETY: live, and not used again.
    unsafe { HOOKS.free(p) };
    assert_eq!(HOOKS.quarantined().1, 3);
    // SAFETY: 1: no block is live.
    let again = unsafe { HOOKS.configure(&options("registry")) };
    assert_eq!(again, Err(memdebug::ConfigureError::AlreadySet));
}

/// A violation says where its own call came from, that of a thread that must not call included, without `backtrace` too.
#[test]
fn the_reported_call_has_a_backtrace() {
    #[inline(never)]
    fn give(hooks: &Hooks, p: Option<NonNull<u8>>) -> usize {
        // SAFETY: live at first; then a planted bug.
        unsafe { hooks.free(p) };
        std::hint::black_box(1)
    }
    for text in ["", "serial", "strict", "guard=1/1", "backtrace=8", "backtrace=8,guard=1/1"] {
        let hooks = hooks_of(COLLECTING, Domain::Mem, text);
        let p = hooks.malloc(64);
        give(&hooks, p);
        give(&hooks, p);
        let p = crate::support::without_gil(|| hooks.malloc(8));
        // SAFETY: live, and not used again.
        unsafe { hooks.free(p) };
        let seen = seen();
        assert_eq!(seen.len(), 2, "{text}");
        let function = give as *const () as usize;
        let frames = addresses(&seen[0].caller().unwrap());
        let at = frames.iter().position(|at| (function..function + 512).contains(at));
        // Without optimisation the hooks' own functions have frames that are inlined otherwise.
        assert!(at.is_some_and(|at| at == 0 || cfg!(debug_assertions) && at < 8), "{text}: {at:?}");
        assert!(seen[1].caller().is_some(), "{text}");
        assert!(!seen[0].to_string().contains("Reported call"), "{text}: CPython's words alone");
    }
}
